//! Rollouts with a real engine: under load nothing is lost; whatever fails or is killed, traffic goes on, nothing is left over,
//! and the message says what happened.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod harness;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use harness::{
    Child, Docker, Finished, Itsup, PATIENCE, Root, docker, eventually, load, testd_image, testd_image_with_health,
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// One service of containers, in versions.
struct App {
    docker: Docker,
    root: Root,
    image: String,
    replicas: usize,
    /// More keys of the service.
    service: &'static str,
}

impl App {
    fn new(name: &str) -> App {
        App { docker: Docker::new(name), root: Root::new(), image: testd_image(), replicas: 1, service: "" }
    }

    fn with_health(self) -> App {
        App { image: testd_image_with_health(), ..self }
    }

    /// Writes db.yml for this version of the application, with these variables besides.
    fn write(&self, version: u32, environment: &[(&str, &str)]) {
        let (name, image, replicas, service) = (self.docker.project(), &self.image, self.replicas, self.service);
        let rollout = if service.contains("rollout:") {
            ""
        } else {
            "        rollout: { watch: 1s, timeout: 20s, drain: 10s }\n"
        };
        let mut text = format!(
            "projects:\n  - name: {name}\n    domain: {name}.test\n    tls: internal\n    entrypoint: web\n    services:\n      \
             - name: web\n        image: {image}\n        replicas: {replicas}\n{rollout}{service}        env:\n          \
             TESTD_VERSION: \"{version}\"\n"
        );
        for (name, value) in environment {
            text.push_str(&format!("          {name}: \"{value}\"\n"));
        }
        self.root.write("db.yml", text);
    }

    /// Starts itsUP and the first version.
    fn start(&self, environment: &[(&str, &str)]) -> Itsup {
        self.write(1, environment);
        let itsup = self.itsup();
        itsup.cli(&["apply", self.docker.project()]).ok();
        self.settled(&itsup, 1);
        itsup
    }

    fn itsup(&self) -> Itsup {
        Itsup::on(&self.root).docker().start()
    }

    fn apply(&self, itsup: &Itsup) -> Finished {
        itsup.cli(&["apply", self.docker.project()])
    }

    /// Everything of the project that is there, running or not.
    fn containers(&self) -> BTreeSet<String> {
        let filter = format!("label=com.docker.compose.project={}", self.docker.project());
        docker(&["ps", "-aq", "--no-trunc", "--filter", &filter]).split_whitespace().map(str::to_owned).collect()
    }

    fn url(&self) -> String {
        format!("https://{}.test/", self.docker.project())
    }

    fn host(&self) -> String {
        format!("{}.test", self.docker.project())
    }

    /// The version that answers.
    fn version(&self, itsup: &Itsup) -> Option<u32> {
        let answer = itsup.get(&self.url());
        (answer.status == 200).then(|| answer.json()["version"].as_str()?.parse().ok()).flatten()
    }

    /// Waits until this version alone answers, with as many containers as asked for and nothing else, and nothing is under
    /// way any more.
    #[track_caller]
    fn settled(&self, itsup: &Itsup, version: u32) {
        let mut seen = String::new();
        let began = Instant::now();
        let mut settled = || {
            let (there, routed, under_way) = (self.containers(), self.routed(itsup), self.under_way());
            let found = self.version(itsup);
            seen = format!("containers {there:?}, routed {routed:?}, journal {under_way:?}, version {found:?}");
            let right = there == routed && there.len() == self.replicas && under_way.is_empty();
            (right && found == Some(version)).then_some(())
        };
        loop {
            if settled().is_some() {
                return;
            }
            if began.elapsed() > PATIENCE {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("version {version} is not settled: {seen}\n{}", itsup.stderr());
    }

    /// The containers that traffic goes to.
    fn routed(&self, itsup: &Itsup) -> BTreeSet<String> {
        let status = itsup.status();
        let name = format!("{}/web", self.docker.project());
        let upstreams = status["upstreams"].as_array().cloned().unwrap_or_default();
        let upstream = upstreams.into_iter().find(|upstream| upstream["name"] == name.as_str());
        let endpoints = upstream.and_then(|upstream| upstream["endpoints"].as_array().cloned()).unwrap_or_default();
        let id = |endpoint: &Value| Some(endpoint["id"].as_str()?.split('@').next()?.to_owned());
        endpoints.iter().filter_map(id).collect()
    }

    /// The journals that are not done with.
    fn under_way(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.path("data/journal"));
        let names = entries.into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.ends_with(".json")).collect()
    }

