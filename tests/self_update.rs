//! itsUP updates itself from a git repository that is made for the test, with a build that only copies.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod harness;

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Child, Finished, PATIENCE, Root, eventually, run, run_with_input};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// What the build of a version does.
const COPIES: &str = "mkdir -p \"$CARGO_TARGET_DIR/release\" && cp \"$BUILT\" \"$CARGO_TARGET_DIR/release/itsup\"";

/// A root folder that is a checkout of itsUP, the remote that it follows, and the itsup that runs on it.
struct World {
    root: Root,
    /// The author's working tree.
    author: PathBuf,
    binary: PathBuf,
    child: Child,
    /// The API's address.
    api: String,
    others: Vec<u32>,
}

impl Drop for World {
    fn drop(&mut self) {
        for pid in &self.others {
            if std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.starts_with(self.root.path(""))) {
                let _ = kill(Pid::from_raw(i32::try_from(*pid).unwrap()), Signal::SIGKILL);
            }
        }
    }
}

#[track_caller]
fn git(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(folder).args(["-c", "user.name=Test", "-c", "user.email=test@example.com"]);
    run(command.args(arguments)).ok().stdout.trim().to_owned()
}

#[track_caller]
fn commit(folder: &Path, name: &str, text: &str) -> String {
    std::fs::write(folder.join(name), text).unwrap();
    git(folder, &["add", "--all"]);
    git(folder, &["commit", "--quiet", "--message", "A change"]);
    git(folder, &["push", "--quiet", "origin", "HEAD"]);
    git(folder, &["rev-parse", "HEAD"])
}

impl World {
    #[track_caller]
    fn start(env: &str) -> World {
        let root = Root::new();
        let (remote, author) = (root.path("remote.git"), root.path("author"));
        run(Command::new("git").args(["init", "--quiet", "--bare", "--initial-branch=main"]).arg(&remote)).ok();
        run(Command::new("git").args(["clone", "--quiet"]).arg(&remote).arg(&author)).ok();
        git(&author, &["checkout", "--quiet", "-B", "main"]);
        std::fs::write(author.join("build.sh"), COPIES).unwrap();
        commit(&author, ".gitignore", "/db.yml\n/.env\n/data\n/logs\n");
        let site = root.path("site");
        run(Command::new("git").args(["clone", "--quiet", "--branch", "main"]).arg(&remote).arg(&site)).ok();
        let binary = root.path("bin/itsup");
        std::fs::create_dir(root.path("bin")).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_itsup"), &binary).unwrap();
        root.write("site/db.yml", "projects:\n  - name: itsUP\n    domain: hello.localhost\n");
        root.write("site/.env", format!("ITSUP_BUILD=sh build.sh\n{env}"));
        let mut command = itsup(&binary, &site);
        let child = Child::start("itsup run", command.args(["--json", "run"]));
        let ready: Value = serde_json::from_str(&child.line(|line| line.contains("\"ready\""))).unwrap();
        let api = ready["api"].as_str().unwrap().to_owned();
        World { root, author, binary, child, api, others: Vec::new() }
    }

    fn site(&self) -> PathBuf {
        self.root.path("site")
    }

    fn cli(&self, arguments: &[&str]) -> Finished {
        run(itsup(&self.binary, &self.site()).arg("--json").args(arguments))
    }

    fn head(&self) -> String {
        git(&self.site(), &["rev-parse", "HEAD"])
    }

    #[track_caller]
    fn pid(&self) -> u32 {
        u32::try_from(self.cli(&["status"]).ok().json()["pid"].as_u64().unwrap()).unwrap()
    }

    /// Tries to update, which must fail and leave everything as it was.
    #[track_caller]
    fn refused(&self) -> String {
        let before = (self.head(), self.pid(), std::fs::read(&self.binary).unwrap(), self.root.read("site/db.yml"));
        let finished = self.cli(&["self-update"]);
        assert_eq!(finished.code, Some(1), "{}{}", finished.stdout, finished.stderr);
        let after = (self.head(), self.pid(), std::fs::read(&self.binary).unwrap(), self.root.read("site/db.yml"));
        assert!(before == after, "something has changed: {}", finished.stdout);
        assert!(!self.root.path("site/data/self-update/checkout").exists());
        assert!(!self.root.path("site/data/apply-after-upgrade").exists());
        finished.json()["error"].as_str().unwrap().to_owned()
    }
}

