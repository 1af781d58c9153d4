//! Following Docker: real containers on the real network, as they start, die, move, fall ill, and while the engine is away.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod harness;

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use harness::{
    Docker, Itsup, PATIENCE, Root, Testd, address, db, docker, eventually, project, testd_image_with_health,
};
use serde_json::Value;

/// What is promised is 100 ms; a machine that is busy with other tests is given more.
const GENEROUS: Duration = Duration::from_secs(2);

/// A project with one service `web` of containers.
fn stack(docker: &Docker, service: &str) -> String {
    let name = docker.project();
    format!(
        "  - name: {name}\n    domain: {name}.test\n    entrypoint: web\n    services:\n      - name: web\n        \
         image: 127.0.0.1:1/none\n{service}"
    )
}

fn start(docker: &Docker, service: &str) -> Itsup {
    Itsup::with().docker().db(&db(&[stack(docker, service)])).start()
}

fn upstream(status: &Value, docker: &Docker) -> Vec<Value> {
    let name = docker.project();
    let found =
        status["upstreams"].as_array().unwrap().iter().find(|up| up["name"].as_str().unwrap().starts_with(name));
    found.unwrap_or_else(|| panic!("{name}: {status}"))["endpoints"].as_array().unwrap().clone()
}

/// Address and state of each endpoint.
fn endpoints(itsup: &Itsup, docker: &Docker) -> Vec<(String, String)> {
    let text = |endpoint: &Value, key: &str| endpoint[key].as_str().unwrap().to_owned();
    let all = upstream(&itsup.status(), docker);
    let mut all: Vec<_> = all.iter().map(|endpoint| (text(endpoint, "address"), text(endpoint, "state"))).collect();
    all.sort();
    all
}

fn addresses(itsup: &Itsup, docker: &Docker) -> Vec<String> {
    endpoints(itsup, docker).into_iter().map(|endpoint| endpoint.0).collect()
}

fn at(ip: IpAddr, port: u16) -> String {
    format!("{ip}:{port}")
}

