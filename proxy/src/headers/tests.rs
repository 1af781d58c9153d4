use super::*;
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn request(target: &str, fields: &[(&'static str, &str)]) -> RequestHeader {
    let mut request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
    request.set_version(http::Version::HTTP_11);
    for (name, value) in fields {
        request.append_header(*name, *value).unwrap();
    }
    request
}

static PEER: HeaderValue = HeaderValue::from_static("192.0.2.1");

fn forwarded(trusted: bool) -> Forwarded<'static> {
    Forwarded {
        peer: &PEER,
        trusted,
        client: ip(if trusted { "198.51.100.7" } else { "192.0.2.1" }),
        scheme: "https",
        host: b"a.example",
        port: 443,
        request_id: "id-1",
    }
}

/// Through all that happens to a request, less what the engine does.
fn sent(downstream: &RequestHeader, trusted: bool) -> RequestHeader {
    let mut request = downstream.clone();
    to_upstream(&mut request, downstream, &forwarded(trusted)).unwrap();
    request
}

fn all(request: &RequestHeader, name: &str) -> Vec<String> {
    request.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
}

#[test]
fn finds_the_client() {
    let trusted = nets(&["10.0.0.0/8", "2001:db8::/32"]);
    for (values, peer, want) in [
        (&["1.1.1.1"][..], "192.0.2.1", "192.0.2.1"),
        (&[], "10.0.0.1", "10.0.0.1"),
        (&["1.1.1.1"], "10.0.0.1", "1.1.1.1"),
        (&["6.6.6.6, 1.1.1.1"], "10.0.0.1", "1.1.1.1"),
        (&["6.6.6.6, 1.1.1.1, 10.0.0.2"], "10.0.0.1", "1.1.1.1"),
        (&["6.6.6.6", "1.1.1.1 ,10.0.0.2"], "10.0.0.1", "1.1.1.1"),
        (&["10.0.0.3, 10.0.0.2"], "10.0.0.1", "10.0.0.3"),
        (&["1.1.1.1, unknown, 10.0.0.2"], "10.0.0.1", "10.0.0.2"),
        (&["1.1.1.1, , 10.0.0.2"], "10.0.0.1", "10.0.0.2"),
        (&["1.1.1.1,"], "10.0.0.1", "10.0.0.1"),
        (&["\u{e9}"], "10.0.0.1", "10.0.0.1"),
        (&["1.1.1.1:5000"], "10.0.0.1", "1.1.1.1"),
        (&["[2001:db9::1]:5000"], "10.0.0.1", "2001:db9::1"),
        (&["[2001:db9::1]"], "2001:db8::1", "2001:db9::1"),
        (&["::ffff:1.1.1.1"], "::ffff:10.0.0.1", "1.1.1.1"),
    ] {
        let got = client_ip(values.iter().map(|value| value.as_bytes()), ip(peer), &trusted);
        assert_eq!(got, ip(want), "{values:?} from {peer}");
    }
    assert_eq!(client_ip([&b"1.1.1.1"[..]].into_iter(), ip("10.0.0.1"), &[]), ip("10.0.0.1"));
}

#[test]
fn what_clients_make_up_is_replaced() {
    let downstream = request(
        "/",
        &[
            ("Host", "a.example"),
            ("X-Forwarded-For", "6.6.6.6"),
            ("x-forwarded-for", "7.7.7.7"),
            ("X-Forwarded-Proto", "http"),
            ("X-Forwarded-Host", "evil.example"),
            ("X-Forwarded-Port", "1"),
            ("X-Forwarded-Server", "x"),
            ("X-Forwarded-Prefix", "/x"),
            ("X-Forwarded-Client-Cert", "x"),
            ("X-Real-IP", "6.6.6.6"),
            ("X-Request-Id", "x"),
            ("Forwarded", "for=6.6.6.6"),
            ("X-Original-URL", "/admin"),
            ("X-Rewrite-URL", "/admin"),
            ("X_Forwarded_For", "6.6.6.6"),
            ("X-Forwarded_For", "6.6.6.6"),
            ("Content_Length", "5"),
            ("Proxy", "http://6.6.6.6"),
            ("X-Mine", "kept"),
        ],
    );
    let got = sent(&downstream, false);
    let mut names: Vec<_> = got.headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "host",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-port",
            "x-forwarded-proto",
            "x-mine",
            "x-real-ip",
            "x-request-id",
        ]
    );
    for (name, want) in [
        ("x-forwarded-for", "192.0.2.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "a.example"),
        ("x-forwarded-port", "443"),
        ("x-real-ip", "192.0.2.1"),
        ("x-request-id", "id-1"),
    ] {
        assert_eq!(all(&got, name), [want]);
    }
    // The map of spellings has kept pace: writing panics where it has not.
    got.header_to_h1_wire(&mut BytesMut::new());
}

#[test]
fn what_trusted_proxies_say_is_kept() {
    let downstream = request(
        "/",
        &[
            ("Host", "a.example"),
            ("X-Forwarded-For", "6.6.6.6, 198.51.100.7"),
            ("X-Forwarded-For", "10.0.0.2"),
            ("X-Forwarded-Proto", "http"),
            ("Forwarded", "for=1.1.1.1"),
            ("X_Mine", "kept"),
            ("Proxy", "x"),
        ],
    );
    let got = sent(&downstream, true);
    assert_eq!(all(&got, "x-forwarded-for"), ["6.6.6.6, 198.51.100.7, 10.0.0.2, 192.0.2.1"]);
    assert_eq!(all(&got, "x-forwarded-proto"), ["http"]);
    assert_eq!(all(&got, "x-forwarded-host"), ["a.example"]);
    assert_eq!(all(&got, "x-real-ip"), ["198.51.100.7"]);
    assert_eq!(all(&got, "forwarded"), ["for=1.1.1.1"]);
    assert_eq!(all(&got, "x_mine"), ["kept"]);
    assert_eq!(all(&got, "proxy"), [""; 0]);
}