    /// The receipts, the oldest first.
    fn receipts(&self) -> Vec<Value> {
        let entries = std::fs::read_dir(self.root.path("data/receipts"));
        let mut paths: Vec<_> = entries.into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).collect()
    }
}

/// Mixed traffic of every kind, counted exactly.
struct Traffic(Child);

impl Traffic {
    fn start(app: &App, itsup: &Itsup) -> Traffic {
        let mut command = load(itsup, "run", &app.host(), &itsup.ca());
        let kinds = "--h1 6 --h1-rate 100 --h2 2 --h2-streams 2 --h2-rate 40 --new-rate 15 --post 2 --post-rate 4 \
                     --slow-rate 1 --slow-ms 2000 --events 1 --websockets 1 --timeout 60 --seconds 600";
        command.args(kinds.split_whitespace());
        let traffic = Traffic(Child::start("itsup-load", &mut command));
        traffic.0.line(|line| line.contains("\"ready\""));
        traffic
    }

    /// Ends it: nothing may have failed.
    #[track_caller]
    fn lost_nothing(self, itsup: &Itsup) -> Value {
        self.0.signal(Signal::SIGINT);
        let said = self.0.finish(PATIENCE * 2);
        let report: Value = serde_json::from_str(said.stdout.lines().last().unwrap()).unwrap();
        let lost = ["failed", "reused_reset", "lost_bytes"].map(|key| report[key].as_u64().unwrap());
        assert_eq!(lost, [0, 0, 0], "{}\n{}\n{}", report["classes"], report["examples"], itsup.stderr());
        assert!(report["total"].as_u64().unwrap() > 100, "{report}");
        println!("{} requests, longest gap {} ms", report["total"], report["longest_gap_ms"]);
        report
    }
}

/// Two rollouts under load, which lose nothing.
fn rolls_over_under_load(app: &App, environment: &[(&str, &str)]) {
    let itsup = app.start(environment);
    let traffic = Traffic::start(app, &itsup);
    let first = app.containers();
    for version in 2..4 {
        app.write(version, environment);
        let done = app.apply(&itsup).ok();
        assert_eq!(app.version(&itsup), Some(version), "{}", done.stdout);
    }
    let report = traffic.lost_nothing(&itsup);
    // A promise about the proxy, with room for a machine that is busy with other things.
    assert!(report["longest_gap_ms"].as_f64().unwrap() < 2_000.0, "{report}");
    app.settled(&itsup, 3);
    assert!(app.containers().is_disjoint(&first));
    let receipts = app.receipts();
    let last = receipts.last().unwrap();
    assert_eq!((&last["result"], &last["requests"]["failed"]), (&"done".into(), &0.into()), "{last}");
    assert!(last["requests"]["served"].as_u64().unwrap() > 10, "{last}");
    assert_eq!(last["new"].as_array().unwrap().len(), app.replicas);
}

#[test]
fn docker_rollouts_under_load_lose_nothing_of_a_graceful_app_with_a_health_check() {
    rolls_over_under_load(&App::new("graceful").with_health(), &[]);
}

#[test]
fn docker_rollouts_under_load_lose_nothing_of_an_app_that_dies_at_sigterm() {
    rolls_over_under_load(&App::new("dies"), &[("TESTD_ON_TERM", "die")]);
}

#[test]
fn docker_rollouts_under_load_lose_nothing_of_an_app_that_ignores_sigterm() {
    let app = App { service: "        compose: { stop_grace_period: 1s }\n", ..App::new("ignores") };
    rolls_over_under_load(&app, &[("TESTD_ON_TERM", "ignore")]);
}

#[test]
fn docker_rollouts_under_load_lose_nothing_of_an_app_that_starts_late() {
    rolls_over_under_load(&App::new("late"), &[("TESTD_START_DELAY", "2s"), ("TESTD_ON_TERM", "die")]);
}

#[test]
fn docker_rollouts_under_load_lose_nothing_of_three_replicas() {
    rolls_over_under_load(&App { replicas: 3, ..App::new("three").with_health() }, &[]);
}

