use proptest::prelude::*;

use super::*;
use crate::table::{Action, Route, Target};

fn pattern(text: &str) -> HostPattern {
    HostPattern::parse(text).unwrap()
}

fn live(hosts: &[&str]) -> Live {
    let mut table = RouteTable::default();
    for host in hosts {
        let site = Site::new(*host, vec![]);
        table.hosts.insert(pattern(host), Action::Terminate(Arc::new(site)));
    }
    rebuild::rebuild(&Live::default(), table, std::time::Instant::now()).map(|rebuilt| rebuilt.live).unwrap_or_default()
}

fn label<'a>(live: &'a Live, host: &str) -> Option<&'a str> {
    match live.lookup(host)? {
        Entry::Terminate(live) => Some(&live.site.label),
        _ => None,
    }
}

#[test]
fn exact_before_wildcard_one_label_deep() {
    let live = live(&["example.com", "*.example.com", "a.example.com"]);
    for (host, wanted) in [
        ("example.com", Some("example.com")),
        ("a.example.com", Some("a.example.com")),
        ("b.example.com", Some("*.example.com")),
        ("x.a.example.com", None),
        ("x.b.example.com", None),
        (".example.com", None),
        ("com", None),
        ("", None),
        ("example.com.", None),
        ("xexample.com", None),
    ] {
        assert_eq!(label(&live, host), wanted, "{host}");
    }
    assert_eq!(live.hosts(), 3);
}

#[test]
fn the_longest_prefix_wins_whatever_the_order_in_the_table() {
    let route = |path: &str| Route { path: PathPrefix::parse(path).unwrap(), strip: false, target: Target::Welcome };
    let mut site = Site::new("s", vec![]);
    site.routes = ["/", "/api", "/api/v1", "/other"].map(route).into();
    let mut table = RouteTable::default();
    table.hosts.insert(pattern("h.test"), Action::Terminate(Arc::new(site)));
    let live = rebuild::rebuild(&Live::default(), table, std::time::Instant::now()).unwrap().live;
    let Some(Entry::Terminate(site)) = live.lookup("h.test") else { panic!() };
    assert!(site.has_path_routes);
    for (path, wanted) in [
        ("/", "/"),
        ("/api", "/api"),
        ("/apix", "/"),
        ("/api/v1/x", "/api/v1"),
        ("/api/v10", "/api"),
        ("/other/", "/other"),
    ] {
        assert_eq!(site.route(path).map(|route| route.path.as_str()), Some(wanted), "{path}");
    }
}

proptest! {
    /// The hash maps answer what a walk over all patterns would.
    #[test]
    fn lookup_agrees_with_a_walk(
        hosts in prop::collection::btree_set("(\\*\\.)?[ab](\\.[ab]){0,2}\\.test", 0..8),
        asked in "[ab](\\.[ab]){0,3}\\.test",
    ) {
        let names: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let live = live(&names);
        let walked = names.iter().filter(|name| pattern(name).matches(&asked)).min_by_key(|name| name.starts_with('*'));
        prop_assert_eq!(label(&live, &asked), walked.copied());
    }
}
