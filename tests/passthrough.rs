//! Passthrough: TLS that goes by untouched, half-close, back-pressure, silence, PROXY headers out, other endpoints.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod harness;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use harness::{
    Backend, Itsup, PATIENCE, Testd, db, dead_address, eventually, load, project, read_answer, run, send, tcp,
    tcp_from, tls_config, tls_over,
};

/// A ClientHello for a host, as a TLS client writes it.
fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    session.write_tls(&mut bytes).unwrap();
    bytes
}

fn passthrough(endpoints: &[std::net::SocketAddr], more: &str) -> String {
    let service = if more.is_empty() { "passthrough: true".to_owned() } else { format!("passthrough: true, {more}") };
    db(&[project("pass", "pass.test", endpoints, &service)])
}

/// Bytes that look random and can be made again.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn the_host_behind_speaks_its_own_tls_and_shows_its_own_certificate() {
    let app = Testd::on("127.0.0.1", &["--tls-names", "pass.test"]);
    let itsup = Itsup::start(&passthrough(&[app.tls()], ""));
    let config = tls_config(&app.cert(), &["http/1.1"]);
    let mut stream = tls_over(tcp(itsup.https()), "pass.test", config).unwrap();
    for number in 0..3 {
        send(&mut stream, "GET", "pass.test", &format!("/{number}"), &[], b"");
        let answer = read_answer(&mut stream, "GET");
        assert_eq!(answer.json()["tls"]["sni"], "pass.test");
        assert_eq!(answer.json()["path"], format!("/{number}"));
        // It is no HTTP to us: nothing is added.
        assert_eq!(answer.seen("x-forwarded-for"), [""; 0]);
    }
    drop(stream);
    eventually("the count of what passed", || {
        (itsup.metric("itsup_passthrough_connections_total{outcome=\"passed\"}") == 1.0).then_some(())
    });
}

#[test]
fn bytes_are_untouched_both_ways_and_each_side_may_end_its_own_half() {
    let app = Testd::start();
    let itsup = Itsup::start(&passthrough(&[app.echo()], ""));
    // The echo ends its half only once ours has ended, so all of it must come after that.
    for length in [0, 1, 10_000, 3_000_000] {
        let sent = [hello("pass.test"), noise(length)].concat();
        let mut tcp = tcp(itsup.https());
        let mut writer = tcp.try_clone().unwrap();
        let bytes = sent.clone();
        let writing = std::thread::spawn(move || {
            writer.write_all(&bytes).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut came = Vec::new();
        tcp.read_to_end(&mut came).unwrap();
        writing.join().unwrap();
        assert_eq!(came.len(), sent.len());
        assert!(came == sent, "{length} bytes came back changed");
    }
}

#[test]
fn a_server_that_ends_its_half_first_is_still_written_to() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let to = heard.clone();
    let app = Backend::start(move |_, mut stream| {
        stream.write_all(b"that is all").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        *to.lock().unwrap() = all;
    });
    let itsup = Itsup::start(&passthrough(&[app.addr()], ""));
    let hello = hello("pass.test");
    let mut tcp = tcp(itsup.https());
    tcp.write_all(&hello).unwrap();
    let mut said = Vec::new();
    tcp.read_to_end(&mut said).unwrap();
    assert_eq!(said, b"that is all");
    let more = noise(500_000);
    tcp.write_all(&more).unwrap();
    tcp.shutdown(Shutdown::Write).unwrap();
    let whole = [hello, more].concat();
    eventually("all bytes at the server", || (heard.lock().unwrap().len() == whole.len()).then_some(()));
    assert!(*heard.lock().unwrap() == whole);
}

#[test]
fn a_side_that_does_not_read_holds_the_other_up_and_memory_stays_flat() {
    const CONNECTIONS: usize = 20;
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let app = Backend::start(move |_, mut stream| {
        let block = [7; 65_536];
        // Until the client takes no more for a while.
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        while let Ok(some) = stream.write(&block) {
            count.fetch_add(some as u64, Ordering::Relaxed);
        }
        // Held open: what has been sent is still on its way.
        let _ = stream.set_read_timeout(None);
        let _ = stream.read(&mut [0]);
    });
    let itsup = Itsup::start(&passthrough(&[app.addr()], ""));
    let before = itsup.memory();
    let hello = hello("pass.test");
    let clients: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| {
            let mut tcp = tcp_from("127.0.0.1", itsup.https(), Some(64 * 1024));
            tcp.write_all(&hello).unwrap();
            tcp
        })
        .collect();
    // All writers are stuck when nothing moves for longer than their own limit.
    let mut last = (0, Instant::now());
    eventually("writers that are held up", || {
        let now = written.load(Ordering::Relaxed);
        if now != last.0 {
            last = (now, Instant::now());
        }
        (now > 0 && last.1.elapsed() > Duration::from_secs(3)).then_some(())
    });
    let each = written.load(Ordering::Relaxed) / CONNECTIONS as u64;
    // The endpoint and itsUP have a send buffer each, itsUP a receive buffer; its pipe and the client's buffer are small.
    let limit = kernel_buffer("tcp_rmem") + 2 * kernel_buffer("tcp_wmem") + (2 << 20);
    assert!(each < limit, "{each} bytes were taken for each client that reads none, of at most {limit}");
    let grown = itsup.memory().saturating_sub(before);
    assert!(grown < 24 << 20, "memory grew by {grown} bytes");
    drop(clients);
}

