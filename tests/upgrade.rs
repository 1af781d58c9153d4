//! A new version takes over from a running one, and nobody outside notices; or it does not, and nobody notices either.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod harness;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use harness::{
    Answer, Backend, Child, Finished, Itsup, PATIENCE, Root, Testd, db, eventually, load, project, read_answer, send,
    tls, tls_config, tls_over,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How many upgrades the load has to get through; the longer run is for measurements.
fn upgrades() -> usize {
    std::env::var("ITSUP_TEST_UPGRADES").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

/// Processes that took over: nobody's children, so they are ended here.
#[derive(Default)]
struct Successors(Vec<u32>);

impl Successors {
    /// Upgrades to the binary that runs already, which must work.
    #[track_caller]
    fn upgrade(&mut self, root: &Root) -> Value {
        let report = root.cli(&["--json", "upgrade"]).ok().json();
        self.0.push(u32::try_from(report["pid"].as_u64().unwrap()).unwrap());
        report
    }

    #[track_caller]
    fn last(&self) -> u32 {
        *self.0.last().unwrap()
    }
}

impl Drop for Successors {
    fn drop(&mut self) {
        for pid in &self.0 {
            if is_itsup(*pid) {
                end(*pid, Signal::SIGKILL);
            }
        }
    }
}

fn is_itsup(pid: u32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == Path::new(env!("CARGO_BIN_EXE_itsup")))
}

fn end(pid: u32, signal: Signal) {
    // It may have ended by itself.
    let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal);
}

#[track_caller]
fn gone(pid: u32) {
    eventually("the end of a process", || (!is_itsup(pid)).then_some(()));
}

