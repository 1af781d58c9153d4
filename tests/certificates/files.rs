//! The files of certificates: whose they are, and what a disk does to them.

use std::process::Command;

use serde_json::json;

use crate::ca::{Ca, hosts, seen, seen_when, told, told_when};
use crate::harness::{Itsup, Root, SmallDisk, eventually, run};

/// A CA of the user's own.
pub(crate) struct Own {
    key: rcgen::KeyPair,
    params: rcgen::CertificateParams,
}

impl Own {
    pub(crate) fn new() -> Own {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "own CA");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Own { key: rcgen::KeyPair::generate().unwrap(), params }
    }

    /// Writes its root for clients to trust.
    pub(crate) fn root(&self, root: &Root) -> std::path::PathBuf {
        root.write("own.pem", self.params.self_signed(&self.key).unwrap().pem());
        root.path("own.pem")
    }

    /// Writes a pair that was made `age` days ago and lives for `life` days; returns its SHA-256.
    pub(crate) fn issue(&self, root: &Root, host: &str, age: i64, life: i64) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new([host.to_owned()]).unwrap();
        let day = std::time::Duration::from_secs(24 * 60 * 60);
        let now = std::time::SystemTime::now();
        params.not_before = (now - day * u32::try_from(age).unwrap()).into();
        params.not_after = (now - day * u32::try_from(age).unwrap() + day * u32::try_from(life).unwrap()).into();
        // Old ones lack what the CA's name for them is made of, as some do: their life alone counts.
        params.use_authority_key_identifier_extension = age < 30;
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        let cert = params.signed_by(&key, &issuer).unwrap();
        root.write(&format!("certs/{host}/fullchain.pem"), cert.pem());
        root.write(&format!("certs/{host}/privkey.pem"), key.serialize_pem());
        let pem = root.path(&format!("certs/{host}/fullchain.pem"));
        let shown =
            run(Command::new("openssl").args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(pem)).ok();
        shown.stdout.split_once('=').unwrap().1.trim().replace(':', "").to_lowercase()
    }

    /// The same, as itsup would have written it for this directory.
    pub(crate) fn issue_as_itsup(&self, root: &Root, host: &str, age: i64, life: i64, directory: &str) {
        let sha256 = self.issue(root, host, age, life);
        let marker = json!({ "managed_by": "itsup", "directory": directory, "names": [host], "sha256": [sha256] });
        root.write(&format!("certs/{host}/itsup.json"), marker.to_string());
    }
}

