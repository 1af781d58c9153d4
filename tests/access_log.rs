//! The access log: a JSON line for each request, who failed, reopened on SIGUSR1, off, or on stdout.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod harness;

use std::io::Write as _;

use harness::{Itsup, Root, Testd, curl, db, eventually, project, run, tls};
use nix::sys::signal::Signal;
use serde_json::Value;

fn number(line: &Value, key: &str) -> f64 {
    line[key].as_f64().unwrap_or_else(|| panic!("{key} of {line}"))
}

#[test]
fn a_line_has_all_of_a_request() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    let body = [b'x'; 500];
    let answer = itsup.request("POST", "https://app.test/echo?q=%22a%22", &[("Content-Type", "text/plain")], &body);
    assert_eq!((answer.status, answer.body.len()), (200, 500));
    let line = itsup.logged(|line| line["method"] == "POST");
    for (key, wanted) in [
        ("client", "127.0.0.1"),
        ("host", "app.test"),
        ("path", "/echo?q=%22a%22"),
        ("site", "app"),
        ("upstream", "app"),
        ("endpoint", &app.addr().to_string()),
        ("protocol", "h1"),
    ] {
        assert_eq!(line[key], wanted, "{key} of {line}");
    }
    assert_eq!((number(&line, "status"), number(&line, "retries")), (200.0, 0.0));
    assert_eq!((number(&line, "bytes_in"), number(&line, "bytes_out")), (500.0, 500.0));
    assert!(number(&line, "duration_ms") > 0.0 && number(&line, "duration_ms") < 60_000.0, "{line}");
    assert!(line["tls"].as_str().unwrap().contains("1.3"), "{line}");
    assert_eq!(answer.header("x-request-id").map(Into::into).unwrap_or(line["request_id"].clone()), line["request_id"]);
    let time = line["time"].as_str().unwrap();
    let today =
        String::from_utf8(std::process::Command::new("date").arg("-u").arg("+%Y-%m-%dT%H").output().unwrap().stdout);
    assert!(time.ends_with('Z') && time.len() == "2026-01-01T00:00:00.000Z".len(), "{time}");
    assert_eq!(time[..10], today.unwrap()[..10]);
    assert!(line.get("failed").is_none(), "{line}");

    run(curl(&itsup).args(["--http2", "--tls-max", "1.2", "https://app.test/h2"])).ok();
    let line = itsup.logged(|line| line["path"] == "/h2");
    assert_eq!(line["protocol"], "h2");
    assert!(line["tls"].as_str().unwrap().contains("1.2"), "{line}");
    itsup.get("http://app.test/plain");
    let line = itsup.logged(|line| line["path"] == "/plain");
    assert_eq!((number(&line, "status"), line.get("tls")), (301.0, None));
}

