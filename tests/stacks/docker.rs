//! The real engine, and the stacks of a test's own that are gone with it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};

use crate::harness::{program, run};

/// A compose project's name that nobody else has; what runs under it, and under names that begin so, goes when this is dropped.
pub(crate) struct Docker {
    project: String,
}

impl Docker {
    /// Needs the engine: where there is none, the test fails and says what to do.
    pub(crate) fn new(name: &str) -> Docker {
        let version = try_docker(&["version", "--format", "{{.Server.Version}}"]);
        assert!(version.status.success(), "no Docker engine answers; bin/deps.sh test installs and starts one");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
        Docker { project: format!("stacks-{name}-{}-{now:x}", std::process::id()) }
    }

    /// The compose project's name.
    pub(crate) fn project(&self) -> &str {
        &self.project
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let lines = |args: &[&str]| -> Vec<String> {
            let text = String::from_utf8_lossy(&try_docker(args).stdout).into_owned();
            text.split_whitespace().map(str::to_owned).collect()
        };
        let name = format!("name={}", self.project);
        for id in lines(&["ps", "-aq", "--filter", &name]) {
            try_docker(&["rm", "-fv", &id]);
        }
        // There are only some thirty networks to be had.
        for id in lines(&["network", "ls", "-q", "--filter", &name]) {
            try_docker(&["network", "rm", &id]);
        }
        for reference in ["itsup-rollback/", "127.0.0.1:1/"] {
            let reference = format!("reference={reference}{}*", self.project);
            for image in lines(&["images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", &reference]) {
                try_docker(&["rmi", &image]);
            }
        }
    }
}

/// Runs a docker command that must succeed; returns what it printed, trimmed.
pub(crate) fn docker<S: AsRef<str>>(args: &[S]) -> String {
    let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
    let output = try_docker(&args);
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Runs a docker command.
pub(crate) fn try_docker(args: &[&str]) -> Output {
    Command::new("docker").args(args).output().expect("docker can be run")
}

/// The test server's image; it is told what to do by `TESTD_...` variables.
///
/// Built unless this very one is there: from scratch, with the program that the other tests use and the libraries that it asks
/// for, so that nothing is built a second time.
pub(crate) fn testd_image() -> String {
    let target = Path::new(env!("CARGO_BIN_EXE_itsup")).parent().expect("a folder");
    // Every test is a process: one builds, the others wait for it.
    let lock = File::create(target.join("testd-image.lock")).expect("a lock file");
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("a lock");
    let program = program("itsup-testd");
    let about = fs::metadata(&program).expect("the test server");
    // The registry is nobody: an image that is missing fails at once and is never looked for elsewhere.
    let tag = format!("127.0.0.1:1/itsup-testd:{:x}-{:x}", about.len(), about.mtime_nsec() ^ about.mtime());
    if !try_docker(&["image", "inspect", &tag]).status.success() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = |path: &Path| folder.path().join("files").join(path.strip_prefix("/").unwrap_or(path));
        for file in libraries(&program) {
            let to = place(&file);
            fs::create_dir_all(to.parent().expect("a folder")).expect("a folder for a library");
            fs::copy(&file, to).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
        fs::copy(&program, place(Path::new("/itsup-testd"))).expect("a copy of the test server");
        let dockerfile = "FROM scratch\nCOPY files /\nENTRYPOINT [\"/itsup-testd\"]\n";
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
