//! Back to what was before; and changes that are made where no itsUP runs.

use serde_json::Value;

use crate::app::App;
use crate::harness::{Child, Itsup, PATIENCE, curl, run};

/// What the API's `/plan` says of the one service, as somebody with a key sees it.
fn step_by_api(itsup: &Itsup, query: &str) -> (Value, Value) {
    let url = format!("http://{}/plan?{query}", itsup.api());
    let told = run(curl(itsup).args(["--fail-with-body", "-H", "Authorization: Bearer 0123456789abcdef", &url]));
    let plan = told.ok().json();
    let service = &plan["projects"][0]["services"][0];
    (plan["changes"].clone(), service["step"].clone())
}

#[test]
fn docker_a_rollback_goes_back_and_holds_until_it_is_let_go() {
    let app = App::new("back");
    let project = app.docker.project().to_owned();
    app.root.write(".env", "API_KEY=0123456789abcdef\n");
    let itsup = app.start(&[]);
    app.write(2, &[]);
    let query = format!("project={project}");
    assert_eq!(step_by_api(&itsup, &query), (true.into(), "roll_over".into()));
    app.apply(&itsup).ok();
    app.settled(&itsup, 2);
    assert_eq!(itsup.status()["pins"], serde_json::json!([]));

    itsup.cli(&["rollback", &project]).ok();
    app.settled(&itsup, 1);
    let pin = format!("{project}/web");
    assert_eq!(itsup.status()["pins"], serde_json::json!([pin]));
    assert!(itsup.cli(&["status"]).ok().stdout.contains(&format!("{pin} is held by a rollback")));
    let plan = itsup.cli(&["plan"]).ok().stdout;
    assert_eq!(step_by_api(&itsup, &query), (false.into(), "no_change".into()), "{plan}");

    // An apply keeps it, a change of another part of db.yml as well.
    let db = app.root.read("db.yml");
    app.root.write("db.yml", format!("{db}  - name: other\n    domain: other.test\n"));
    itsup.cli(&["apply"]).ok();
    app.settled(&itsup, 1);
    itsup.cli(&["apply", &project, "--unpin"]).ok();
    app.settled(&itsup, 2);
    assert_eq!(itsup.status()["pins"], serde_json::json!([]));

    // And one ends by itself when its part of db.yml changes.
    itsup.cli(&["rollback", &project, "web"]).ok();
    app.settled(&itsup, 1);
    app.write(3, &[]);
    app.apply(&itsup).ok();
    app.settled(&itsup, 3);
    assert_eq!(itsup.status()["pins"], serde_json::json!([]));
}

#[test]
fn docker_an_apply_works_without_a_running_itsup_and_one_that_was_killed_leaves_no_lock() {
    let app = App::new("alone");
    app.write(1, &[]);
    app.root.cli(&["apply"]).ok();
    let first = app.containers();
    assert_eq!(first.len(), 1);
    app.write(2, &[]);
    let killed = Child::start("apply", app.root.command().env("ITSUP_FAULT", "started").arg("apply"));
    let killed = killed.finish(PATIENCE);
    assert_eq!(killed.code, None, "it was killed: {}{}", killed.stdout, killed.stderr);
    // The next one undoes what was begun, and does it again.
    app.root.cli(&["apply"]).ok();
    let second = app.containers();
    assert!(second.len() == 1 && second.is_disjoint(&first), "{first:?} {second:?}");
    let itsup = app.itsup();
    app.settled(&itsup, 2);
}
