//! Wildcards, whose names are proven in the DNS: by a hook, and by dynamic updates of a real name server.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::ca::{Ca, hosts, seen_when, told_when};
use crate::harness::{Child, Root, eventually};

const KEY: &str = "c2VjcmV0IG9mIDMyIGJ5dGVzIGZvciB0aGUgdGVzdCE=";

#[test]
fn a_wildcard_by_a_hook() {
    let ca = Ca::start();
    let root = Root::new();
    ca.hook(&root);
    root.write(".env", format!("{}ACME_DNS_HOOK=hook.sh\n", ca.env()));
    let itsup = ca.itsup(&root).db(&hosts(&["wild.example.com *.wild.example.com"])).start();
    let seen = seen_when(&itsup, "any.wild.example.com", &ca.root(), |_| true);
    assert_eq!(seen.names, ["*.wild.example.com", "wild.example.com"], "both in one");
    // What was set is taken away again, with the same words.
    let log = eventually("the record's removal", || {
        Some(root.read("hook.log")).filter(|log| log.contains("remove ")).map(|log| log.trim().to_owned())
    });
    let (add, remove) = log.split_once('\n').unwrap();
    assert!(add.starts_with("add _acme-challenge.wild.example.com "), "{log}");
    assert_eq!(add.strip_prefix("add"), remove.strip_prefix("remove"), "{log}");
}

#[test]
fn a_hook_that_fails_is_told_and_the_rest_goes_on() {
    let ca = Ca::start();
    let root = Root::new();
    ca.hook(&root);
    root.write("hook.sh", "#!/bin/sh\necho no such zone >&2\nexit 1\n");
    root.write(".env", format!("{}ACME_DNS_HOOK=hook.sh\n", ca.env()));
    let itsup = ca.itsup(&root).db(&hosts(&["wild.example.com *.wild.example.com"])).start();
    let seen = seen_when(&itsup, "wild.example.com", &ca.root(), |_| true);
    assert_eq!(seen.names, ["wild.example.com"]);
    told_when(&itsup, "*.wild.example.com", |told| {
        told["source"] == "internal" && told["acme"]["error"].to_string().contains("no such zone")
    });
}

#[test]
fn without_a_way_to_the_dns_a_wildcard_says_what_to_set() {
    let ca = Ca::start();
    let itsup = ca.serve(&hosts(&["wild.example.com *.wild.example.com"]));
    seen_when(&itsup, "wild.example.com", &ca.root(), |_| true);
    let told = told_when(&itsup, "*.wild.example.com", |told| told["acme"]["error"].is_string());
    assert!(told["acme"]["error"].as_str().unwrap().contains("ACME_DNS_HOOK"), "{told}");
    assert_eq!(ca.orders(), 1, "the CA is not asked in vain");
}

/// The CA's name server and the zone's in one: knot.
struct Knot {
    _knotd: Child,
    _folder: tempfile::TempDir,
    at: SocketAddr,
}

impl Knot {
    fn start(at: SocketAddr) -> Knot {
        let folder = tempfile::tempdir().unwrap();
        let (path, ip, port) = (folder.path().display(), at.ip(), at.port());
        let zone = format!(
            "$TTL 5\n@ IN SOA ns.example.test. admin.example.test. 1 60 60 600 5\n@ IN NS ns\nns IN A {ip}\n@ IN A {ip}\n* IN A {ip}\n"
        );
        std::fs::write(folder.path().join("zone"), zone).unwrap();
        std::fs::create_dir(folder.path().join("db")).unwrap();
        let conf = format!(
            "server:\n    rundir: \"{path}\"\n    listen: {ip}@{port}\n    udp-workers: 1\n    tcp-workers: 1\n\
             log:\n  - target: stderr\n    any: info\n\
             database:\n    storage: \"{path}/db\"\n    journal-db-max-size: 20M\n    kasp-db-max-size: 10M\n    timer-db-max-size: 10M\n\
             key:\n  - id: itsup\n    algorithm: hmac-sha256\n    secret: {KEY}\n\
             acl:\n  - id: update\n    key: itsup\n    action: update\n\
             zone:\n  - domain: example.test\n    storage: \"{path}\"\n    file: zone\n    acl: update\n"
        );
        std::fs::write(folder.path().join("knot.conf"), conf).unwrap();
        let mut command = Command::new(if Path::new("/usr/sbin/knotd").exists() { "/usr/sbin/knotd" } else { "knotd" });
        command.arg("-c").arg(folder.path().join("knot.conf"));
        let knotd = Child::start("knotd", &mut command);
        let knot = Knot { _knotd: knotd, _folder: folder, at };
        eventually("the zone", || knot.records("example.test", 1).filter(|count| *count > 0));
        knot
    }

    /// How many records of this type it has for a name; `None` where it does not answer.
    fn records(&self, name: &str, kind: u8) -> Option<u16> {
        let mut question = vec![0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            question.push(u8::try_from(label.len()).unwrap());
            question.extend(label.as_bytes());
        }
        question.extend([0, 0, kind, 0, 1]);
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
        socket.send_to(&question, self.at).ok()?;
        let mut answer = [0; 512];
        let (length, _) = socket.recv_from(&mut answer).ok()?;
        (length > 12).then(|| u16::from_be_bytes([answer[6], answer[7]]))
    }
}

/// The number of the type TXT.
const TXT: u8 = 16;

fn wildcard_by_update(tsig: &str) -> (Ca, Knot, crate::harness::Itsup) {
    // Its address is the CA's own, which is not known before: a DNS there on another port.
    let mut ca = Ca::start();
    let dns = SocketAddr::from((ca.ip(), 8054));
    let knot = Knot::start(dns);
    ca.kill();
    ca.use_dns(dns);
    ca.resume();
    let root = Root::new();
    root.write(".env", format!("{}ACME_DNS_SERVER={dns}\nACME_DNS_TSIG={tsig}\n", ca.env()));
    let itsup = ca.itsup(&root).db(&hosts(&["example.test *.example.test"])).start();
    (ca, knot, itsup)
}

#[test]
fn a_wildcard_by_dynamic_updates() {
    let (ca, knot, itsup) = wildcard_by_update(&format!("hmac-sha256:itsup:{KEY}"));
    let seen = seen_when(&itsup, "any.example.test", &ca.root(), |_| true);
    assert_eq!(seen.names, ["*.example.test", "example.test"]);
    eventually("the record's removal", || {
        knot.records("_acme-challenge.example.test", TXT).filter(|count| *count == 0)
    });
}

#[test]
fn a_key_that_the_name_server_does_not_know_is_told() {
    let (ca, _knot, itsup) = wildcard_by_update("hmac-sha256:itsup:d3Jvbmcga2V5");
    let told = told_when(&itsup, "*.example.test", |told| told["acme"]["error"].to_string().contains("ACME_DNS_TSIG"));
    assert_eq!(told["source"], "internal");
    seen_when(&itsup, "example.test", &ca.root(), |_| true);
}
