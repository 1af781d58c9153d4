use super::*;
use rcgen::{CertificateParams, KeyPair};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn host(text: &str) -> HostPattern {
    HostPattern::parse(text).unwrap()
}

fn place(folder: &str) -> Place {
    Place { cert: format!("certs/{folder}/fullchain.pem").into(), key: format!("certs/{folder}/privkey.pem").into() }
}

fn facts(names: &[&str], days: u64) -> Facts {
    let not_after = now() + DAY * u32::try_from(days).unwrap();
    Facts { names: names.iter().map(|name| host(name)).collect(), not_before: now() - DAY, not_after }
}

fn wanted(name: &str) -> Wanted {
    Wanted { host: host(name), from: From::Auto }
}

fn decide(wanted: Wanted, available: &[(&str, Facts)], now: SystemTime) -> (String, Vec<String>) {
    let available: Vec<(Place, &Facts)> = available.iter().map(|(folder, facts)| (place(folder), facts)).collect();
    let available = available.iter().map(|(place, facts)| (place, *facts)).collect();
    let (choices, warnings) = choose(&[wanted], &available, now);
    let choice = match &choices[0] {
        Choice::Internal => "internal".to_owned(),
        Choice::File(place) => place.folder().unwrap().to_owned(),
    };
    (choice, warnings)
}

#[test]
fn the_names_in_a_certificate_decide() {
    for (name, available, choice) in [
        ("a.example.com", vec![("x", facts(&["a.example.com"], 9))], "x"),
        ("a.example.com", vec![("x", facts(&["*.example.com"], 9))], "x"),
        ("example.com", vec![("x", facts(&["*.example.com"], 9))], "internal"),
        ("b.a.example.com", vec![("x", facts(&["*.example.com"], 9))], "internal"),
        ("*.example.com", vec![("x", facts(&["*.example.com"], 9))], "x"),
        ("*.example.com", vec![("x", facts(&["a.example.com"], 9))], "internal"),
        // The folder's name, then the exact name, then the longest life.
        ("a.b.c", vec![("a.b.c", facts(&["*.b.c"], 1)), ("x", facts(&["a.b.c"], 9))], "a.b.c"),
        ("*.b.c", vec![("_wildcard.b.c", facts(&["*.b.c"], 1)), ("x", facts(&["*.b.c"], 9))], "_wildcard.b.c"),
        ("a.b.c", vec![("x", facts(&["*.b.c"], 9)), ("y", facts(&["a.b.c"], 1))], "y"),
        ("a.b.c", vec![("x", facts(&["a.b.c"], 1)), ("y", facts(&["a.b.c"], 9))], "y"),
        // What has expired comes last, whatever its folder's name.
        ("a.b.c", vec![("a.b.c", facts(&["a.b.c"], 0)), ("y", facts(&["*.b.c"], 9))], "y"),
    ] {
        assert_eq!(decide(wanted(name), &available, now()), (choice.into(), vec![]), "{name} {available:?}");
    }
}

#[test]
fn what_stands_in_is_said() {
    let (choice, warnings) = decide(wanted("a.b.c"), &[("a.b.c", facts(&["a.b.c"], 0))], now());
    assert_eq!(choice, "a.b.c");
    let text = "certificate certs/a.b.c/fullchain.pem: it has expired, and is shown for want of another";
    assert_eq!(warnings, [text]);
    let (choice, warnings) = decide(wanted("a.b.c"), &[("a.b.c", facts(&["d.b.c", "e.b.c"], 9))], now());
    assert_eq!(choice, "internal");
    let text =
        "certificate certs/a.b.c/fullchain.pem: it is for d.b.c, e.b.c, not for a.b.c; the internal CA stands in";
    assert_eq!(warnings, [text]);
}

#[test]
fn named_files_and_the_internal_ca_are_as_told() {
    let available = [("a.b.c", facts(&["a.b.c"], 9)), ("own", facts(&["a.b.c"], 1)), ("other", facts(&["x.y"], 9))];
    let from = |from| Wanted { host: host("a.b.c"), from };
    let files = |folder| From::Files(place(folder));
    assert_eq!(decide(from(From::Internal), &available, now()).0, "internal");
    assert_eq!(decide(from(files("own")), &available, now()), ("own".into(), vec![]));
    let (choice, warnings) = decide(from(files("other")), &available, now());
    assert_eq!((choice.as_str(), warnings.len()), ("internal", 1));
    let (choice, warnings) = decide(from(files("own")), &available, now() + 2 * DAY);
    assert_eq!((choice.as_str(), warnings.len()), ("own", 1));
    assert_eq!(decide(from(files("absent")), &available, now()), ("internal".into(), vec![]));
}

