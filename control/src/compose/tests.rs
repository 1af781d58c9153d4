use super::*;
use crate::db::{Db, parse};

fn db(text: &str) -> Db {
    let parsed = parse("db.yml", text.as_bytes());
    assert!(parsed.is_valid(), "{:?}", parsed.diagnostics);
    parsed.db.unwrap()
}

/// The stack of a project with these services.
fn of(services: &str) -> Stack {
    with(services, &ProjectFiles::default())
}

fn with(services: &str, files: &ProjectFiles) -> Stack {
    stack(
        &db(&format!("projects: [{{name: Shop, domain: a.b, entrypoint: web, services: [{services}]}}]")).projects[0],
        files,
    )
}

fn web(more: &str) -> String {
    format!("{{name: web, image: nginx:1{more}}}")
}

fn config(services: &str, files: &ProjectFiles) -> ConfigHash {
    with(services, files).service("web").unwrap().config.clone()
}

#[test]
fn every_key_arrives() {
    let full = include_str!("../db/testdata/full.yml");
    insta::assert_snapshot!(stack(&db(full).projects[0], &ProjectFiles::default()).text());
}

#[test]
fn the_old_sample_becomes_what_the_old_tool_wrote() {
    let old = include_str!("../db/testdata/old.yml");
    let db = db(old);
    assert!(stack(&db.projects[0], &ProjectFiles::default()).is_empty());
    let stack = stack(&db.projects[2], &ProjectFiles::default());
    assert_eq!(stack.services[0].folders, [PathBuf::from("data/bla"), PathBuf::from("etc/dida")]);
    insta::assert_snapshot!(stack.text());
}

#[test]
fn the_same_project_is_the_same_bytes() {
    let full = db(include_str!("../db/testdata/full.yml"));
    let text = || stack(&full.projects[0], &ProjectFiles::default()).text();
    assert_eq!(text(), text());
}

#[test]
fn values_reach_compose_as_they_were_written() {
    let stack = of(&web(
        r#", env: {A: yes, B: 0777, C: 1.10, D: "a: #b", E: "$${X}", F: "${X}", G: ~, H: 2001-01-01, I: "l\nm\"'"}"#,
    ));
    let read: Mapping = serde_yaml::from_str(&stack.text()).unwrap();
    let environment = read["services"]["Shop-web"]["environment"].as_mapping().unwrap();
    let all: Vec<(&str, &str)> = environment.iter().map(|(k, v)| (k.as_str().unwrap(), v.as_str().unwrap())).collect();
    let wanted = [
        ("A", "yes"),
        ("B", "0777"),
        ("C", "1.10"),
        ("D", "a: #b"),
        ("E", "$${X}"),
        ("F", "${X}"),
        ("G", ""),
        ("H", "2001-01-01"),
        ("I", "l\nm\"'"),
    ];
    assert_eq!(all, wanted);
}

#[test]
fn what_changes_containers_changes_the_hash_and_nothing_else_does() {
    let plain = |more: &str| config(&web(more), &ProjectFiles::default());
    let same = plain("");
    for more in [
        ", replicas: 3",
        ", rollout: {drain: 1s}",
        ", timeouts: {connect: 1s}",
        ", max_body: 1MB",
        ", health: {path: /}",
    ] {
        assert_eq!(plain(more), same, "{more}");
    }
    let depends = format!("{}, {{name: db, image: pg}}", web(", depends_on: [db]"));
    assert_eq!(config(&depends, &ProjectFiles::default()), same);
    let mut seen = BTreeSet::from([same]);
    for more in [
        ", port: 81",
        ", http: h2c",
        ", env: {A: 1}",
        ", env: {A: 2}",
        ", command: x",
        ", volumes: [/data]",
        ", restart: always",
        ", labels: {a: b}",
        ", healthcheck: {test: x}",
        ", compose: {tty: true}",
        ", compose: {tty: false}",
        ", compose: {deploy: {resources: {limits: {cpus: 1}}}}",
    ] {
        assert!(seen.insert(plain(more)), "{more}");
    }
    assert!(seen.insert(config("{name: web, image: nginx:2}", &ProjectFiles::default())));
}

#[test]
fn files_that_containers_are_made_from_change_the_hash() {
    let service = web(", env: {A: 'x${ONE}'}, env_file: a.env");
    let files = |env: &str, env_file: &str| ProjectFiles {
        env: Some(env.into()),
        env_files: BTreeMap::from([("a.env".into(), env_file.into()), ("other.env".into(), env.into())]),
    };
    let base = config(&service, &files("ONE=1\nTWO=2", "K=v"));
    assert_eq!(config(&service, &files("ONE=1\nTWO=3", "K=v")), base);
    assert_ne!(config(&service, &files("ONE=2\nTWO=2", "K=v")), base);
    assert_ne!(config(&service, &files("ONE=1\nTWO=2", "K=w")), base);
    let through = config(&service, &files("ONE=1\nTWO=2", "K=$TWO"));
    assert_ne!(config(&service, &files("ONE=1\nTWO=3", "K=$TWO")), through);
    // Nothing is filled in: `.env` does not matter.
    let plain = web("");
    assert_eq!(config(&plain, &files("ONE=1", "")), config(&plain, &ProjectFiles::default()));
}

