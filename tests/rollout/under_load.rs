//! Rollouts under load lose nothing, whatever the application does; a restart in place is not seen as an error either.

use crate::app::{App, Traffic};

/// Two rollouts under load, which lose nothing.
fn rolls_over_under_load(app: &App, environment: &[(&str, &str)]) {
    let itsup = app.start(environment);
    let traffic = Traffic::start(app, &itsup);
    let first = app.containers();
    for version in 2..4 {
        app.write(version, environment);
        let done = app.apply(&itsup).ok();
        assert_eq!(app.version(&itsup), Some(version), "{}", done.stdout);
    }
    let report = traffic.lost_nothing(&itsup);
    // A promise about the proxy, with room for a machine that is busy with other things.
    assert!(report["longest_gap_ms"].as_f64().unwrap() < 2_000.0, "{report}");
    app.settled(&itsup, 3);
    assert!(app.containers().is_disjoint(&first));
    let receipts = app.receipts();
    let last = receipts.last().unwrap();
    assert_eq!((&last["result"], &last["requests"]["failed"]), (&"done".into(), &0.into()), "{last}");
    assert!(last["requests"]["served"].as_u64().unwrap() > 10, "{last}");
    assert_eq!(last["new"].as_array().unwrap().len(), app.replicas);
}

#[test]
fn docker_rollouts_under_load_lose_nothing_of_a_graceful_app_with_a_health_check() {
    rolls_over_under_load(&App::new("graceful").with_health(), &[]);
}

#[test]
fn docker_rollouts_under_load_lose_nothing_of_an_app_that_dies_at_sigterm() {
    rolls_over_under_load(&App::new("dies"), &[("TESTD_ON_TERM", "die")]);
}

#[test]
fn docker_rollouts_under_load_lose_nothing_of_an_app_that_ignores_sigterm() {
    let app = App { service: "        compose: { stop_grace_period: 1s }\n", ..App::new("ignores") };
    rolls_over_under_load(&app, &[("TESTD_ON_TERM", "ignore")]);
}

#[test]
fn docker_rollouts_under_load_lose_nothing_of_an_app_that_starts_late() {
    rolls_over_under_load(&App::new("late"), &[("TESTD_START_DELAY", "2s"), ("TESTD_ON_TERM", "die")]);
}

#[test]
fn docker_rollouts_under_load_lose_nothing_of_three_replicas() {
    rolls_over_under_load(&App { replicas: 3, ..App::new("three").with_health() }, &[]);
}

/// Nobody may run beside it, so requests wait while it restarts: they are late, and none is lost.
#[test]
fn docker_a_restart_in_place_under_load_is_not_seen_as_an_error() {
    let service = "        rollout: { strategy: recreate, watch: 1s, timeout: 20s }\n";
    let app = App { service, ..App::new("hold") };
    let itsup = app.start(&[("TESTD_START_DELAY", "500ms")]);
    let first = app.containers();
    let traffic = Traffic::of_requests(&app, &itsup);
    for version in 2..4 {
        app.write(version, &[("TESTD_START_DELAY", "500ms")]);
        let plan = itsup.cli(&["plan"]).ok().stdout;
        assert!(plan.contains("recreate in place") && plan.contains("requests held"), "{plan}");
        // The first restart has told how long one takes.
        assert_eq!(plan.contains("requests held about"), version == 3, "{plan}");
        app.apply(&itsup).ok();
        assert_eq!(app.version(&itsup), Some(version));
    }
    traffic.lost_nothing(&itsup);
    app.settled(&itsup, 3);
    assert!(app.containers().is_disjoint(&first));
    let receipts = app.receipts();
    let last = receipts.last().unwrap();
    let requests = &last["requests"];
    assert_eq!((&last["result"], &last["in_place"], &requests["failed"]), (&"done".into(), &true.into(), &0.into()));
    assert!(requests["held"].as_u64().unwrap() > 0, "{last}");
    assert!(requests["longest_wait"].as_f64().unwrap() > 0.4, "{last}");
}
