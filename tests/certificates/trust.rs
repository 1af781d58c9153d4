//! The internal CA, and that browsers trust it once they are told to.

use std::process::Command;

use crate::harness::{Finished, Itsup, run};

const DB: &str = "projects:\n  - name: hello\n    domain: hello.localhost\n";

#[test]
fn certs_ca_shows_the_root() {
    let itsup = Itsup::start(DB);
    let told = itsup.cli(&["--json", "certs", "ca"]).ok().json();
    assert_eq!(
        told["pem"].as_str().unwrap().trim(),
        itsup.root().read("data/ca/root.pem").replace("\r\n", "\n").trim()
    );
    let shown =
        run(Command::new("openssl").args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(itsup.ca())).ok();
    let fingerprint = shown.stdout.split_once('=').unwrap().1.trim().to_owned();
    let text = itsup.cli(&["certs", "ca"]).ok().stdout;
    assert!(text.contains(&fingerprint) && text.contains("update-ca-certificates"), "{text}");
}

/// Opens the page with a fresh profile of this home.
fn browse(home: &std::path::Path, url: &str) -> Finished {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new("chromium");
    command.env("HOME", home).args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
    command.args(["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    command.arg(format!("--user-data-dir={}", profile.path().display())).args(["--dump-dom", url]);
    run(&mut command)
}

#[test]
fn chromium_accepts_the_internal_ca_once_it_is_trusted() {
    let itsup = Itsup::start(DB);
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join(".pki/nssdb");
    std::fs::create_dir_all(&store).unwrap();
    let store = format!("sql:{}", store.display());
    run(Command::new("certutil").args(["-d", &store, "-N", "--empty-password"])).ok();
    let url = format!("https://hello.localhost:{}/", itsup.https().port());
    let refused = browse(home.path(), &url);
    assert!(refused.stderr.contains("ERR_CERT_AUTHORITY_INVALID"), "{refused:?}");
    assert!(itsup.access_log().is_empty(), "nothing was asked for");
    // As `itsup certs ca` tells people to.
    run(Command::new("certutil").args(["-d", &store, "-A", "-t", "C,,", "-n", "itsup", "-i"]).arg(itsup.ca())).ok();
    let page = browse(home.path(), &url);
    assert!(page.stdout.contains("<title>It's up: hello.localhost</title>"), "{page:?}");
    itsup.logged(|line| line["site"] == "hello" && line["path"] == "/" && line["status"] == 200);
}
