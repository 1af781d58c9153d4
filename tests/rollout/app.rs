//! An application in containers, in versions, and the traffic that it is under.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{
    self, Child, Docker, Finished, Itsup, PATIENCE, Root, Stream, docker, load, testd_image, testd_image_with_health,
};

/// One service of containers, in versions.
pub(super) struct App {
    pub(super) docker: Docker,
    pub(super) root: Root,
    pub(super) image: String,
    pub(super) replicas: usize,
    /// More keys of the service.
    pub(super) service: &'static str,
}

impl App {
    pub(super) fn new(name: &str) -> App {
        App { docker: Docker::new(name), root: Root::new(), image: testd_image(), replicas: 1, service: "" }
    }

    pub(super) fn with_health(self) -> App {
        App { image: testd_image_with_health(), ..self }
    }

    /// Writes db.yml for this version of the application, with these variables besides.
    pub(super) fn write(&self, version: u32, environment: &[(&str, &str)]) {
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
    pub(super) fn start(&self, environment: &[(&str, &str)]) -> Itsup {
        self.write(1, environment);
        let itsup = self.itsup();
        itsup.cli(&["apply", self.docker.project()]).ok();
        self.settled(&itsup, 1);
        itsup
    }

    pub(super) fn itsup(&self) -> Itsup {
        Itsup::on(&self.root).docker().start()
    }

    pub(super) fn apply(&self, itsup: &Itsup) -> Finished {
        itsup.cli(&["apply", self.docker.project()])
    }

    /// The same, under way.
    pub(super) fn applying(&self) -> Child {
        Child::start("apply", self.root.command().args(["apply", self.docker.project()]))
    }

    /// Asks for what takes so long; it is under way when this returns, and its answer is still to be read.
    pub(super) fn ask_slowly(&self, itsup: &Itsup, ms: u32) -> Stream {
        let mut slow = harness::tls(itsup.https(), &self.host(), &itsup.ca());
        harness::send(&mut slow, "GET", &self.host(), &format!("/slow?ms={ms}"), &[], b"");
        harness::eventually("the request", || {
            let status = itsup.status();
            let upstreams = status["upstreams"].as_array()?.iter();
            let mut endpoints = upstreams.flat_map(|one| one["endpoints"].as_array()).flatten();
            endpoints.any(|one| one["in_flight"]["requests"] == 1).then_some(())
        });
        slow
    }

    /// Everything of the project that is there, running or not.
    pub(super) fn containers(&self) -> BTreeSet<String> {
        let filter = format!("label=com.docker.compose.project={}", self.docker.project());
        docker(&["ps", "-aq", "--no-trunc", "--filter", &filter]).split_whitespace().map(str::to_owned).collect()
    }

    pub(super) fn url(&self) -> String {
        format!("https://{}.test/", self.docker.project())
    }

    pub(super) fn host(&self) -> String {
        format!("{}.test", self.docker.project())
    }

    /// The version that answers.
    pub(super) fn version(&self, itsup: &Itsup) -> Option<u32> {
        let answer = itsup.get(&self.url());
        (answer.status == 200).then(|| answer.json()["version"].as_str()?.parse().ok()).flatten()
    }

    /// Waits until this version alone answers, with as many containers as asked for and nothing else, and nothing is under
    /// way any more.
    #[track_caller]
    pub(super) fn settled(&self, itsup: &Itsup, version: u32) {
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
    pub(super) fn routed(&self, itsup: &Itsup) -> BTreeSet<String> {
        let status = itsup.status();
        let name = format!("{}/web", self.docker.project());
        let upstreams = status["upstreams"].as_array().cloned().unwrap_or_default();
        let upstream = upstreams.into_iter().find(|upstream| upstream["name"] == name.as_str());
        let endpoints = upstream.and_then(|upstream| upstream["endpoints"].as_array().cloned()).unwrap_or_default();
        let id = |endpoint: &Value| Some(endpoint["id"].as_str()?.split('@').next()?.to_owned());
        endpoints.iter().filter_map(id).collect()
    }

    /// The journals that are not done with.
    pub(super) fn under_way(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.path("data/journal"));
        let names = entries.into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.ends_with(".json")).collect()
    }

    /// The receipts, the oldest first.
    pub(super) fn receipts(&self) -> Vec<Value> {
        let entries = std::fs::read_dir(self.root.path("data/receipts"));
        let mut paths: Vec<_> = entries.into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).collect()
    }
}

/// Mixed traffic of every kind, counted exactly.
pub(super) struct Traffic(Child);

impl Traffic {
    pub(super) fn start(app: &App, itsup: &Itsup) -> Traffic {
        Traffic::of(app, itsup, "--events 1 --websockets 1")
    }

    /// Without what a restart in place has to end.
    pub(super) fn of_requests(app: &App, itsup: &Itsup) -> Traffic {
        Traffic::of(app, itsup, "")
    }

    fn of(app: &App, itsup: &Itsup, more: &str) -> Traffic {
        let mut command = load(itsup, "run", &app.host(), &itsup.ca());
        let kinds = "--h1 6 --h1-rate 100 --h2 2 --h2-streams 2 --h2-rate 40 --new-rate 15 --post 2 --post-rate 4 \
                     --slow-rate 1 --slow-ms 2000 --timeout 60 --seconds 600";
        command.args(kinds.split_whitespace()).args(more.split_whitespace());
        let traffic = Traffic(Child::start("itsup-load", &mut command));
        traffic.0.line(|line| line.contains("\"ready\""));
        traffic
    }

    /// Ends it: nothing may have failed.
    #[track_caller]
    pub(super) fn lost_nothing(self, itsup: &Itsup) -> Value {
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

/// Requests of one connection each, by a thread, until this is told to stop.
pub(super) struct Knocking(std::sync::mpsc::Sender<()>, std::thread::JoinHandle<Vec<u16>>);

impl Knocking {
    pub(super) fn start(itsup: &Itsup, app: &App) -> Knocking {
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
    pub(super) fn all_well(self) {
        self.0.send(()).unwrap();
        let statuses = self.1.join().unwrap();
        assert!(!statuses.is_empty() && statuses.iter().all(|status| *status == 200), "{statuses:?}");
    }
}
