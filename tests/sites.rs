//! What a project says of its hosts: who comes in, headers, compression, redirects, paths; and what is told of the client.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod harness;

use std::process::Command;
use std::sync::Arc;

use harness::{
    Answer, Itsup, Root, Testd, curl, db, project, read_answer, run, send, tcp_from, tls, tls_config, tls_over,
};

/// GET from a loopback address of the test's choice.
fn get_from(itsup: &Itsup, ip: &str, host: &str, headers: &[(&str, &str)]) -> Answer {
    let config = Arc::new(tls_config(&itsup.ca(), &["http/1.1"]));
    let mut stream = tls_over(tcp_from(ip, itsup.https(), None), host, config).unwrap();
    let all: Vec<_> = headers.iter().copied().chain([("Connection", "close")]).collect();
    send(&mut stream, "GET", host, "/", &all, b"");
    read_answer(&mut stream, "GET")
}

/// What a client may not make the endpoint believe.
const LIES: [(&str, &str); 13] = [
    ("X-Forwarded-For", "192.0.2.1"),
    ("X-Forwarded-Proto", "gopher"),
    ("X-Forwarded-Host", "evil.test"),
    ("X-Forwarded-Port", "70"),
    ("X-Forwarded-Prefix", "/evil"),
    ("X-Real-IP", "192.0.2.1"),
    ("X-Request-Id", "chosen-by-the-client"),
    ("Forwarded", "for=192.0.2.1;host=evil.test"),
    ("X-Original-URL", "/admin"),
    ("X-Rewrite-URL", "/admin"),
    ("X_Forwarded_For", "192.0.2.1"),
    ("x_real_ip", "192.0.2.1"),
    ("Proxy", "http://evil.test"),
];

#[test]
fn forwarded_headers_are_made_here_and_what_a_client_sends_of_them_is_dropped() {
    let app = Testd::start();
    let itsup = Itsup::with()
        .env("ITSUP_PUBLIC_HTTPS_PORT", 8443)
        .db(&db(&[project("app", "app.test", &[app.addr()], "")]))
        .start();
    let lies: Vec<_> = LIES.into_iter().chain([("X-Forwarded-For", "198.51.100.1"), ("X-Kept", "yes")]).collect();
    let answer = get_from(&itsup, "127.0.0.5", "app.test", &lies);
    assert_eq!(answer.status, 200);
    for (name, value) in [
        ("x-forwarded-for", "127.0.0.5"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "app.test"),
        ("x-forwarded-port", "8443"),
        ("x-real-ip", "127.0.0.5"),
        ("x-kept", "yes"),
        ("host", "app.test"),
    ] {
        assert_eq!(answer.seen(name), [value], "{name}");
    }
    let id = answer.seen("x-request-id");
    assert!(id.len() == 1 && id[0] != "chosen-by-the-client" && id[0].len() >= 16, "{id:?}");
    for name in
        ["forwarded", "x-original-url", "x-rewrite-url", "x_forwarded_for", "x_real_ip", "x-forwarded-prefix", "proxy"]
    {
        assert_eq!(answer.seen(name), [""; 0], "{name}");
    }
    let line = itsup.logged(|line| line["path"] == "/");
    assert_eq!((&line["client"], &line["request_id"]), (&"127.0.0.5".into(), &id[0].clone().into()), "{line}");

    // By h2 as well.
    let mut command = curl(&itsup);
    command.args(["--http2", "--interface", "127.0.0.6", "https://app.test/h2"]);
    for (name, value) in LIES {
        command.arg("-H").arg(format!("{name}: {value}"));
    }
    let account = run(&mut command).ok().json();
    let seen = account["headers"].as_array().unwrap();
    assert!(seen.contains(&serde_json::json!(["x-forwarded-for", "127.0.0.6"])), "{account}");
    assert!(!account.to_string().contains("evil") && !account.to_string().contains("192.0.2.1"), "{account}");
}

