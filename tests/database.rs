//! db.yml as its writer meets it: the old format, all faults at once, the schema, a start with faults, a reload that refuses.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod harness;

use std::collections::BTreeSet;
use std::path::Path;

use harness::{Itsup, Root, Testd, db, project, run};
use serde_json::Value;

/// The old documentation's sample, to the letter.
const OLD: &str = r#"projects:
  - description: Home Assistant passthrough
    domain: home.example.com
    name: home-assistant
    services:
      - name: 192.168.1.111
        passthrough: true
        port: 443
  - description: itsUP API running on the host
    domain: itsup.example.com
    name: itsUP
    services:
      - name: 172.17.0.1
        port: 8888
  - description: test project to demonstrate inter service connectivity
    domain: hello.example.com
    name: test
    entrypoint: master
    services:
      - image: otomi/nodejs-helloworld:v1.2.13
        name: master
        env: { TARGET: cost concerned people, INFORMANT: "http://test-informant:8080" }
        volumes: [/data/bla, /etc/dida]
      - image: otomi/nodejs-helloworld:v1.2.13
        name: informant
        env: { TARGET: boss }
"#;

const GOOD: &str = "projects:\n  - name: hello\n    domain: hello.test\n";

fn list<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    value[key].as_array().expect("a list").iter().map(|text| text.as_str().expect("text")).collect()
}

/// Every file below a folder, with its contents.
fn snapshot(folder: &Path) -> BTreeSet<(String, Vec<u8>)> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                found.insert((path.display().to_string(), Vec::new()));
                folders.push(path);
            } else {
                found.insert((path.display().to_string(), std::fs::read(path).unwrap()));
            }
        }
    }
    found
}

#[test]
fn the_old_format_loads_unchanged() {
    let itsup = Itsup::start(OLD);
    let report = itsup.cli(&["--json", "validate"]).ok().json();
    assert_eq!(report["valid"], true);
    let errors = report["diagnostics"].as_array().unwrap().iter().filter(|d| d["severity"] == "error").count();
    assert_eq!(errors, 0, "{report}");
    let status = itsup.status();
    assert_eq!((&status["hosts"], &status["diagnostics"]), (&3.into(), &report["diagnostics"]));
    let upstreams = status["upstreams"].as_array().unwrap();
    let of = |name: &str| upstreams.iter().find(|up| up["name"] == name).unwrap_or_else(|| panic!("{name}: {status}"));
    let address = |name: &str| of(name)["endpoints"][0]["address"].as_str().unwrap().to_owned();
    assert_eq!(address("home-assistant"), "192.168.1.111:443");
    assert_eq!(address("home-assistant#challenge"), "192.168.1.111:80");
    assert_eq!(address("itsUP"), "172.17.0.1:8888");
    // Its containers do not run: known, and answered 503.
    assert!(upstreams.iter().any(|up| up["name"].as_str().unwrap().contains("master")), "{status}");
    assert_eq!(itsup.get("https://hello.example.com/").status, 503);
    assert_eq!(itsup.get("http://home.example.com/").status, 301);
}

#[test]
fn the_sample_serves_its_welcome_page_with_no_domain_no_certificate_and_no_docker() {
    let sample = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/db.yml.sample")).unwrap();
    let itsup = Itsup::start(&sample);
    let page = run(harness::curl(&itsup).args(["--include", "https://hello.localhost/"])).ok().stdout;
    assert!(page.starts_with("HTTP/2 200") && page.contains("text/html"), "{page}");
    let valid = itsup.cli(&["validate"]).ok();
    assert_eq!((valid.stdout.as_str(), valid.stderr.as_str()), ("db.yml is valid\n", ""));
    // And with every example put into service it is valid still.
    let all: String =
        sample.lines().filter(|line| !line.contains("enabled: false")).map(|line| format!("{line}\n")).collect();
    itsup.root().write("db.yml", all);
    let report = itsup.cli(&["--json", "validate"]).ok().json();
    assert_eq!(report["valid"], true);
    let report = itsup.reload();
    assert!(list(&report, "added").contains(&"shop.example.com"), "{report}");
}

/// A fault: its line and column, a part of the message, a part of the hint.
type Fault = (u64, u64, &'static str, &'static str);

