//! Static hosts that are DNS names are looked up again as they change.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod harness;

use std::time::{Duration, Instant};

use harness::{Itsup, Root, Starter, Testd, eventually, with_files_over};

/// An itsup whose resolver knows what stands in the root's file `hosts`, and asks nobody else.
fn with_hosts(root: &Root, hosts: &str) -> Starter {
    root.write("hosts", hosts);
    root.write("nsswitch.conf", "hosts: files\n");
    let (hosts, order) = (root.path("hosts"), root.path("nsswitch.conf"));
    Itsup::on(root).through(&with_files_over(&[("/etc/hosts", &hosts), ("/etc/nsswitch.conf", &order)]))
}

/// The addresses that an upstream has.
fn addresses(itsup: &Itsup, upstream: &str) -> Vec<String> {
    let status = itsup.status();
    let found = status["upstreams"].as_array().unwrap().iter().find(|up| up["name"] == upstream).unwrap();
    let endpoints = found["endpoints"].as_array().unwrap();
    endpoints.iter().map(|endpoint| endpoint["address"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_name_is_resolved_again_as_it_changes() {
    // Both on one port, as db.yml has one for a name.
    let one = Testd::on("127.0.0.11", &["--name", "one"]);
    let port = one.addr().port();
    let two = Testd::again(([127, 0, 0, 12], port).into(), &["--name", "two"]);
    let root = Root::new();
    let db = format!(
        "projects:\n  - name: nas\n    domain: app.test\n    services: [ {{ name: nas.test, port: {port} }} ]\n"
    );
    let itsup = with_hosts(&root, "127.0.0.11 nas.test\n").db(&db).start();
    assert_eq!(addresses(&itsup, "nas"), [one.addr().to_string()]);
    assert_eq!(itsup.get("https://app.test/").json()["name"], "one");

    // Gone for a while: the last good address stays.
    root.write("hosts", "");
    let changed = Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(itsup.get("https://app.test/").json()["name"], "one");
    root.write("hosts", "127.0.0.12 nas.test\n");
    eventually("the new address", || (addresses(&itsup, "nas") == [two.addr().to_string()]).then_some(()));
    println!("seen after {:?}", changed.elapsed());
    assert_eq!(itsup.get("https://app.test/").json()["name"], "two");
}

#[test]
fn a_name_that_cannot_be_resolved_holds_nothing_up() {
    let app = Testd::start();
    let root = Root::new();
    let db = format!(
        "projects:\n  - name: nas\n    domain: nas.test\n    services: [ {{ name: nowhere.test, port: 1 }} ]\n  - name: app\n    \
         domain: app.test\n    services: [ {{ name: 127.0.0.1, port: {} }} ]\n",
        app.addr().port()
    );
    let itsup = with_hosts(&root, "").db(&db).start();
    assert_eq!(itsup.get("https://app.test/").status, 200);
    let down = itsup.get("https://nas.test/");
    assert_eq!(down.status, 503, "known, and down: never 404");
    assert!(down.header("retry-after").is_some());
    // It is asked for again within seconds.
    root.write("hosts", "127.0.0.1 nowhere.test\n");
    eventually("an address", || (addresses(&itsup, "nas") == ["127.0.0.1:1"]).then_some(()));
}
