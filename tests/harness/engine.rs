//! An engine of a test's own, which can be stopped and started while its containers run on.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::docker::listed;
use super::{docker, eventually, run, try_docker};

/// The engine that this process's tests use, where that is not the machine's.
static HOST: OnceLock<String> = OnceLock::new();

/// Where the engine is, where that is not the usual place.
pub(super) fn host() -> Option<&'static str> {
    HOST.get().map(String::as_str)
}

/// Its default bridge. With none at all it would take the machine's `docker0` away at its start.
const BRIDGE: &str = "itsup-test0";

/// A running `dockerd` beside the machine's own, with folders, networks and containers of its own. Only root may.
///
/// Containers live on without it (`--live-restore`), as on a machine that was set up with care.
pub(crate) struct Engine {
    folder: TempDir,
}

impl Engine {
    /// Starts one, which has an image of the machine's engine; from then on this process uses it.
    pub(crate) fn start_with(image: &str) -> Engine {
        let folder = tempfile::Builder::new().prefix("itsup-engine-").tempdir_in("/tmp").expect("a folder");
        let driver = docker(&["info", "--format", "{{.Driver}}"]);
        std::fs::write(folder.path().join("daemon.json"), format!("{{\"storage-driver\": {driver:?}}}"))
            .expect("a file");
        // One that a killed run has left is as good.
        ip(&["link", "add", BRIDGE, "type", "bridge"]);
        ip(&["address", "add", "198.18.80.1/26", "dev", BRIDGE]);
        let engine = Engine { folder };
        let saved = engine.path("image.tar").display().to_string();
        docker(&["save", "-o", &saved, image]);
        HOST.set(format!("unix://{}", engine.path("docker.sock").display())).expect("one engine for each process");
        engine.start();
        docker(&["load", "-i", &saved]);
        engine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts it, again.
    pub(crate) fn start(&self) {
        let mut command = Command::new("dockerd");
        for (flag, name) in
            [("--config-file", "daemon.json"), ("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")]
        {
            command.arg(flag).arg(self.path(name));
        }
        command.arg("--host").arg(host().expect("a host"));
        // The machine's engine has the firewall and its own networks. The first pool is for tests of networks
        // (RFC 2544) and in no engine's defaults; the others are there should the machine have a route to it.
        command.args(["--bridge", BRIDGE, "--iptables=false", "--ip6tables=false", "--live-restore"]);
        for base in ["198.18.64.0/20", "10.213.64.0/20", "172.31.64.0/20"] {
            command.args(["--default-address-pool", &format!("base={base},size=26")]);
        }
        // A containerd that is there already is shared.
        command.args(["--containerd-namespace", "itsup-test", "--containerd-plugins-namespace", "itsup-test-plugins"]);
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).expect("a log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn().expect("dockerd (bin/deps.sh test installs it)");
        std::thread::spawn(move || child.wait());
        eventually("the engine answers", || try_docker(&["version"]).status.success().then_some(()));
    }

    /// Ends it in an orderly way; containers run on.
    pub(crate) fn stop(&self) {
        let pid = std::fs::read_to_string(self.path("pid")).ok().and_then(|text| text.trim().parse().ok());
        let Some(pid) = pid.map(Pid::from_raw) else { return };
        if kill(pid, Signal::SIGTERM).is_ok() {
            eventually("the engine's end", || kill(pid, None).is_err().then_some(()));
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for id in listed(&["ps", "-aq"]) {
            try_docker(&["rm", "-fv", &id]);
        }
        for id in listed(&["network", "ls", "-q", "--filter", "type=custom"]) {
            try_docker(&["network", "rm", &id]);
        }
        self.stop();
        ip(&["link", "delete", BRIDGE]);
        // What it has mounted below its folder is in the way of the folder's end.
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        let ours = self.folder.path().display().to_string();
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with(&ours)) {
            run(Command::new("umount").args(["--lazy", mount]));
        }
    }
}

fn ip(words: &[&str]) {
    run(Command::new("ip").args(words));
}