/// Requests of one connection each, by a thread, until this is told to stop.
struct Knocking(std::sync::mpsc::Sender<()>, std::thread::JoinHandle<Vec<u16>>);

impl Knocking {
    fn start(itsup: &Itsup, app: &App) -> Knocking {
        let (stop, stopped) = std::sync::mpsc::channel();
        let (https, ca, host) = (itsup.https(), itsup.ca(), app.host());
        let knocking = std::thread::spawn(move || {
            let mut statuses = Vec::new();
            while stopped.try_recv().is_err() {
                let mut stream = harness::tls(https, &host, &ca);
                harness::send(&mut stream, "GET", &host, "/", &[("Connection", "close")], b"");
                statuses.push(harness::read_answer(&mut stream, "GET").status);
            }
            statuses
        });
        Knocking(stop, knocking)
    }

    /// Every single one has been answered 200.
    #[track_caller]
    fn all_well(self) {
        self.0.send(()).unwrap();
        let statuses = self.1.join().unwrap();
        assert!(!statuses.is_empty() && statuses.iter().all(|status| *status == 200), "{statuses:?}");
    }
}

/// A new version that fails before the switch: the old one serves throughout, and the message says why.
fn fails_and_changes_nothing(app: &App, environment: &[(&str, &str)], why: &str) -> Finished {
    let itsup = app.start(&[]);
    let before = app.containers();
    let knocking = Knocking::start(&itsup, app);
    app.write(2, environment);
    let failed = app.apply(&itsup);
    knocking.all_well();
    let said = format!("{}{}", failed.stdout, failed.stderr);
    assert_eq!(failed.code, Some(1), "{said}");
    assert!(said.contains(why), "`{why}` is not in:\n{said}");
    assert_eq!(app.containers(), before, "the very same containers");
    app.settled(&itsup, 1);
    // And it is no obstacle to the next.
    app.write(3, &[]);
    app.apply(&itsup).ok();
    app.settled(&itsup, 3);
    failed
}

#[test]
fn docker_a_version_that_is_never_healthy_is_taken_away() {
    let service = "        rollout: { timeout: 2s, watch: 1s }\n        healthcheck: { test: [CMD, /itsup-testd, --check, \
                   \"127.0.0.1:8080\"], interval: 1s, timeout: 1s, retries: 1 }\n";
    let app = App { service, ..App::new("unhealthy") };
    fails_and_changes_nothing(&app, &[("TESTD_HEALTHY", "false")], "its health check");
}

#[test]
fn docker_a_version_that_crashes_at_its_start_is_taken_away_and_its_log_is_shown() {
    let app = App::new("crash");
    let said = fails_and_changes_nothing(&app, &[("TESTD_CRASH_AFTER", "0ms")], "before it was ready");
    let said = format!("{}{}", said.stdout, said.stderr);
    assert!(said.contains("crashed, as told"), "{said}");
    assert_eq!(app.receipts()[0]["result"], "undone");
}

#[test]
fn docker_a_version_that_never_listens_is_taken_away() {
    let app = App { service: "        rollout: { timeout: 2s, watch: 1s }\n", ..App::new("deaf") };
    fails_and_changes_nothing(
        &app,
        &[("TESTD_NEVER_LISTEN", "true")],
        "does not answer where the proxy would reach it",
    );
}

#[test]
fn docker_an_image_that_is_nowhere_changes_nothing() {
    let mut app = App::new("noimage");
    let itsup = app.start(&[]);
    let before = app.containers();
    let image = std::mem::replace(&mut app.image, "127.0.0.1:1/nobody/nothing:1".into());
    app.write(2, &[]);
    let failed = app.apply(&itsup);
    let said = format!("{}{}", failed.stdout, failed.stderr);
    assert_eq!(failed.code, Some(1), "{said}");
    assert!(said.contains("127.0.0.1:1/nobody/nothing:1"), "{said}");
    assert_eq!(app.containers(), before);
    app.image = image;
    app.settled(&itsup, 1);
}

#[test]
fn docker_a_version_that_crashes_while_it_is_watched_is_taken_back() {
    let app = App { service: "        rollout: { watch: 20s }\n", ..App::new("watch") };
    let itsup = app.start(&[]);
    let before = app.containers();
    app.write(2, &[("TESTD_CRASH_AFTER", "4s")]);
    let failed = app.apply(&itsup);
    let said = format!("{}{}", failed.stdout, failed.stderr);
    assert_eq!(failed.code, Some(1), "{said}");
    assert!(said.contains("while it was watched"), "{said}");
    app.settled(&itsup, 1);
    assert_eq!(app.containers(), before);
}

