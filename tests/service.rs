//! The day-to-day: a new root, the service's units, the doctor, and the logs.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod harness;

use std::process::Command;

use harness::{Child, Itsup, Root, Testd, db, eventually, has_program, project, run};
use serde_json::Value;

#[test]
fn a_new_root_is_valid_and_its_key_is_its_own() {
    let root = Root::new();
    let made = root.cli(&["--json", "init"]).ok().json();
    assert!(made["entries"].as_array().unwrap().iter().all(|entry| entry["new"] == true), "{made}");
    root.cli(&["validate"]).ok();
    let env = root.read(".env");
    let key = env.lines().find_map(|line| line.strip_prefix("API_KEY=")).expect("a key");
    assert_eq!(key.len(), 64);
    let again = root.cli(&["init"]).ok();
    assert!(!again.stdout.contains("new "), "{}", again.stdout);
    assert_eq!(root.read(".env"), env, "nothing is overwritten");
    let itsup = Itsup::on(&root).start();
    assert_eq!(itsup.get("https://hello.localhost/").status, 200);
}

#[test]
fn units_are_what_systemd_wants_and_hardened() {
    assert!(has_program("systemd-analyze"), "bin/deps.sh test installs systemd");
    let root = Root::new();
    root.cli(&["init"]).ok();
    let units = root.path("units");
    let units = units.to_str().unwrap();
    let report =
        root.cli(&["--json", "service", "install", "--unit-dir", units, "--user", "root", "--socket", "--no-start"]);
    assert_eq!(report.ok().json()["units"].as_array().unwrap().len(), 2);
    let (service, socket) = (root.path("units/itsup.service"), root.path("units/itsup.socket"));
    let verified = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).args([&service, &socket]));
    let about_ours: Vec<&str> = verified.stderr.lines().filter(|line| line.contains("itsup.")).collect();
    assert!(verified.code == Some(0) && about_ours.is_empty(), "{}", verified.stderr);

    assert!(socket.exists());

    // What a daemon of a user of its own gets; 10 is the worst.
    root.cli(&["service", "install", "--unit-dir", units, "--user", "daemon", "--no-start"]).ok();
    assert!(!socket.exists(), "without --socket there is none left over");
    let rated = run(Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", "--threshold=20"])
        .arg(&service));
    assert_eq!(rated.code, Some(0), "{}{}", rated.stdout, rated.stderr);

    let text = root.read("units/itsup.service");
    for line in ["Type=notify", "User=daemon", "WatchdogSec=30", "ProtectSystem=strict", "ExecReload="] {
        assert!(text.contains(line), "{line}");
    }
    let status = root.cli(&["--json", "service", "status", "--unit-dir", units]).ok().json();
    assert_eq!(status["current"], true, "{status}");
    root.write("units/itsup.service", text.replace("WatchdogSec=30", "WatchdogSec=5"));
    let status = root.cli(&["--json", "service", "status", "--unit-dir", units]).ok().json();
    assert_eq!(status["current"], false, "{status}");
    root.cli(&["service", "uninstall", "--unit-dir", units]).ok();
    assert!(!service.exists());
    assert!(root.path("db.yml").exists(), "files stay");
}

fn check<'a>(checks: &'a Value, what: &str) -> Vec<&'a Value> {
    checks.as_array().unwrap().iter().filter(|check| check["what"] == what).collect()
}

