//! itsUP is killed at every step of a change, as `control/src/change/fault.rs` has them; the next start settles by itself.

use crate::app::App;
use crate::harness::{Itsup, PATIENCE};

/// The steps of a rollout, and the version that serves in the end.
const FORTH: [(&str, u32); 11] = [
    ("journaled", 1),
    ("starting", 1),
    ("started", 1),
    ("ready", 1),
    ("switched", 2),
    ("published", 2),
    ("watched", 2),
    ("committed", 2),
    ("drained", 2),
    ("stopped", 2),
    ("removed", 2),
];
const BACK: [(&str, u32); 4] = [("undoing", 1), ("reverted", 1), ("stopped", 1), ("undone", 1)];

/// Kills itsUP at a step of a rollout; the next start settles by itself.
fn is_killed_at(app: &App, step: &str, environment: &[(&str, &str)], wanted: u32) {
    app.write(1, &[]);
    let itsup = app.itsup();
    app.apply(&itsup).ok();
    app.settled(&itsup, 1);
    itsup.stop();
    let mut itsup = Itsup::on(&app.root).docker().env("ITSUP_FAULT", step).start();
    app.write(2, environment);
    let applying = app.applying();
    itsup.wait_exit(PATIENCE);
    let itsup = app.itsup();
    let status = itsup.get(&app.url()).status;
    assert_eq!(status, 200, "{step}: from the first moment somebody serves");
    let told = applying.finish(PATIENCE);
    assert_eq!(told.code, Some(1), "{step}: {}{}", told.stdout, told.stderr);
    app.settled(&itsup, wanted);
    itsup.stop();
}

#[test]
fn docker_kill_9_before_the_switch_is_undone() {
    let app = App::new("killa");
    for (step, wanted) in &FORTH[..4] {
        is_killed_at(&app, step, &[], *wanted);
    }
}

#[test]
fn docker_kill_9_after_the_switch_is_finished() {
    let app = App::new("killb");
    for (step, wanted) in &FORTH[4..] {
        is_killed_at(&app, step, &[], *wanted);
    }
}

#[test]
fn docker_kill_9_on_the_way_back_is_undone_to_the_end() {
    let app = App::new("killc");
    for (step, wanted) in BACK {
        is_killed_at(&app, step, &[("TESTD_CRASH_AFTER", "0ms")], wanted);
    }
}

/// In place there is no way back: wherever it is killed, the next start asks compose once more.
#[test]
fn docker_kill_9_in_the_middle_of_a_restart_in_place_is_finished() {
    let app =
        App { service: "        rollout: { strategy: recreate, watch: 1s, timeout: 20s }\n", ..App::new("killd") };
    for step in ["held", "emptied", "started", "released"] {
        is_killed_at(&app, step, &[], 2);
    }
}