fn itsup(binary: &Path, site: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ITSUP_")) {
        command.env_remove(name);
    }
    for name in ["ITSUP_HTTP", "ITSUP_HTTPS", "ITSUP_API"] {
        command.env(name, "127.0.0.1:0");
    }
    command.env("ITSUP_DOCKER", "off").env("NO_COLOR", "1").env("BUILT", env!("CARGO_BIN_EXE_itsup"));
    command.arg("--root").arg(site);
    command
}

#[test]
fn a_new_commit_is_built_and_takes_over() {
    let mut world = World::start("ITSUP_ENV=production\n");
    let nothing: Value = world.cli(&["self-update"]).ok().json();
    assert_eq!(nothing, serde_json::json!({}), "there is nothing new");
    let before = world.head();
    let commit = commit(&world.author, "new", "new\n");
    let report = world.cli(&["self-update"]).ok().json();
    assert_eq!((report["itsup"]["from"].as_str(), report["itsup"]["to"].as_str()), (Some(&*before), Some(&*commit)));
    let pid = u32::try_from(report["upgraded"]["pid"].as_u64().unwrap()).unwrap();
    world.others.push(pid);
    assert_eq!((world.pid(), world.head()), (pid, commit));
    assert!(world.child.wait(PATIENCE).success());
    assert!(world.root.path("bin/itsup.before").exists(), "the way back by hand");
    let link = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(link, world.binary, "what runs is what is installed");
    assert_eq!(git(&world.site(), &["status", "--porcelain", "--untracked-files=no"]), "");
    eventually("the promise to apply is taken", || {
        (!world.root.path("site/data/apply-after-upgrade").exists()).then_some(())
    });
}

#[test]
fn a_webhook_for_itsup_itself_builds_and_takes_over() {
    const SECRET: &str = "a-secret-of-the-hook";
    let mut world = World::start(&format!("ITSUP_ENV=production\nAPI_KEY=0123456789abcdef\nWEBHOOK_SECRET={SECRET}\n"));
    let before = world.pid();
    let commit = commit(&world.author, "new", "new\n");
    let body = r#"{"action":"completed","workflow_run":{"conclusion":"success","head_branch":"main"}}"#;
    let mut openssl = Command::new("openssl");
    let digest = run_with_input(openssl.args(["dgst", "-sha256", "-hmac", SECRET]), body.as_bytes()).ok().stdout;
    let signature = digest.trim().rsplit(' ').next().unwrap().to_owned();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail-with-body", "--data-binary", body]);
    for header in [
        "Content-Type: application/json",
        "X-GitHub-Event: workflow_run",
        "X-GitHub-Delivery: 1",
        &format!("X-Hub-Signature-256: sha256={signature}"),
    ] {
        curl.args(["-H", header]);
    }
    let answer = run(curl.arg(format!("http://{}/hook?project=itsUP", world.api))).ok().json();
    let job = answer["job"].as_u64().unwrap_or_else(|| panic!("{answer}"));
    let pid = eventually("another process", || {
        let status = world.cli(&["status"]);
        let pid = (status.code == Some(0)).then(|| status.json()["pid"].as_u64())??;
        (pid != u64::from(before)).then_some(u32::try_from(pid).unwrap())
    });
    world.others.push(pid);
    assert_eq!(world.head(), commit);
    assert!(world.child.wait(PATIENCE).success());
    // The new process finds the job as the old one has left it, and ends it: there is nothing new any more.
    let ended = eventually("the end of the job", || {
        let jobs = world.cli(&["jobs"]).ok().json();
        let found = jobs.as_array()?.iter().find(|one| one["id"] == job)?.clone();
        (found["state"] != "running" && found["state"] != "queued").then_some(found)
    });
    assert_eq!(ended["state"], "done", "{ended}");
}

