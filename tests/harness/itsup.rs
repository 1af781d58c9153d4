//! The program under test, on a root folder of its own.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::{Answer, Child, Finished, PATIENCE, client, engine, eventually, run, run_with_input};

/// A root folder, with db.yml, .env, data/ and logs/; gone when the last clone is.
#[derive(Clone)]
pub(crate) struct Root(Arc<TempDir>);

impl Root {
    /// An empty one.
    pub(crate) fn new() -> Root {
        // Short, as sockets in it have paths of at most 108 bytes.
        Root(Arc::new(tempfile::Builder::new().prefix("itsup-").tempdir_in("/tmp").unwrap()))
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file in it, and the folders on the way.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Reads a file in it.
    #[track_caller]
    pub(crate) fn read(&self, name: &str) -> String {
        let path = self.path(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// `itsup --root THIS`, without any ITSUP_* variable of the tests' own environment.
    ///
    /// `ITSUP_TEST_BINARY` puts another build of it under test, such as the one that is to be released.
    pub(crate) fn command(&self) -> Command {
        let binary = std::env::var_os("ITSUP_TEST_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_itsup").into());
        let mut command = Command::new(binary);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ITSUP_")) {
            command.env_remove(name);
        }
        if let Some(host) = engine::host() {
            command.env("DOCKER_HOST", host);
        }
        command.env("NO_COLOR", "1").arg("--root").arg(self.0.path());
        command
    }

    /// Runs a command, such as `["status", "--json"]`, to its end.
    #[track_caller]
    pub(crate) fn cli(&self, arguments: &[&str]) -> Finished {
        run(self.command().args(arguments))
    }

    /// The same with this on its standard input.
    #[track_caller]
    pub(crate) fn cli_with_input(&self, arguments: &[&str], input: &[u8]) -> Finished {
        run_with_input(self.command().args(arguments), input)
    }
}

/// How an [`Itsup`] is to be started.
pub(crate) struct Starter {
    root: Root,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    through: Vec<String>,
}

impl Starter {
    /// A variable of its environment; one of .env is written with [`Root::write`].
    pub(crate) fn env(mut self, name: &str, value: impl ToString) -> Starter {
        self.environment.push((name.into(), value.to_string()));
        self
    }

    /// More flags of `itsup run`.
    pub(crate) fn args(mut self, arguments: &[&str]) -> Starter {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// With containers looked for on the real Docker engine.
    pub(crate) fn docker(self) -> Starter {
        self.env("ITSUP_DOCKER", "on")
    }

    /// Started by these words, such as those of [`super::with_files_over`], which must end in exec.
    pub(crate) fn through(mut self, words: &[String]) -> Starter {
        self.through = words.to_vec();
        self
    }

    /// Writes db.yml.
    pub(crate) fn db(self, text: &str) -> Starter {
        self.root.write("db.yml", text);
        self
    }

    /// Starts it and waits until it says that it is ready.
    #[track_caller]
    pub(crate) fn start(self) -> Itsup {
        let mut command = self.root.command();
        for (name, value) in [
            ("ITSUP_HTTP", "127.0.0.1:0"),
            ("ITSUP_HTTPS", "127.0.0.1:0"),
            ("ITSUP_API", "127.0.0.1:0"),
            ("ITSUP_DOCKER", "off"),
        ] {
            command.env(name, value);
        }
        command.envs(self.environment).args(["--json", "run"]).args(self.arguments);
        let child = Child::start("itsup run", &mut through(&self.through, command));
        let line = child.line(|line| line.contains("\"ready\""));
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let address = |name: &str| ready[name].as_str().map(|text| text.parse::<SocketAddr>().unwrap());
        Itsup {
            http: address("http").unwrap(),
            https: address("https").unwrap(),
            api: address("api"),
            root: self.root,
            child,
        }
    }
}

/// A running itsup; killed when dropped.
///
/// By default: free ports of 127.0.0.1 for all three listeners, and no Docker.
pub(crate) struct Itsup {
    root: Root,
    child: Child,
    http: SocketAddr,
    https: SocketAddr,
    api: Option<SocketAddr>,
}

impl Itsup {
    /// Starts one on a new root with this db.yml.
    #[track_caller]
    pub(crate) fn start(db: &str) -> Itsup {
        Itsup::with().db(db).start()
    }

    /// One to be started on a new root.
    pub(crate) fn with() -> Starter {
        Itsup::on(&Root::new())
    }