const FAULTY: (&str, &[Fault]) = (
    r#"projects:
  - name: one
    domain: one.example.com
    entrypoint: web
    colour: red
    services:
      - name: web
        image: nginx:1
        passtrough: true
        port: 70000
      - name: web
        image: nginx:1
  - name: two
    domain: one.example.com
    entrypoint: 10.0.0.9
    services:
      - name: 10.0.0.9
        port: "8080"
  - name: Two
    domain: bad_host-.example.com
    entrypoint: gone
    services:
      - name: ../../etc
        image: nginx:1
        timeouts: { connect: 5 }
        max_body: 10MiB
  - name: passed
    domain: passed.example.com
    routes: [{ path: api, service: nas.lan }]
    access: { allow: [10.0.0.0/33] }
    services:
      - name: nas.lan
        passthrough: true
  - name: loose
    domain: loose.example.com
    services:
      - name: app
        image: nginx:1
"#,
    &[
        (5, 5, "unknown key `colour`", ""),
        (9, 9, "unknown key `passtrough`", "did you mean `passthrough`?"),
        (10, 15, "`port` must be from 1 to 65535", ""),
        (11, 15, "the service `web` stands twice; first on line 7", ""),
        (14, 13, "the host `one.example.com` is claimed twice; first by `one` on line 3", ""),
        (15, 17, "the entrypoint `10.0.0.9` has no image", "need no `entrypoint`"),
        (18, 15, "`port` must be a whole number, and is text", "without quotes: 8080"),
        (19, 11, "the project `Two` is `two` to compose, as is `two` on line 13", "another name"),
        (20, 13, "`bad_host-.example.com` is not a host name", ""),
        (21, 17, "`gone` is not a service of this project", "its services"),
        (23, 15, "the name `../../etc` could leave its folder", "use letters"),
        (25, 30, "`connect` needs a unit", "such as `5s`"),
        (26, 19, "`10MiB` is not a size", ""),
        (29, 5, "a domain that is passed through cannot have path routes", "the path is encrypted"),
        (29, 22, "`api` is not a path", "write `/api`"),
        (30, 23, "`10.0.0.0/33` is not a network", "192.168.0.0/16"),
        (35, 13, "no service is named that this domain leads to", "add `entrypoint: app`"),
    ],
);

#[test]
fn validate_tells_every_fault_with_its_place_and_a_hint_and_changes_nothing() {
    let root = Root::new();
    let (text, faults) = FAULTY;
    root.write("db.yml", text);
    let before = snapshot(&root.path(""));
    let run = root.cli(&["--json", "validate"]);
    assert_eq!(run.code, Some(1));
    let report = run.json();
    let told = report["diagnostics"].as_array().unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let file = root.path("db.yml").display().to_string();
    for (line, column, message, hint) in faults {
        let at = |d: &&Value| d["line"] == *line && d["column"] == *column && d["severity"] == "error";
        let here: Vec<&Value> = told.iter().filter(at).collect();
        let found = here.iter().find(|d| d["message"].as_str().unwrap().contains(message));
        let found = found.unwrap_or_else(|| panic!("{line}:{column}: {message}: {told:#?}"));
        assert_eq!(found["file"], file.as_str());
        assert_eq!(found["source"], lines[*line as usize - 1]);
        assert!(found["hint"].as_str().unwrap_or_default().contains(hint), "{found}");
    }
    // And each by itself: what else is told stands in no good line.
    assert!(told.len() <= faults.len() + 3, "{told:#?}");
    assert!(
        report["error"]
            .as_str()
            .unwrap()
            .starts_with(&format!("{} faults in ", told.iter().filter(|d| d["severity"] == "error").count()))
    );

    let text = root.cli(&["validate"]);
    assert_eq!((text.code, text.stdout.as_str()), (Some(1), ""));
    let wanted = format!(
        "{file}:9:9: error: unknown key `passtrough`\n 9 |         passtrough: true\n   |         ^\n   = hint: did you mean `passthrough`?\n"
    );
    assert!(text.stderr.contains(&wanted), "{}", text.stderr);
    assert_eq!(snapshot(&root.path("")), before);
}

