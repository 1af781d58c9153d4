use super::*;
use rustls::pki_types::{ServerName, UnixTime};

fn day(days: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000) + DAY * u32::try_from(days).unwrap()
}

fn host(text: &str) -> HostPattern {
    HostPattern::parse(text).unwrap()
}

/// What a client does: the chain must lead to the root, be in time and carry the name.
fn verify(root: &CertificateDer<'_>, chain: &[CertificateDer<'_>], name: &str, now: SystemTime) -> Result<(), String> {
    let anchor = webpki::anchor_from_trusted_cert(root).map_err(|error| error.to_string())?;
    let leaf = webpki::EndEntityCert::try_from(&chain[0]).map_err(|error| error.to_string())?;
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap());
    let usage = webpki::KeyUsage::server_auth();
    leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &[anchor], &chain[1..], now, usage, None, None)
        .map_err(|error| error.to_string())?;
    leaf.verify_is_valid_for_subject_name(&ServerName::try_from(name).unwrap()).map_err(|error| error.to_string())
}

fn chain(ca: &InternalCa, name: &str, now: SystemTime) -> Vec<CertificateDer<'static>> {
    sign_leaf(&ca.intermediate, &host(name), now).unwrap().0
}

fn open(folder: &Path, now: SystemTime) -> (InternalCa, Vec<String>) {
    InternalCa::open(&folder.join("ca"), now).unwrap()
}

#[test]
fn chains_lead_to_the_root_and_carry_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, notes) = open(folder.path(), day(0));
    assert_eq!(notes, Vec::<String>::new());
    let long = format!("{}.example.com", "a".repeat(60));
    for (pattern, name) in [("a.example.com", "a.example.com"), ("*.example.com", "b.example.com"), (&long, &long)] {
        let chain = chain(&ca, pattern, day(0));
        verify(&ca.root.der, &chain, name, day(0)).unwrap();
        verify(&ca.root.der, &chain, name, day(0) - Duration::from_secs(50 * 60)).unwrap();
        verify(&ca.root.der, &chain, name, day(6)).unwrap();
        verify(&ca.root.der, &chain, name, day(8)).unwrap_err();
        verify(&ca.root.der, &chain, "other.example.org", day(0)).unwrap_err();
    }
}

#[test]
fn openssl_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let (ca, _) = open(folder.path(), now);
    let chain = chain(&ca, "a.example.com", now);
    let pem = |der: &CertificateDer<'_>| {
        let mut child = std::process::Command::new("openssl")
            .args(["x509", "-inform", "der", "-outform", "pem"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), der).unwrap();
        child.wait_with_output().unwrap().stdout
    };
    let path = |name: &str| folder.path().join(name);
    fs::write(path("leaf.pem"), pem(&chain[0])).unwrap();
    fs::write(path("between.pem"), pem(&chain[1])).unwrap();
    let output = std::process::Command::new("openssl")
        .args(["verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "a.example.com", "-CAfile"])
        .args([&ca.root_path(), Path::new("-untrusted"), &path("between.pem"), &path("leaf.pem")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_root_and_the_intermediate_are_the_same_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path(), day(0)).0;
    let (second, notes) = open(folder.path(), day(1));
    assert_eq!(first.root.der, second.root.der);
    assert_eq!(first.intermediate.der, second.intermediate.der);
    assert_eq!(notes, Vec::<String>::new());
    for key in ["root.key", "intermediate.key"] {
        let mode = fs::metadata(folder.path().join("ca").join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
}

#[test]
fn the_intermediate_is_renewed_at_two_thirds_under_the_same_root() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ca, _) = open(folder.path(), day(0));
    let before = ca.intermediate.der.clone();
    ca.leaves(&[host("a.example.com")], day(240));
    assert_eq!(ca.intermediate.der, before);
    assert!(!ca.is_due(day(240)));
    assert!(ca.is_due(day(244)));
    ca.leaves(&[host("a.example.com")], day(244));
    assert_ne!(ca.intermediate.der, before);
    verify(&ca.root.der, &chain(&ca, "a.example.com", day(244)), "a.example.com", day(244)).unwrap();
    assert_eq!(open(folder.path(), day(245)).0.intermediate.der, ca.intermediate.der);
    // At the end of the root's life there is nothing longer to be had.
    let last = day(3650);
    let (mut ca, notes) = open(folder.path(), last);
    assert!(notes[0].contains("the root ends in 2 days"), "{notes:?}");
    assert!(ca.leaves(&[], last).1.is_none());
    assert!(!ca.is_due(last));
}

#[test]
fn leaves_are_kept_until_two_thirds_and_forgotten_with_their_host() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ca, _) = open(folder.path(), day(0));
    let (a, b) = (host("a.example.com"), host("*.b.example.com"));
    let first = ca.leaves(&[a.clone(), b.clone()], day(0)).0.clone();
    let again = ca.leaves(&[a.clone(), b.clone()], day(4)).0.clone();
    assert!(Arc::ptr_eq(&first[&a].cert, &again[&a].cert) && Arc::ptr_eq(&first[&b].cert, &again[&b].cert));
    assert!(!ca.is_due(day(4)));
    assert!(ca.is_due(day(5)));
    let renewed = ca.leaves(std::slice::from_ref(&a), day(5)).0;
    assert!(!Arc::ptr_eq(&first[&a].cert, &renewed[&a].cert));
    assert_eq!(renewed.len(), 1);
    assert_eq!(renewed[&a].not_after, day(12));
}