    /// One to be started on this root.
    pub(crate) fn on(root: &Root) -> Starter {
        Starter { root: root.clone(), environment: Vec::new(), arguments: Vec::new(), through: Vec::new() }
    }

    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    /// Where the plain listener is.
    pub(crate) fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where the TLS listener is.
    pub(crate) fn https(&self) -> SocketAddr {
        self.https
    }

    /// Where the API is.
    #[track_caller]
    pub(crate) fn api(&self) -> SocketAddr {
        self.api.expect("the API is off")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// The internal CA's root certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.root.path("data/ca/root.pem")
    }

    /// What it has written to stderr so far.
    pub(crate) fn stderr(&self) -> String {
        self.child.stderr()
    }

    /// What it has written to stdout so far, the ready line included.
    pub(crate) fn stdout(&self) -> String {
        self.child.stdout()
    }

    /// Runs a command on its root to its end.
    #[track_caller]
    pub(crate) fn cli(&self, arguments: &[&str]) -> Finished {
        self.root.cli(arguments)
    }

    /// Writes db.yml and has it read, which must succeed; gives the report.
    #[track_caller]
    pub(crate) fn reload_with(&self, db: &str) -> Value {
        self.root.write("db.yml", db);
        self.reload()
    }

    /// Has everything read again, which must succeed; gives the report.
    #[track_caller]
    pub(crate) fn reload(&self) -> Value {
        self.cli(&["--json", "reload"]).ok().json()
    }

    /// What `itsup status --json` says.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        self.cli(&["--json", "status"]).ok().json()
    }

    /// What `/metrics` says.
    #[track_caller]
    pub(crate) fn metrics(&self) -> String {
        let answer = client::ask(self.api(), b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    }

    /// One metric's value by its name with labels, as `itsup_reloads_total{result="done"}`; 0 where it is not told.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.metrics();
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.map_or(0.0, |value| value.parse().unwrap())
    }

    /// The access log so far. It is written a moment after the answer: see [`Itsup::logged`].
    #[track_caller]
    pub(crate) fn access_log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.root.path("logs/access.log")).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }

    /// Waits for an access log line for which `wanted` holds.
    #[track_caller]
    pub(crate) fn logged(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually("a line in the access log", || self.access_log().into_iter().find(|line| wanted(line)))
    }

    /// GET of a URL by a new connection to this itsup, whatever port the URL names; the internal CA is trusted.
    #[track_caller]
    pub(crate) fn get(&self, url: &str) -> Answer {
        self.request("GET", url, &[], b"")
    }

    /// The same with any method, headers and body.
    #[track_caller]
    pub(crate) fn request(&self, method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let (scheme, rest) = url.split_once("://").expect("a URL with a scheme");
        let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let name = host.split(':').next().unwrap();
        let mut stream = match scheme {
            "https" => client::tls(self.https, name, &self.ca()),
            "http" => client::plain(self.http),
            other => panic!("{other} is no scheme here"),
        };
        let mut all = vec![("Connection", "close")];
        all.extend(headers);
        client::send(&mut stream, method, host, path, &all, body);
        client::read_answer(&mut stream, method)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.child.signal(signal);
    }

    /// Waits for its end; a panic where it does not come within `limit`.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        self.child.wait(limit)
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.is_running()
    }

    /// SIGTERM, and an end with exit code 0 within [`PATIENCE`]; gives the root for another start.
    #[track_caller]
    pub(crate) fn stop(mut self) -> Root {
        self.signal(Signal::SIGTERM);
        let status = self.wait_exit(PATIENCE);
        assert!(status.success(), "{status}, signal {:?}; stderr:\n{}", status.signal(), self.stderr());
        self.root.clone()
    }

    /// SIGKILL; gives the root for another start.
    pub(crate) fn kill(mut self) -> Root {
        self.child.kill();
        self.root.clone()
    }

    /// Its resident memory, bytes.
    pub(crate) fn memory(&self) -> u64 {
        memory(self.pid())
    }
}

/// The same command behind these words.
fn through(words: &[String], command: Command) -> Command {
    let Some((program, more)) = words.split_first() else { return command };
    let mut outer = Command::new(program);
    outer.args(more).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

/// A process's resident memory, bytes.
pub(crate) fn memory(pid: u32) -> u64 {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line VmRSS");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}