#[test]
fn yaml_1_1_is_warned_of_and_is_no_fault() {
    let root = Root::new();
    root.write(
        "db.yml",
        "projects:\n  - name: app\n    domain: app.test\n    entrypoint: web\n    services:\n      - name: web\n        \
         image: nginx:1\n        env: { A: yes, B: 0777, C: 'yes' }\n",
    );
    let run = root.cli(&["validate"]).ok();
    assert!(run.stderr.contains("db.yml:8:19: warning: `yes` is text here"), "{}", run.stderr);
    assert!(run.stderr.contains("warning: `0777` is text here; the old tool read the number 511"), "{}", run.stderr);
    assert!(run.stderr.contains("hint: "), "{}", run.stderr);
    assert_eq!(run.stdout, "db.yml is valid, with 2 warnings\n");
    let report = root.cli(&["--json", "validate"]).ok().json();
    assert_eq!((report["valid"].as_bool(), report["diagnostics"].as_array().unwrap().len()), (Some(true), 2));
}

#[test]
fn the_schema_is_json_schema_and_knows_every_key() {
    let root = Root::new();
    for arguments in [&["validate", "--schema"][..], &["--json", "validate", "--schema"]] {
        let schema = root.cli(arguments).ok().json();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        let keys = |name: &str| schema["$defs"][name]["properties"].as_object().unwrap().clone();
        let (project, service) = (keys("Project"), keys("Service"));
        for key in [
            "description",
            "domain",
            "name",
            "services",
            "entrypoint",
            "enabled",
            "aliases",
            "routes",
            "tls",
            "redirect_from",
            "access",
            "headers",
            "hsts",
            "compress",
        ] {
            assert!(project[key]["description"].is_string(), "project.{key}");
        }
        for key in [
            "name",
            "image",
            "port",
            "passthrough",
            "env",
            "volumes",
            "domain",
            "replicas",
            "proxy_protocol",
            "challenge_port",
            "health",
            "timeouts",
            "max_body",
            "http",
            "verify",
            "compose",
        ] {
            assert!(service[key]["description"].is_string(), "service.{key}");
        }
    }
}

#[test]
fn at_start_a_faulty_project_is_left_out_loudly_and_the_others_serve() {
    let app = Testd::start();
    let bad = "  - name: bad\n    domain: bad.test\n    nonsense: 1\n".to_owned();
    let text = db(&[bad, project("app", "app.test", &[app.addr()], "")]);
    let itsup = Itsup::start(&text);
    assert_eq!(itsup.get("https://app.test/").status, 200);
    assert_eq!(itsup.get("http://bad.test/").status, 404);
    let log = itsup.stderr();
    assert!(
        log.contains("project bad is left out") && log.contains("db.yml:4:5: error: unknown key `nonsense`"),
        "{log}"
    );
    let status = itsup.status();
    assert_eq!((&status["hosts"], &status["diagnostics"][0]["project"]), (&1.into(), &"bad".into()), "{status}");
    assert!(itsup.cli(&["status"]).ok().stdout.contains("unknown key `nonsense`"));
    assert_eq!(itsup.metric("itsup_faulty_projects"), 1.0);
    // Mended, it serves.
    let report = itsup.reload_with(&text.replace("    nonsense: 1\n", ""));
    assert_eq!(list(&report, "added"), ["bad.test"]);
    assert_eq!(itsup.get("https://bad.test/").status, 200);
}

#[test]
fn at_start_the_last_good_file_stands_in_for_one_that_cannot_be_parsed() {
    for broken in [&b"projects: [\n"[..], b"\xff\xfe", b"", b"just words", b"projects: 3\n"] {
        let root = Root::new();
        let nothing = {
            root.write("db.yml", broken);
            root.cli(&["run", "--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--api", "off", "--docker", "off"])
        };
        assert_eq!(nothing.code, Some(1), "without a last good file there is nothing to serve");
        assert!(nothing.stderr.contains("db.yml"), "{}", nothing.stderr);

        let root = Itsup::on(&root).db(GOOD).start().stop();
        root.write("db.yml", broken);
        let itsup = Itsup::on(&root).start();
        assert_eq!(itsup.get("https://hello.test/").status, 200);
        let status = itsup.status();
        assert_eq!((&status["last_good"], &status["hosts"]), (&true.into(), &1.into()));
        assert!(itsup.stderr().contains("the last good one serves"), "{}", itsup.stderr());
        assert!(itsup.cli(&["status"]).ok().stdout.contains("the last good one serves"));
        // The next reload still refuses, and a good file ends it.
        assert_eq!(itsup.cli(&["reload"]).code, Some(1));
        itsup.reload_with(GOOD);
        assert_eq!(itsup.status()["last_good"], false);
        assert!(!itsup.cli(&["status"]).ok().stdout.contains("the last good one serves"));
    }
}