#[test]
fn the_doctor_finds_what_is_wrong_and_says_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let root = Root::new();
    let doctor = |settings: &str, db: &str| {
        root.write(".env", settings);
        root.write("db.yml", db);
        let finished = root.cli(&["--json", "doctor"]);
        (finished.code, finished.json())
    };
    let free = "ITSUP_DOCKER=off\nITSUP_HTTP=127.0.0.1:0\nITSUP_HTTPS=127.0.0.1:0\nITSUP_API=off\n";
    let (_, checks) = doctor(free, "projects:\n  - name: a\n    domain: nobody-has-this.invalid\n");
    assert_eq!(check(&checks, "DNS")[0]["verdict"], "warning", "{checks}");
    assert_eq!(check(&checks, "itsup")[0]["verdict"], "warning", "it does not run: {checks}");
    assert!(check(&checks, "permissions")[0]["hint"].as_str().unwrap().starts_with("chmod"), "{checks}");

    let busy = format!("{free}ITSUP_API={}\n", taken.local_addr().unwrap()).replace("ITSUP_API=off\n", "");
    let (code, checks) = doctor(&busy, "projects: []\n");
    let bad =
        check(&checks, "ports").into_iter().find(|check| check["verdict"] == "bad").expect("a port that is taken");
    assert!(bad["found"].as_str().unwrap().contains("ITSUP_API"), "{bad}");
    assert!(bad["hint"].as_str().is_some());
    assert_eq!(code, Some(1));

    let hooked = format!("{free}API_KEY=0123456789abcdef\nACME_DIRECTORY=https://ca.example/dir\n");
    let (code, checks) = doctor(&hooked, "projects:\n  - { name: a }\n  - { name: b, webhook: { secret: s3cret } }\n");
    let found = check(&checks, "webhooks")[0];
    assert!(found["found"].as_str().unwrap().ends_with("of its own: a"), "{found}");
    assert!(check(&checks, "certificates")[0]["found"].as_str().unwrap().contains("LE_EMAIL"), "{checks}");
    assert_eq!(code, Some(0), "warnings alone: {checks}");
    let (_, checks) =
        doctor(&format!("{hooked}WEBHOOK_SECRET=another-secret\nLE_EMAIL=a@b.c\n"), "projects:\n  - { name: a }\n");
    assert_eq!((check(&checks, "webhooks").len(), check(&checks, "certificates").len()), (0, 0), "{checks}");

    let (code, checks) = doctor(free, "projects:\n  - nonsense\n");
    assert_eq!((code, &check(&checks, "db.yml")[0]["verdict"]), (Some(1), &Value::from("bad")), "{checks}");
    let (code, checks) = doctor("ITSUP_HTTP=nowhere\n", "projects: []\n");
    assert_eq!((code, &check(&checks, "settings")[0]["verdict"]), (Some(1), &Value::from("bad")), "{checks}");
}

#[test]
fn the_doctor_is_content_with_what_works() {
    let root = Root::new();
    root.cli(&["init"]).ok();
    let itsup = Itsup::on(&root).start();
    root.write(".env", "ITSUP_DOCKER=off\n");
    std::fs::set_permissions(root.path(".env"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let checks = itsup.cli(&["--json", "doctor"]).json();
    for what in ["settings", "db.yml", "ports", "itsup", "permissions", "Docker", "certificates"] {
        assert!(check(&checks, what).iter().all(|check| check["verdict"] != "bad"), "{what}: {checks}");
        assert!(!check(&checks, what).is_empty(), "{what}: {checks}");
    }
    let text = itsup.cli(&["doctor"]).stdout;
    assert!(text.contains("itsup listens"), "{text}");
}

#[test]
fn logs_are_merged_by_time_and_followed() {
    let app = Testd::start();
    let projects = [project("one", "one.test", &[app.addr()], ""), project("two", "two.test", &[app.addr()], "")];
    let itsup = Itsup::start(&db(&projects));
    for host in ["one", "two"] {
        itsup.get(&format!("https://{host}.test/of-{host}"));
        itsup.logged(|line| line["path"] == format!("/of-{host}"));
    }
    // In between, and at the end, by their own times.
    itsup.root().write(
        "logs/itsup.log",
        "2020-01-01T00:00:00Z  INFO itsup: long ago\nno time\n2199-01-01T00:00:00Z  INFO itsup: far ahead\n",
    );
    itsup.root().write(".env", "ITSUP_DOCKER=off\n");
    let all = itsup.cli(&["--json", "logs"]).ok().stdout;
    let texts: Vec<String> = all
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(texts.len(), 4, "{texts:?}");
    for (text, part) in texts.iter().zip(["long ago", "/of-one", "/of-two", "far ahead"]) {
        assert!(text.contains(part), "{text}");
    }
    let one = itsup.cli(&["logs", "one"]).ok().stdout;
    assert!(one.contains("/of-one") && !one.contains("/of-two") && !one.contains("ago"), "{one}");
    let own = itsup.cli(&["logs", "api", "-n", "1"]).ok().stdout;
    assert!(own.contains("far ahead") && own.lines().count() == 1, "{own}");

    let mut command = itsup.root().command();
    let followed = Child::start("itsup logs -f", command.args(["logs", "-f", "proxy"]));
    followed.line(|line| line.contains("/of-two"));
    itsup.get("https://one.test/later");
    followed.line(|line| line.contains("/later"));
    std::fs::rename(itsup.root().path("logs/access.log"), itsup.root().path("logs/access.log.1")).unwrap();
    itsup.signal(nix::sys::signal::Signal::SIGUSR1);
    eventually("a new access log", || itsup.root().path("logs/access.log").exists().then_some(()));
    itsup.get("https://one.test/after-rotation");
    followed.line(|line| line.contains("/after-rotation"));
}
