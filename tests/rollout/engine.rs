//! The engine goes away in the middle of a rollout and comes back: that is waited out.

use crate::app::{App, Knocking};
use crate::harness::{Engine, PATIENCE, eventually, testd_image};

#[test]
fn docker_an_engine_that_restarts_in_the_middle_of_a_rollout_is_waited_out() {
    let image = testd_image();
    let engine = Engine::start_with(&image);
    let app = App { image, ..App::new("engine") };
    let itsup = app.start(&[]);
    let first = app.containers();
    let knocking = Knocking::start(&itsup, &app);
    // Time enough between its start and its readiness.
    app.write(2, &[("TESTD_START_DELAY", "6s")]);
    let applying = app.applying();
    eventually("the new container", || (app.containers().len() == 2).then_some(()));
    engine.stop();
    eventually("itsup sees that it is gone", || (itsup.status()["docker"]["state"] == "away").then_some(()));
    assert_eq!(app.version(&itsup), Some(1), "routes stay");
    engine.start();
    applying.finish(PATIENCE * 2).ok();
    knocking.all_well();
    app.settled(&itsup, 2);
    assert!(app.containers().is_disjoint(&first));
    drop(itsup);
    drop(app);
    drop(engine);
}