#[test]
fn who_failed_is_told() {
    let app = Testd::start();
    let dead = Testd::start().kill();
    let itsup = Itsup::start(&db(&[
        project("app", "app.test", &[app.addr()], "timeouts: { response: 300ms }, max_body: 1KB"),
        project("dead", "dead.test", &[dead], ""),
    ]));
    let failed = |path: &str| {
        let line = itsup.logged(|line| line["path"] == path);
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        assert_eq!(text("failed").is_empty(), text("why").is_empty(), "{line}");
        (line["status"].as_u64().unwrap(), text("failed"))
    };
    for (url, status) in
        [("https://dead.test/refused", 503), ("https://app.test/close?1", 502), ("https://app.test/slow?ms=5000", 504)]
    {
        assert_eq!(itsup.get(url).status, status, "{url}");
        let path = &url[url.rfind(".test").unwrap() + 5..];
        assert_eq!(failed(path), (status as u64, "upstream".into()), "{url}");
    }
    // Broken off in the middle of the body.
    let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
    harness::send(&mut stream, "GET", "app.test", "/close?after=10&of=1000", &[], b"");
    harness::read_head(&mut stream).unwrap();
    assert_eq!(failed("/close?after=10&of=1000"), (200, "upstream".into()));
    // The client: gone before the answer, too large, not HTTP.
    let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
    harness::send(&mut stream, "GET", "app.test", "/slow?ms=250", &[], b"");
    drop(stream);
    assert_eq!(failed("/slow?ms=250"), (499, "client".into()));
    assert_eq!(itsup.request("POST", "https://app.test/large", &[], &[0; 2000]).status, 413);
    assert_eq!(failed("/large"), (413, "client".into()));
    let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
    stream
        .write_all(b"GET /bad HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    assert_eq!(harness::read_answer(&mut stream, "GET").status, 400);
    let line = itsup.logged(|line| line["status"] == 400);
    assert_eq!(line["failed"], "client", "{line}");
    // An answer that is the application's own is nobody's failure.
    assert_eq!(itsup.get("https://app.test/status/500").status, 500);
    assert_eq!(failed("/status/500"), (500, String::new()));
}

#[test]
fn sigusr1_opens_the_file_anew() {
    let itsup = Itsup::start("projects:\n  - name: hello\n    domain: hello.test\n");
    itsup.get("https://hello.test/1");
    itsup.logged(|line| line["path"] == "/1");
    let (log, rotated) = (itsup.root().path("logs/access.log"), itsup.root().path("logs/access.log.1"));
    std::fs::rename(&log, &rotated).unwrap();
    // Until it is told, it writes to the file it has.
    itsup.get("https://hello.test/2");
    eventually("a line in the old file", || std::fs::read_to_string(&rotated).ok()?.contains("\"/2\"").then_some(()));
    assert!(!log.exists());
    itsup.signal(Signal::SIGUSR1);
    eventually("a new file", || log.exists().then_some(()));
    itsup.get("https://hello.test/3");
    itsup.logged(|line| line["path"] == "/3");
    assert_eq!(itsup.access_log().len(), 1);
    assert!(!std::fs::read_to_string(&rotated).unwrap().contains("\"/3\""), "nothing is written twice");
    itsup.stop();
}

#[test]
fn it_can_be_off_or_go_to_stdout_or_to_another_file() {
    let text = "projects:\n  - name: hello\n    domain: hello.test\n";
    let off = Itsup::with().env("ITSUP_ACCESS_LOG", "off").db(text).start();
    off.get("https://hello.test/");
    let root = off.stop();
    assert!(!root.path("logs").exists());

    let stdout = Itsup::with().env("ITSUP_ACCESS_LOG", "stdout").db(text).start();
    stdout.get("https://hello.test/out");
    let line = eventually("a line on stdout", || {
        stdout.stdout().lines().find(|line| line.contains("/out")).map(str::to_owned)
    });
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["status"], 200);
    assert!(!stdout.root().path("logs").exists());

    // Absolute, in a folder that is not there yet; every line is there at the end.
    let root = Root::new();
    let place = root.path("deep/er/a.log");
    let itsup = Itsup::on(&root).env("ITSUP_ACCESS_LOG", place.display()).db(text).start();
    for _ in 0..20 {
        itsup.get("https://hello.test/n");
    }
    itsup.stop();
    assert_eq!(std::fs::read_to_string(&place).unwrap().lines().count(), 20);
}

#[test]
fn a_file_that_cannot_be_written_stops_no_traffic() {
    let root = Root::new();
    // A folder stands where the file is to be.
    std::fs::create_dir_all(root.path("logs/access.log")).unwrap();
    let itsup = Itsup::on(&root).db("projects:\n  - name: hello\n    domain: hello.test\n").start();
    assert_eq!(itsup.get("https://hello.test/").status, 200);
    assert!(itsup.stderr().contains("cannot open the access log"), "{}", itsup.stderr());
    std::fs::remove_dir(root.path("logs/access.log")).unwrap();
    itsup.signal(Signal::SIGUSR1);
    eventually("a file", || root.path("logs/access.log").is_file().then_some(()));
    itsup.get("https://hello.test/again");
    itsup.logged(|line| line["path"] == "/again");
}