#[test]
fn the_compose_block_goes_over_what_is_generated() {
    for (more, key, wanted) in [
        (", compose: {restart: 'no'}", "restart", "'no'"),
        (", env: {A: 1}, compose: {environment: [B=2]}", "environment", "{A: '1', B: '2'}"),
        (", volumes: [/a, /b], compose: {volumes: ['v:/b', 'w:/c']}", "volumes", "['./a:/a', 'v:/b', 'w:/c']"),
        (", compose: {networks: [back]}", "networks", "[default, proxynet, back]"),
        (", compose: {networks: {default: {aliases: [x]}}}", "networks", "{default: {aliases: [x]}, proxynet: ~}"),
        (", compose: {healthcheck: {retries: 2}}, healthcheck: {test: x}", "healthcheck", "{test: x, retries: 2}"),
        (", compose: {expose: ['9']}", "expose", "['8080', '9']"),
        (", replicas: 2, compose: {deploy: {mode: replicated}}", "deploy", "{mode: replicated, replicas: 2}"),
    ] {
        let stack = of(&web(more));
        let wanted: Value = serde_yaml::from_str(wanted).unwrap();
        assert_eq!(stack.services[0].document.get(key), Some(&wanted), "{more}");
    }
    let labels =
        of(&web(", labels: [a=1], compose: {labels: [b=2, itsup.port=1]}")).services[0].document["labels"].clone();
    let keys: Vec<&str> = labels.as_mapping().unwrap().keys().map(|key| key.as_str().unwrap()).collect();
    assert_eq!(keys, ["a", "b", "itsup.port", "itsup.http", "itsup.config"]);
    assert_eq!(labels["itsup.port"], "8080");
}

#[test]
fn networks_and_volumes_that_are_named_are_declared() {
    let read = |more: &str| -> Mapping { serde_yaml::from_str(&of(&web(more)).text()).unwrap() };
    let text = read(
        ", volumes: [/own, 'named:/x', './rel:/y', '/abs:/z'], \
         compose: {networks: [back], volumes: [{type: volume, source: long, target: /l}, {type: bind, source: b, target: /m}]}",
    );
    let keys = |key: &str| -> Vec<String> {
        text[key].as_mapping().unwrap().keys().map(|key| key.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(keys("volumes"), ["long", "named"]);
    assert_eq!(keys("networks"), ["proxynet", "back"]);
    assert!(!read("").contains_key("volumes"));
}

#[test]
fn a_network_mode_takes_the_networks_place() {
    let stack = of(&format!("{}, {{name: vpn, image: i, compose: {{network_mode: host}}}}", web("")));
    assert_eq!(stack.service("vpn").unwrap().document.get("networks"), None);
}

#[test]
fn dependencies_come_first_and_circles_end() {
    let names = |services: &str| -> Vec<String> { of(services).services.iter().map(|s| s.name.to_string()).collect() };
    let service = |name: &str, needs: &str| format!("{{name: {name}, image: i, depends_on: [{needs}]}}");
    let all = [service("web", "api, db"), service("api", "db"), service("db", ""), service("job", "")].join(", ");
    assert_eq!(names(&all), ["db", "api", "web", "job"]);
    let circle = [service("web", "api"), service("api", "web")].join(", ");
    assert_eq!(names(&circle), ["web", "api"]);
    let stack = of(&format!("{{name: db, image: i}}, {}", web(", depends_on: {db: {condition: service_healthy}}")));
    let needed = Dependency { service: "db".into(), condition: Condition::Healthy };
    assert_eq!(stack.service("web").unwrap().depends_on, [needed]);
    assert_eq!(stack.services[1].document["depends_on"]["Shop-db"]["condition"], "service_healthy");
}

#[test]
fn replicas_are_where_compose_has_them() {
    for (more, replicas) in [
        ("", 1),
        (", replicas: 3", 3),
        (", compose: {scale: 4}", 4),
        (", replicas: 2, compose: {deploy: {replicas: 5}}", 5),
    ] {
        assert_eq!(of(&web(more)).services[0].replicas, replicas, "{more}");
    }
}

#[test]
fn what_was_written_reads_back() {
    let stack = of(&web(", env: {A: 1}"));
    let written = Written::read(&stack.text());
    assert_eq!(written.config("Shop-web").as_ref(), Some(&stack.services[0].config));
    assert_eq!(written.services["Shop-web"], stack.services[0].document);
    for text in ["", ":", "services: [a]", "services: {a: {labels: [x]}}", "services: {a: 1}", "\t"] {
        assert_eq!(Written::read(text).config("a"), None, "{text:?}");
    }
}