#[test]
fn a_reload_tells_what_changed_and_an_equal_one_is_nothing() {
    let app = Testd::start();
    let one = project("one", "one.test", &[app.addr()], "");
    let two = project("two", "two.test", &[app.addr()], "");
    let itsup = Itsup::start(&db(&[one.clone(), two]));
    let first = itsup.status()["generation"].as_u64().unwrap();
    let report = itsup.reload();
    assert_eq!((&report["changed"], &report["generation"]), (&false.into(), &first.into()));
    let shown = itsup.cli(&["reload"]).ok();
    assert_eq!(
        (shown.stdout.as_str(), shown.stderr.as_str()),
        (&*format!("generation {first}: nothing changed\n"), "")
    );

    let three = "  - name: three\n    domain: three.test\n    aliases: ['*.three.test']\n".to_owned();
    itsup.root().write("db.yml", db(&[one.replace("services", "hsts: true\n    services"), three]));
    let shown = itsup.cli(&["reload"]).ok().stdout;
    let lines: BTreeSet<&str> = shown.lines().collect();
    let summary = format!("generation {}: 2 added, 1 changed, 1 removed", first + 1);
    let wanted = ["+ *.three.test", "+ three.test", "~ one.test", "- two.test", &summary];
    assert_eq!(lines, wanted.into_iter().collect());
    let report = itsup.reload_with(&db(&[one]));
    assert_eq!(list(&report, "removed"), ["three.test", "*.three.test"]);
    assert_eq!(list(&report, "changed_hosts"), ["one.test"]);
    assert_eq!(report["generation"], first + 2);
    assert_eq!(itsup.get("http://two.test/").status, 404);
}

#[test]
fn a_reload_that_refuses_changes_nothing() {
    let itsup = Itsup::start(GOOD);
    let kept = itsup.root().read("data/db.last-good.yml");
    let before = itsup.status();
    let missing = itsup.root().path("db.yml");
    for text in [Some(FAULTY.0), Some("projects: ["), Some(""), None] {
        match text {
            Some(text) => itsup.root().write("db.yml", text),
            None => std::fs::remove_file(&missing).unwrap(),
        }
        let refused = itsup.cli(&["reload"]);
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""));
        assert!(refused.stderr.contains("nothing was changed"), "{}", refused.stderr);
        let json = itsup.cli(&["--json", "reload"]);
        assert_eq!(json.code, Some(1));
        let report = json.json();
        if text == Some(FAULTY.0) {
            assert!(report["diagnostics"].as_array().unwrap().len() >= FAULTY.1.len(), "{report}");
        }
        assert!(report["error"].as_str().unwrap().contains("nothing was changed"), "{report}");
    }
    let after = itsup.status();
    assert_eq!((&after["generation"], &after["hosts"]), (&before["generation"], &before["hosts"]));
    assert_eq!(after["reloads"], serde_json::json!({"done": 0, "refused": 8}));
    assert_eq!(itsup.get("https://hello.test/").status, 200);
    assert_eq!(itsup.root().read("data/db.last-good.yml"), kept);
}

#[test]
fn no_bytes_whatever_make_it_panic() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("control/fuzz/corpus/db_yml");
    let files: Vec<_> = std::fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 15, "the corpus is there");
    let root = Root::new();
    for file in files {
        root.write("db.yml", std::fs::read(&file).unwrap());
        let run = root.cli(&["--json", "validate"]);
        assert!(matches!(run.code, Some(0 | 1)), "{}: {}", file.display(), run.stderr);
        assert!(!run.stderr.contains("panicked"), "{}: {}", file.display(), run.stderr);
        assert_eq!(run.json()["valid"] == true, run.code == Some(0), "{}", file.display());
    }
}