#[test]
fn a_trusted_proxy_is_believed_and_its_list_is_read_from_the_right() {
    let app = Testd::start();
    let root = Root::new();
    root.write(".env", "ITSUP_TRUSTED_PROXIES=127.0.0.2,10.0.0.0/8,fd00::/8\n");
    let itsup = Itsup::on(&root).db(&db(&[project("app", "app.test", &[app.addr()], "")])).start();
    for (list, client) in [
        ("192.0.2.1", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1, 10.1.2.3", "192.0.2.1"),
        ("192.0.2.1, [fd00::1]:4711, 10.0.0.1", "192.0.2.1"),
        ("10.0.0.9, 10.0.0.8", "10.0.0.9"),
        ("192.0.2.1, nonsense, 10.0.0.1", "10.0.0.1"),
        ("2001:db8::1", "2001:db8::1"),
    ] {
        let answer = get_from(&itsup, "127.0.0.2", "app.test", &[("X-Forwarded-For", list)]);
        assert_eq!(answer.seen("x-real-ip"), [client], "{list}");
        assert_eq!(answer.seen("x-forwarded-for"), [format!("{list}, 127.0.0.2")]);
        itsup.logged(|line| line["client"] == client);
    }
    let said = [("X-Forwarded-Proto", "http"), ("X-Forwarded-Host", "outer.test"), ("X-Request-Id", "id-4711")];
    let answer = get_from(&itsup, "127.0.0.2", "app.test", &said);
    for (name, value) in said {
        assert_eq!(answer.seen(&name.to_lowercase()), [value], "{name}");
    }
    itsup.logged(|line| line["request_id"] == "id-4711");
    // Anyone else is not; and whom the settings name changes with a reload.
    assert_eq!(get_from(&itsup, "127.0.0.3", "app.test", &said).seen("x-forwarded-host"), ["app.test"]);
    root.write(".env", "ITSUP_TRUSTED_PROXIES=127.0.0.3\n");
    itsup.reload();
    assert_eq!(get_from(&itsup, "127.0.0.3", "app.test", &said).seen("x-forwarded-host"), ["outer.test"]);
    assert_eq!(get_from(&itsup, "127.0.0.2", "app.test", &said).seen("x-forwarded-host"), ["app.test"]);
}

#[test]
fn only_allowed_networks_come_in() {
    let app = Testd::start();
    let access = "    access: { allow: [127.0.0.2, 127.0.1.0/24, 192.0.2.0/24] }\n";
    let itsup = Itsup::with()
        .env("ITSUP_TRUSTED_PROXIES", "127.0.1.9")
        .db(&db(&[project("app", "app.test", &[app.addr()], "") + access]))
        .start();
    for (from, status) in [("127.0.0.2", 200), ("127.0.1.7", 200), ("127.0.0.1", 403), ("127.0.0.3", 403)] {
        assert_eq!(get_from(&itsup, from, "app.test", &[]).status, status, "{from}");
    }
    // It is the client that counts, and only a trusted proxy can say who that is.
    assert_eq!(get_from(&itsup, "127.0.1.9", "app.test", &[("X-Forwarded-For", "192.0.2.1")]).status, 200);
    assert_eq!(get_from(&itsup, "127.0.1.9", "app.test", &[("X-Forwarded-For", "198.51.100.1")]).status, 403);
    assert_eq!(get_from(&itsup, "127.0.0.3", "app.test", &[("X-Forwarded-For", "192.0.2.1")]).status, 403);
}

#[test]
fn passwords_are_asked_for_and_checked() {
    let app = Testd::start();
    let line = |flags: &[&str], user: &str, password: &str| {
        run(Command::new("htpasswd").args(flags).args([user, password])).ok().stdout.trim().to_owned()
    };
    let lines =
        [line(&["-nbB", "-C", "5"], "bob", "s3cret"), line(&["-nbm"], "eve", "apr1"), line(&["-nbs"], "sha", "sha1")];
    let basic = lines.map(|line| format!("'{line}'")).join(", ");
    let itsup = Itsup::start(&db(&[
        project("app", "app.test", &[app.addr()], "") + &format!("    access: {{ basic: [{basic}] }}\n")
    ]));
    let answer = itsup.get("https://app.test/");
    assert_eq!(answer.status, 401);
    assert!(answer.header("www-authenticate").unwrap().starts_with("Basic realm="));
    for (credentials, status) in [
        ("bob:s3cret", "200"),
        ("bob:s3cret", "200"),
        ("eve:apr1", "200"),
        ("sha:sha1", "200"),
        ("bob:wrong", "401"),
        ("eve:s3cret", "401"),
        ("nobody:s3cret", "401"),
        (":", "401"),
    ] {
        let mut command = curl(&itsup);
        command.args(["-o", "/dev/null", "-w", "%{http_code}", "-u", credentials, "https://app.test/"]);
        assert_eq!(run(&mut command).ok().stdout, status, "{credentials}");
    }
    assert_eq!(itsup.request("GET", "https://app.test/", &[("Authorization", "Basic !!!")], b"").status, 401);
}

#[test]
fn response_headers_are_edited_as_the_project_says() {
    let app = Testd::start();
    let edits = "    headers: { set: { X-Frame-Options: DENY, X-Mine: \"1\" }, remove: [Server, X-Powered-By] }\n    hsts: true\n";
    let other = "    hsts: max-age=60; includeSubDomains\n";
    let itsup = Itsup::start(&db(&[
        project("app", "app.test", &[app.addr()], "") + edits,
        project("other", "other.test", &[app.addr()], "") + other,
        project("none", "none.test", &[app.addr()], ""),
    ]));
    let path = "/reply?server=x&x-powered-by=y&x-mine=of-the-endpoint&x-other=kept&keep-alive=timeout";
    let answer = itsup.get(&format!("https://app.test{path}"));
    let of = |name: &str| answer.headers.iter().filter(|h| h.0 == name).map(|h| h.1.as_str()).collect::<Vec<_>>();
    assert_eq!((of("x-frame-options"), of("x-mine"), of("x-other")), (vec!["DENY"], vec!["1"], vec!["kept"]));
    assert_eq!((of("server"), of("x-powered-by"), of("keep-alive")), (vec![], vec![], vec![]));
    let hsts = answer.header("strict-transport-security").unwrap();
    assert!(hsts.starts_with("max-age=31536000"), "{hsts}");
    let answer = itsup.get(&format!("https://other.test{path}"));
    assert_eq!(answer.header("strict-transport-security"), Some("max-age=60; includeSubDomains"));
    assert_eq!((answer.header("server"), answer.header("x-mine")), (Some("x"), Some("of-the-endpoint")));
    assert_eq!(itsup.get(&format!("https://none.test{path}")).header("strict-transport-security"), None);
}

#[test]
fn responses_are_compressed_where_the_project_and_the_client_say_so() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[
        project("app", "app.test", &[app.addr()], "") + "    compress: true\n",
        project("none", "none.test", &[app.addr()], ""),
    ]));
    let path = "/reply?body=100000&content-type=text/plain";
    let plain = itsup.get(&format!("https://app.test{path}"));
    assert_eq!((plain.header("content-encoding"), plain.body.len()), (None, 100_000));
    for encoding in ["gzip", "br", "zstd"] {
        let answer = itsup.request("GET", &format!("https://app.test{path}"), &[("Accept-Encoding", encoding)], b"");
        assert_eq!(answer.header("content-encoding"), Some(encoding));
        assert!(answer.body.len() < 50_000, "{encoding}: {} bytes", answer.body.len());
        assert!(
            answer.header("vary").is_some_and(|vary| vary.to_lowercase().contains("accept-encoding")),
            "{answer:?}"
        );
        // A real client can read it.
        let mut command = curl(&itsup);
        command.args(["--http2", "--compressed", "-H", &format!("Accept-Encoding: {encoding}"), "-o"]);
        let back = itsup.root().path("back");
        run(command.arg(&back).arg(format!("https://app.test{path}"))).ok();
        assert!(std::fs::read(&back).unwrap() == plain.body, "{encoding}");
    }
    let answer = itsup.request("GET", &format!("https://none.test{path}"), &[("Accept-Encoding", "gzip")], b"");
    assert_eq!((answer.header("content-encoding"), answer.body.len()), (None, 100_000));
    // Events are never held back to be compressed.
    let answer = itsup.request("GET", "https://app.test/stream?n=3&ms=10", &[("Accept-Encoding", "gzip, br")], b"");
    assert_eq!(answer.header("content-encoding"), None);
    assert_eq!(answer.text().matches("data:").count(), 3);
}

