//! The TLS port: whom a hello leads to, PROXY headers before it, versions, ALPN, tickets, and which certificate is shown.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod harness;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use harness::{
    Itsup, Root, Stream, Testd, curl, db, project, read_answer, run, run_with_input, send, tcp, tcp_from, tls,
    tls_config, tls_over,
};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};

/// The alert `unrecognized_name`, fatal, as a record of its own.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What a client says first.
fn hello(config: ClientConfig, name: &str) -> (ClientConnection, Vec<u8>) {
    let mut session = ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned()).unwrap()).unwrap();
    let mut bytes = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut bytes).unwrap();
    }
    (session, bytes)
}

/// The same handshake bytes in records of at most `size` bytes each.
fn in_records_of(size: usize, bytes: &[u8]) -> Vec<u8> {
    let (mut message, mut rest) = (Vec::new(), bytes);
    while let [22, 3, _, high, low, after @ ..] = rest {
        let (payload, next) = after.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        message.extend_from_slice(payload);
        rest = next;
    }
    assert!(rest.is_empty(), "handshake records alone");
    let records = message.chunks(size).map(|piece| {
        let [high, low] = u16::try_from(piece.len()).unwrap().to_be_bytes();
        [&[22, 3, 1, high, low], piece].concat()
    });
    records.collect::<Vec<_>>().concat()
}

fn finish_handshake(mut session: ClientConnection, mut tcp: TcpStream) -> Stream {
    while session.is_handshaking() {
        session.complete_io(&mut tcp).unwrap();
    }
    Stream::Tls(Box::new(StreamOwned::new(session, tcp)))
}

/// All that comes until the other side ends the connection.
fn rest_of(mut tcp: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset after the answer ends it too.
    let _ = tcp.read_to_end(&mut bytes);
    bytes
}

#[test]
fn a_hello_may_be_split_anyhow_and_be_as_large_as_64_kib() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    // Many protocols make a large hello.
    let large: Vec<String> = (0..250).map(|i| format!("{i:0>240}")).collect();
    let large: Vec<&str> = large.iter().map(String::as_str).chain(["http/1.1"]).collect();
    for (alpn, records, segments) in [
        (&["http/1.1"][..], 16_384, 1),
        (&["http/1.1"][..], 1, 7),
        (&["http/1.1"][..], 20, 4_096),
        (&large[..], 16_384, 1_000),
        (&large[..], 16_384, 65_536),
        (&large[..], 100, 333),
    ] {
        let (session, bytes) = hello(tls_config(&itsup.ca(), alpn), "app.test");
        let bytes = in_records_of(records, &bytes);
        let mut tcp = tcp(itsup.https());
        for piece in bytes.chunks(segments) {
            tcp.write_all(piece).unwrap();
        }
        let mut stream = finish_handshake(session, tcp);
        send(&mut stream, "GET", "app.test", "/split", &[("Connection", "close")], b"");
        let what = format!("{} bytes in records of {records}, segments of {segments}", bytes.len());
        assert_eq!(read_answer(&mut stream, "GET").json()["path"], "/split", "{what}");
    }
    assert!(hello(tls_config(&itsup.ca(), &large), "app.test").1.len() > 60_000);

    // What is larger than that is refused with an alert, and the port still serves.
    let mut body = vec![3, 3];
    body.resize(70_000, 0);
    let message = [&[1, 1, 0x11, 0x70][..], &body].concat();
    let records: Vec<u8> =
        message.chunks(16_000).flat_map(|p| [&[22, 3, 1, (p.len() >> 8) as u8, p.len() as u8], p].concat()).collect();
    let mut over = tcp(itsup.https());
    // It may be refused before all of it is sent.
    let _ = over.write_all(&records);
    let answer = rest_of(over);
    assert!(answer.is_empty() || answer.first() == Some(&21), "an alert or nothing: {answer:?}");
    assert_eq!(itsup.get("https://app.test/").status, 200);
}

#[test]
fn an_exact_host_wins_over_a_wildcard_and_case_means_nothing() {
    let [exact, wild] = [(); 2].map(|()| Testd::start());
    let mut wildcard = project("wild", "wild.test", &[wild.addr()], "");
    wildcard.push_str("    aliases: [\"*.site.test\"]\n");
    let itsup = Itsup::start(&db(&[project("exact", "www.site.test", &[exact.addr()], ""), wildcard]));
    let answers = |name: &str, host: &str| {
        let mut stream = tls(itsup.https(), name, &itsup.ca());
        send(&mut stream, "GET", host, "/", &[("Connection", "close")], b"");
        read_answer(&mut stream, "GET")
    };
    let server = |name: &str| answers(name, name).json()["instance"].clone();
    let (of_exact, of_wild) = (server("www.site.test"), server("other.site.test"));
    assert_ne!(of_exact, of_wild);
    assert_eq!(server("wild.test"), of_wild);
    assert_eq!(server("a-b.site.test"), of_wild);
    assert_eq!(answers("WWW.Site.TEST", "wWw.sITE.tesT").json()["instance"], of_exact);
    // One label deep, and never the parent itself.
    for name in ["a.b.site.test", "site.test"] {
        let (_, bytes) = hello(tls_config(&itsup.ca(), &[]), name);
        let mut tcp = tcp(itsup.https());
        tcp.write_all(&bytes).unwrap();
        assert_eq!(rest_of(tcp), UNRECOGNIZED_NAME, "{name}");
    }
}

