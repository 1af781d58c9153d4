//! Real clients: curl, the load generator, and Python's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::fcntl::{Flock, FlockArg};

use super::{Itsup, program, run};

/// Whether a program is on the PATH.
pub(crate) fn has_program(name: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()))
}

/// curl that reaches this itsup under any name: URLs are `https://app.test/...` or `http://...`, without a port.
pub(crate) fn curl(itsup: &Itsup) -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "60", "--noproxy", "*", "--cacert"]).arg(itsup.ca());
    for (port, to) in [(443, itsup.https()), (80, itsup.http())] {
        command.arg("--connect-to").arg(format!(":{port}:{}:{}", to.ip(), to.port()));
    }
    command
}

/// `itsup-load SUBCOMMAND` against this itsup's TLS listener under this name, trusting this certificate ([`Itsup::ca`]).
pub(crate) fn load(itsup: &Itsup, subcommand: &str, host: &str, trust: &Path) -> Command {
    let mut command = Command::new(program("itsup-load"));
    command.arg(subcommand).args(["--target", &itsup.https().to_string(), "--host", host, "--ca"]).arg(trust);
    command
}

/// One of the Python clients in tests/clients, by its file's name.
pub(crate) fn python(client: &str) -> Command {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    let mut command = Command::new(PYTHON.get_or_init(interpreter));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(client));
    command
}

/// The interpreter of `bin/test.sh`; without it, the environment that it would make, made here.
fn interpreter() -> PathBuf {
    if let Some(path) = std::env::var_os("ITSUP_TEST_PYTHON") {
        return path.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (venv, list) = (root.join("target/venv"), root.join("tests/clients/requirements.txt"));
    let made = || std::fs::read(venv.join("installed.txt")).ok() == std::fs::read(&list).ok();
    if !made() {
        // Tests are processes of their own: one makes it, the others wait.
        std::fs::create_dir_all(root.join("target")).unwrap();
        let file = File::create(root.join("target/venv.lock")).unwrap();
        let _lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
        if !made() {
            eprintln!("ITSUP_TEST_PYTHON is not set: installing the Python test clients into {}", venv.display());
            let _ = std::fs::remove_dir_all(&venv);
            run(Command::new("python3").arg("-m").arg("venv").arg(&venv)).ok();
            run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", "-r"]).arg(&list)).ok();
            std::fs::copy(&list, venv.join("installed.txt")).unwrap();
        }
    }
    venv.join("bin/python")
}