#[test]
fn a_renewal_that_fails_takes_no_certificate_away() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ca, _) = open(folder.path(), day(0));
    let a = host("a.example.com");
    ca.leaves(std::slice::from_ref(&a), day(0));
    let path = folder.path().join("ca");
    fs::rename(&path, folder.path().join("away")).unwrap();
    let (leaves, fault) = ca.leaves(std::slice::from_ref(&a), day(244));
    assert!(leaves.contains_key(&a));
    assert!(fault.unwrap().to_string().contains("intermediate.key"));
    assert!(ca.is_due(day(244)), "it is tried again");
    fs::rename(folder.path().join("away"), &path).unwrap();
    assert!(ca.leaves(std::slice::from_ref(&a), day(244)).1.is_none());
    assert!(!ca.is_due(day(244)));
}

#[test]
fn a_clock_that_jumps_back_makes_new_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ca, _) = open(folder.path(), day(100));
    ca.leaves(&[host("a.example.com")], day(100));
    assert!(!ca.is_due(day(100) - Duration::from_secs(30 * 60)));
    assert!(ca.is_due(day(50)));
    // The root stays: its time will come again.
    let (again, notes) = open(folder.path(), day(50));
    assert_eq!(again.root.der, ca.root.der);
    assert_eq!(notes, Vec::<String>::new());
}

#[test]
fn what_cannot_be_used_is_moved_aside_and_kept() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 6] = [
        ("root.key is missing", |ca| fs::remove_file(ca.join("root.key")).unwrap()),
        ("root.pem is missing", |ca| fs::remove_file(ca.join("root.pem")).unwrap()),
        ("no certificate in it", |ca| fs::write(ca.join("root.pem"), b"-----BEGIN CERT").unwrap()),
        ("the key cannot be read", |ca| fs::write(ca.join("root.key"), b"").unwrap()),
        ("not a pair", |ca| {
            fs::write(ca.join("root.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        }),
        ("not the certificate of a CA", |ca| {
            let key = KeyPair::generate().unwrap();
            let cert = CertificateParams::new(["a.example.com".to_owned()]).unwrap().self_signed(&key).unwrap();
            fs::write(ca.join("root.key"), key.serialize_pem()).unwrap();
            fs::write(ca.join("root.pem"), cert.pem()).unwrap();
        }),
    ];
    for (wanted, harm) in harms {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca");
        let old = open(folder.path(), day(0)).0.root.der;
        harm(&path);
        let left = ["root.pem", "root.key"].map(|name| fs::read(path.join(name)).ok());
        let (ca, notes) = open(folder.path(), day(0));
        assert!(notes[0].contains(wanted), "{wanted}: {notes:?}");
        assert_ne!(ca.root.der, old);
        let seconds = day(0).duration_since(UNIX_EPOCH).unwrap().as_secs();
        let aside = ["root.pem", "root.key"].map(|name| fs::read(path.join(format!("{name}.aside-{seconds}"))).ok());
        assert_eq!(aside, left, "{wanted}");
        // The old intermediate is of no use under the new root.
        verify(&ca.root.der, &chain(&ca, "a.example.com", day(0)), "a.example.com", day(0)).unwrap();
        // Once more at the same second: nothing that was put aside is overwritten.
        fs::remove_file(path.join("root.key")).unwrap();
        open(folder.path(), day(0));
        assert_eq!(fs::read(path.join(format!("root.pem.aside-{seconds}"))).ok(), left[0], "{wanted}");
    }
}

#[test]
fn an_expired_root_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let old = open(folder.path(), day(0)).0.root.der;
    let (ca, notes) = open(folder.path(), day(3653));
    assert!(notes[0].contains("expired"), "{notes:?}");
    assert_ne!(ca.root.der, old);
}

#[test]
fn a_file_that_cannot_be_read_stays_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path(), day(0));
    let key = folder.path().join("ca/root.key");
    fs::remove_file(&key).unwrap();
    fs::create_dir(&key).unwrap();
    let Err(error) = InternalCa::open(&folder.path().join("ca"), day(0)) else { panic!("opened") };
    assert!(error.to_string().contains("root.key"), "{error}");
    assert!(key.is_dir() && folder.path().join("ca/root.pem").exists());
}

#[test]
fn a_key_that_others_could_read_is_closed_to_them() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path(), day(0));
    let key = folder.path().join("ca/root.key");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let (_, notes) = open(folder.path(), day(0));
    assert!(notes[0].contains("could be read by others"), "{notes:?}");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn ten_thousand_hosts_take_seconds_and_a_reload_makes_only_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ca, _) = open(folder.path(), day(0));
    let mut hosts: Vec<_> = (0..10_000).map(|n| host(&format!("h{n}.example.com"))).collect();
    let start = std::time::Instant::now();
    let first = ca.leaves(&hosts, day(0)).0.clone();
    println!("10,000 leaves: {:?}", start.elapsed());
    hosts.push(host("new.example.com"));
    let second = ca.leaves(&hosts, day(0)).0;
    assert_eq!(second.len(), 10_001);
    assert!(first.iter().all(|(host, leaf)| Arc::ptr_eq(&leaf.cert, &second[host].cert)));
}