/// The most bytes that the kernel gives a TCP socket's buffer.
fn kernel_buffer(setting: &str) -> u64 {
    let sizes = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{setting}")).unwrap();
    sizes.split_whitespace().next_back().unwrap().parse().unwrap()
}

#[test]
fn two_hundred_megabytes_pass_with_flat_memory() {
    let app = Testd::on("127.0.0.1", &["--tls-names", "pass.test"]);
    let itsup = Itsup::start(&passthrough(&[app.tls()], ""));
    let fetch = |bytes: u64| {
        let mut stream = tls_over(tcp(itsup.https()), "pass.test", tls_config(&app.cert(), &["http/1.1"])).unwrap();
        send(&mut stream, "GET", "pass.test", &format!("/bytes/{bytes}"), &[("Connection", "close")], b"");
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
    };
    fetch(1 << 20);
    let before = itsup.memory();
    assert!(fetch(200 << 20) > 200 << 20);
    let grown = itsup.memory().saturating_sub(before);
    assert!(grown < 16 << 20, "memory grew by {grown} bytes");
}

#[test]
fn silence_beyond_the_idle_limit_ends_a_connection_and_traffic_does_not() {
    let app = Testd::start();
    let itsup = Itsup::start(&passthrough(&[app.echo()], "timeouts: { idle: 3s }"));
    let hello = hello("pass.test");
    let mut buffer = vec![0; hello.len()];
    let start = Instant::now();
    let mut silent = tcp(itsup.https());
    silent.write_all(&hello).unwrap();
    silent.read_exact(&mut buffer).unwrap();
    let mut busy = tcp(itsup.https());
    busy.write_all(&hello).unwrap();
    busy.read_exact(&mut buffer).unwrap();
    // Traffic for twice as long as the limit, in steps well below it.
    let talk = std::thread::spawn(move || {
        for _ in 0..24 {
            busy.write_all(b"x").unwrap();
            busy.read_exact(&mut [0]).unwrap();
            std::thread::sleep(Duration::from_millis(250));
        }
    });
    let ended = silent.read(&mut [0]);
    assert!(matches!(ended, Ok(0)) || ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    let after = start.elapsed();
    assert!(after >= Duration::from_secs(3) && after < PATIENCE, "{after:?}");
    talk.join().unwrap();
}

#[test]
fn a_proxy_header_goes_out_where_it_is_asked_for_and_only_there() {
    for (wanted, version) in [("proxy_protocol: v1", Some(1)), ("proxy_protocol: v2", Some(2)), ("", None)] {
        let flags = ["--tls-names", "pass.test", "--accept-proxy", "optional"];
        let app = Testd::on("127.0.0.1", &flags);
        let itsup = Itsup::start(&passthrough(&[app.tls()], wanted));
        let tcp = tcp_from("127.0.0.9", itsup.https(), None);
        let ends = (tcp.local_addr().unwrap().to_string(), tcp.peer_addr().unwrap().to_string());
        let mut stream = tls_over(tcp, "pass.test", tls_config(&app.cert(), &["http/1.1"])).unwrap();
        send(&mut stream, "GET", "pass.test", "/", &[], b"");
        let proxy = read_answer(&mut stream, "GET").json()["proxy"].clone();
        match version {
            Some(version) => {
                assert_eq!(proxy["version"], version);
                assert_eq!((&proxy["source"], &proxy["destination"]), (&ends.0.into(), &ends.1.into()));
            }
            None => assert!(proxy.is_null(), "{proxy}"),
        }
    }
}

#[test]
fn an_endpoint_that_cannot_be_reached_is_passed_over_and_none_at_all_is_an_alert() {
    let app = Testd::on("127.0.0.1", &["--tls-names", "pass.test"]);
    let dead = dead_address("127.0.0.61");
    let itsup = Itsup::start(&passthrough(&[dead, app.tls()], ""));
    for _ in 0..10 {
        let mut stream = tls_over(tcp(itsup.https()), "pass.test", tls_config(&app.cert(), &["http/1.1"])).unwrap();
        send(&mut stream, "GET", "pass.test", "/", &[], b"");
        assert_eq!(read_answer(&mut stream, "GET").status, 200);
    }
    drop(app);
    let mut tcp = tcp(itsup.https());
    tcp.write_all(&hello("pass.test")).unwrap();
    let mut answer = Vec::new();
    let _ = tcp.read_to_end(&mut answer);
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 80], "the alert internal_error, and no certificate");
}

#[test]
fn many_connections_pass_at_a_time() {
    let app = Testd::on("127.0.0.1", &["--tls-names", "pass.test"]);
    let itsup = Itsup::start(&passthrough(&[app.tls()], ""));
    let mut command = load(&itsup, "run", "pass.test", &app.cert());
    command.args(["--seconds", "3", "--new-rate", "30", "--h1", "10", "--h1-rate", "100"]);
    command.args(["--h2", "4", "--h2-rate", "100", "--websockets", "4", "--events", "4"]);
    let said = run(&mut command).ok();
    let account: serde_json::Value = serde_json::from_str(said.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(account["failed"], 0, "{account}");
}