#[test]
fn docker_a_version_that_fails_requests_is_taken_back() {
    let app = App { service: "        rollout: { watch: 30s }\n", ..App::new("worse") };
    let itsup = app.start(&[]);
    let before = app.containers();
    // It says that it is ready by listening, and then answers 503 to everything.
    app.write(2, &[("TESTD_READY_DELAY", "1h")]);
    let mut command = itsup.root().command();
    let applying = Child::start("apply", command.args(["apply", app.docker.project()]));
    eventually("the switch", || (app.routed(&itsup) != before).then_some(()));
    eventually("the way back", || {
        itsup.get(&app.url());
        (app.routed(&itsup) == before).then_some(())
    });
    let failed = applying.finish(PATIENCE);
    assert_eq!(failed.code, Some(1), "{}{}", failed.stdout, failed.stderr);
    assert!(format!("{}{}", failed.stdout, failed.stderr).contains("where the old ones had failed"));
    app.settled(&itsup, 1);
}

#[test]
fn docker_two_rollouts_at_once_run_one_after_the_other() {
    let app = App::new("twice");
    let itsup = app.start(&[]);
    let knocking = Knocking::start(&itsup, &app);
    let start = |name: &str| Child::start(name, app.root.command().args(["rollout", app.docker.project()]));
    let first = start("the first");
    eventually("it has begun", || (!app.under_way().is_empty()).then_some(()));
    let (second, third) = (start("the second"), start("the third"));
    for rollout in [first, second, third] {
        rollout.finish(PATIENCE * 2).ok();
    }
    knocking.all_well();
    app.settled(&itsup, 1);
    let done = app.receipts().iter().filter(|receipt| receipt["result"] == "done").count();
    assert!((2..=3).contains(&done), "{done}: equal ones that wait may be one");
}

/// The steps at which itsUP is killed, as `control/src/change/fault.rs` has them, and the version that serves in the end.
const FORTH: [(&str, u32); 11] = [
    ("journaled", 1),
    ("starting", 1),
    ("started", 1),
    ("ready", 1),
    ("switched", 2),
    ("published", 2),
    ("watched", 2),
    ("committed", 2),
    ("drained", 2),
    ("stopped", 2),
    ("removed", 2),
];
const BACK: [(&str, u32); 4] = [("undoing", 1), ("reverted", 1), ("stopped", 1), ("undone", 1)];

/// Kills itsUP at a step of a rollout; the next start settles by itself.
fn is_killed_at(app: &App, step: &str, environment: &[(&str, &str)], wanted: u32) {
    app.write(1, &[]);
    let itsup = app.itsup();
    app.apply(&itsup).ok();
    app.settled(&itsup, 1);
    itsup.stop();
    let mut itsup = Itsup::on(&app.root).docker().env("ITSUP_FAULT", step).start();
    app.write(2, environment);
    let applying = Child::start("apply", app.root.command().args(["apply", app.docker.project()]));
    itsup.wait_exit(PATIENCE);
    let itsup = app.itsup();
    let status = itsup.get(&app.url()).status;
    assert_eq!(status, 200, "{step}: from the first moment somebody serves");
    let told = applying.finish(PATIENCE);
    assert_eq!(told.code, Some(1), "{step}: {}{}", told.stdout, told.stderr);
    app.settled(&itsup, wanted);
    itsup.stop();
}

#[test]
fn docker_kill_9_before_the_switch_is_undone() {
    let app = App::new("killa");
    for (step, wanted) in &FORTH[..4] {
        is_killed_at(&app, step, &[], *wanted);
    }
}

#[test]
fn docker_kill_9_after_the_switch_is_finished() {
    let app = App::new("killb");
    for (step, wanted) in &FORTH[4..] {
        is_killed_at(&app, step, &[], *wanted);
    }
}

#[test]
fn docker_kill_9_on_the_way_back_is_undone_to_the_end() {
    let app = App::new("killc");
    for (step, wanted) in BACK {
        is_killed_at(&app, step, &[("TESTD_CRASH_AFTER", "0ms")], wanted);
    }
}
