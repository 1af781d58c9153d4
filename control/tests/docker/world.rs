//! A network and containers of a test's own, cleaned up whatever becomes of the test.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Output};

use itsup_control::observed::ContainerId;
use tokio::task::JoinHandle;

/// The image's only program: it idles; `spoil` makes a later `healthy` fail. `/bin/sh` is this program as well, so that
/// a health command line can run in an image that has nothing else.
const IDLE: &str = r#"
use std::{env, fs, path::Path, process, thread, time::Duration};

fn main() {
    let words: Vec<String> = env::args().skip(1).flat_map(|a| a.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
    if words.iter().any(|w| w == "spoil") {
        fs::write("/spoilt", "").unwrap();
    } else if words.iter().any(|w| w == "healthy") {
        process::exit(Path::new("/spoilt").exists().into());
    } else {
        loop {
            thread::sleep(Duration::from_secs(3600));
        }
    }
}
"#;
const IMAGE: &str = "127.0.0.1:1/itsup-test-idle:1";

pub(crate) const ONEOFF: [&str; 2] = ["--label", "com.docker.compose.oneoff=True"];

pub(crate) struct World {
    /// The network's name; also the label of everything in this world.
    pub(crate) network: String,
}

impl World {
    /// Makes a network with a name of its own; `None` where there is no Docker and that may be.
    pub(crate) fn new(name: &str) -> Option<Self> {
        if !docker(&["version"]).is_ok_and(|output| output.status.success()) {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "no Docker engine: these tests must run in CI");
            eprintln!("NOT TESTED: there is no Docker engine here");
            return None;
        }
        let world = Self { network: format!("itsup-test-{name}-{}", std::process::id()) };
        build_image();
        world.docker(&["network", "create", "--label", &world.label(), &world.network]);
        Some(world)
    }

    /// Runs a container of a compose service on the network.
    pub(crate) fn run(&self, project: &str, service: &str, options: &[&str]) -> ContainerId {
        let (project, service) =
            (format!("com.docker.compose.project={project}"), format!("com.docker.compose.service={service}"));
        let mut all = vec!["--label", &project, "--label", &service, "--network", &self.network];
        all.extend(options);
        self.run_plain(&all)
    }

    /// Runs a container of no compose project.
    pub(crate) fn run_plain(&self, options: &[&str]) -> ContainerId {
        let label = self.label();
        let mut all = vec!["run", "-d", "--label", &label];
        all.extend(options);
        all.push(IMAGE);
        ContainerId::from(self.docker(&all).as_str())
    }

    /// Returns a container's address on the network, as the docker command prints it.
    pub(crate) fn address(&self, id: &ContainerId) -> Option<IpAddr> {
        let format = format!("{{{{(index .NetworkSettings.Networks {:?}).IPAddress}}}}", self.network);
        self.docker(&["inspect", "-f", &format, id.as_str()]).parse().ok()
    }

    /// Runs a docker command that must succeed; returns what it printed.
    pub(crate) fn docker(&self, args: &[&str]) -> String {
        let output = docker(args).unwrap();
        assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Runs a docker command in the background.
    pub(crate) fn docker_later(&self, args: &[&str]) -> JoinHandle<()> {
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        tokio::task::spawn_blocking(move || {
            let output = Command::new("docker").args(&args).output().unwrap();
            assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        })
    }

    fn label(&self) -> String {
        format!("itsup.test={}", self.network)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let filter = format!("label={}", self.label());
        if let Ok(output) = docker(&["ps", "-aq", "--filter", &filter]) {
            let ids = String::from_utf8_lossy(&output.stdout).into_owned();
            for id in ids.split_whitespace() {
                let _ = docker(&["rm", "-f", id]);
            }
        }
        let _ = docker(&["network", "rm", &self.network]);
    }
}

fn docker(args: &[&str]) -> std::io::Result<Output> {
    Command::new("docker").args(args).output()
}

/// Builds the image unless it is there: from scratch, with one static program.
fn build_image() {
    if docker(&["image", "inspect", IMAGE]).is_ok_and(|output| output.status.success()) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("idle.rs"), IDLE).unwrap();
    let dockerfile = "FROM scratch\nCOPY idle /idle\nCOPY idle /bin/sh\nCMD [\"/idle\"]\n";
    fs::write(path("Dockerfile"), dockerfile).unwrap();
    let (source, target) = (path("idle.rs"), path("idle"));
    let flags = ["--edition=2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols"];
    run(Command::new("rustc").args(flags).args([source, "-o".into(), target]));
    run(Command::new("docker").args(["build", "-t", IMAGE]).arg(folder.path()));
    assert!(Path::new(&path("idle")).exists());
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