#[test]
fn fields_for_the_next_hop_alone_stay_on_it() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
    // Each by itself, as the engine is told to look for them only where one is there.
    for (name, value) in [
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Proxy-Authorization", "Basic eDp5"),
        ("Proxy-Authenticate", "Basic"),
        ("TE", "gzip"),
        ("Trailer", "X-Sum"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAMAAABkAAQCAAAAAAIAAAAA"),
        ("Connection", "keep-alive"),
        ("Connection", "X-Mine, X-Forwarded-For"),
    ] {
        let sent = [(name, value), ("X-Mine", "mine"), ("X-Kept", "yes")];
        send(&mut stream, "GET", "app.test", "/", &sent, b"");
        let answer = read_answer(&mut stream, "GET");
        let nominated = value.contains("X-Mine");
        assert_eq!(answer.status, 200, "{name}: {value}");
        assert_eq!(answer.seen(name), [""; 0], "{name}: {value}");
        assert_eq!(answer.seen("x-kept"), ["yes"], "{name}: {value}");
        assert_eq!(answer.seen("x-mine").is_empty(), nominated, "{name}: {value}");
        assert_eq!(answer.seen("x-forwarded-for"), ["127.0.0.1"], "{name}: {value}");
    }
}

#[test]
fn aliases_do_what_the_domain_does_and_other_hosts_redirect_to_it() {
    let app = Testd::start();
    let more = "    aliases: [www.app.test, \"*.app.test\"]\n    redirect_from: [old.test, older.test]\n";
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "") + more]));
    for host in ["app.test", "www.app.test", "any.app.test"] {
        let answer = itsup.get(&format!("https://{host}/x"));
        assert_eq!(answer.status, 200, "{host}");
        assert_eq!(answer.seen("host"), [host]);
    }
    for host in ["old.test", "older.test"] {
        for (method, status) in [("GET", 301), ("HEAD", 301), ("POST", 308)] {
            let answer = itsup.request(method, &format!("https://{host}/x?y=z"), &[], b"");
            assert_eq!((answer.status, answer.header("location")), (status, Some("https://app.test/x?y=z")), "{host}");
        }
    }
}

