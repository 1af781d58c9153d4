//! The whole way, from text to model and diagnostics.

use super::*;

mod any_bytes;

const OLD: &str = include_str!("testdata/old.yml");
const FAULTY: &str = include_str!("testdata/faulty.yml");
const FULL: &str = include_str!("testdata/full.yml");
const SAMPLE: &str = include_str!("../../../db.yml.sample");

fn rendered(parsed: &Parsed) -> String {
    parsed.diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n")).collect()
}

/// Parses what must have no error.
fn good(text: &str) -> Db {
    let parsed = parse("db.yml", text.as_bytes());
    assert!(parsed.is_valid(), "{}", rendered(&parsed));
    parsed.db.unwrap()
}

/// Where a text stands, found without any parser: the line and column of the nth occurrence.
fn position(text: &str, needle: &str, nth: usize) -> (usize, usize) {
    let (offset, _) = text.match_indices(needle).nth(nth).unwrap_or_else(|| panic!("no {needle:?} number {nth}"));
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[test]
fn the_old_format_loads_unchanged() {
    let parsed = parse("db.yml", OLD.as_bytes());
    assert!(parsed.is_valid(), "{}", rendered(&parsed));
    // The one warning: the entrypoint has volumes.
    assert_eq!(parsed.diagnostics.len(), 1, "{}", rendered(&parsed));
    assert!(parsed.diagnostics[0].message.contains("volumes"));
    let db = parsed.db.unwrap();

    let home = db.project("home-assistant").unwrap();
    assert_eq!(home.domain.as_ref().unwrap().as_str(), "home.example.com");
    let service = home.service("192.168.1.111").unwrap();
    assert!(service.is_static() && service.passthrough && service.port == 443);

    let itsup = db.project("itsUP").unwrap();
    assert_eq!((&*itsup.compose_name, itsup.entrypoint.as_deref(), itsup.enabled), ("itsup", None, true));
    assert_eq!(itsup.line, 9);

    let test = db.project("test").unwrap();
    let master = test.service("master").unwrap();
    assert_eq!(test.entrypoint.as_deref(), Some("master"));
    assert_eq!(test.container_service_name(master), "test-master");
    assert_eq!(
        (master.port, master.replicas, master.image.as_deref()),
        (8080, 1, Some("otomi/nodejs-helloworld:v1.2.13"))
    );
    let env = [("TARGET", "cost concerned people"), ("INFORMANT", "http://test-informant:8080")];
    assert_eq!(master.env, env.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(master.volumes, ["/data/bla", "/etc/dida"]);
    assert!(test.is_routed(master) && !test.is_routed(test.service("informant").unwrap()));
}

#[test]
fn the_sample_is_valid_without_a_warning() {
    let parsed = parse("db.yml.sample", SAMPLE.as_bytes());
    assert_eq!(rendered(&parsed), "");
    let db = parsed.db.unwrap();
    assert_eq!(db.projects[0].domain.as_ref().unwrap().as_str(), "hello.localhost");
    assert!(db.projects[0].services.is_empty() && db.projects[0].enabled);
    assert!(db.projects[1..].iter().all(|project| !project.enabled));
    // And it still is when everything is put into service.
    good(&SAMPLE.replace("enabled: false", "enabled: true"));
}

#[test]
fn every_fault_is_reported_at_its_place() {
    let parsed = parse("db.yml", FAULTY.as_bytes());
    insta::assert_snapshot!(rendered(&parsed));
    let expected: &[(&str, usize, &str)] = &[
        ("plugin: {}", 0, "unknown key `plugin`"),
        ("prot: 80", 0, "unknown key `prot`"),
        ("passtrough", 0, "unknown key `passtrough`"),
        ("70000", 0, "from 1 to 65535"),
        ("port: 5432", 0, "the key `port` stands twice; first on line 13"),
        ("one.example.com", 1, "claimed twice; first by `first` on line 4"),
        ("\"*.example.*\"", 0, "not a host name"),
        ("https://a.example", 0, "not a host name"),
        ("missing", 0, "not a service of this project"),
        ("maybe", 0, "`enabled` must be true or false, and is text"),
        ("../etc", 0, "could leave its folder"),
        ("\"2\"", 0, "`replicas` must be a whole number"),
        ("5, idle", 0, "`connect` needs a unit"),
        ("1hour", 0, "not a duration"),
        ("10MiB", 0, "not a size"),
        ("app\n        image: nginx:1\n  - name: Second", 0, "the service `app` stands twice"),
        ("Second", 0, "is `second` to compose"),
        ("third.example.com", 0, "no service is named that this domain leads to"),
        ("app\n        image: nginx:1\n        http", 0, "its containers would be `second-app`"),
        ("h3", 0, "`http` cannot be `h3`"),
        ("verify: false", 0, "`http` is not `https`"),
        ("up/../..", 0, "could leave its folder"),
        ("-bad-", 0, "not a host name"),
        ("10.0.0.0/33", 0, "not a network"),
        ("\"bob\"", 0, "not an htpasswd line"),
        ("\"X Y\"", 0, "not the name of a header"),
        ("Content-Length", 0, "belongs to the connection"),
        ("X-Powered-By", 0, "`remove` must be a list, and is text"),
        ("one.example.com]", 0, "claimed twice"),
        ("routes:", 0, "cannot have path routes"),
        ("api, service", 0, "is not a path"),
        ("nas.lan}", 0, "is passthrough, so no path can lead to it"),
        ("/a/../b", 0, "is not a path"),
        ("gone", 0, "not a service of this project"),
        ("path: /c", 0, "`service` is missing"),
        ("access: {allow: []}", 0, "cannot hold for a domain that is passed through"),
        ("10.0.0.300", 0, "the entrypoint `10.0.0.300` has no image"),
        ("10.0.0.300", 1, "looks like an IPv4 address"),
        ("yes", 0, "`port` must be a whole number, and is text"),
        ("env: {A: 1}", 0, "has no effect"),
        ("data, /../x", 0, "must be an absolute path"),
        ("/../x", 0, "could leave the project's folder"),
        ("sometimes", 0, "not a restart policy"),
        ("[1]", 0, "`A` must be a single value"),
        ("\"B C\"", 0, "not the name of a variable"),
        ("0777", 0, "is text here; the old tool read the number 511"),
        ("container_name", 0, "two containers cannot have the same name"),
        ("ports: [\"80", 0, "two containers cannot have the same host port"),
        ("network_mode", 0, "could not be reached"),
        ("!secret", 0, "the tag `!secret` means nothing here"),
        ("0s", 0, "cannot be zero"),
        ("roling", 0, "`strategy` cannot be `roling`"),
        ("ingress", 0, "unknown key `ingress`"),
        ("volumes: [data", 0, "two containers write to these volumes"),
        ("description: nameless", 0, "`name` is missing"),
        ("42", 0, "must be a mapping, and is a number"),
    ];
    for (needle, nth, message) in expected {
        let (line, column) = position(FAULTY, needle, *nth);
        let found =
            parsed.diagnostics.iter().any(|d| (d.line, d.column) == (line, column) && d.message.contains(message));
        assert!(found, "no {message:?} at {line}:{column}");
    }
    assert_eq!(parsed.diagnostics.len(), expected.len(), "one diagnostic for each fault and no other");
    assert!(!parsed.is_valid());
}

#[test]
fn faulty_projects_are_left_out_and_the_others_stay() {
    let text =
        format!("{OLD}  - name: bad\n    domain: home.example.com\n  - name: fine\n    domain: fine.example.com\n");
    let parsed = parse("db.yml", text.as_bytes());
    let names: Vec<_> = parsed.db.as_ref().unwrap().projects.iter().map(|project| &*project.name).collect();
    assert_eq!(names, ["home-assistant", "itsUP", "test", "fine"]);
    let error = parsed.errors().next().unwrap();
    assert_eq!(error.project.as_deref(), Some("bad"));
    assert!(!parsed.is_valid());

    let twice = "projects:\n  - {name: a, name: b}\n  - {name: c}\n";
    let parsed = parse("db.yml", twice.as_bytes());
    assert_eq!(parsed.db.unwrap().projects.len(), 1, "a key that stands twice is the fault of its project alone");
}

#[test]
fn a_disabled_project_claims_no_host() {
    let text = "projects:\n  - {name: a, domain: x.com, enabled: false}\n  - {name: b, domain: X.com}\n";
    assert_eq!(good(text).projects.len(), 2);
}

#[test]
fn files_that_make_no_sense() {
    let deep = format!("projects: {}{}", "[".repeat(100), "]".repeat(100));
    let endless = "[".repeat(20_000);
    let bomb = {
        let mut text = "x-0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            text += &format!("x-{level}: &a{level} [{aliases}]\n");
        }
        text + "projects: []\n"
    };
    for (bytes, line, message) in [
        (&b""[..], 1, "must be a mapping, and is empty"),
        (b"# nothing", 1, "must be a mapping, and is empty"),
        (b"x-a: 1", 1, "`projects` is missing"),
        (b"projects:", 1, "`projects` must be a list, and is empty"),
        (b"projects: {}", 1, "`projects` must be a list, and is a mapping"),
        (b"- a", 1, "must be a mapping, and is a list"),
        (b"projects: []\n---\nprojects: []", 2, "a second YAML document"),
        (b"projects:\n\t- name: a", 2, "not valid YAML"),
        (b"projects: [\n  {name: a}", 2, "not valid YAML"),
        (b"projects:\n  - name: a: b", 2, "not valid YAML"),
        (b"projects: []\nx: \xff", 2, "not UTF-8"),
        (b"projects: *gone", 1, "unknown anchor"),
        (b"projects: &a [*a]", 1, "inside its own anchor"),
        (deep.as_bytes(), 1, "nested deeper"),
        (endless.as_bytes(), 1, "not valid YAML"),
        (bomb.as_bytes(), 6, "far too large"),
    ] {
        let parsed = parse("db.yml", bytes);
        assert!(parsed.db.is_none(), "{message}");
        let diagnostic = &parsed.diagnostics[0];
        assert!(diagnostic.message.contains(message), "{message}: {diagnostic}");
        assert_eq!(diagnostic.line, line, "{diagnostic}");
    }
}

#[test]
fn syntax_errors_look_like_the_others() {
    let text = "projects:\n  - name: a\n\tdomain: b.com\n";
    insta::assert_snapshot!(rendered(&parse("db.yml", text.as_bytes())));
}

#[test]
fn environment_values_stay_as_written() {
    let env = "{A: 1.10, B: yes, C: 0x1F, D: true, E: 0777, F: 1e3, G: '', H: ~, I: 99999999999999999999999, J: \"1\\n2\", 1: k}";
    let text = format!("projects: [{{name: a, services: [{{name: s, image: i, env: {env}}}]}}]");
    let db = good(&text);
    let got: Vec<_> = db.projects[0].services[0].env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(
        got,
        [
            "A=1.10",
            "B=yes",
            "C=0x1F",
            "D=true",
            "E=0777",
            "F=1e3",
            "G=",
            "H=",
            "I=99999999999999999999999",
            "J=1\n2",
            "1=k"
        ]
    );
    let text = "projects: [{name: a, services: [{name: s, image: i, env: [A=1, B=x=y, A=2]}]}]";
    let env = good(text).projects.remove(0).services.remove(0).env;
    assert_eq!(env, [("B".into(), "x=y".into()), ("A".into(), "2".into())]);
}

#[test]
fn yaml_1_1_booleans_count_with_a_warning() {
    let text =
        "projects: [{name: a, domain: a.com, enabled: yes, compress: off, services: [{name: nas, passthrough: on}]}]";
    let parsed = parse("db.yml", text.as_bytes());
    assert!(parsed.is_valid(), "{}", rendered(&parsed));
    assert!(parsed.diagnostics.iter().any(|d| d.message.contains("`yes` is read as true")), "{}", rendered(&parsed));
    let project = &parsed.db.unwrap().projects[0];
    assert!(project.enabled && !project.compress && project.services[0].passthrough);
}

#[test]
fn anchors_and_merge_keys_work() {
    let text = "
x-base: &base
  image: nginx:1
  env: &env {A: 1}
x-more: &more
  <<: *base
  port: 80
projects:
  - name: a
    domain: a.com
    entrypoint: web
    services:
      - {<<: *more, name: web}
      - {<<: [{port: 90}, *more], name: api, env: {<<: *env, B: 2}}
";
    let db = good(text);
    let [web, api] = &db.projects[0].services[..] else { panic!("two services") };
    assert_eq!((web.image.as_deref(), web.port), (Some("nginx:1"), 80), "merged through two levels");
    assert_eq!((api.image.as_deref(), api.port), (Some("nginx:1"), 90), "the first in the list wins");
    assert_eq!(api.env, [("B".into(), "2".into()), ("A".into(), "1".into())]);
    let parsed = parse("db.yml", b"projects: [{<<: 3, name: a}]");
    assert!(rendered(&parsed).contains("`<<` can only merge a mapping"), "{}", rendered(&parsed));
}

#[test]
fn every_key_reaches_the_model() {
    let db = good(FULL);
    insta::assert_debug_snapshot!(db);
    assert!(!format!("{db:?}").contains("s3cret"));
}

#[test]
fn the_schema_is_what_is_published() {
    insta::assert_snapshot!(serde_json::to_string_pretty(schema()).unwrap());
}

/// The full example has every key that the schema has, so that none is forgotten in the model.
#[test]
fn the_full_example_is_full() {
    for of in ["Project", "Service", "Route", "Access", "Headers", "Webhook", "Health", "Timeouts", "Rollout"] {
        let schema = &schema()["$defs"][of];
        for (key, property) in schema["properties"].as_object().unwrap() {
            let said = FULL.contains(&format!("{key}:"));
            assert!(said || property["deprecated"] == true, "{of}.{key}");
        }
    }
}

#[test]
fn rules_between_keys() {
    // Text of one project's body, and what must be said of it; an empty text: nothing.
    for (body, message) in [
        ("domain: a.com", ""),
        ("domain: a.com, services: [{name: h1}, {name: h2}]", ""),
        ("domain: a.com, services: [{name: w, image: i}], routes: [{path: /, service: w}]", ""),
        ("services: [{name: w, image: i, domain: a.com}]", ""),
        ("services: [{name: w, image: i}]", ""),
        ("entrypoint: w, services: [{name: w, image: i}]", ""),
        ("domain: a.com, services: [{name: w, image: i, domain: b.com}]", "add `entrypoint: w`"),
        ("domain: a.com, services: [{name: w, image: i, domain: a.com}], entrypoint: w", "first by this project"),
        ("aliases: [b.com]", "`aliases` needs a `domain`"),
        ("redirect_from: [b.com]", "`redirect_from` needs a `domain`"),
        ("routes: [{path: /, service: h}], services: [{name: h}]", "`routes` needs a `domain`"),
        ("domain: a.com, services: [{name: h, passthrough: true}, {name: i}]", "must agree"),
        ("domain: a.com, services: [{name: h, passthrough: true}], hsts: true", "`hsts` has no effect"),
        (
            "domain: a.com, entrypoint: w, services: [{name: w, image: i, passthrough: true}, {name: v, image: i}], routes: [{path: /x, service: v}]",
            "cannot have path routes",
        ),
        (
            "domain: a.com, entrypoint: w, services: [{name: w, image: i}], routes: [{path: /x, service: w}, {path: /x/, service: w}]",
            "the path `/x` stands twice",
        ),
        (
            "domain: a.com, entrypoint: w, services: [{name: w, image: i, compose: {ports: [80]}, rollout: {strategy: recreate}}]",
            "",
        ),
        ("services: [{name: w, image: i, compose: {ports: [80], container_name: x}}]", ""),
        ("services: [{name: w, image: i, domain: b.com, compose: {ports: [80]}}]", "`ports` cannot stand"),
        (
            "services: [{name: w, image: i, domain: b.com, compose: {networks: {proxynet: {ipv4_address: 10.0.0.9}}}}]",
            "`ipv4_address` cannot stand",
        ),
        ("services: [{name: w, image: i, compose: {networks: {proxynet: {ipv4_address: 10.0.0.9}}}}]", ""),
        ("services: [{name: w, image: i, domain: b.com, compose: {volumes: ['a:/b']}}]", "two containers write"),
        ("services: [{name: w, image: i, depends_on: [w]}]", "cannot depend on itself"),
        ("services: [{name: w, image: i, depends_on: [x]}]", "is not a service"),
        ("services: [{name: w, image: i, depends_on: {h: ~}}, {name: h}]", "`h` has no image"),
        ("services: [{name: 'a b', image: i}]", "compose takes no service"),
        ("services: [{name: 'a b'}]", "neither an address nor a DNS name"),
        ("services: [{name: h, challenge_port: 81}]", "without `passthrough`"),
        ("services: [{name: h, passthrough: true, challenge_port: 81}]", ""),
        ("tls: internal", ""),
        ("tls: {cert: a}", "`key` is missing"),
        ("tls: external", "`tls` cannot be `external`"),
        ("hsts: 1y", "max-age"),
    ] {
        let text = format!("projects: [{{name: p, {body}}}]");
        let said = rendered(&parse("db.yml", text.as_bytes()));
        if message.is_empty() {
            assert_eq!(said, "", "{body}");
        } else {
            assert!(said.contains(message), "{body}: {said}");
            assert_eq!(said.matches("db.yml:").count(), 1, "{body}: {said}");
        }
    }
}

#[test]
fn compose_names_may_not_collide() {
    let said = |text: &str| rendered(&parse("db.yml", text.as_bytes()));
    let both = "projects: [{name: a, services: [{name: b-c, image: i}]}, {name: a-b, services: [{name: c, image: i}]}]";
    assert!(said(both).contains("its containers would be `a-b-c`"), "{}", said(both));
    assert!(said("projects: [{name: Foo}, {name: fo.o}]").contains("is `foo` to compose"));
    assert!(said("projects: [{name: x}, {name: x}]").contains("stands twice"));
}

#[test]
fn large_files_are_read_whole() {
    let projects: String = (0..5_000)
        .map(|n| format!("  - {{name: p{n}, domain: h{n}.example.com, services: [{{name: 10.0.0.1}}]}}\n"))
        .collect();
    assert_eq!(good(&format!("projects:\n{projects}")).projects.len(), 5_000);
}

#[test]
fn floods_of_faults_are_cut_short() {
    let text = format!("projects: [{}]", "3, ".repeat(100_000));
    let parsed = parse("db.yml", text.as_bytes());
    assert_eq!(parsed.diagnostics.len(), 1_001);
    assert!(parsed.diagnostics[1_000].message.contains("99000 more"));
    assert!(parsed.diagnostics.iter().all(|d| d.source.len() <= 1_000));
}
