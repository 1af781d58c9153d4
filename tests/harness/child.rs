//! Programs: started, watched, read, ended.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, Once};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::PATIENCE;

/// What a finished program said.
#[derive(Debug)]
pub(crate) struct Finished {
    /// `None` where a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// Itself, where the exit code was 0; else a panic with all that it said.
    #[track_caller]
    pub(crate) fn ok(self) -> Finished {
        assert_eq!(self.code, Some(0), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Standard output, which must be one JSON value.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error} in:\n{}\nstderr:\n{}", self.stdout, self.stderr))
    }
}

/// Runs a program to its end, which must come within [`PATIENCE`] times two.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Finished {
    run_with_input(command, b"")
}

/// The same with this on its standard input, which is then closed.
#[track_caller]
pub(crate) fn run_with_input(command: &mut Command, input: &[u8]) -> Finished {
    let shown = format!("{command:?}");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap_or_else(|error| {
            panic!("{shown} cannot be run: {error} (bin/deps.sh test installs what tests need)")
        });
    let (stdout, stderr) = (collect(child.stdout.take().unwrap()), collect(child.stderr.take().unwrap()));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A program that reads nothing may have gone already.
    std::thread::spawn(move || _ = stdin.write_all(&input));
    let status = wait(&mut child, PATIENCE * 2).unwrap_or_else(|| {
        let _ = child.kill();
        panic!("{shown} did not end\nstdout:\n{}\nstderr:\n{}", stdout.text(), stderr.text())
    });
    Finished { code: status.code(), stdout: stdout.to_end(), stderr: stderr.to_end() }
}

/// A program that runs beside the test, and is killed when this is dropped.
pub(crate) struct Child {
    name: String,
    child: std::process::Child,
    stdout: Lines,
    stderr: Lines,
}

impl Child {
    /// Starts it; `name` is for the account of a failure.
    #[track_caller]
    pub(crate) fn start(name: &str, command: &mut Command) -> Child {
        let shown = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{shown} cannot be run: {error}"));
        let (stdout, stderr) = (collect(child.stdout.take().unwrap()), collect(child.stderr.take().unwrap()));
        Child { name: name.into(), child, stdout, stderr }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first line on its standard output for which `wanted` holds; a panic where it ends or is silent before.
    #[track_caller]
    pub(crate) fn line(&self, wanted: impl Fn(&str) -> bool) -> String {
        let found = self.stdout.wait_for(PATIENCE, &wanted);
        found.unwrap_or_else(|| {
            panic!("{} did not say it; stdout:\n{}\nstderr:\n{}", self.name, self.stdout.text(), self.stderr.text())
        })
    }

    /// All of standard output so far.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// All of standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Closes its standard input.
    pub(crate) fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, signal).unwrap_or_else(|error| panic!("{} cannot be sent {signal}: {error}", self.name));
    }

    /// Waits for its end; a panic where it does not come within `limit`.
    #[track_caller]
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let status = wait(&mut self.child, limit);
        status
            .unwrap_or_else(|| panic!("{} has not ended within {limit:?}; stderr:\n{}", self.name, self.stderr.text()))
    }

    /// Waits for its end and gives all that it said.
    #[track_caller]
    pub(crate) fn finish(mut self, limit: Duration) -> Finished {
        self.close_stdin();
        let status = self.wait(limit);
        Finished { code: status.code(), stdout: self.stdout.to_end(), stderr: self.stderr.to_end() }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// SIGKILL, and its body taken away.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- stderr of {} ---\n{}---", self.name, self.stderr.to_end());
        }
    }
}

fn wait(child: &mut std::process::Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if start.elapsed() > limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a pipe has carried so far, read by a thread of its own.
#[derive(Clone, Default)]
struct Lines(Arc<(Mutex<Said>, Condvar)>);

#[derive(Default)]
struct Said {
    text: String,
    ended: bool,
}

fn collect(pipe: impl Read + Send + 'static) -> Lines {
    let lines = Lines::default();
    let to = lines.clone();
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(pipe.read_until(b'\n', &mut line), Ok(read) if read > 0) {
            to.0.0.lock().unwrap().text.push_str(&String::from_utf8_lossy(&line));
            to.0.1.notify_all();
            line.clear();
        }
        to.0.0.lock().unwrap().ended = true;
        to.0.1.notify_all();
    });
    lines
}

impl Lines {
    fn text(&self) -> String {
        self.0.0.lock().unwrap().text.clone()
    }

    /// All of it, once the program's end has closed the pipe (or a child of its own holds it too long).
    fn to_end(&self) -> String {
        let said = self.0.0.lock().unwrap();
        let (said, _) = self.0.1.wait_timeout_while(said, Duration::from_secs(5), |said| !said.ended).unwrap();
        said.text.clone()
    }

    fn wait_for(&self, limit: Duration, wanted: &dyn Fn(&str) -> bool) -> Option<String> {
        let find = |said: &Said| said.text.lines().find(|line| wanted(line)).map(str::to_owned);
        let said = self.0.0.lock().unwrap();
        let more = |said: &mut Said| !said.ended && find(said).is_none();
        let (said, _) = self.0.1.wait_timeout_while(said, limit, more).unwrap();
        find(&said)
    }
}

/// The path of a program of this workspace, beside the `itsup` under test: `itsup-testd` or `itsup-load`.
///
/// `cargo nextest run --workspace` has built it (each has a test of its own that wants it). A narrower run may not have, or not
/// since its source changed: it is built then, and that is said.
pub(crate) fn program(name: &str) -> PathBuf {
    static BUILT: Once = Once::new();
    let folder = PathBuf::from(env!("CARGO_BIN_EXE_itsup")).parent().unwrap().to_owned();
    let path = folder.join(name);
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(match name {
        "itsup-testd" => "tests/server",
        "itsup-load" => "tests/load",
        other => panic!("{other} is none of the test programs"),
    });
    if modified(&path).is_none_or(|built| newest(&source).is_some_and(|source| source > built)) {
        BUILT.call_once(|| {
            eprintln!("{} is missing or old: building the test programs", path.display());
            let profile = match folder.file_name().and_then(OsStr::to_str) {
                Some("debug") => "test",
                Some(other) => other,
                None => panic!("{} is in no profile's folder", folder.display()),
            };
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut build = Command::new(cargo);
            // As tests, so that the dependencies are those that this test was built with.
            build.current_dir(env!("CARGO_MANIFEST_DIR")).args(["test", "--no-run", "--quiet", "--profile", profile]);
            build.arg("--target-dir").arg(folder.parent().unwrap());
            build.args(["--package", "itsup-testd", "--package", "itsup-load", "--test", "program"]);
            let status = build.status().unwrap();
            assert!(status.success(), "the test programs cannot be built");
        });
    }
    path
}

fn modified(path: &std::path::Path) -> Option<SystemTime> {
    path.metadata().and_then(|data| data.modified()).ok()
}

/// The time of the newest file in a package.
fn newest(package: &std::path::Path) -> Option<SystemTime> {
    let files = std::fs::read_dir(package.join("src")).unwrap().map(|entry| entry.unwrap().path());
    files.chain([package.join("Cargo.toml")]).filter_map(|path| modified(&path)).max()
}