#[test]
fn paths_lead_to_services_by_the_longest_prefix_of_whole_segments() {
    let servers = ["127.0.0.11", "127.0.0.12", "127.0.0.13"].map(|ip| Testd::on(ip, &["--name", ip]));
    let mut text = "  - name: app\n    domain: app.test\n    routes:\n".to_owned();
    text.push_str(
        "      - { path: /api, service: 127.0.0.12, strip: true }\n      - { path: /api/v2, service: 127.0.0.13 }\n",
    );
    text.push_str("    services:\n");
    for server in &servers {
        text.push_str(&format!("      - {{ name: {}, port: {} }}\n", server.addr().ip(), server.addr().port()));
    }
    let itsup = Itsup::start(&db(&[text]));
    let ask = |path: &str| itsup.get(&format!("https://app.test{path}"));
    for (path, server, seen) in [
        ("/", "127.0.0.11", "/"),
        ("/other?a=/api", "127.0.0.11", "/other?a=/api"),
        ("/apix", "127.0.0.11", "/apix"),
        ("/API", "127.0.0.11", "/API"),
        ("/api", "127.0.0.12", "/"),
        ("/api/", "127.0.0.12", "/"),
        ("/api?q=1", "127.0.0.12", "/?q=1"),
        ("/api/x/y?q=1", "127.0.0.12", "/x/y?q=1"),
        ("/api/v2x", "127.0.0.12", "/v2x"),
        ("/api/v2", "127.0.0.13", "/api/v2"),
        ("/api/v2/z", "127.0.0.13", "/api/v2/z"),
        ("/a...b/x%20y", "127.0.0.11", "/a...b/x%20y"),
    ] {
        let answer = ask(path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let account = answer.json();
        assert_eq!((&account["name"], &account["path"]), (&server.into(), &seen.into()), "{path}");
        if server == "127.0.0.12" {
            assert_eq!(answer.seen("x-forwarded-prefix"), ["/api"]);
        }
    }
    // What is matched is what is forwarded: no path that another server would read as another.
    for path in [
        "/../api",
        "/api/../x",
        "/api/..",
        "/./api",
        "/api/.",
        "/api/%2e%2e/x",
        "/api/.%2E/x",
        "/x/%2e/api",
        "/api/..;/x",
        "/api%2f..%2fx",
        "/api/..%5cx",
    ] {
        let answer = ask(path);
        assert_eq!(answer.status, 400, "{path}: {}", answer.text());
    }
    let total = servers.iter().map(|server| {
        let mut stream = harness::plain(server.addr());
        send(&mut stream, "GET", "x", "/", &[("Connection", "close")], b"");
        read_answer(&mut stream, "GET").json()["requests"].as_u64().unwrap()
    });
    assert_eq!(total.sum::<u64>(), 12 + 3, "none of the refused ones came through");
}

#[test]
fn hosts_without_path_routes_leave_dot_segments_to_the_endpoint() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    assert_eq!(itsup.get("https://app.test/a/%2e%2e/b").json()["path"], "/a/%2e%2e/b");
}