#[test]
fn nothing_is_updated_where_it_must_not_be() {
    let world = World::start("");
    commit(&world.author, "new", "new\n");
    assert!(world.refused().contains("ITSUP_ENV=production"));
    world.root.write("site/.env", "ITSUP_BUILD=sh build.sh\nPYTHON_ENV=production\n");
    world.cli(&["reload"]).ok();
    std::fs::write(world.site().join("build.sh"), "exit 0\n").unwrap();
    assert!(world.refused().contains("not committed"));
    git(&world.site(), &["commit", "--quiet", "--all", "--message", "Mine"]);
    assert!(world.refused().contains("does not have"), "diverged");
    git(&world.site(), &["reset", "--quiet", "--hard", "HEAD~1"]);
    git(&world.site(), &["checkout", "--quiet", "-b", "other"]);
    assert!(world.refused().contains("other is checked out, not main"));
    git(&world.site(), &["checkout", "--quiet", "--detach"]);
    assert!(world.refused().contains("no branch is checked out"));
}

#[test]
fn a_version_that_fails_leaves_everything_as_it_was() {
    let world = World::start("ITSUP_ENV=production\n");
    for (build, error) in [
        ("echo no luck; exit 7", "no luck"),
        ("exit 0", "there is no"),
        // Built, and cannot even look at the files.
        ("mkdir -p $CARGO_TARGET_DIR/release; cp /bin/false $CARGO_TARGET_DIR/release/itsup", "does not accept"),
        // Says that all is well, and then does not take over.
        ("cp /bin/true $CARGO_TARGET_DIR/release/itsup", "could not take over"),
    ] {
        commit(&world.author, "build.sh", build);
        let said = world.refused();
        assert!(said.contains(error) || said.contains("ended before it was ready"), "{build}: {said}");
    }
    // The next good version finds its way.
    let good = commit(&world.author, "build.sh", COPIES);
    let mut world = world;
    let report = world.cli(&["self-update"]).ok().json();
    world.others.push(u32::try_from(report["upgraded"]["pid"].as_u64().unwrap()).unwrap());
    assert_eq!(world.head(), good);
}

#[test]
fn a_database_with_a_repository_of_its_own_is_updated_too() {
    let world = World::start("ITSUP_ENV=production\n");
    let (remote, author, own) = (world.root.path("db.git"), world.root.path("db-author"), world.root.path("db"));
    run(Command::new("git").args(["init", "--quiet", "--bare", "--initial-branch=main"]).arg(&remote)).ok();
    run(Command::new("git").args(["clone", "--quiet"]).arg(&remote).arg(&author)).ok();
    git(&author, &["checkout", "--quiet", "-B", "main"]);
    commit(&author, "db.yml", "projects:\n  - name: one\n    domain: one.localhost\n");
    run(Command::new("git").args(["clone", "--quiet", "--branch", "main"]).arg(&remote).arg(&own)).ok();
    std::fs::remove_file(world.site().join("db.yml")).unwrap();
    std::os::unix::fs::symlink(own.join("db.yml"), world.site().join("db.yml")).unwrap();
    world.cli(&["reload"]).ok();
    let hosts = || world.cli(&["status"]).ok().json()["hosts"].as_u64().unwrap();
    let before = hosts();

    let two = "projects:\n  - name: one\n    domain: one.localhost\n  - name: two\n    domain: two.localhost\n";
    let good = commit(&author, "db.yml", two);
    let report = world.cli(&["self-update"]).ok().json();
    assert_eq!(report["db"]["to"].as_str(), Some(&*good), "{report}");
    assert_eq!((report.get("upgraded"), hosts()), (None, before + 1), "db.yml alone: nothing is upgraded");

    commit(&author, "db.yml", "projects:\n  - nonsense\n");
    assert!(world.refused().contains("taken back"));
    assert_eq!((git(&own, &["rev-parse", "HEAD"]), hosts()), (good, before + 1));
}