/// Waits until these are the endpoints, and tells when that was first seen. It looks more often than a command could.
#[track_caller]
fn seen(itsup: &Itsup, docker: &Docker, wanted: &[String]) -> SystemTime {
    let mut wanted = wanted.to_vec();
    wanted.sort();
    let began = Instant::now();
    loop {
        let mut stream = UnixStream::connect(itsup.root().path("data/itsup.sock")).unwrap();
        harness::send(&mut stream, "GET", "itsup", "/status", &[("Connection", "close")], b"");
        let status = harness::read_answer(&mut stream, "GET").json();
        let now = SystemTime::now();
        let mut found: Vec<_> =
            upstream(&status, docker).iter().map(|end| end["address"].as_str().unwrap().to_owned()).collect();
        found.sort();
        if found == wanted {
            return now;
        }
        assert!(began.elapsed() < PATIENCE, "{wanted:?} never seen, but {found:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How long after the engine told of it something was seen.
#[track_caller]
fn prompt(what: &str, seen: SystemTime, told: SystemTime) {
    let late = seen.duration_since(told).unwrap_or_default();
    println!("{what}: {late:?} after the event");
    assert!(late < GENEROUS, "{what}: {late:?}");
}

#[test]
fn docker_containers_are_routed_from_their_start_to_their_death() {
    let stack = Docker::new("life");
    let itsup = start(&stack, "");
    let url = format!("https://{}.test/", stack.project());
    let down = itsup.get(&url);
    assert_eq!(down.status, 503, "a service without a container is down, not unknown");
    assert!(down.header("retry-after").is_some());

    let one = stack.run("web", &["-e", "TESTD_NAME=one"]);
    let first = at(address(&one), 8080);
    prompt("start", seen(&itsup, &stack, std::slice::from_ref(&first)), stack.told(&one, "start"));
    assert_eq!(eventually("an answer", || Some(itsup.get(&url)).filter(|a| a.status == 200)).json()["name"], "one");
    let line = itsup.logged(|line| line["status"] == 200);
    assert_eq!(line["site"], stack.project());

    // A second one shares the traffic; the first dies, and nothing is sent to it any more.
    let two = stack.run("web", &["-e", "TESTD_NAME=two"]);
    let second = at(address(&two), 8080);
    prompt("a second start", seen(&itsup, &stack, &[first, second.clone()]), stack.told(&two, "start"));
    eventually("traffic to the second", || (itsup.get(&url).json()["name"] == "two").then_some(()));
    docker(&["kill", &one]);
    prompt("die", seen(&itsup, &stack, std::slice::from_ref(&second)), stack.told(&one, "die"));
    for _ in 0..20 {
        let answer = itsup.get(&url);
        assert_eq!((answer.status, answer.json()["name"].as_str()), (200, Some("two")));
    }

    // A new address, which is told by no start and no death.
    docker(&["network", "disconnect", harness::NETWORK, &two]);
    prompt("disconnect", seen(&itsup, &stack, &[]), SystemTime::now());
    assert_eq!(itsup.get(&url).status, 503);
    let squatter = stack.run("other", &[]);
    docker(&["network", "connect", harness::NETWORK, &two]);
    let moved = at(address(&two), 8080);
    prompt("a new address", seen(&itsup, &stack, std::slice::from_ref(&moved)), SystemTime::now());
    assert_ne!(moved, at(address(&squatter), 8080));
    assert_eq!(itsup.get(&url).json()["name"], "two");

    docker(&["restart", "-t", "0", &two]);
    let again = at(address(&two), 8080);
    prompt("restart", seen(&itsup, &stack, std::slice::from_ref(&again)), stack.told(&two, "start"));
    eventually("an answer after the restart", || (itsup.get(&url).status == 200).then_some(()));
    docker(&["rm", "-f", &two]);
    seen(&itsup, &stack, &[]);
}

#[test]
fn docker_labels_on_the_container_win_over_db_yml() {
    let stack = Docker::new("labels");
    let old = stack.run(
        "web",
        &[
            "--label",
            "itsup.port=3000",
            "--label",
            "itsup.http=h2c",
            "-e",
            "TESTD_LISTEN=0.0.0.0:3000",
            "-e",
            "TESTD_NAME=old",
        ],
    );
    let itsup = start(&stack, "        port: 8080\n");
    let url = format!("https://{}.test/", stack.project());
    assert_eq!(addresses(&itsup, &stack), [at(address(&old), 3000)]);
    let answer = itsup.get(&url).json();
    assert_eq!((&answer["name"], &answer["http"]), (&"old".into(), &"HTTP/2.0".into()));
    // A reload with another port is for containers to come: the one that runs still listens where it did.
    let (text, other) = (itsup.root().read("db.yml"), "        port: 9090\n");
    itsup.reload_with(&text.replace("        port: 8080\n", other));
    assert_eq!(addresses(&itsup, &stack), [at(address(&old), 3000)]);
    assert_eq!(itsup.get(&url).status, 200);
    // One without labels is where db.yml says.
    let new = stack.run("web", &["-e", "TESTD_LISTEN=0.0.0.0:9090", "-e", "TESTD_NAME=new"]);
    seen(&itsup, &stack, &[at(address(&old), 3000), at(address(&new), 9090)]);
    docker(&["rm", "-f", &old]);
    seen(&itsup, &stack, &[at(address(&new), 9090)]);
    let answer = eventually("the new one answers", || Some(itsup.get(&url)).filter(|a| a.status == 200)).json();
    assert_eq!((&answer["name"], &answer["http"]), (&"new".into(), &"HTTP/1.1".into()));
}

#[test]
fn docker_health_makes_a_last_choice_and_never_none() {
    let stack = Docker::new("health");
    let itsup = start(&stack, "");
    let url = format!("https://{}.test/", stack.project());
    let image = testd_image_with_health();
    let one = stack.run_image(&image, "web", &["-e", "TESTD_NAME=one"]);
    let two = stack.run_image(&image, "web", &["-e", "TESTD_NAME=two"]);
    let at_one = at(address(&one), 8080);
    let state = |container: &str| {
        let address = at(address(container), 8080);
        endpoints(&itsup, &stack).into_iter().find(|endpoint| endpoint.0 == address).map(|endpoint| endpoint.1)
    };
    for container in [&one, &two] {
        eventually("both are well", || (state(container)? == "up").then_some(()));
    }
    let ill = |address: &str, ok: bool| {
        let to = address.parse().unwrap();
        let mut stream = harness::plain(to);
        harness::send(&mut stream, "POST", "x", &format!("/health?ok={ok}"), &[], b"");
        assert_eq!(harness::read_answer(&mut stream, "POST").status, 200);
    };
    ill(&at_one, false);
    eventually("one is ill", || (state(&one)? == "unhealthy").then_some(()));
    for _ in 0..30 {
        assert_eq!(itsup.get(&url).json()["name"], "two", "the ill one is the last choice");
    }
    // Alone, it is better than nothing.
    docker(&["rm", "-f", &two]);
    seen(&itsup, &stack, std::slice::from_ref(&at_one));
    let answer = itsup.get(&url);
    assert_eq!((answer.status, answer.json()["name"].as_str()), (200, Some("one")));
    ill(&at_one, true);
    eventually("it is well again", || (state(&one)? == "up").then_some(()));
}

#[test]
fn docker_addresses_that_are_used_again_never_reach_another_service() {
    let (stack, stranger) = (Docker::new("reuse"), Docker::new("stranger"));
    let itsup = Itsup::with().docker().db(&db(&[self::stack(&stack, ""), self::stack(&stranger, "")])).start();
    let urls = [&stack, &stranger].map(|docker| format!("https://{}.test/", docker.project()));
    let (done, wrong) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let https = itsup.https();
    let ca = itsup.ca();
    let clients: Vec<_> = [stack.project(), stranger.project()]
        .into_iter()
        .map(|name| {
            let (name, done, wrong, ca) = (name.to_owned(), done.clone(), wrong.clone(), ca.clone());
            std::thread::spawn(move || {
                let mut answers = 0;
                while !done.load(Ordering::Relaxed) {
                    let host = format!("{name}.test");
                    let mut stream = harness::tls(https, &host, &ca);
                    // On one kept connection, so that pooled upstream connections are used as well.
                    for _ in 0..20 {
                        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
                        if stream.write_all(request.as_bytes()).is_err() {
                            break;
                        }
                        // What dies under a request breaks it; the other one's answer would be wrong.
                        let Ok(answer) = harness::try_read_answer(&mut stream, "GET") else { break };
                        if answer.status == 200 {
                            answers += 1;
                            if answer.json()["name"] != name.as_str() {
                                wrong.lock().unwrap().push(format!("{host}: {}", answer.text()));
                            }
                        }
                    }
                }
                answers
            })
        })
        .collect();
    let mut reused = 0;
    let name = |docker: &Docker| format!("TESTD_NAME={}", docker.project());
    let mut mine = stack.run("web", &["-e", &name(&stack)]);
    let mut theirs = stranger.run("web", &["-e", &name(&stranger)]);
    for _ in 0..4 {
        // Both go, and come back in the other order: each gets the address that the other one had.
        let before = [address(&mine), address(&theirs)];
        docker(&["rm", "-f", &mine, &theirs]);
        theirs = stranger.run("web", &["-e", &name(&stranger)]);
        mine = stack.run("web", &["-e", &name(&stack)]);
        let after = [address(&mine), address(&theirs)];
        reused += usize::from(after[0] == before[1]) + usize::from(after[1] == before[0]);
        for url in &urls {
            eventually("an answer", || (itsup.get(url).status == 200).then_some(()));
        }
    }
    done.store(true, Ordering::Relaxed);
    let answers: Vec<u32> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    assert!(answers.iter().all(|answers| *answers > 20), "{answers:?}");
    assert!(reused > 0, "no address was used again, so nothing was tested");
    assert!(wrong.lock().unwrap().is_empty(), "{:?}", wrong.lock().unwrap());
    println!("{reused} addresses used again, {answers:?} answers");
}

/// The engine's socket behind another one, which can be taken away.
struct Cable {
    folder: tempfile::TempDir,
    connections: Arc<Mutex<Vec<UnixStream>>>,
    plugged: Arc<AtomicBool>,
}

impl Cable {
    fn plug() -> Cable {
        let cable =
            Cable { folder: tempfile::tempdir().unwrap(), connections: Arc::default(), plugged: Arc::default() };
        cable.mend();
        cable
    }

    fn near(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    fn host(&self) -> String {
        format!("unix://{}", self.near().display())
    }

    fn mend(&self) {
        self.plugged.store(true, Ordering::SeqCst);
        let listener = UnixListener::bind(self.near()).unwrap();
        let (connections, plugged) = (self.connections.clone(), self.plugged.clone());
        std::thread::spawn(move || {
            for near in listener.incoming().map(Result::unwrap) {
                if !plugged.load(Ordering::SeqCst) {
                    return;
                }
                let host = std::env::var("DOCKER_HOST").unwrap_or_default();
                let far = UnixStream::connect(host.strip_prefix("unix://").unwrap_or("/var/run/docker.sock")).unwrap();
                connections.lock().unwrap().extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                for (mut from, mut to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Write);
                    });
                }
            }
        });
    }

    fn pull(&self) {
        self.plugged.store(false, Ordering::SeqCst);
        // The listener's thread wakes up, and finds that it is over.
        let _ = UnixStream::connect(self.near());
        std::fs::remove_file(self.near()).unwrap();
        for connection in self.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

#[test]
fn docker_away_keeps_routes_and_coming_back_is_read_anew() {
    let stack = Docker::new("away");
    let cable = Cable::plug();
    let app = Testd::start();
    let kept = stack.run("web", &["-e", "TESTD_NAME=kept"]);
    let root = Root::new();
    let text = db(&[self::stack(&stack, ""), project("app", "app.test", &[app.addr()], "")]);
    let itsup = Itsup::on(&root).docker().env("DOCKER_HOST", cable.host()).db(&text).start();
    let url = format!("https://{}.test/", stack.project());
    let at_kept = at(address(&kept), 8080);
    assert_eq!(addresses(&itsup, &stack), [at_kept.as_str()]);
    assert_eq!((itsup.get(&url).status, itsup.metric("itsup_docker_up")), (200, 1.0));

    cable.pull();
    eventually("the engine is away", || (itsup.status()["docker"]["state"] == "away").then_some(()));
    let mut answers = 0;
    let mut served = |itsup: &Itsup| {
        let answer = itsup.get(&url);
        assert_eq!((answer.status, answer.json()["name"].as_str()), (200, Some("kept")));
        answers += 1;
    };
    served(&itsup);
    // Neither a reload nor a restart of itsUP drops what it knows.
    itsup.reload_with(&text.replace("domain: app.test", "domain: other.test"));
    served(&itsup);
    assert_eq!(itsup.metric("itsup_docker_up"), 0.0);
    // What happens meanwhile is not known...
    let new = stack.run("web", &["-e", "TESTD_NAME=new"]);
    assert_eq!(addresses(&itsup, &stack), [at_kept.as_str()]);
    // ... until it is back: then all of it is.
    docker(&["rm", "-f", &kept]);
    cable.mend();
    let back = Instant::now();
    seen(&itsup, &stack, &[at(address(&new), 8080)]);
    println!("seen {:?} after the engine was back", back.elapsed());
    assert_eq!(itsup.status()["docker"]["state"], "up");
    assert_eq!(itsup.get(&url).json()["name"], "new");
    // And events are followed again.
    docker(&["kill", &new]);
    prompt("die after the mend", seen(&itsup, &stack, &[]), stack.told(&new, "die"));
    assert!(answers > 1);
}

#[test]
fn docker_routes_are_those_of_this_compose_project_and_service_alone() {
    let stack = Docker::new("mine");
    let name = stack.project();
    let service = format!("com.docker.compose.service={name}-web");
    let web = stack.run("web", &[]);
    // Another service; a one-off of `compose run`; the same service's name in another project; one on another network.
    stack.run("worker", &[]);
    stack.run("web", &["--label", "com.docker.compose.oneoff=True"]);
    stack.run("web", &["--label", "com.docker.compose.project=someone-else", "--label", &service]);
    stack.run("web", &["--network", "bridge"]);
    let itsup = start(&stack, "");
    assert_eq!(addresses(&itsup, &stack), [at(address(&web), 8080)]);
    // A reload touches no container.
    let before = docker(&["ps", "-q", "--no-trunc", "--filter", &format!("label=itsup.test={name}")]);
    itsup.reload_with("projects: []\n");
    assert_eq!(docker(&["ps", "-q", "--no-trunc", "--filter", &format!("label=itsup.test={name}")]), before);
    assert_eq!(before.lines().count(), 5);
}