#[test]
fn pairs_of_the_user_are_served_and_never_written() {
    let ca = Ca::start();
    let root = Root::new();
    root.write(".env", ca.env());
    let own = Own::new();
    let own_root = own.root(&root);
    own.issue(&root, "fresh.example.com", 1, 90);
    own.issue(&root, "over.example.com", 91, 90);
    root.write("certs/torn.example.com/fullchain.pem", "torn");
    let bytes = |host: &str| std::fs::read(root.path(&format!("certs/{host}/fullchain.pem"))).unwrap();
    let names = ["fresh.example.com", "over.example.com", "torn.example.com"];
    let before = names.map(bytes);
    let itsup = ca.itsup(&root).db(&hosts(&[&names[..], &["ordered.example.com"]].concat())).start();
    seen_when(&itsup, "ordered.example.com", &ca.root(), |_| true);
    seen(&itsup, "fresh.example.com", &own_root).expect("the user's own");
    // What has expired is shown for want of another: by its clock no client takes it, and `status` says why.
    assert!([&own_root, &itsup.ca()].iter().all(|roots| seen(&itsup, "over.example.com", roots).is_none()));
    assert_eq!(told(&itsup, "over.example.com")["source"], "file");
    seen(&itsup, "torn.example.com", &itsup.ca()).expect("the internal CA's");
    assert_eq!(told(&itsup, "fresh.example.com")["source"], "file");
    let refused = itsup.cli(&["certs", "update", "over.example.com", "--force"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("of yours"), "{refused:?}");
    assert!(itsup.status()["warnings"].to_string().contains("over.example.com"), "it is watched");
    assert_eq!(names.map(bytes), before);
    assert_eq!(ca.orders(), 1);
}

#[test]
fn the_old_tools_pairs_are_taken_over_and_another_cas_are_got_anew() {
    let ca = Ca::start();
    let root = Root::new();
    root.write(".env", ca.env());
    let own = Own::new();
    let own_root = own.root(&root);
    for (host, age) in [("fresh.example.com", 1), ("due.example.com", 80)] {
        own.issue(&root, host, age, 90);
        let renewal = format!("[renewalparams]\nserver = {}\n", ca.directory());
        root.write(&format!("data/letsencrypt/renewal/{host}.conf"), renewal);
    }
    let staging = "https://acme-staging-v02.api.letsencrypt.org/directory";
    own.issue_as_itsup(&root, "staged.example.com", 1, 90, staging);
    let itsup = ca.itsup(&root).db(&hosts(&["fresh.example.com", "due.example.com", "staged.example.com"])).start();
    let roots = ca.root();
    seen_when(&itsup, "due.example.com", &roots, |_| true);
    seen_when(&itsup, "staged.example.com", &roots, |_| true);
    seen(&itsup, "fresh.example.com", &own_root).expect("what certbot got, until its time");
    let told = told(&itsup, "fresh.example.com");
    assert!(told["source"] == "acme" && told["acme"]["renewal"].is_string(), "{told}");
    assert_eq!(ca.orders(), 2);
    assert!(root.read("certs/due.example.com/itsup.json").contains(&ca.directory()));
}

#[test]
fn torn_files_and_wrong_keys_leave_the_last_good_pair() {
    let ca = Ca::start();
    let (a, b) = ("a.example.com", "b.example.com");
    let itsup = ca.serve(&hosts(&[a, b]));
    let roots = ca.root();
    let good = [a, b].map(|host| seen_when(&itsup, host, &roots, |_| true));
    eventually("both to be written", || {
        let files = [a, b].map(|host| itsup.root().path(&format!("certs/{host}/fullchain.pem")).exists());
        (files == [true, true]).then_some(())
    });
    let root = itsup.root().clone();
    let whole = root.read(&format!("certs/{a}/fullchain.pem"));
    root.write(&format!("certs/{a}/fullchain.pem"), &whole[..whole.len() / 3]);
    let other_key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    root.write(&format!("certs/{b}/privkey.pem"), other_key);
    let check = |itsup: &Itsup| {
        for (host, good) in [a, b].into_iter().zip(&good) {
            assert_eq!(seen(itsup, host, &roots).as_ref(), Some(good));
            let warnings = itsup.status()["warnings"].to_string();
            assert!(warnings.contains(host) && warnings.contains("the last good one stays"), "{warnings}");
        }
    };
    itsup.reload();
    check(&itsup);
    // Also where it has not been in memory before.
    let itsup = ca.itsup(&itsup.stop()).start();
    check(&itsup);
    assert_eq!(ca.orders(), 2);
    itsup.cli(&["certs", "update", "--force"]).ok();
    assert_eq!(itsup.status()["warnings"], json!([]));
}

#[test]
fn a_write_that_broke_off_is_finished() {
    let ca = Ca::start();
    let host = "a.example.com";
    let itsup = ca.serve(&hosts(&[host]));
    let roots = ca.root();
    let file = |name: &str| format!("certs/{host}/{name}");
    seen_when(&itsup, host, &roots, |_| true);
    let before = itsup.root().read(&file("fullchain.pem"));
    itsup.cli(&["certs", "update", host, "--force"]).ok();
    let root = itsup.stop();
    let after = root.read(&file("fullchain.pem"));
    // As a crash leaves it: the new key is there, the new chain is not.
    root.write(&file("fullchain.pem"), &before);
    let itsup = ca.itsup(&root).start();
    seen(&itsup, host, &roots).expect("a pair");
    assert_eq!(root.read(&file("fullchain.pem")), after);
    assert_eq!(itsup.status()["warnings"], json!([]));
}

#[test]
fn a_full_disk_costs_no_order_and_no_certificate() {
    let ca = Ca::start();
    let root = Root::new();
    let disk_at = root.path("");
    let disk = SmallDisk::mount(&disk_at);
    let host = "a.example.com";
    root.write(".env", format!("{}ITSUP_ACCESS_LOG=off\n", ca.env()));
    let itsup = ca.itsup(&root).db(&hosts(&[host])).start();
    let roots = ca.root();
    let good = seen_when(&itsup, host, &roots, |_| true);
    told_when(&itsup, host, |told| told["acme"]["under_way"] == false);
    let orders = ca.orders();
    disk.fill();
    let failed = itsup.cli(&["certs", "update", host, "--force"]);
    assert!(failed.code == Some(1) && failed.stdout.contains("No space left"), "{failed:?}");
    let told = told_when(&itsup, host, |told| told["acme"]["error"].to_string().contains("No space left"));
    assert!(told["acme"]["next_try"].is_string(), "{told}");
    assert_eq!(seen(&itsup, host, &roots), Some(good.clone()));
    assert_eq!(ca.orders(), orders, "what could not be kept is not ordered");
    disk.empty();
    let again = eventually("a certificate, now that there is room", || {
        itsup.cli(&["certs", "update", host, "--force"]).code.filter(|code| *code == 0)
    });
    assert_eq!(again, 0);
    seen_when(&itsup, host, &roots, |seen| *seen != good);
    drop(itsup);
    drop(disk);
}