/// A program that is a shell script.
fn script(root: &Root, name: &str, text: &str) -> String {
    root.write(name, format!("#!/bin/sh\n{text}\n"));
    let path = root.path(name);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// A failed upgrade's error.
#[track_caller]
fn refused(finished: &Finished) -> String {
    assert_eq!(finished.code, Some(1), "{}{}", finished.stdout, finished.stderr);
    finished.json()["error"].as_str().unwrap().to_owned()
}

#[track_caller]
fn keeps_alive(answer: &Answer) -> bool {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("connection") != Some("close")
}

#[test]
fn upgrades_under_load_lose_nothing() {
    let (app, passed) = (Testd::start(), Testd::on("127.0.0.1", &["--tls-names", "pass.test"]));
    let projects = [
        project("app", "app.test", &[app.addr()], ""),
        project("pass", "pass.test", &[passed.tls()], "passthrough: true"),
    ];
    let itsup = Itsup::start(&db(&projects));
    let mut command = load(&itsup, "run", "app.test", &itsup.ca());
    command.args([
        "--seconds",
        "600",
        "--timeout",
        "60",
        "--h1",
        "8",
        "--h1-rate",
        "100",
        "--h2",
        "2",
        "--h2-rate",
        "50",
    ]);
    command.args(["--new-rate", "15", "--post", "2", "--post-rate", "4", "--slow-rate", "1", "--slow-ms", "1500"]);
    command.args(["--websockets", "2", "--events", "1"]);
    command.args(["--transfers", "1", "--transfer-host", "pass.test", "--transfer-insecure", "--transfer-ms", "500"]);
    let running = Child::start("itsup-load", &mut command);
    running.line(|line| line.contains("\"ready\""));
    let mut successors = Successors::default();
    let mut before = itsup.pid();
    for _ in 0..upgrades() {
        let report = successors.upgrade(itsup.root());
        assert_ne!(successors.last(), before, "{report}");
        before = successors.last();
        assert_eq!(itsup.status()["pid"], before);
    }
    running.signal(Signal::SIGTERM);
    let account = running.finish(PATIENCE * 2);
    eprintln!("{}", account.stdout);
    account.ok();
}

#[test]
fn an_idle_connection_is_told_that_it_is_the_last_request_and_the_old_process_leaves() {
    let app = Testd::start();
    let mut itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    let mut kept = tls(itsup.https(), "app.test", &itsup.ca());
    send(&mut kept, "GET", "app.test", "/", &[], b"");
    assert!(keeps_alive(&read_answer(&mut kept, "GET")));
    let mut plain = harness::plain(itsup.http());
    send(&mut plain, "GET", "app.test", "/", &[], b"");
    assert_eq!(read_answer(&mut plain, "GET").header("connection"), None);

    let mut successors = Successors::default();
    successors.upgrade(itsup.root());
    assert!(is_itsup(itsup.pid()), "it still has two connections");
    send(&mut kept, "GET", "app.test", "/", &[], b"");
    assert!(!keeps_alive(&read_answer(&mut kept, "GET")));
    assert!(kept.ended());
    send(&mut plain, "GET", "app.test", "/", &[], b"");
    assert_eq!(read_answer(&mut plain, "GET").header("connection"), Some("close"));
    assert!(plain.ended());
    assert!(itsup.wait_exit(PATIENCE).success());

    let mut fresh = tls(itsup.https(), "app.test", &itsup.ca());
    send(&mut fresh, "GET", "app.test", "/", &[], b"");
    assert!(keeps_alive(&read_answer(&mut fresh, "GET")));
    end(successors.last(), Signal::SIGTERM);
    gone(successors.last());
    assert!(!itsup.root().path("data/itsup.sock").exists(), "the last one cleans up");
}

/// Passthrough connections go on for as long as they like, through several upgrades; the newest knows of all of them.
#[test]
fn streams_outlive_upgrades() {
    let echo = Backend::start(|_, stream| {
        let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
        let _ = std::io::copy(&mut from, &mut to);
    });
    let app = Testd::on("127.0.0.2", &["--tls-names", "pass.test"]);
    let projects = [
        project("pass", "pass.test", &[app.tls()], "passthrough: true"),
        project("echo", "echo.test", &[echo.addr()], "passthrough: true"),
    ];
    let mut itsup = Itsup::start(&db(&projects));
    let config = std::sync::Arc::new(tls_config(&app.cert(), &["http/1.1"]));
    let mut successors = Successors::default();
    let mut streams = Vec::new();
    for _ in 0..3 {
        let tcp = harness::tcp(itsup.https());
        let mut stream = tls_over(tcp, "pass.test", config.clone()).unwrap();
        send(&mut stream, "GET", "pass.test", "/", &[], b"");
        assert_eq!(read_answer(&mut stream, "GET").status, 200);
        streams.push(stream);
        successors.upgrade(itsup.root());
    }
    for stream in &mut streams {
        send(stream, "GET", "pass.test", "/", &[], b"");
        assert_eq!(read_answer(stream, "GET").status, 200);
    }
    assert!(is_itsup(itsup.pid()) && successors.0.iter().all(|pid| is_itsup(*pid)));
    drop(streams);
    assert!(itsup.wait_exit(PATIENCE).success());
    let last = successors.last();
    successors.0.iter().filter(|pid| **pid != last).for_each(|pid| gone(*pid));
    assert_eq!(itsup.status()["pid"], last);
}

#[test]
fn a_broken_binary_changes_nothing() {
    let app = Testd::start();
    let itsup = Itsup::start(&db(&[project("app", "app.test", &[app.addr()], "")]));
    let mut kept = tls(itsup.https(), "app.test", &itsup.ca());
    let mut is_as_before = || {
        assert_eq!(itsup.status()["pid"], itsup.pid());
        send(&mut kept, "GET", "app.test", "/", &[], b"");
        assert!(keeps_alive(&read_answer(&mut kept, "GET")), "the connection is not told to close");
        assert_eq!(itsup.get("https://app.test/").status, 200);
        assert_eq!(itsup.get("http://app.test/").status, 301);
    };
    is_as_before();
    let root = itsup.root();
    let open_to_all = script(root, "open", "exit 0");
    std::fs::set_permissions(&open_to_all, std::fs::Permissions::from_mode(0o777)).unwrap();
    root.write("plain", "no program");
    let no_program = root.path("plain").display().to_string();
    for (binary, seconds, error) in [
        (script(root, "fails", "exit 3"), "30", "ended before it was ready (exit status: 3)"),
        (script(root, "killed", "kill -9 $$"), "30", "ended before it was ready (signal: 9"),
        (script(root, "hangs", "exec sleep 600"), "1", "not ready in time"),
        (script(root, "chatters", "echo hello >&0; exec sleep 600"), "30", "cannot be understood"),
        (open_to_all, "30", "can be changed by anybody"),
        (no_program, "30", "is not a program"),
    ] {
        let finished = itsup.cli(&["--json", "upgrade", "--to", &binary, "--timeout", seconds]);
        let said = refused(&finished);
        assert!(said.contains(error), "{said}");
        is_as_before();
    }
    assert_eq!(itsup.cli(&["upgrade", "--to", "/nonexistent"]).code, Some(1));
    is_as_before();
    // What is under way is reloaded again, too.
    assert!(itsup.reload()["generation"].as_u64().is_some());
}

#[test]
fn a_new_process_that_is_killed_in_between_changes_nothing() {
    let app = Testd::start();
    let text = db(&[project("app", "app.test", &[app.addr()], "")]);
    let itsup = Itsup::start(&text);
    let mut kept = tls(itsup.https(), "app.test", &itsup.ca());
    // The new one has the sockets, and waits for somebody to write db.yml.
    std::fs::remove_file(itsup.root().path("db.yml")).unwrap();
    nix::unistd::mkfifo(&itsup.root().path("db.yml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let asking = {
        let root = itsup.root().clone();
        std::thread::spawn(move || root.cli(&["--json", "upgrade"]))
    };
    let new = eventually("a new process that waits", || {
        let text = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", itsup.pid())).unwrap();
        let mut children = std::fs::read_dir(format!("/proc/{}/task", itsup.pid())).unwrap().filter_map(|task| {
            std::fs::read_to_string(task.ok()?.path().join("children")).ok()?.split_whitespace().next()?.parse().ok()
        });
        let child: u32 = text.split_whitespace().next().and_then(|pid| pid.parse().ok()).or_else(|| children.next())?;
        // It has taken its standard input for the channel, and put nothing in its place.
        let stdin = std::fs::read_link(format!("/proc/{child}/fd/0")).ok()?;
        (is_itsup(child) && stdin == Path::new("/dev/null")).then_some(child)
    });
    assert_eq!(itsup.get("https://app.test/").status, 200, "the old one serves meanwhile");
    end(new, Signal::SIGKILL);
    let said = refused(&asking.join().unwrap());
    assert!(said.contains("signal: 9"), "{said}");
    std::fs::remove_file(itsup.root().path("db.yml")).unwrap();
    itsup.reload_with(&text);
    send(&mut kept, "GET", "app.test", "/", &[], b"");
    assert!(keeps_alive(&read_answer(&mut kept, "GET")));
    let mut successors = Successors::default();
    successors.upgrade(itsup.root());
    assert_eq!(itsup.get("https://app.test/").status, 200);
}

#[test]
fn faults_in_the_files_are_told_and_nothing_is_upgraded() {
    let app = Testd::start();
    let good = project("app", "app.test", &[app.addr()], "");
    let itsup = Itsup::start(&db(std::slice::from_ref(&good)));
    itsup.root().write("db.yml", db(&[good, "  - name: bad\n    domain: not a host\n".into()]));
    let finished = itsup.cli(&["--json", "upgrade"]);
    let report = finished.json();
    assert!(refused(&finished).contains("1 fault"), "{report}");
    assert!(report["diagnostics"][0]["message"].as_str().unwrap().contains("not a host"), "{report}");
    itsup.root().write("db.yml", "projects: []\n");
    itsup.root().write(".env", "ITSUP_GRACE=never\n");
    assert!(refused(&itsup.cli(&["--json", "upgrade"])).contains("settings"), "of .env, too");
    assert_eq!(itsup.status()["pid"], itsup.pid());
    assert_eq!(itsup.get("https://app.test/").status, 200, "the old one goes on with what it has");
}

#[test]
fn threads_and_addresses_may_differ() {
    let app = Testd::start();
    let root = Root::new();
    root.write(".env", "ITSUP_THREADS=1\n");
    let itsup = Itsup::on(&root).db(&db(&[project("app", "app.test", &[app.addr()], "")])).start();
    let mut successors = Successors::default();
    for threads in [4, 2, 3] {
        root.write(".env", format!("ITSUP_THREADS={threads}\n"));
        successors.upgrade(&root);
        for _ in 0..20 {
            assert_eq!(itsup.get("https://app.test/").status, 200);
            assert_eq!(itsup.get("http://app.test/").status, 301);
        }
        let data_threads = std::fs::read_dir(format!("/proc/{}/task", successors.last())).unwrap().filter(|task| {
            let name = std::fs::read_to_string(task.as_ref().unwrap().path().join("comm")).unwrap_or_default();
            name.starts_with("itsup-data-")
        });
        assert_eq!(data_threads.count(), threads);
    }
}

/// Somebody else opens the sockets, as systemd does for a socket unit: here and at every upgrade they are used.
#[test]
fn sockets_come_from_the_service_manager() {
    let app = Testd::start();
    let root = Root::new();
    root.write("db.yml", db(&[project("app", "app.test", &[app.addr()], "")]));
    let code = r#"
import os, socket, sys
ports = []
for number in range(3):
    socket_ = socket.socket()
    socket_.bind(("127.0.0.1", 0))
    socket_.listen(64)
    ports.append(socket_.getsockname()[1])
    os.dup2(socket_.fileno(), 100 + number)
for number in range(3):
    os.dup2(100 + number, 3 + number)
    os.close(100 + number)
names = ["ITSUP_HTTP", "ITSUP_HTTPS", "ITSUP_API"]
os.environ.update({name: f"127.0.0.1:{port}" for name, port in zip(names, ports)})
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="3")
os.execv(sys.argv[1], sys.argv[1:])
"#;
    let mut command = Command::new("python3");
    command.args(["-c", code, env!("CARGO_BIN_EXE_itsup"), "--json", "--root"]).arg(root.path("")).arg("run");
    command.env("ITSUP_DOCKER", "off").env("ITSUP_THREADS", "2");
    let mut child = Child::start("itsup run", &mut command);
    let ready: Value = serde_json::from_str(&child.line(|line| line.contains("\"ready\""))).unwrap();
    let https = ready["https"].as_str().unwrap().parse().unwrap();
    let ask = || {
        let mut stream = tls(https, "app.test", &root.path("data/ca/root.pem"));
        send(&mut stream, "GET", "app.test", "/", &[("Connection", "close")], b"");
        read_answer(&mut stream, "GET").status
    };
    assert_eq!((0..8).map(|_| ask()).collect::<Vec<_>>(), [200; 8], "both threads share the one socket");
    let mut successors = Successors::default();
    successors.upgrade(&root);
    assert!(child.wait(PATIENCE).success());
    assert_eq!(ask(), 200);
}

#[test]
fn the_service_manager_is_told() {
    let root = Root::new();
    let socket = root.path("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    let (send, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut text = [0; 4096];
        while let Ok(read) = manager.recv(&mut text) {
            if send.send(String::from_utf8_lossy(&text[..read]).into_owned()).is_err() {
                return;
            }
        }
    });
    let wait_for =
        |what: &str| while !told.recv_timeout(PATIENCE).expect("a word to the service manager").contains(what) {};
    let itsup = Itsup::on(&root)
        .db("projects: []\n")
        .env("NOTIFY_SOCKET", socket.display())
        .env("WATCHDOG_USEC", 200_000)
        .start();
    wait_for("READY=1");
    wait_for("WATCHDOG=1");
    itsup.signal(Signal::SIGHUP);
    wait_for("RELOADING=1\nMONOTONIC_USEC=");
    wait_for("READY=1");
    let mut successors = Successors::default();
    successors.upgrade(&root);
    wait_for(&format!("MAINPID={}", successors.last()));
    gone(itsup.pid());
    while told.try_recv().is_ok() {}
    wait_for("WATCHDOG=1");
    end(successors.last(), Signal::SIGTERM);
    wait_for("STOPPING=1");
}

/// SIGTERM to an old process that drains ends it within its grace, as it would any other.
#[test]
fn a_draining_process_can_be_stopped() {
    let app = Testd::on("127.0.0.1", &["--tls-names", "pass.test"]);
    let mut itsup = Itsup::with()
        .db(&db(&[project("pass", "pass.test", &[app.tls()], "passthrough: true")]))
        .env("ITSUP_GRACE", "1s")
        .start();
    let config = std::sync::Arc::new(tls_config(&app.cert(), &["http/1.1"]));
    let mut stream = tls_over(harness::tcp(itsup.https()), "pass.test", config).unwrap();
    let mut successors = Successors::default();
    successors.upgrade(itsup.root());
    itsup.signal(Signal::SIGTERM);
    assert!(itsup.wait_exit(PATIENCE).success());
    assert!(
        stream.write_all(b"GET").and_then(|()| stream.flush()).is_err()
            || stream.read(&mut [0]).map_or(true, |n| n == 0)
    );
    assert_eq!(itsup.status()["pid"], successors.last(), "the control socket is still the newest one's");
}
