//! Whatever is wrong with a new version, the old one serves on, and the message says what happened.

use crate::app::{App, Knocking};
use crate::harness::{Child, Finished, PATIENCE, eventually};
use nix::sys::signal::Signal;

/// A new version that fails before the switch: the old one serves throughout, and the message says why.
fn fails_and_changes_nothing(app: &App, environment: &[(&str, &str)], why: &str) -> Finished {
    let itsup = app.start(&[]);
    let before = app.containers();
    let knocking = Knocking::start(&itsup, app);
    app.write(2, environment);
    let failed = app.apply(&itsup);
    knocking.all_well();
    let said = format!("{}{}", failed.stdout, failed.stderr);
    assert_eq!(failed.code, Some(1), "{said}");
    assert!(said.contains(why), "`{why}` is not in:\n{said}");
    assert_eq!(app.containers(), before, "the very same containers");
    app.settled(&itsup, 1);
    // And it is no obstacle to the next.
    app.write(3, &[]);
    app.apply(&itsup).ok();
    app.settled(&itsup, 3);
    failed
}

#[test]
fn docker_a_version_that_is_never_healthy_is_taken_away() {
    let service = "        rollout: { timeout: 2s, watch: 1s }\n        healthcheck: { test: [CMD, /itsup-testd, --check, \
                   \"127.0.0.1:8080\"], interval: 1s, timeout: 1s, retries: 1 }\n";
    let app = App { service, ..App::new("unhealthy") };
    fails_and_changes_nothing(&app, &[("TESTD_HEALTHY", "false")], "its health check");
}

#[test]
fn docker_a_version_that_crashes_at_its_start_is_taken_away_and_its_log_is_shown() {
    let app = App::new("crash");
    let said = fails_and_changes_nothing(&app, &[("TESTD_CRASH_AFTER", "0ms")], "before it was ready");
    let said = format!("{}{}", said.stdout, said.stderr);
    assert!(said.contains("crashed, as told"), "{said}");
    assert_eq!(app.receipts()[0]["result"], "undone");
}

#[test]
fn docker_a_version_that_never_listens_is_taken_away() {
    let app = App { service: "        rollout: { timeout: 2s, watch: 1s }\n", ..App::new("deaf") };
    fails_and_changes_nothing(
        &app,
        &[("TESTD_NEVER_LISTEN", "true")],
        "does not answer where the proxy would reach it",
    );
}

#[test]
fn docker_an_image_that_is_nowhere_changes_nothing() {
    let mut app = App::new("noimage");
    let itsup = app.start(&[]);
    let before = app.containers();
    let image = std::mem::replace(&mut app.image, "127.0.0.1:1/nobody/nothing:1".into());
    app.write(2, &[]);
    let failed = app.apply(&itsup);
    let said = format!("{}{}", failed.stdout, failed.stderr);
    assert_eq!(failed.code, Some(1), "{said}");
    assert!(said.contains("127.0.0.1:1/nobody/nothing:1"), "{said}");
    assert_eq!(app.containers(), before);
    app.image = image;
    app.settled(&itsup, 1);
}

#[test]
fn docker_a_version_that_crashes_while_it_is_watched_is_taken_back() {
    let app = App { service: "        rollout: { watch: 20s }\n", ..App::new("watch") };
    let itsup = app.start(&[]);
    let before = app.containers();
    app.write(2, &[("TESTD_CRASH_AFTER", "4s")]);
    let failed = app.apply(&itsup);
    let said = format!("{}{}", failed.stdout, failed.stderr);
    assert_eq!(failed.code, Some(1), "{said}");
    assert!(said.contains("while it was watched"), "{said}");
    app.settled(&itsup, 1);
    assert_eq!(app.containers(), before);
}

#[test]
fn docker_a_version_that_fails_requests_is_taken_back() {
    let app = App { service: "        rollout: { watch: 30s }\n", ..App::new("worse") };
    let itsup = app.start(&[]);
    let before = app.containers();
    // It says that it is ready by listening, and then answers 503 to everything.
    app.write(2, &[("TESTD_READY_DELAY", "1h")]);
    let applying = app.applying();
    eventually("the switch", || (app.routed(&itsup) != before).then_some(()));
    eventually("the way back", || {
        itsup.get(&app.url());
        (app.routed(&itsup) == before).then_some(())
    });
    let failed = applying.finish(PATIENCE);
    assert_eq!(failed.code, Some(1), "{}{}", failed.stdout, failed.stderr);
    assert!(format!("{}{}", failed.stdout, failed.stderr).contains("where the old ones had failed"));
    app.settled(&itsup, 1);
}

#[test]
fn docker_two_rollouts_at_once_run_one_after_the_other() {
    let app = App::new("twice");
    let itsup = app.start(&[]);
    let knocking = Knocking::start(&itsup, &app);
    let start = |name: &str| Child::start(name, app.root.command().args(["rollout", app.docker.project()]));
    let first = start("the first");
    eventually("it has begun", || (!app.under_way().is_empty()).then_some(()));
    let (second, third) = (start("the second"), start("the third"));
    for rollout in [first, second, third] {
        rollout.finish(PATIENCE * 2).ok();
    }
    knocking.all_well();
    app.settled(&itsup, 1);
    let done = app.receipts().iter().filter(|receipt| receipt["result"] == "done").count();
    assert!((2..=3).contains(&done), "{done}: equal ones that wait may be one");
}

#[test]
fn docker_ctrl_c_stops_watching_and_a_second_one_takes_the_change_back() {
    let app = App::new("ctrlc");
    let itsup = app.start(&[]);
    let first = app.containers();
    let late = &[("TESTD_START_DELAY", "6s")];
    let apply = |version| {
        let before = app.containers();
        app.write(version, late);
        let applying = app.applying();
        eventually("a new container", || app.containers().difference(&before).next().map(|_| ()));
        applying.signal(Signal::SIGINT);
        eventually("it says what a second one does", || applying.stderr().contains("Ctrl-C again").then_some(()));
        applying
    };
    let cancelled = apply(2);
    cancelled.signal(Signal::SIGINT);
    let cancelled = cancelled.finish(PATIENCE);
    assert_eq!(cancelled.code, Some(1), "{}{}", cancelled.stdout, cancelled.stderr);
    assert!(cancelled.stderr.contains("cancelling job"), "{}", cancelled.stderr);
    app.settled(&itsup, 1);
    assert_eq!(app.containers(), first, "the very same containers");

    let left = apply(3).finish(PATIENCE);
    assert_eq!(left.code, Some(1), "{}{}", left.stdout, left.stderr);
    assert!(left.stderr.contains("goes on"), "{}", left.stderr);
    app.settled(&itsup, 3);
}