#[test]
fn connection_lists_take_off_only_what_is_theirs() {
    let downstream = request(
        "/",
        &[
            ("Host", "a.example"),
            ("Connection", "close, X-Hop, Authorization, Cookie, Host, Content-Length"),
            ("Connection", "X-Forwarded-For, X-Real-IP, @, ,"),
            ("X-Hop", "1"),
            ("Authorization", "Basic x"),
            ("Cookie", "a=b"),
            ("Content-Length", "5"),
        ],
    );
    let got = sent(&downstream, false);
    assert_eq!(all(&got, "x-hop"), [""; 0]);
    for name in ["authorization", "cookie", "host", "content-length", "x-forwarded-for", "x-real-ip"] {
        assert_eq!(all(&got, name).len(), 1, "{name}");
    }
}

#[test]
fn the_engine_looks_for_hop_by_hop_fields_where_there_are_any() {
    let plain = request("/", &[("Host", "a.example"), ("Accept", "*/*"), ("X-Connection", "close")]);
    assert_eq!(upstream_request_policy(&plain.headers), HttpUpstreamRequestPolicy::preserve());
    for name in [
        "Connection",
        "HTTP2-Settings",
        "Keep-Alive",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
    ] {
        let policy = upstream_request_policy(&request("/", &[("Host", "a.example"), (name, "x")]).headers);
        assert!(policy.strip_hop_by_hop && policy.h1_upgrade == H1UpgradePolicy::WebSocketOnly, "{name}");
    }
}

#[test]
fn only_websockets_are_upgraded() {
    let handshake = [("Host", "a"), ("Connection", "keep-alive, Upgrade"), ("Upgrade", "WebSocket")];
    let good = request("/", &handshake);
    assert!(is_websocket(&good));
    assert_eq!(all(&sent(&good, false), "upgrade"), ["WebSocket"]);
    for fields in [
        &[("Upgrade", "websocket")][..],
        &[("Connection", "upgrade"), ("Upgrade", "h2c")],
        &[("Connection", "upgrade"), ("Upgrade", "websocket"), ("Upgrade", "h2c")],
        &[("Connection", "upgrade"), ("Upgrade", "websocket"), ("Content-Length", "5")],
        &[("Connection", "upgrade"), ("Upgrade", "websocket"), ("Transfer-Encoding", "chunked")],
    ] {
        let request = request("/", fields);
        assert!(!is_websocket(&request), "{fields:?}");
        assert_eq!(all(&sent(&request, false), "upgrade"), [""; 0], "{fields:?}");
    }
    let mut old = good.clone();
    old.set_version(http::Version::HTTP_10);
    assert!(!is_websocket(&old));
}

#[test]
fn targets_are_sent_in_origin_form() {
    for (target, want) in [
        ("/a?b", "/a?b"),
        ("*", "*"),
        ("http://a.example/b?c", "/b?c"),
        ("http://a.example", "/"),
        ("http://a.example?c", "/?c"),
    ] {
        let downstream = request(target, &[("Host", "a.example")]);
        assert_eq!(sent(&downstream, false).raw_path(), want.as_bytes(), "{target}");
    }
    let old = request("http://a.example/", &[]);
    assert_eq!(all(&sent(&old, false), "host"), ["a.example"]);
}

#[test]
fn takes_over_request_ids_fit_for_a_log() {
    for (id, fit) in [("abc-123", true), ("", false), ("a b", false), ("a\"b", false), (&*"x".repeat(129), false)] {
        let request = request("/", &[("X-Request-Id", id)]);
        assert_eq!(request_id(&request.headers), fit.then_some(id), "{id}");
    }
}

#[test]
fn responses_are_edited() {
    let mut response = ResponseHeader::build(200, None).unwrap();
    for (name, value) in [
        ("Connection", "close, X-Hop, Set-Cookie"),
        ("Keep-Alive", "timeout=5"),
        ("Upgrade", "h2c"),
        ("X-Hop", "1"),
        ("Set-Cookie", "a=b"),
        ("Server", "x"),
        ("X-Powered-By", "y"),
        ("Cache-Control", "no-store"),
    ] {
        response.append_header(name, value).unwrap();
    }
    let edits = HeaderEdits {
        remove: vec![header::SERVER, HeaderName::from_static("x-powered-by")],
        set: vec![(header::CACHE_CONTROL, HeaderValue::from_static("private"))],
    };
    to_client(&mut response, &edits, Some("max-age=1")).unwrap();
    let mut names: Vec<_> = response.headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["cache-control", "connection", "set-cookie", "strict-transport-security"]);
    assert_eq!(response.headers["cache-control"], "private");
    response.header_to_h1_wire(&mut BytesMut::new());

    let mut switching = ResponseHeader::build(101, None).unwrap();
    switching.insert_header("Upgrade", "websocket").unwrap();
    to_client(&mut switching, &HeaderEdits::default(), None).unwrap();
    assert!(switching.headers.contains_key("upgrade"));
}

proptest! {
    #[test]
    fn a_client_cannot_choose_its_address(made_up in prop::collection::vec("[ -~]{0,20}", 0..4), client: [u8; 4]) {
        let trusted = nets(&["10.0.0.0/8"]);
        let client = IpAddr::from(client);
        prop_assume!(!is_trusted(client, &trusted));
        let honest = client.to_string();
        let values = made_up.iter().map(|value| value.as_bytes()).chain([honest.as_bytes()]).collect::<Vec<_>>();
        prop_assert_eq!(client_ip(values.into_iter(), ip("10.0.0.1"), &trusted), client);
    }
}
