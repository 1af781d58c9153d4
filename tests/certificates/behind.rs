//! A host whose TLS goes through, as Home Assistant's: its challenges reach it and not us.

use std::net::{Ipv4Addr, SocketAddr};

use crate::ca::{Ca, DEAD_PORT, Options, seen, seen_when};
use crate::harness::{Itsup, Root};

/// The one behind is an itsup as well, on an address of its own, with the same CA and an account of its own.
fn behind_and_before(ca: &Ca) -> (Itsup, Itsup) {
    let [a, b, c, d] = ca.ip().octets();
    let ip = Ipv4Addr::new(a, b + 100, c, d);
    let own = Root::new();
    own.write(".env", ca.env());
    let behind = Itsup::on(&own)
        .env("ITSUP_HTTP", SocketAddr::from((ip, 5002)))
        .env("ITSUP_HTTPS", SocketAddr::from((ip, 5001)))
        .db("projects:\n  - name: home\n    domain: home.example.com\n")
        .start();
    let before = ca.serve(&format!(
        "projects:\n  - name: home\n    domain: home.example.com\n    services:\n      - {{ name: {ip}, port: 5001, passthrough: true, challenge_port: 5002 }}\n  \
         - name: own\n    domain: own.example.com\n"
    ));
    (behind, before)
}

fn gets_its_own(ca: &Ca) {
    let (behind, before) = behind_and_before(ca);
    let roots = ca.root();
    let own = seen_when(&before, "own.example.com", &roots, |_| true);
    // The one behind may have tried before there was one in front of it.
    let got = || behind.cli(&["certs", "update", "home.example.com"]).code == Some(0);
    if seen(&behind, "home.example.com", &roots).is_none() {
        assert!(got() || got(), "{}", behind.cli(&["certs"]).stdout);
    }
    let through = seen_when(&before, "home.example.com", &roots, |_| true);
    assert_eq!(Some(through), seen(&behind, "home.example.com", &roots));
    assert_eq!(own.names, ["own.example.com"]);
    assert!(!before.root().path("certs/home.example.com").exists(), "it is not ours to order");
    let listed = before.cli(&["--json", "certs"]).ok().stdout;
    assert!(listed.contains("own.example.com") && !listed.contains("home.example.com"), "{listed}");
}

#[test]
fn http_challenges_of_a_passthrough_host_reach_it() {
    gets_its_own(&Ca::start());
}

#[test]
fn tls_challenges_of_a_passthrough_host_reach_it() {
    gets_its_own(&Ca::with(Options { http_port: DEAD_PORT, ..Options::default() }));
}
