//! What itsUP says of itself: `itsup status` for people and programs, and `/metrics` for direct loopback connections.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod harness;

use std::collections::BTreeMap;
use std::process::Command;

use harness::{Itsup, Root, Stream, Testd, db, eventually, in_network_of, project, run, tls, with_own_network};
use serde_json::Value;

/// A self-signed certificate of a host, good for so many days, where itsUP looks for it.
fn own_certificate(root: &Root, host: &str, days: u32) {
    let folder = root.path(&format!("certs/{host}"));
    std::fs::create_dir_all(&folder).unwrap();
    let subject = format!("/CN={host}");
    let names = format!("subjectAltName=DNS:{host}");
    run(Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            &subject,
        ])
        .args(["-addext", &names, "-days", &days.to_string(), "-keyout"])
        .arg(folder.join("privkey.pem"))
        .arg("-out")
        .arg(folder.join("fullchain.pem")))
    .ok();
}

fn endpoint<'a>(status: &'a Value, upstream: &str) -> &'a Value {
    let found = status["upstreams"].as_array().unwrap().iter().find(|up| up["name"] == upstream);
    &found.unwrap_or_else(|| panic!("{upstream}: {status}"))["endpoints"][0]
}

/// Opens a websocket; its frames do not matter.
fn websocket(itsup: &Itsup, host: &str) -> Stream {
    let mut stream = tls(itsup.https(), host, &itsup.ca());
    let upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    harness::send(&mut stream, "GET", host, "/ws", &upgrade, b"");
    assert_eq!(harness::read_answer(&mut stream, "GET").status, 101);
    stream
}

