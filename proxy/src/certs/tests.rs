use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;

use super::*;

/// A self-signed certificate for these names.
pub(crate) fn cert(names: &[&str]) -> Arc<Cert> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names.clone()).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let names = names.iter().map(|name| HostPattern::parse(name).unwrap()).collect();
    Arc::new(Cert::new(vec![made.cert.der().clone()], any_supported_type(&key).unwrap(), names))
}

#[test]
fn a_cert_covers_its_names_one_label_deep() {
    let cert = cert(&["a.test", "*.b.test"]);
    for (host, covered) in [
        ("a.test", true),
        ("x.b.test", true),
        ("b.test", false),
        ("x.y.b.test", false),
        (".b.test", false),
        ("", false),
    ] {
        assert_eq!(cert.covers(host), covered, "{host}");
    }
}

#[test]
fn exact_is_found_before_wildcard_and_a_publish_replaces_all() {
    let (exact, wildcard) = (cert(&["a.b.test"]), cert(&["*.b.test"]));
    let mut table = CertTable::new();
    table.insert(HostPattern::parse("a.b.test").unwrap(), exact.clone());
    table.insert(HostPattern::parse("*.b.test").unwrap(), wildcard.clone());
    let certs = Certs::new();
    assert!(certs.find("a.b.test").is_none());
    certs.publish(table);
    assert!(Arc::ptr_eq(&certs.find("a.b.test").unwrap(), &exact));
    assert!(Arc::ptr_eq(&certs.find("c.b.test").unwrap(), &wildcard));
    assert!(certs.find("b.test").is_none() && certs.find("x.c.b.test").is_none());
    certs.publish(CertTable::new());
    assert!(certs.find("a.b.test").is_none());
}