#[test]
fn without_a_known_name_there_is_an_alert_and_no_certificate() {
    let itsup = Itsup::start(&db(&["  - { name: hello, domain: hello.test }\n".into()]));
    let target = itsup.https().to_string();
    for name in [&["-servername", "unknown.test"][..], &["-noservername"]] {
        let said = run(Command::new("openssl").args(["s_client", "-connect", &target]).args(name));
        let all = format!("{}{}", said.stdout, said.stderr);
        assert_ne!(said.code, Some(0), "{all}");
        assert!(all.contains("no peer certificate available"), "{all}");
        assert!(all.contains("unrecognized name"), "{all}");
        assert!(!all.contains("BEGIN CERTIFICATE"), "{all}");
    }
    // The alert is all there is, byte for byte.
    let (_, bytes) = hello(tls_config(&itsup.ca(), &["h2"]), "unknown.test");
    let mut tcp = tcp(itsup.https());
    tcp.write_all(&bytes).unwrap();
    assert_eq!(rest_of(tcp), UNRECOGNIZED_NAME);
    assert_eq!(itsup.metric("itsup_connections_refused_total{reason=\"unknown_host\"}"), 3.0);
}

#[test]
fn what_is_no_tls_is_refused_and_plain_http_is_told() {
    let itsup = Itsup::start(&db(&["  - { name: hello, domain: hello.test }\n".into()]));
    let ask = |bytes: &[u8]| {
        let mut tcp = tcp(itsup.https());
        tcp.write_all(bytes).unwrap();
        rest_of(tcp)
    };
    let told = String::from_utf8(ask(b"GET / HTTP/1.1\r\nHost: hello.test\r\n\r\n")).unwrap();
    assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("https"), "{told}");
    assert_eq!(ask(b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00")[..1], [21], "a handshake message that is no hello");
    assert_eq!(ask(b"\0\0\0\0\0\0\0\0")[..1], [21]);
    assert_eq!(itsup.get("https://hello.test/").status, 200);
}

#[test]
fn tls_1_2_and_1_3_are_spoken_and_nothing_older() {
    let itsup = Itsup::start(&db(&["  - { name: hello, domain: hello.test }\n".into()]));
    let target = itsup.https().to_string();
    let ca = itsup.ca();
    let client = |flags: &[&str]| {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &target, "-servername", "hello.test", "-verify_return_error", "-CAfile"]);
        command.arg(&ca).args(flags);
        // Level 0, so that it is not the client that refuses old versions.
        if flags.iter().any(|flag| ["-tls1", "-tls1_1"].contains(flag)) {
            command.args(["-cipher", "ALL:@SECLEVEL=0"]);
        }
        run(&mut command)
    };
    for (flag, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        for (offered, chosen) in [("h2,http/1.1", "h2"), ("http/1.1,h2", "h2"), ("http/1.1", "http/1.1")] {
            let said = client(&[flag, "-alpn", offered]).ok().stdout;
            assert!(said.contains(&format!("New, {version}")), "{said}");
            assert!(said.contains(&format!("ALPN protocol: {chosen}")), "{said}");
        }
        let said = client(&[flag]).ok().stdout;
        assert!(said.contains("No ALPN negotiated"), "{said}");
    }
    for old in ["-tls1", "-tls1_1"] {
        let said = client(&[old]);
        assert_ne!(said.code, Some(0), "{said:?}");
        assert!(said.stderr.contains("SSL alert number") && said.stdout.contains("no peer certificate"), "{said:?}");
    }
    // A protocol that is not spoken here is no reason to guess.
    let said = client(&["-alpn", "spdy/3"]);
    assert!(format!("{}{}", said.stdout, said.stderr).contains("no application protocol"), "{said:?}");
    let said = run(curl(&itsup)
        .args(["--http1.1", "--tls-max", "1.2", "-o", "/dev/null", "-w", "%{http_code}"])
        .arg("https://hello.test/"));
    assert_eq!(said.ok().stdout, "200");
}

