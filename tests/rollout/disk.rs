//! A disk that is full: nothing is begun that could not be remembered, and the message says so.

use crate::app::{App, Knocking};
use crate::harness::SmallDisk;

#[test]
fn docker_a_full_disk_stops_a_rollout_before_it_begins() {
    let app = App::new("full");
    let at = app.root.path("");
    let disk = SmallDisk::mount(&at);
    app.root.write(".env", "ITSUP_ACCESS_LOG=off\n");
    let itsup = app.start(&[]);
    let before = app.containers();
    app.write(2, &[]);
    let knocking = Knocking::start(&itsup, &app);
    disk.fill();
    let failed = app.apply(&itsup);
    let said = format!("{}{}", failed.stdout, failed.stderr);
    assert_eq!(failed.code, Some(1), "{said}");
    assert!(said.contains("No space left"), "{said}");
    assert_eq!(app.containers(), before);
    disk.empty();
    knocking.all_well();
    app.apply(&itsup).ok();
    app.settled(&itsup, 2);
    drop(itsup);
    drop(disk);
}
