//! Renewals: when they are due, under load, with clocks that jump; and revocation.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::ca::{Ca, Options, hosts, seen, seen_when, told, told_when};
use crate::files::Own;
use crate::front::{Front, Ways};
use crate::harness::{Root, eventually, run, tls_config, tls_over};

#[test]
fn the_cas_window_decides_where_there_is_one() {
    let ca = Ca::start();
    let front = Front::start(&ca, Ways { windows: true, ..Ways::default() });
    let root = front.root(&ca);
    let own = Own::new();
    let own_root = own.root(&root);
    // Made yesterday for 90 days: by its life alone it would have two months yet.
    own.issue_as_itsup(&root, "a.example.com", 1, 90, &front.directory());
    let itsup = ca.itsup(&root).db(&hosts(&["a.example.com"])).start();
    let new = seen_when(&itsup, "a.example.com", &ca.root(), |_| true);
    assert!(seen(&itsup, "a.example.com", &own_root).is_none());
    let counts = front.counts();
    assert_eq!((counts.orders, counts.replacing), (1, 1), "the order says which certificate it replaces: {counts:?}");
    // The new one's window is far away, later than its end: so it is a tenth of its life before that.
    eventually("a look at the new one's window", || (front.counts().windows.len() == 2).then_some(()));
    let told = told_when(&itsup, "a.example.com", |told| {
        let at = told["acme"]["renewal"].as_str().and_then(|at| at.get(..10)).map(str::to_owned);
        at.is_some_and(|at| [told_day(80), told_day(81)].contains(&at))
    });
    assert_eq!(seen(&itsup, "a.example.com", &ca.root()), Some(new), "{told}");
}

/// The day that is so many days from now, in UTC.
fn told_day(days: u64) -> String {
    let at = format!("@{}", std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() + days * 24 * 60 * 60);
    run(std::process::Command::new("date").args(["-u", "+%Y-%m-%d", "-d", &at])).ok().stdout.trim().to_owned()
}

#[test]
fn short_lives_are_renewed_in_time_without_anybody() {
    let ca = Ca::with(Options { valid_for: 45, ..Options::default() });
    let itsup = ca.serve(&hosts(&["a.example.com"]));
    let roots = ca.root();
    let first = seen_when(&itsup, "a.example.com", &roots, |_| true);
    let second = seen_when(&itsup, "a.example.com", &roots, |seen| *seen != first);
    assert_ne!(first.der, second.der);
}

/// Certificates with the name for which each was shown.
type Certificates = BTreeSet<(String, Vec<u8>)>;

