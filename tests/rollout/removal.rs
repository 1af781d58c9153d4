//! What is taken out of db.yml goes when nobody uses it any more.

use std::time::Duration;

use crate::app::App;
use crate::harness::{Child, PATIENCE, eventually, read_answer, send, tls};

#[test]
fn docker_what_is_removed_finishes_what_it_has_first() {
    let app = App::new("gone");
    let itsup = app.start(&[]);
    let mut slow = tls(itsup.https(), &app.host(), &itsup.ca());
    send(&mut slow, "GET", &app.host(), "/slow?ms=4000", &[], b"");
    let in_flight = || {
        let status = itsup.status();
        let endpoints = status["upstreams"].as_array().unwrap().iter().flat_map(|one| one["endpoints"].as_array());
        endpoints.flatten().any(|one| one["in_flight"]["requests"] == 1)
    };
    eventually("the request", || in_flight().then_some(()));
    app.root.write("db.yml", "projects: []\n");
    let pruning = Child::start("apply --prune", app.root.command().args(["apply", "--prune"]));
    let answer = read_answer(&mut slow, "GET");
    assert_eq!(answer.status, 200, "{}", answer.text());
    pruning.finish(PATIENCE + Duration::from_secs(30)).ok();
    assert!(app.containers().is_empty());
    assert!(!app.root.path(&format!("upstream/{}/docker-compose.yml", app.docker.project())).exists());
}