#[test]
fn sessions_are_resumed_by_tickets_and_only_for_their_own_host() {
    let hosts = ["one.test", "two.test"].map(|host| format!("  - {{ name: {}, domain: {host} }}\n", &host[..3]));
    let itsup = Itsup::start(&db(&hosts));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let base = tls_config(&itsup.ca(), &["http/1.1"]);
        let mut config = ClientConfig::builder_with_provider(base.crypto_provider().clone())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots(&itsup.ca()))
            .with_no_client_auth();
        config.alpn_protocols = base.alpn_protocols.clone();
        config.resumption = Resumption::in_memory_sessions(256);
        let config = Arc::new(config);
        let visit = |host: &str| {
            let mut stream = tls_over(tcp(itsup.https()), host, config.clone()).unwrap();
            // The ticket of TLS 1.3 comes behind the handshake, so something must be read.
            send(&mut stream, "GET", host, "/", &[("Connection", "close")], b"");
            assert_eq!(read_answer(&mut stream, "GET").status, 200);
            assert!(stream.ended());
            let session = stream.session();
            assert_eq!(session.protocol_version(), Some(version.version));
            session.handshake_kind().unwrap()
        };
        assert_eq!(visit("one.test"), HandshakeKind::Full);
        assert_eq!(visit("one.test"), HandshakeKind::Resumed);
        assert_eq!(visit("two.test"), HandshakeKind::Full);
        assert_eq!(visit("two.test"), HandshakeKind::Resumed);
        assert_eq!(visit("one.test"), HandshakeKind::Resumed);
    }
    assert_eq!(itsup.metric("itsup_tls_handshakes_total{outcome=\"resumed\"}"), 6.0);
    assert_eq!(itsup.metric("itsup_tls_handshakes_total{outcome=\"done\"}"), 4.0);

    // Another TLS stack thinks so too.
    let kept = itsup.root().path("session.pem");
    let (target, ca) = (itsup.https().to_string(), itsup.ca());
    let visit = |flag: &str| {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &target, "-servername", "one.test", "-tls1_3", "-ign_eof", "-CAfile"]);
        command.arg(&ca).arg(flag).arg(&kept);
        run_with_input(&mut command, b"GET / HTTP/1.1\r\nHost: one.test\r\nConnection: close\r\n\r\n").ok().stdout
    };
    assert!(visit("-sess_out").contains("New, TLSv1.3"));
    assert!(visit("-sess_in").contains("Reused, TLSv1.3"));
}

fn roots(ca: &Path) -> rustls::RootCertStore {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    roots
}

/// Makes a certificate of the user's own for a host, below `folder`.
fn own_certificate(folder: &Path, host: &str) {
    std::fs::create_dir_all(folder).unwrap();
    let names = format!("subjectAltName=DNS:{host}");
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "9"]);
    command.args(["-subj", "/CN=own", "-addext", &names, "-keyout"]).arg(folder.join("privkey.pem"));
    run(command.arg("-out").arg(folder.join("fullchain.pem"))).ok();
}

#[test]
fn own_files_come_before_the_internal_ca_and_changes_are_picked_up_by_a_reload() {
    let itsup = Itsup::start(&db(&["  - { name: hello, domain: hello.test }\n".into()]));
    let shown = || {
        let target = itsup.https().to_string();
        let said = run(Command::new("openssl").args(["s_client", "-connect", &target, "-servername", "hello.test"]));
        run_with_input(
            Command::new("openssl").args([
                "x509",
                "-noout",
                "-subject",
                "-issuer",
                "-serial",
                "-ext",
                "subjectAltName",
            ]),
            said.stdout.as_bytes(),
        )
        .ok()
        .stdout
    };
    let internal = shown();
    assert!(internal.contains("DNS:hello.test") && !internal.contains("CN = own"), "{internal}");

    let folder = itsup.root().path("certs/hello.test");
    own_certificate(&folder, "hello.test");
    assert_eq!(shown(), internal, "nothing changes before a reload");
    itsup.reload();
    let own = shown();
    assert!(own.contains("issuer=CN = own"), "{own}");
    own_certificate(&folder, "hello.test");
    itsup.reload();
    let renewed = shown();
    assert!(renewed.contains("issuer=CN = own") && renewed != own, "{renewed}");
    let mut own_root = curl(&itsup);
    own_root.arg("--cacert").arg(folder.join("fullchain.pem")).args(["-o", "/dev/null", "-w", "%{http_code}"]);
    assert_eq!(run(own_root.arg("https://hello.test/")).ok().stdout, "200");

    std::fs::remove_dir_all(folder).unwrap();
    itsup.reload();
    let back = shown();
    assert!(back.contains("O = itsUP") && back.contains("DNS:hello.test"), "{back}");
}