#[test]
fn a_clock_that_is_behind_takes_no_certificate_away() {
    let available = [("a.b.c", facts(&["a.b.c"], 9))];
    assert_eq!(decide(wanted("a.b.c"), &available, UNIX_EPOCH), ("a.b.c".into(), vec![]));
}

struct Certs(tempfile::TempDir);

impl Certs {
    fn new() -> Certs {
        Certs(tempfile::tempdir().unwrap())
    }

    fn place(&self, folder: &str) -> Place {
        let folder = self.0.path().join(folder);
        Place { cert: folder.join("fullchain.pem"), key: folder.join("privkey.pem") }
    }

    fn write(&self, folder: &str, names: &[&str]) -> Place {
        let place = self.place(folder);
        fs::create_dir_all(place.cert.parent().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let cert = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        fs::write(&place.cert, cert.pem()).unwrap();
        fs::write(&place.key, key.serialize_pem()).unwrap();
        place
    }

    fn read(&self, store: &mut Store) -> Vec<String> {
        store.read(self.0.path(), &BTreeSet::new())
    }
}

#[test]
fn changed_files_are_picked_up_and_the_same_bytes_are_the_same_certificate() {
    let certs = Certs::new();
    let place = certs.write("a.b.c", &["a.b.c", "*.b.c", "10.0.0.1"]);
    let mut store = Store::default();
    assert_eq!(certs.read(&mut store), Vec::<String>::new());
    let first = store.find(&place).unwrap().cert.clone();
    assert_eq!(store.find(&place).unwrap().facts.names, [host("a.b.c"), host("*.b.c")]);
    certs.read(&mut store);
    assert!(Arc::ptr_eq(&first, &store.find(&place).unwrap().cert));
    certs.write("a.b.c", &["a.b.c"]);
    certs.read(&mut store);
    assert!(!Arc::ptr_eq(&first, &store.find(&place).unwrap().cert));
    fs::remove_dir_all(place.cert.parent().unwrap()).unwrap();
    assert_eq!(certs.read(&mut store), Vec::<String>::new());
    assert!(store.find(&place).is_none());
}

#[test]
fn the_last_good_one_stays_while_its_files_are_faulty() {
    type Harm = fn(&Place);
    let harms: [(&str, Harm); 6] = [
        ("the key", |place| fs::remove_file(&place.key).unwrap()),
        ("missing beside its key", |place| fs::remove_file(&place.cert).unwrap()),
        ("no certificate in it", |place| fs::write(&place.cert, "").unwrap()),
        ("its key", |place| fs::write(&place.key, "torn").unwrap()),
        ("not a pair", |place| fs::write(&place.key, KeyPair::generate().unwrap().serialize_pem()).unwrap()),
        ("names no host", |place| {
            let key = KeyPair::generate().unwrap();
            let cert = CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
            fs::write(&place.cert, cert.pem()).unwrap();
            fs::write(&place.key, key.serialize_pem()).unwrap();
        }),
    ];
    for (wanted, harm) in harms {
        let certs = Certs::new();
        let place = certs.write("a.b.c", &["a.b.c"]);
        let mut store = Store::default();
        certs.read(&mut store);
        let good = store.find(&place).unwrap().cert.clone();
        harm(&place);
        let warnings = certs.read(&mut store);
        assert!(warnings[0].contains(wanted) && warnings[0].contains("last good"), "{wanted}: {warnings:?}");
        assert!(Arc::ptr_eq(&good, &store.find(&place).unwrap().cert));
        let mut fresh = Store::default();
        let warnings = certs.read(&mut fresh);
        assert!(warnings[0].contains(wanted) && warnings[0].contains("internal CA"), "{wanted}: {warnings:?}");
        assert!(fresh.find(&place).is_none());
    }
}

#[test]
fn a_place_that_is_named_must_be_there() {
    let certs = Certs::new();
    let named = BTreeSet::from([certs.place("gone")]);
    fs::create_dir(certs.0.path().join("empty")).unwrap();
    let warnings = Store::default().read(certs.0.path(), &named);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("no such file"), "{warnings:?}");
    let nowhere = certs.0.path().join("nowhere");
    assert_eq!(Store::default().read(&nowhere, &BTreeSet::new()), Vec::<String>::new());
}