#[test]
fn error_pages_come_as_the_client_likes_them_and_carry_the_request_id() {
    let itsup = Itsup::start(&db(&[
        "  - { name: app, domain: app.test, entrypoint: web, services: [{ name: web, image: none }] }\n".into(),
    ]));
    let html = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    for (accept, kind) in [
        (Some(html), "text/html; charset=utf-8"),
        (Some("application/json"), "application/json"),
        (Some("application/json;q=0.5, text/html"), "text/html; charset=utf-8"),
        (Some("text/plain"), "text/plain; charset=utf-8"),
        (Some("*/*"), "text/plain; charset=utf-8"),
        (None, "text/plain; charset=utf-8"),
    ] {
        let headers: Vec<_> = accept.map(|accept| ("Accept", accept)).into_iter().collect();
        let answer = itsup.request("GET", "https://app.test/", &headers, b"");
        assert_eq!((answer.status, answer.header("content-type")), (503, Some(kind)), "{accept:?}");
        let id = answer.header("x-request-id").unwrap().to_owned();
        assert!(answer.text().contains(&id), "{}", answer.text());
        assert!(answer.body.len() < 4096 && !answer.text().to_lowercase().contains("pingora"));
        assert_eq!(answer.header("server"), None);
        if kind == "application/json" {
            let page = answer.json();
            assert_eq!((&page["status"], &page["request_id"]), (&503.into(), &id.clone().into()));
        }
        itsup.logged(|line| line["request_id"] == id);
    }
    let answer = itsup.request("HEAD", "https://app.test/", &[], b"");
    assert_eq!((answer.status, answer.body.len()), (503, 0));
}

#[test]
fn larger_bodies_than_the_service_takes_are_answered_413() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "max_body: 10KB")]));
    let most = itsup.request("POST", "https://app.test/upload", &[], &[0; 10_000]);
    assert_eq!(most.json()["bytes"], 10_000);
    let over = itsup.request("POST", "https://app.test/upload", &[], &[0; 20_000]);
    assert_eq!(over.status, 413);
    // Without a length it is found out on the way.
    let mut stream = tls(itsup.https(), "app.test", &itsup.ca());
    send(&mut stream, "POST", "app.test", "/upload", &[("Transfer-Encoding", "chunked")], b"");
    for _ in 0..20 {
        use std::io::Write as _;
        // The answer may be there before all is sent.
        let _ = stream.write_all(format!("3e8\r\n{}\r\n", "x".repeat(1000)).as_bytes());
    }
    assert_eq!(read_answer(&mut stream, "POST").status, 413);
    let file = itsup.root().path("large");
    std::fs::write(&file, vec![1; 5_000_000]).unwrap();
    let mut command = curl(&itsup);
    command.args(["--http1.1", "-H", "Expect:", "-o", "/dev/null", "-w", "%{http_code}", "-T"]).arg(&file);
    assert_eq!(run(command.arg("https://app.test/upload")).stdout, "413");
    // Over h2 this curl takes the reset that follows an early answer for a failure (RFC 9113, section 8.1).
    let url = format!("https://{}/upload", itsup.https());
    let mut command = Command::new("nghttp");
    command.args(["-v", "--no-dep", "-H", ":authority: app.test", "-d"]).arg(&file).arg(url);
    let said = run(&mut command).stdout;
    assert!(said.contains(":status: 413") && said.contains("error_code=NO_ERROR"), "{said}");
    let line = itsup.logged(|line| line["status"] == 413);
    assert_eq!(line["failed"], "client", "{line}");
    assert_eq!(itsup.get("https://app.test/").json()["method"], "GET");
}

#[test]
fn a_project_without_services_answers_with_the_welcome_page() {
    let itsup = Itsup::start(&db(&["  - { name: hello, domain: hello.test }\n".into()]));
    for version in ["--http1.1", "--http2"] {
        let said = run(curl(&itsup).args([version, "-i", "https://hello.test/any/path?x=y"])).ok().stdout;
        assert!(said.contains(" 200") && said.contains("text/html") && said.contains("hello.test"), "{said}");
        assert!(said.contains("It's up"), "{said}");
    }
    let head = itsup.request("HEAD", "https://hello.test/", &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    let post = itsup.request("POST", "https://hello.test/", &[], &[b'x'; 100_000]);
    assert_eq!(post.status, 200);
}

#[test]
fn a_service_with_a_domain_of_its_own_is_reached_there() {
    let [web, side] = ["127.0.0.21", "127.0.0.22"].map(|ip| Testd::on(ip, &["--name", ip]));
    let text = format!(
        "  - name: app\n    domain: app.test\n    services:\n      - {{ name: 127.0.0.21, port: {} }}\n      - {{ name: 127.0.0.22, port: {}, domain: side.test }}\n",
        web.addr().port(),
        side.addr().port()
    );
    let itsup = Itsup::start(&db(&[text]));
    for _ in 0..5 {
        assert_eq!(itsup.get("https://app.test/").json()["name"], "127.0.0.21");
        assert_eq!(itsup.get("https://side.test/").json()["name"], "127.0.0.22");
    }
}
