//! What is taken out of db.yml goes when nobody uses it any more.

use std::time::Duration;

use crate::app::App;
use crate::harness::{Child, PATIENCE, read_answer};

#[test]
fn docker_what_is_removed_finishes_what_it_has_first() {
    let app = App::new("gone");
    let itsup = app.start(&[]);
    let mut slow = app.ask_slowly(&itsup, 4_000);
    app.root.write("db.yml", "projects: []\n");
    let pruning = Child::start("apply --prune", app.root.command().args(["apply", "--prune"]));
    let answer = read_answer(&mut slow, "GET");
    assert_eq!(answer.status, 200, "{}", answer.text());
    pruning.finish(PATIENCE + Duration::from_secs(30)).ok();
    assert!(app.containers().is_empty());
    assert!(!app.root.path(&format!("upstream/{}/docker-compose.yml", app.docker.project())).exists());
}
