use super::*;
use crate::certs::tests::cert;

#[test]
fn tokens_are_answered_while_they_are_set() {
    let challenges = Challenges::new();
    challenges.set("t".into(), "t.thumb".into());
    challenges.set("u".into(), "u.thumb".into());
    assert_eq!(challenges.find("t").as_deref(), Some("t.thumb"));
    challenges.remove("t");
    assert_eq!(challenges.find("t"), None);
    assert_eq!(challenges.find("u").as_deref(), Some("u.thumb"));
}

#[test]
fn alpn_certs_are_shown_while_they_are_set() {
    let (challenges, host) = (Challenges::new(), Host::parse("a.test").unwrap());
    challenges.set_alpn(host.clone(), cert(&["a.test"]));
    assert!(challenges.find_alpn("a.test").is_some() && challenges.find_alpn("b.test").is_none());
    challenges.remove_alpn(&host);
    assert!(challenges.find_alpn("a.test").is_none());
}

/// Changes from many threads all count.
#[test]
fn concurrent_changes_are_not_lost() {
    let challenges = Challenges::new();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let challenges = &challenges;
            scope.spawn(move || (0..50).for_each(|n| challenges.set(format!("{thread}.{n}"), "x".into())));
        }
    });
    assert_eq!(challenges.http.load().len(), 200);
}
