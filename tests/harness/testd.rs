//! The test server, to stand behind.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::{Child, program};

/// A running `itsup-testd` (`--help` and tests/server tell what it can do); killed when dropped.
///
/// It always listens on free ports for HTTP (h1, and h2c by prior knowledge), HTTPS, and raw echo.
pub(crate) struct Testd {
    child: Child,
    ready: Value,
    folder: TempDir,
}

impl Testd {
    /// One on 127.0.0.1.
    #[track_caller]
    pub(crate) fn start() -> Testd {
        Testd::on("127.0.0.1", &[])
    }

    /// One on this loopback address (db.yml wants endpoints of one upstream to differ in it) with more flags.
    #[track_caller]
    pub(crate) fn on(ip: &str, flags: &[&str]) -> Testd {
        let free = format!("{ip}:0");
        Testd::listening(&free, &free, &free, flags)
    }

    /// One that takes the very addresses that an earlier one had.
    #[track_caller]
    pub(crate) fn again(addr: SocketAddr, flags: &[&str]) -> Testd {
        let free = format!("{}:0", addr.ip());
        Testd::listening(&addr.to_string(), &free, &free, flags)
    }

    #[track_caller]
    fn listening(plain: &str, tls: &str, echo: &str, flags: &[&str]) -> Testd {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(program("itsup-testd"));
        command.args(["--listen", plain, "--tls-listen", tls, "--echo-listen", echo, "--write-cert"]);
        command.arg(folder.path().join("cert.pem")).args(flags);
        let child = Child::start("itsup-testd", &mut command);
        let line = child.line(|line| line.starts_with('{'));
        let ready = serde_json::from_str(&line).unwrap();
        Testd { child, ready, folder }
    }

    /// Where it speaks HTTP.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.address("listen")
    }

    /// Where it speaks HTTPS.
    pub(crate) fn tls(&self) -> SocketAddr {
        self.address("tls")
    }

    /// Where it sends raw bytes back.
    pub(crate) fn echo(&self) -> SocketAddr {
        self.address("echo")
    }

    fn address(&self, name: &str) -> SocketAddr {
        self.ready[name][0].as_str().expect("a listener").parse().unwrap()
    }

    /// Its certificate (self-signed, for the names of `--tls-names`), PEM.
    pub(crate) fn cert(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.pid()
    }

    pub(crate) fn stderr(&self) -> String {
        self.child.stderr()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.child.signal(signal);
    }

    #[track_caller]
    pub(crate) fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        self.child.wait(limit)
    }

    /// SIGKILL; gives the address that it spoke HTTP on, where nobody listens now.
    pub(crate) fn kill(mut self) -> SocketAddr {
        let addr = self.addr();
        self.child.kill();
        addr
    }
}
