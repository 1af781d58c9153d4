//! A container is not stopped while an older process, after an upgrade, still has something under way on it.

use crate::app::App;
use crate::harness::{PATIENCE, eventually, read_answer};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn docker_no_container_is_stopped_while_an_older_process_uses_it() {
    let app = App::new("elder");
    let itsup = app.start(&[]);
    let first = app.containers();
    let mut slow = app.ask_slowly(&itsup, 8_000);
    let report = itsup.cli(&["--json", "upgrade"]).ok().json();
    let successor = Pid::from_raw(i32::try_from(report["pid"].as_i64().unwrap()).unwrap());
    app.write(2, &[]);
    let applying = app.applying();
    eventually("the switch", || (app.version(&itsup) == Some(2)).then_some(()));
    let answer = read_answer(&mut slow, "GET");
    assert_eq!((answer.status, answer.json()["version"].as_str()), (200, Some("1")), "by the container that began it");
    drop(slow);
    applying.finish(PATIENCE).ok();
    app.settled(&itsup, 2);
    assert!(app.containers().is_disjoint(&first));
    let _ = kill(successor, Signal::SIGKILL);
}
