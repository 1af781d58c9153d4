//! HTTP/2 through the terminating proxy, gRPC end to end, and hosts that share a connection.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod harness;

use std::io::Write as _;
use std::process::Command;

use harness::{Itsup, Testd, curl, db, project, python, read_answer, run, send, tls};

#[test]
fn curl_speaks_h2_up_and_down() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    let file = itsup.root().path("body");
    let body: Vec<u8> = (0..2_000_000_u32).flat_map(|i| i.to_le_bytes()).collect();
    std::fs::write(&file, &body).unwrap();
    let back = itsup.root().path("back");
    let mut command = curl(&itsup);
    command
        .args(["--http2", "-w", "%{http_version} %{http_code}", "--data-binary"])
        .arg(format!("@{}", file.display()));
    command.arg("-o").arg(&back).arg("https://app.test/echo");
    assert_eq!(run(&mut command).ok().stdout, "2 200");
    assert!(std::fs::read(&back).unwrap() == body, "the body came back changed");
    let account = run(curl(&itsup).args(["--http2", "https://app.test/x?y=z"])).ok().json();
    // h2 has no Host field; an h1 endpoint needs one.
    assert!(account["headers"].as_array().unwrap().contains(&serde_json::json!(["host", "app.test"])), "{account}");
    assert_eq!((&account["path"], &account["http"]), (&"/x?y=z".into(), &"HTTP/1.1".into()));
    let line = itsup.logged(|line| line["path"] == "/x?y=z");
    assert_eq!((&line["protocol"], &line["host"]), (&"h2".into(), &"app.test".into()), "{line}");
    assert_eq!(itsup.metric("itsup_http_requests_total{protocol=\"h2\"}"), 2.0);
}

#[test]
fn h2load_gets_every_answer() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    let target = itsup.https();
    let url = format!("https://app.test:{}/bytes/1000", target.port());
    let mut command = Command::new("h2load");
    command.args(["-n", "3000", "-c", "10", "-m", "20", "--connect-to", &target.to_string(), &url]);
    let said = run(&mut command).ok().stdout;
    assert!(
        said.contains("3000 total, 3000 started, 3000 done, 3000 succeeded, 0 failed, 0 errored, 0 timeout"),
        "{said}"
    );
    assert!(said.contains("status codes: 3000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{said}");
    assert!(said.contains("Application protocol: h2"), "{said}");
}

#[test]
fn streams_at_a_time_are_kept_apart() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    let port = itsup.https().port();
    let mut command = python("h2_client.py");
    command.arg(format!("https://127.0.0.1:{port}/echo")).args(["--host", &format!("app.test:{port}"), "--insecure"]);
    let told = run(command.args(["--requests", "50", "--size", "200000"])).ok().json();
    assert_eq!((&told["good"], &told["requests"]), (&50.into(), &50.into()));
    // One slow answer holds no other stream up, on one connection.
    let urls = ["https://app.test/slow?ms=3000", "https://app.test/fast"];
    let mut command = curl(&itsup);
    command.args(["--http2", "--parallel", "--parallel-max", "2", "-w", "%{time_total} %{url_effective}\n"]);
    command.args(["-o", "/dev/null", "-o", "/dev/null"]).args(urls);
    let said = run(&mut command).ok().stdout;
    let took = |url: &str| {
        let line = said.lines().find(|line| line.ends_with(url)).unwrap_or_else(|| panic!("{said}"));
        line.split(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(took("/fast") < took("/slow?ms=3000"), "{said}");
}

#[test]
fn grpc_goes_end_to_end_to_an_h2c_endpoint() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "http: h2c")]));
    let mut command = python("grpc_client.py");
    command
        .arg(itsup.https().to_string())
        .args(["--authority", "app.test", "--messages", "20", "--ca"])
        .arg(itsup.ca());
    let told = run(&mut command).ok().json();
    assert_eq!(told, serde_json::json!({"unary": 20, "server": 20, "bidi": 20, "fail": "INTERNAL"}));
    let line = itsup.logged(|line| line["path"] == "/test.Echo/Bidi");
    assert_eq!((&line["status"], &line["protocol"]), (&200.into(), &"h2".into()), "{line}");

    // h1 clients reach an h2c endpoint as well.
    let account = itsup.get("https://app.test/x").json();
    assert_eq!((&account["http"], &account["authority"]), (&"HTTP/2.0".into(), &"app.test".into()), "{account}");
}

#[test]
fn bodies_over_h2_are_streamed_with_flat_memory() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    let download = |bytes: u64| {
        let mut command = curl(&itsup);
        command.args(["--http2", "-o", "/dev/null", "-w", "%{http_version} %{size_download}"]);
        run(command.arg(format!("https://app.test/bytes/{bytes}"))).ok().stdout
    };
    assert_eq!(download(1 << 20), format!("2 {}", 1 << 20));
    let file = itsup.root().path("large");
    std::fs::File::create(&file).unwrap().set_len(100 << 20).unwrap();
    let before = itsup.memory();
    assert_eq!(download(200 << 20), format!("2 {}", 200 << 20));
    let mut command = curl(&itsup);
    let told = run(command.args(["--http2", "-T"]).arg(&file).arg("https://app.test/upload")).ok().json();
    assert_eq!(told["bytes"], 100 << 20);
    let grown = itsup.memory().saturating_sub(before);
    assert!(grown < 24 << 20, "memory grew by {grown} bytes");
}

