//! The API of the built binary: a crash in the middle of writes, and the commands around it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const DB: &str = "# mine\nprojects:\n  - name: hello # first\n    domain: hello.localhost\n    services:\n      - name: 127.0.0.1\n        port: 9000\n# the end\n";

/// A running itsup, killed when dropped.
struct Itsup {
    child: Child,
    /// The API's address.
    api: String,
}

impl Itsup {
    fn start(root: &Path) -> Itsup {
        let mut child = itsup(root)
            .args([
                "--json",
                "run",
                "--http",
                "127.0.0.1:0",
                "--https",
                "127.0.0.1:0",
                "--api",
                "127.0.0.1:0",
                "--docker",
                "off",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).expect("it says when it is ready");
        Itsup { child, api: ready["api"].as_str().unwrap().to_owned() }
    }

    fn kill(&mut self) {
        // SIGKILL.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Itsup {
    fn drop(&mut self) {
        self.kill();
    }
}

fn itsup(root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_itsup"));
    command.env_clear().env("PATH", "/usr/bin:/bin").arg("--root").arg(root);
    command
}

fn output(root: &Path, arguments: &[&str]) -> (bool, String) {
    let output = itsup(root).args(arguments).output().unwrap();
    (
        output.status.success(),
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
    )
}

/// The status of one request over the control socket; `None` where nobody answers.
fn post(root: &Path, path: &str, body: &str) -> Option<u16> {
    let mut stream = UnixStream::connect(root.join("data/itsup.sock")).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: itsup\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

#[test]
fn a_kill_in_the_middle_of_writes_leaves_a_whole_file_and_every_write_that_was_answered() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    std::fs::write(root.join("db.yml"), DB).unwrap();
    let path = "/projects/hello/services/127.0.0.1/env";
    let mut answered = Vec::new();
    for round in 0..5 {
        let mut running = Itsup::start(root);
        let stop = AtomicBool::new(false);
        let done: Vec<String> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|writer| {
                    let stop = &stop;
                    scope.spawn(move || {
                        let mut done = Vec::new();
                        for n in 0.. {
                            if stop.load(Ordering::SeqCst) {
                                break;
                            }
                            let name = format!("R{round}W{writer}N{n}");
                            match post(root, path, &format!("{{\"{name}\":\"x\"}}")) {
                                Some(202) => done.push(name),
                                Some(other) => panic!("{other}"),
                                None => break,
                            }
                        }
                        done
                    })
                })
                .collect();
            // Until some writes are done, and others are under way.
            let start = Instant::now();
            let written =
                || std::fs::read_to_string(root.join("db.yml")).unwrap().matches(&format!("R{round}W")).count();
            while written() < 6 + round {
                assert!(start.elapsed() < Duration::from_secs(60));
                std::thread::yield_now();
            }
            running.kill();
            stop.store(true, Ordering::SeqCst);
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
        });
        answered.extend(done);
        let text = std::fs::read_to_string(root.join("db.yml")).unwrap();
        assert!(
            text.starts_with("# mine\nprojects:\n  - name: hello # first\n") && text.ends_with("# the end\n"),
            "{text}"
        );
        let (valid, said) = output(root, &["validate"]);
        assert!(valid, "{said}");
        for name in &answered {
            assert!(text.contains(&format!(" {name}: x\n")), "{name} was answered and is gone:\n{text}");
        }
    }
    assert!(answered.len() >= 10, "{answered:?}");
}

#[test]
fn a_client_that_never_ends_its_head_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("db.yml"), DB).unwrap();
    let itsup = Itsup::start(folder.path());
    let mut stream = std::net::TcpStream::connect(&itsup.api).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let began = Instant::now();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n").unwrap();
    let mut answer = Vec::new();
    // Answered 408 or not at all; what counts is the end.
    let _ = stream.read_to_end(&mut answer);
    let took = began.elapsed();
    assert!(Duration::from_secs(8) < took && took < Duration::from_secs(50), "{took:?}");
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn former_files_are_listed_shown_and_restored() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    std::fs::write(root.join("db.yml"), DB).unwrap();
    let running = Itsup::start(root);
    assert_eq!(post(root, "/projects", r#"{"name":"new","domain":"new.localhost"}"#), Some(202));
    assert_eq!(post(root, "/projects", r#"{"name":"new","domain":"hello.localhost"}"#), Some(422));
    let (_, list) = output(root, &["history"]);
    let name = list.split_whitespace().next().unwrap().to_owned();
    assert_eq!(list.lines().count(), 1, "{list}");
    assert_eq!(output(root, &["history", "show", &name]).1.trim_end(), DB.trim_end());
    let (done, said) = output(root, &["history", "restore", &name]);
    assert!(done, "{said}");
    assert_eq!(std::fs::read_to_string(root.join("db.yml")).unwrap(), DB);
    assert_eq!(output(root, &["history"]).1.lines().count(), 2);
    let (done, said) = output(root, &["history", "restore", "none"]);
    assert!(!done && said.contains("no former db.yml"), "{said}");
    let (_, jobs) = output(root, &["jobs"]);
    assert!(jobs.contains("apply new"), "{jobs}");
    drop(running);
}

#[test]
fn the_description_is_printed_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let (done, yaml) = output(folder.path(), &["openapi"]);
    assert!(done && yaml.starts_with("openapi: 3.1"), "{yaml}");
    let path = folder.path().join("out.json");
    assert!(output(folder.path(), &["openapi", "--out", path.to_str().unwrap()]).0);
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(json["info"]["title"], "itsUP");
}

/// Bounded: half a minute of requests that the description allows, and of such that it does not.
#[test]
fn schemathesis_finds_no_server_error() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    std::fs::write(root.join("db.yml"), DB).unwrap();
    std::fs::write(root.join(".env"), "API_KEY=0123456789abcdef-full\n").unwrap();
    let running = Itsup::start(root);
    let python = std::env::var("ITSUP_TEST_PYTHON")
        .unwrap_or_else(|_| format!("{}/target/venv/bin/python", env!("CARGO_MANIFEST_DIR")));
    let output = Command::new(&python)
        .current_dir(root)
        .args(["-m", "schemathesis.cli", "run", &format!("http://{}/openapi.json", running.api)])
        .args(["--header", "Authorization: Bearer 0123456789abcdef-full", "--checks", "not_a_server_error"])
        // A stream without an end has no answer to look at. One worker: Python 3.11 cannot parse in two threads at once
        // (python/cpython#106905), and schemathesis counts that as an error of ours.
        .args(["--exclude-path", "/events", "--max-time", "30", "--workers", "1", "--seed", "1", "--no-color"])
        .args(["--suppress-health-check", "all"])
        .output()
        .unwrap_or_else(|error| panic!("{python}: {error}; `bin/test.sh` installs what the tests need"));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("not_a_server_error") || said.contains("passed"), "it has run: {said}");
    // Nothing of it has stopped or harmed it.
    assert!(itsup(root).arg("status").output().unwrap().status.success());
    let (valid, said) = self::output(root, &["validate"]);
    assert!(valid, "{said}");
}