/// Connects again and again, and counts whom it would not have trusted.
struct Visitors {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
    seen: Arc<Mutex<Certificates>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Visitors {
    fn start(to: std::net::SocketAddr, names: &[String], roots: &std::path::Path) -> Visitors {
        let visitors = Visitors {
            stop: Arc::default(),
            done: Arc::default(),
            failed: Arc::default(),
            seen: Arc::default(),
            threads: Vec::new(),
        };
        // Without resumption, so that each handshake shows the certificate.
        let mut config = tls_config(roots, &["http/1.1"]);
        config.resumption = rustls::client::Resumption::disabled();
        let config = Arc::new(config);
        let threads = (0..3).map(|first| {
            let (stop, done, failed, seen) =
                (visitors.stop.clone(), visitors.done.clone(), visitors.failed.clone(), visitors.seen.clone());
            let (names, config) = (names.to_vec(), config.clone());
            std::thread::spawn(move || {
                for name in names.iter().cycle().skip(first * 7) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let shaken = std::net::TcpStream::connect(to).and_then(|tcp| tls_over(tcp, name, config.clone()));
                    match shaken {
                        Ok(stream) => {
                            let der = stream.session().peer_certificates().unwrap()[0].to_vec();
                            seen.lock().unwrap().insert((name.clone(), der));
                        }
                        Err(error) => failed.lock().unwrap().push(format!("{name}: {error}")),
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let threads = threads.collect();
        Visitors { threads, ..visitors }
    }

    /// How many certificates each host has shown, all together.
    fn shown(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        (self.done.load(Ordering::Relaxed), self.failed.lock().unwrap().clone())
    }
}

/// 25 hosts: 13 are due by their life, 12 by the CA's window, then all are renewed three times on demand.
#[test]
fn a_hundred_swaps_under_load_fail_no_handshake() {
    let ca = Ca::start();
    let front = Front::start(&ca, Ways { windows: true, ..Ways::default() });
    let root = front.root(&ca);
    let own = Own::new();
    let names: Vec<String> = (0..25).map(|index| format!("h{index}.example.com")).collect();
    for (index, name) in names.iter().enumerate() {
        own.issue_as_itsup(&root, name, if index < 13 { 70 } else { 1 }, 90, &front.directory());
    }
    // Whoever visits trusts what was there before, and what the CA issues.
    let both = [std::fs::read(own.root(&root)).unwrap(), std::fs::read(ca.root()).unwrap()].concat();
    root.write("both.pem", both);
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let itsup = ca.itsup(&root).db(&hosts(&all)).start();
    let visitors = Visitors::start(itsup.https(), &names, &root.path("both.pem"));
    let roots = ca.root();
    for name in &names {
        seen_when(&itsup, name, &roots, |_| true);
    }
    assert_eq!(front.counts().orders, 25);
    for _ in 0..3 {
        itsup.cli(&["--json", "certs", "update", "--force"]).ok();
    }
    // Each of the last ones is seen by somebody.
    let last: BTreeSet<Vec<u8>> = names.iter().map(|name| seen(&itsup, name, &roots).unwrap().der).collect();
    assert_eq!(last.len(), 25);
    eventually("all to be visited once more", || {
        let seen = visitors.seen.lock().unwrap();
        (seen.iter().filter(|(_, der)| last.contains(der)).count() == 25).then_some(())
    });
    let shown = visitors.shown();
    let (done, failed) = visitors.stop();
    eprintln!(
        "{} orders, {done} handshakes, {shown} certificates seen, {} failed",
        front.counts().orders,
        failed.len()
    );
    assert_eq!(front.counts().orders, 100);
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn a_revoked_certificate_is_replaced() {
    let ca = Ca::start();
    let itsup = ca.serve(&hosts(&["a.example.com"]));
    let roots = ca.root();
    let first = seen_when(&itsup, "a.example.com", &roots, |_| true);
    told_when(&itsup, "a.example.com", |told| told["acme"]["under_way"] == false);
    let done = itsup.cli(&["certs", "revoke", "a.example.com"]).ok();
    assert!(done.stdout.contains("revoked") && done.stdout.contains("a.example.com: a new certificate"), "{done:?}");
    let second = seen_when(&itsup, "a.example.com", &roots, |seen| *seen != first);
    assert_eq!(ca.standing(&first.serial)["Status"], "Revoked");
    assert_eq!(ca.standing(&second.serial)["Status"], "Valid");
    let unknown = itsup.cli(&["certs", "revoke", "b.example.com"]);
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
}

/// itsup's clock is moved while it runs, by libfaketime and a file.
#[test]
fn a_clock_that_jumps_orders_once_and_loses_nothing() {
    let ca = Ca::start();
    let root = Root::new();
    root.write(".env", ca.env());
    root.write("clock", "+0");
    let library = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"]
        .map(|folder| format!("{folder}/faketime/libfaketimeMT.so.1"))
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .expect("libfaketime (bin/deps.sh test installs it)");
    let itsup = ca
        .itsup(&root)
        .env("LD_PRELOAD", library)
        .env("FAKETIME_TIMESTAMP_FILE", root.path("clock").display())
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("FAKETIME_CACHE_DURATION", "1")
        .db(&hosts(&["a.example.com"]))
        .start();
    let roots = ca.root();
    let first = seen_when(&itsup, "a.example.com", &roots, |_| true);
    // Past two thirds of its life, which is missed and caught up with.
    root.write("clock", "+70d");
    let second = seen_when(&itsup, "a.example.com", &roots, |seen| *seen != first);
    // The new one is as old by this clock: it must not be ordered again and again.
    let told_of = told_when(&itsup, "a.example.com", |told| told["acme"]["error"].is_string());
    assert!(told_of["acme"]["error"].as_str().unwrap().contains("clock"), "{told_of}");
    assert_eq!(ca.orders(), 2);
    // Back before it began.
    root.write("clock", "-30d");
    eventually("the clock to be noticed", || {
        (told(&itsup, "a.example.com")["days_left"].as_i64() > Some(110)).then_some(())
    });
    assert_eq!(seen(&itsup, "a.example.com", &roots), Some(second));
    itsup.cli(&["certs", "update", "--force"]).ok();
    assert_eq!(ca.orders(), 3);
    root.write("clock", "+0");
    seen(&itsup, "a.example.com", &roots).expect("a certificate");
}
