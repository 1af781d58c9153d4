//! The real engine: the network proxynet, and containers of a test's own that are gone with it.
//!
//! Knows Docker's command line, and nothing of itsUP.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};

use super::{engine, program, run};

/// The network whose addresses itsUP uses. It is shared, so nobody takes it away.
pub(crate) const NETWORK: &str = "proxynet";

/// A compose project's name that nobody else has; what runs under it goes when this is dropped.
pub(crate) struct Docker {
    project: String,
}

impl Docker {
    /// Needs the engine: where there is none, the test fails and says what to do.
    pub(crate) fn new(name: &str) -> Docker {
        let version = try_docker(&["version", "--format", "{{.Server.Version}}"]);
        assert!(version.status.success(), "no Docker engine answers; bin/deps.sh test installs and starts one");
        let known = || try_docker(&["network", "inspect", NETWORK]).status.success();
        if !known() {
            let made = try_docker(&["network", "create", NETWORK]);
            // Another test may have been quicker.
            assert!(made.status.success() || known(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
        Docker { project: format!("test-{name}-{}-{now:x}", std::process::id()) }
    }

    /// The compose project's name.
    pub(crate) fn project(&self) -> &str {
        &self.project
    }

    /// Runs the test server as a container of the service `<project>-<service>`; returns its id.
    pub(crate) fn run(&self, service: &str, options: &[&str]) -> String {
        self.run_image(&testd_image(), service, options)
    }

    /// Runs an image as a container of the service `<project>-<service>`; returns its id.
    pub(crate) fn run_image(&self, image: &str, service: &str, options: &[&str]) -> String {
        let project = format!("com.docker.compose.project={}", self.project);
        let service = format!("com.docker.compose.service={}-{service}", self.project);
        let mut all = vec!["run", "-d", "--label", &self.label(), "--label", &project, "--label", &service]
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        if !options.contains(&"--network") {
            all.extend(["--network".to_owned(), NETWORK.to_owned()]);
        }
        all.extend(options.iter().map(|option| (*option).to_owned()));
        all.push(image.to_owned());
        docker(&all)
    }

    /// When the engine last told of this action (`start`, `die`, ...) of a container.
    pub(crate) fn told(&self, container: &str, action: &str) -> SystemTime {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
        let until = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
        let filter = [format!("container={container}"), format!("event={action}")];
        let events = docker(&[
            "events",
            "--since",
            "10m",
            "--until",
            &until,
            "--filter",
            &filter[0],
            "--filter",
            &filter[1],
            "--format",
            "{{.TimeNano}}",
        ]);
        let last = events.lines().last().unwrap_or_else(|| panic!("the engine told of no {action} of {container}"));
        UNIX_EPOCH + std::time::Duration::from_nanos(last.trim().parse().expect("a time"))
    }

    fn label(&self) -> String {
        format!("itsup.test={}", self.project)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // What was run here, what compose made for the project, and what projects whose names begin so have.
        let labels = [self.label(), format!("com.docker.compose.project={}", self.project)];
        let filters = labels.map(|label| format!("label={label}"));
        let name = format!("name={}", self.project);
        for filter in filters.iter().chain([&name]) {
            for id in listed(&["ps", "-aq", "--filter", filter]) {
                try_docker(&["rm", "-fv", &id]);
            }
        }
        // There are only some thirty networks to be had.
        for id in listed(&["network", "ls", "-q", "--filter", &name]) {
            try_docker(&["network", "rm", &id]);
        }
        for repository in ["itsup-rollback/", "127.0.0.1:1/"] {
            let filter = format!("reference={repository}{}*", self.project);
            for image in listed(&["images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", &filter]) {
                try_docker(&["rmi", &image]);
            }
        }
    }
}

/// A container's address on the network.
pub(crate) fn address(container: &str) -> IpAddr {
    let format = format!("{{{{(index .NetworkSettings.Networks {NETWORK:?}).IPAddress}}}}");
    let text = docker(&["inspect", "-f", &format, container]);
    text.parse().unwrap_or_else(|_| panic!("container {container} has the address `{text}`"))
}

/// Runs a docker command that must succeed; returns what it printed, trimmed.
pub(crate) fn docker<S: AsRef<str>>(args: &[S]) -> String {
    let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
    let output = try_docker(&args);
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The words that a docker command prints; none where it fails.
pub(super) fn listed(args: &[&str]) -> Vec<String> {
    let text = String::from_utf8_lossy(&try_docker(args).stdout).into_owned();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Runs a docker command.
pub(crate) fn try_docker(args: &[&str]) -> Output {
    let mut command = Command::new("docker");
    if let Some(host) = engine::host() {
        command.args(["--host", host]);
    }
    command.args(args).output().expect("docker can be run")
}

/// The test server's image; it is told what to do by `TESTD_...` variables.
pub(crate) fn testd_image() -> String {
    image("", "")
}

/// The same with a health check, every second: `POST /health?ok=false` makes it fail.
pub(crate) fn testd_image_with_health() -> String {
    image(
        "-health",
        "HEALTHCHECK --interval=1s --timeout=5s --retries=1 CMD [\"/itsup-testd\", \"--check\", \"127.0.0.1:8080\"]\n",
    )
}

/// Builds an image of the test server, unless this very one is there: from scratch, with the program that the other tests
/// use and the libraries that it asks for, so that nothing is built a second time.
fn image(suffix: &str, more: &str) -> String {
    let target = Path::new(env!("CARGO_BIN_EXE_itsup")).parent().expect("a folder");
    // Every test is a process: one builds, the others wait for it.
    let lock = File::create(target.join("testd-image.lock")).expect("a lock file");
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("a lock");
    let program = program("itsup-testd");
    let about = fs::metadata(&program).expect("the test server");
    // The registry is nobody: an image that is missing fails at once and is never looked for elsewhere.
    let tag = format!("127.0.0.1:1/itsup-testd{suffix}:{:x}-{:x}", about.len(), about.mtime_nsec() ^ about.mtime());
    if !try_docker(&["image", "inspect", &tag]).status.success() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = |path: &Path| folder.path().join("files").join(path.strip_prefix("/").unwrap_or(path));
        for file in libraries(&program) {
            let to = place(&file);
            fs::create_dir_all(to.parent().expect("a folder")).expect("a folder for a library");
            fs::copy(&file, to).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
        fs::copy(&program, place(Path::new("/itsup-testd"))).expect("a copy of the test server");
        let dockerfile = format!("FROM scratch\nCOPY files /\nENTRYPOINT [\"/itsup-testd\"]\n{more}");
        fs::write(folder.path().join("Dockerfile"), dockerfile).expect("a Dockerfile");
        docker(&["build", "-q", "-t", &tag, &folder.path().display().to_string()]);
    }
    tag
}

/// The libraries that a program is linked with, and what loads them.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let told = run(Command::new("ldd").arg(program)).ok().stdout;
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    told.lines().filter_map(path).collect()
}