#[test]
fn each_host_has_a_leaf_of_its_own_from_the_internal_ca_that_outlives_a_restart() {
    let mut many = "  - { name: one, domain: one.test, aliases: [\"*.many.test\", second.test] }\n".to_owned();
    many.push_str("  - { name: two, domain: two.test }\n");
    let itsup = Itsup::start(&db(&[many]));
    for host in ["one.test", "second.test", "two.test", "any.many.test"] {
        let stream = tls(itsup.https(), host, &itsup.ca());
        let leaf = stream.session().peer_certificates().unwrap()[0].to_vec();
        let names = ["one.test", "second.test", "two.test", "many.test"];
        let of: Vec<&str> =
            names.into_iter().filter(|name| leaf.windows(name.len()).any(|at| at == name.as_bytes())).collect();
        assert_eq!(of, [host.trim_start_matches("any.")], "the names in it");
    }
    let root = std::fs::read(itsup.ca()).unwrap();
    let itsup = Itsup::on(&itsup.stop()).start();
    assert_eq!(std::fs::read(itsup.ca()).unwrap(), root, "clients trust it once and for all");
    assert_eq!(itsup.get("https://two.test/").status, 200);
}

fn v2(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    for end in [source, destination] {
        let std::net::IpAddr::V4(ip) = end.ip() else { panic!("IPv4 here") };
        header.extend(ip.octets());
    }
    header.extend(source.port().to_be_bytes());
    header.extend(destination.port().to_be_bytes());
    header
}

#[test]
fn a_proxy_header_is_required_of_whom_the_settings_name_and_refused_from_all_others() {
    let app = Testd::start();
    let root = Root::new();
    root.write(".env", "ITSUP_PROXY_PROTOCOL=127.0.0.2/32, 10.0.0.0/8\n");
    let itsup = Itsup::on(&root).db(&db(&[project("app", "app.test", &[app.addr()], "")])).start();
    let config = Arc::new(tls_config(&itsup.ca(), &["http/1.1"]));
    let visit = |from: &str, header: &[u8], piece: usize| {
        let mut tcp = tcp_from(from, itsup.https(), None);
        for part in header.chunks(piece) {
            // It may have been refused already.
            let _ = tcp.write_all(part);
        }
        let mut stream = tls_over(tcp, "app.test", config.clone()).ok()?;
        send(&mut stream, "GET", "app.test", "/", &[("Connection", "close")], b"");
        Some(read_answer(&mut stream, "GET").seen("x-forwarded-for").join("|"))
    };
    let v1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n";
    let v1_v6 = b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n";
    let v2 = v2("203.0.113.9:999".parse().unwrap(), "198.51.100.1:443".parse().unwrap());
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    for piece in [1, 5, 1_000] {
        assert_eq!(visit("127.0.0.2", v1, piece).as_deref(), Some("192.0.2.7"));
        assert_eq!(visit("127.0.0.2", v1_v6, piece).as_deref(), Some("2001:db8::7"));
        assert_eq!(visit("127.0.0.2", &v2, piece).as_deref(), Some("203.0.113.9"));
    }
    // Headers that name nobody leave the peer, as the standard has it.
    assert_eq!(visit("127.0.0.2", b"PROXY UNKNOWN\r\n", 99).as_deref(), Some("127.0.0.2"));
    assert_eq!(visit("127.0.0.2", local, 99).as_deref(), Some("127.0.0.2"));
    // Required: without one, or with a damaged one, the connection is closed.
    assert_eq!(visit("127.0.0.2", b"", 99), None);
    assert_eq!(visit("127.0.0.2", b"PROXY TCP4 nonsense\r\n", 99), None);
    // Refused: from anyone else it is no TLS.
    assert_eq!(visit("127.0.0.1", v1, 99), None);
    assert_eq!(visit("127.0.0.3", &v2, 99), None);
    assert_eq!(visit("127.0.0.1", b"", 99).as_deref(), Some("127.0.0.1"));
    assert_eq!(itsup.metric("itsup_connections_refused_total{reason=\"proxy_protocol\"}"), 2.0);

    // On the plain port the same holds.
    let plain = |from: &str, header: &[u8]| {
        let mut tcp = tcp_from(from, itsup.http(), None);
        tcp.write_all(&[header, b"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n"].concat()).unwrap();
        let answer = rest_of(tcp);
        String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
    };
    assert!(plain("127.0.0.2", v1).contains(" 301 "));
    assert_eq!(plain("127.0.0.2", b""), "");
    assert!(plain("127.0.0.1", b"").contains(" 301 "));
    assert!(plain("127.0.0.1", v1).contains(" 400 "));

    // A reload takes other networks up.
    root.write(".env", "ITSUP_PROXY_PROTOCOL=127.0.0.3\n");
    itsup.reload();
    assert_eq!(visit("127.0.0.3", &v2, 99).as_deref(), Some("203.0.113.9"));
    assert_eq!(visit("127.0.0.2", &v2, 99), None);
    assert_eq!(visit("127.0.0.2", b"", 99).as_deref(), Some("127.0.0.2"));
}