#[test]
fn a_host_that_the_connection_is_not_good_for_gets_421() {
    let [one, two] = [(); 2].map(|()| Testd::on("127.0.0.1", &["--tls-names", "pass.test"]));
    let mut first = project("one", "one.test", &[one.addr()], "");
    first.push_str("    aliases: [\"*.wild.test\"]\n");
    let hosts = [
        first,
        project("two", "two.test", &[two.addr()], ""),
        project("pass", "pass.test", &[one.tls()], "passthrough: true"),
    ];
    let itsup = Itsup::start(&db(&hosts));
    let mut stream = tls(itsup.https(), "one.test", &itsup.ca());
    let mut ask = |host: &str| {
        send(&mut stream, "GET", host, "/", &[], b"");
        read_answer(&mut stream, "GET")
    };
    // Terminated, but with a certificate of its own; passed through; unknown.
    for host in ["two.test", "pass.test", "unknown.test", "a.wild.test"] {
        let answer = ask(host);
        assert_eq!(answer.status, 421, "{host}");
        assert!(answer.header("x-request-id").is_some());
    }
    assert_eq!(ask("one.test").status, 200, "the connection itself is as good as before");
    // Under a wildcard's certificate any host of the wildcard may be asked for.
    let mut stream = tls(itsup.https(), "a.wild.test", &itsup.ca());
    for (host, status) in [("a.wild.test", 200), ("b.wild.test", 200), ("one.test", 421), ("b.a.wild.test", 421)] {
        send(&mut stream, "GET", host, "/", &[], b"");
        assert_eq!(read_answer(&mut stream, "GET").status, status, "{host}");
    }
    let line = itsup.logged(|line| line["status"] == 421 && line["host"] == "two.test");
    assert_eq!(line["failed"], "client", "{line}");
    let told = run(curl(&itsup).args([
        "--http2",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "-H",
        "Host: two.test",
        "https://one.test/",
    ]));
    assert_eq!(told.ok().stdout, "421");
}

#[test]
fn one_certificate_for_two_hosts_lets_them_share_a_connection() {
    let [one, two] = [(); 2].map(|()| Testd::start());
    let certificate = "    tls: { cert: both.pem, key: both.key }\n";
    let hosts = [project("one", "one.test", &[one.addr()], ""), project("two", "two.test", &[two.addr()], "")];
    let hosts = hosts.map(|project| project + certificate);
    let root = harness::Root::new();
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "9"]);
    command.args(["-subj", "/CN=both", "-addext", "subjectAltName=DNS:one.test,DNS:two.test", "-keyout"]);
    run(command.arg(root.path("both.key")).arg("-out").arg(root.path("both.pem"))).ok();
    let itsup = Itsup::on(&root).db(&db(&hosts)).start();
    let mut command = curl(&itsup);
    command.arg("--cacert").arg(root.path("both.pem")).args(["--http2", "https://one.test/"]);
    let first = run(&mut command).ok().json();
    let mut command = curl(&itsup);
    command.arg("--cacert").arg(root.path("both.pem")).args(["--http2", "-H", "Host: two.test", "https://one.test/"]);
    let second = run(&mut command).ok().json();
    assert_ne!(first["instance"], second["instance"]);
}

#[test]
fn more_resets_than_an_honest_client_needs_end_the_connection() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    let config = harness::tls_config(&itsup.ca(), &["h2"]);
    let mut stream = harness::tls_over(harness::tcp(itsup.https()), "app.test", config).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    // Literal fields without indexing: :method and :scheme from the static table, :path /slow, :authority.
    let mut block = vec![0x82, 0x87, 0x04, 5];
    block.extend(b"/slow");
    block.extend([0x01, 8]);
    block.extend(b"app.test");
    let mut cut = false;
    for number in 0..20_000_u32 {
        let id = (2 * number + 1).to_be_bytes();
        let mut frames = vec![0, 0, block.len() as u8, 1, 5];
        frames.extend(id);
        frames.extend(&block);
        frames.extend([0, 0, 4, 3, 0]);
        frames.extend(id);
        frames.extend(8_u32.to_be_bytes());
        if stream.write_all(&frames).is_err() {
            cut = true;
            break;
        }
    }
    assert!(cut || stream_ends(&mut stream), "20,000 streams were opened and reset");
    let seen = itsup.get("https://app.test/").json()["requests"].as_u64().unwrap();
    assert!(seen < 5_000, "{seen} of 20,000 requests reached the endpoint");
}

/// Reads to the end of the connection.
fn stream_ends(stream: &mut harness::Stream) -> bool {
    std::io::copy(stream, &mut std::io::sink())
        .map_or_else(|error| error.kind() != std::io::ErrorKind::WouldBlock, |_| true)
}