#[test]
fn status_tells_generation_hosts_endpoints_what_is_in_flight_and_certificates() {
    let (app, box_) = (Testd::start(), Testd::on("127.0.0.1", &["--tls-names", "box.test"]));
    let root = Root::new();
    own_certificate(&root, "own.test", 30);
    let site = project("app", "app.test", &[app.addr()], "");
    let text = db(&[
        site.clone(),
        project("box", "box.test", &[box_.tls()], "passthrough: true"),
        "  - name: own\n    domain: own.test\n".into(),
        project("gone", "gone.test", &[nobody()], ""),
    ]);
    let itsup = Itsup::on(&root).db(&text).start();
    let status = itsup.status();
    assert_eq!((&status["generation"], &status["hosts"], &status["pid"]), (&1.into(), &4.into(), &itsup.pid().into()));
    assert_eq!(status["listen"]["https"], itsup.https().to_string());
    assert_eq!(status["connections"], 0);

    // One of each class, held.
    let mut request = tls(itsup.https(), "app.test", &itsup.ca());
    harness::send(&mut request, "GET", "app.test", "/hang", &[], b"");
    let _socket = websocket(&itsup, "app.test");
    let mut passed = tls(itsup.https(), "box.test", &box_.cert());
    harness::send(&mut passed, "GET", "box.test", "/", &[], b"");
    harness::read_answer(&mut passed, "GET");
    assert_eq!(itsup.get("https://gone.test/").status, 503);

    let status = eventually("one of each in flight", || {
        let status = itsup.status();
        (endpoint(&status, "app")["in_flight"]["requests"] == 1).then_some(status)
    });
    let flight = |endpoint: &Value| {
        ["requests", "websockets", "passthrough"].map(|class| endpoint["in_flight"][class].as_u64().unwrap())
    };
    assert_eq!(flight(endpoint(&status, "app")), [1, 1, 0]);
    assert_eq!(flight(endpoint(&status, "box")), [0, 0, 1]);
    assert_eq!(status["connections"], 3, "{status}");
    assert_eq!(endpoint(&status, "app")["state"], "up");
    assert_eq!(endpoint(&status, "app")["address"], app.addr().to_string());
    assert_eq!(endpoint(&status, "gone")["state"], "set aside");

    let days: BTreeMap<&str, (&str, i64)> = status["certificates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["host"].as_str().unwrap(), (c["source"].as_str().unwrap(), c["days_left"].as_i64().unwrap())))
        .collect();
    assert!(matches!(days["own.test"], ("file", 29 | 30)), "{days:?}");
    assert!(days["app.test"].0 == "internal" && days["app.test"].1 > 0, "{days:?}");
    assert!(!days.contains_key("box.test"), "what is passed through shows its own");

    // Taken out of db.yml, an endpoint with traffic is listed until that has ended.
    itsup.reload_with(&text.replace(&site, ""));
    let status = itsup.status();
    assert_eq!((&status["generation"], &status["hosts"]), (&2.into(), &3.into()));
    assert_eq!(status["draining"][0]["address"], app.addr().to_string());
    assert_eq!(status["draining"][0]["state"], "draining");
    assert_eq!(flight(&status["draining"][0]), [1, 1, 0]);
    drop((request, _socket));
    eventually("nothing drains", || itsup.status()["draining"].as_array().unwrap().is_empty().then_some(()));
}

/// An address where nobody listens.
fn nobody() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn people_get_one_aligned_table() {
    let app = Testd::start();
    let root = Root::new();
    own_certificate(&root, "a-rather-long-name.example.test", 5);
    let text = db(&[
        project("a-rather-long-name", "a-rather-long-name.example.test", &[app.addr()], ""),
        project("b", "b.test", &[app.addr()], ""),
    ]);
    let itsup = Itsup::on(&root).db(&text).start();
    let shown = itsup.cli(&["status"]).ok();
    assert_eq!(shown.stderr, "");
    let lines: Vec<&str> = shown.stdout.lines().collect();
    assert!(lines[0].contains("generation 1, 2 hosts, 0 connections"), "{}", shown.stdout);
    assert!(lines[1].starts_with(&format!("http {}, https {}", itsup.http(), itsup.https())), "{}", shown.stdout);
    let head = lines.iter().position(|line| line.starts_with("UPSTREAM")).expect("a table");
    let (place, state) = (lines[head].find("ENDPOINT").unwrap(), lines[head].find("STATE").unwrap());
    for line in &lines[head + 1..head + 3] {
        assert!(
            line[place..].starts_with(&app.addr().to_string()) && line[..place].ends_with("  "),
            "{}",
            shown.stdout
        );
        assert!(line[state..].starts_with("up "), "{}", shown.stdout);
    }
    let head = lines.iter().position(|line| line.starts_with("CERTIFICATE")).expect("certificates");
    let (from, left) = (lines[head].find("FROM").unwrap(), lines[head].find("DAYS LEFT").unwrap());
    assert_eq!(place, from, "one table: everything stands in line");
    let own = lines[head + 1..].iter().find(|line| line.starts_with("a-rather")).unwrap();
    assert!(own[from..].contains("fullchain.pem"), "{}", shown.stdout);
    assert!(matches!(own[left..].trim(), "4" | "5"), "{}", shown.stdout);
    let other = lines[head + 1..].iter().find(|line| line.starts_with("b.test")).unwrap();
    assert!(other[from..].starts_with("internal CA "), "{}", shown.stdout);
    assert!(!shown.stdout.contains('\x1b'), "colours are for terminals");
}

#[test]
fn metrics_count_what_happens_and_can_be_scraped() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    let before = itsup.metric("itsup_http_requests_total{protocol=\"h1\"}");
    for path in ["/", "/status/404", "/status/500"] {
        itsup.get(&format!("https://app.test{path}"));
    }
    itsup.get("http://app.test/");
    run(harness::curl(&itsup).args(["--http2", "https://app.test/bytes/5000"])).ok();
    let sum = |itsup: &Itsup| {
        ["2xx", "4xx", "5xx"]
            .map(|class| itsup.metric(&format!("itsup_site_requests_total{{site=\"app\",class=\"{class}\"}}")))
    };
    eventually("all is counted", || (sum(&itsup) == [2.0, 1.0, 1.0]).then_some(()));
    assert_eq!(itsup.metric("itsup_http_requests_total{protocol=\"h1\"}") - before, 3.0);
    assert_eq!(itsup.metric("itsup_http_requests_total{protocol=\"h2\"}"), 1.0);
    assert_eq!(itsup.metric("itsup_plain_requests_total{outcome=\"redirect\"}"), 1.0);
    assert_eq!(itsup.metric("itsup_http_request_duration_seconds_count"), 4.0);
    assert!(itsup.metric("itsup_site_bytes_total{site=\"app\",direction=\"out\"}") >= 5000.0);
    assert_eq!((itsup.metric("itsup_generation"), itsup.metric("itsup_hosts")), (1.0, 1.0));
    itsup.reload();
    assert_eq!(itsup.metric("itsup_reloads_total{result=\"done\"}"), 1.0);
    assert!(itsup.metric("itsup_certificate_not_after_seconds{host=\"\",source=\"internal\"}") > 1.7e9);

    // The text format: a HELP and a TYPE for each metric, once, before its samples, and nothing but numbers as values.
    let text = itsup.metrics();
    let mut types = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned(), kind).is_none(), "{name} is typed twice");
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
            let name = sample.split('{').next().unwrap();
            let of = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end).filter(|n| types.contains_key(*n)));
            assert!(types.contains_key(of.unwrap_or(name)), "{line} has no TYPE before it");
        }
    }
}

