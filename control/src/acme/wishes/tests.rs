use super::*;
use crate::testing::{db, project, service};

fn host(text: &str) -> HostPattern {
    HostPattern::parse(text).unwrap()
}

fn group(names: &[&str]) -> Group {
    Group { names: names.iter().map(|name| host(name)).collect() }
}

fn shown(orders: &[Order]) -> Vec<String> {
    let names = |order: &Order| order.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    orders.iter().map(|order| format!("{}: {}", order.folder, names(order))).collect()
}

#[test]
fn local_names_are_known() {
    for (name, local) in [
        ("app.localhost", true),
        ("nas.lan", true),
        ("a.b.internal", true),
        ("x.home.arpa", true),
        ("*.local", true),
        ("test", true),
        ("localhost.example.com", false),
        ("plan.example.com", false),
        ("homelan", true),
        ("my-lan.com", false),
        ("*.example.com", false),
    ] {
        assert_eq!(is_local(&host(name)), local, "{name}");
    }
}

#[test]
fn one_order_for_each_host_with_its_aliases() {
    let mut one = project("one", vec![service("10.0.0.1"), service("10.0.0.2")]);
    one.domain = Some(itsup_proxy::Host::parse("one.example.com").unwrap());
    one.aliases = vec![host("www.one.example.com"), host("one.lan")];
    one.redirect_from = vec![itsup_proxy::Host::parse("old.example.com").unwrap()];
    one.services[1].domain = Some(itsup_proxy::Host::parse("api.example.com").unwrap());
    let mut own = project("own", vec![service("10.0.0.3")]);
    own.domain = Some(itsup_proxy::Host::parse("own.example.com").unwrap());
    own.tls = Tls::Internal;
    let mut passing = project("passing", vec![service("10.0.0.4")]);
    passing.domain = Some(itsup_proxy::Host::parse("pass.example.com").unwrap());
    passing.services[0].passthrough = true;
    let mut off = project("off", vec![service("10.0.0.5")]);
    off.domain = Some(itsup_proxy::Host::parse("off.example.com").unwrap());
    off.enabled = false;
    let db = db([one, own, passing, off]);
    let routes = crate::routes::route_table(&crate::routes::RouteInputs {
        db: &db,
        observed: &Default::default(),
        active: &Default::default(),
        resolved: &Default::default(),
        own_addresses: &Default::default(),
        api: None,
        edge: Default::default(),
        ca_files: &Default::default(),
    });
    let groups_for = |own_directory| {
        groups(&db, &routes, own_directory)
            .iter()
            .map(|group| group.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    };
    assert_eq!(groups_for(false), ["one.example.com www.one.example.com old.example.com", "api.example.com"]);
    assert_eq!(groups_for(true)[0], "one.example.com www.one.example.com one.lan old.example.com");
}

#[test]
fn what_failed_is_split_off_and_wildcards_need_dns() {
    let group = group(&["a.com", "www.a.com", "*.a.com", "b.com"]);
    let none = BTreeSet::new();
    let users = Users::default();
    assert_eq!(shown(&orders(&group, &users, &none, true)), ["a.com: a.com *.a.com b.com"]);
    let without = orders(&group, &users, &none, false);
    assert_eq!(shown(&without), ["a.com: a.com www.a.com b.com", "_wildcard.a.com: *.a.com"]);
    let split = BTreeSet::from(["b.com".to_owned()]);
    let orders = orders(&group, &users, &split, true);
    assert_eq!(shown(&orders), ["a.com: a.com *.a.com", "b.com: b.com"]);
    assert_eq!(orders[1].parent.as_deref(), Some("a.com"));
    assert_eq!(orders[0].hosts.len(), 3);
}

#[test]
fn what_the_user_has_is_not_ordered() {
    let group = group(&["a.com", "www.a.com", "b.com"]);
    let split = BTreeSet::new();
    let wildcard = Users { names: BTreeSet::from([host("*.a.com")]), ..Users::default() };
    assert_eq!(shown(&orders(&group, &wildcard, &split, false)), ["a.com: a.com b.com"]);
    let folder = Users { folders: BTreeSet::from(["a.com".to_owned()]), ..Users::default() };
    assert_eq!(shown(&orders(&group, &folder, &split, false)), ["www.a.com: www.a.com b.com"]);
    let all = Users { names: group.names.iter().cloned().collect(), ..Users::default() };
    assert_eq!(orders(&group, &all, &split, false), []);
}

fn acme(directory: &str) -> Acme {
    Acme {
        email: "a@b.c".into(),
        directory: directory.into(),
        own_directory: false,
        ca: None,
        binding: None,
        profile: None,
        key: Default::default(),
        dns: None,
        resolver: None,
        dns_wait: Default::default(),
    }
}

#[test]
fn other_names_or_another_ca_are_due_at_once_and_staging_waits() {
    let orders = orders(&group(&["a.com", "b.com"]), &Users::default(), &BTreeSet::new(), false);
    let held = |names: &[&str], directory: &str| Held {
        names: group(names).names,
        life: Life { not_before: 1_000_000, not_after: 2_000_000 },
        directory: Some(directory.to_owned()),
        id: Some("id".into()),
        sha256: String::new(),
    };
    let (production, staging) = (crate::settings::acme::LETS_ENCRYPT, crate::settings::acme::LETS_ENCRYPT_STAGING);
    let at = |held: &Held, directory: &str| wanted_at(&orders[0], Some(held), &acme(directory), None);
    assert_eq!(wanted_at(&orders[0], None, &acme(production), None), 0);
    assert_eq!(at(&held(&["a.com"], production), production), 0);
    assert_eq!(at(&held(&["a.com", "b.com"], staging), production), 0);
    for at in [
        at(&held(&["a.com", "b.com", "c.com"], production), production),
        at(&held(&["a.com", "b.com"], production), staging),
    ] {
        assert!((1_600_000..1_700_000).contains(&at), "{at}");
    }
    let mut taken_over = held(&["a.com", "b.com"], "");
    taken_over.directory = None;
    assert!(at(&taken_over, production) > 1_600_000);
    let window = |certificate: &str| Window { certificate: certificate.into(), start: 5, end: 5 };
    let with = |window: &Window| {
        wanted_at(&orders[0], Some(&held(&["a.com", "b.com"], production)), &acme(production), Some(window))
    };
    assert_eq!(with(&window("id")), 5);
    assert!(with(&window("of the one before")) > 1_600_000);
}