#[test]
fn metrics_are_for_direct_loopback_connections_alone() {
    let api = nobody().port();
    // A host that leads to the API's port of this machine is served in-process, and gets no metrics.
    let text = format!(
        "projects:\n  - name: api\n    domain: api.test\n    services:\n      - {{ name: 127.0.0.1, port: {api} }}\n"
    );
    let itsup = Itsup::with().env("ITSUP_API", format!("127.0.0.1:{api}")).db(&text).start();
    assert!(itsup.metrics().contains("itsup_generation 1"));
    assert_eq!(itsup.get("https://api.test/healthz").status, 200);
    for path in ["/metrics", "//metrics", "/metrics/", "/%6detrics", "/metrics?x"] {
        let answer = itsup.get(&format!("https://api.test{path}"));
        assert!(matches!(answer.status, 400 | 403 | 404), "{path}: {} {}", answer.status, answer.text());
        assert!(!answer.text().contains("itsup_generation"), "{path}");
    }
    assert_eq!(itsup.get("http://api.test/metrics").status, 301);
    // A proxy on this host says for whom it asks.
    for name in ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP", "X-Forwarded-Host"] {
        let mut stream = harness::plain(itsup.api());
        harness::send(&mut stream, "GET", "localhost", "/metrics", &[(name, "127.0.0.1")], b"");
        assert_eq!(harness::read_answer(&mut stream, "GET").status, 403, "{name}");
    }
}

#[test]
fn metrics_are_not_for_other_addresses_of_this_host() {
    let root = Root::new();
    let starter = Itsup::on(&root).through(&with_own_network("192.0.2.7/32")).db("projects: []\n");
    let itsup = starter.env("ITSUP_API", "0.0.0.0:0").start();
    let ask = |address: &str| {
        let url = format!("http://{address}:{}/metrics", itsup.api().port());
        let mut curl = in_network_of(itsup.pid(), "curl");
        run(curl.args(["--silent", "--noproxy", "*", "--max-time", "30", "--write-out", "\n%{http_code}", &url]))
            .ok()
            .stdout
    };
    assert!(ask("127.0.0.1").ends_with("\n200"));
    // From there the connection comes from 192.0.2.7 itself.
    let refused = ask("192.0.2.7");
    assert!(refused.ends_with("\n403") && !refused.contains("itsup_generation"), "{refused}");
}
