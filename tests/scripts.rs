//! bin/: what a newcomer runs. Each test has a clone of its own, in which `cargo build` has been done already.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod harness;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Finished, Root, run};

/// A clone: the scripts and the samples, and a folder of programs that stand in for others.
struct Clone {
    root: Root,
}

impl Clone {
    fn new() -> Clone {
        let root = Root::new();
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        std::fs::create_dir(root.path("bin")).unwrap();
        for entry in std::fs::read_dir(source.join("bin")).unwrap().map(Result::unwrap) {
            if entry.path().is_file() {
                std::fs::copy(entry.path(), root.path("bin").join(entry.file_name())).unwrap();
            }
        }
        for sample in ["db.yml.sample", ".env.sample"] {
            std::fs::copy(source.join(sample), root.path(sample)).unwrap();
        }
        let clone = Clone { root };
        clone.stand_in("cargo", "exit 0");
        clone
    }

    /// Puts a program in front of all others.
    fn stand_in(&self, name: &str, script: &str) {
        let path = self.root.path("stand-in").join(name);
        self.root.write(&format!("stand-in/{name}"), format!("#!/bin/sh\n{script}\n"));
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(self.root.path("bin").join(name));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ITSUP_")) {
            command.env_remove(name);
        }
        // Where cargo has put the program under test: DIR/debug/itsup, or DIR/release/itsup.
        let built = PathBuf::from(env!("CARGO_BIN_EXE_itsup"));
        let folder = built.parent().unwrap();
        let profile = if folder.ends_with("debug") { "dev".into() } else { folder.file_name().unwrap().to_owned() };
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("CARGO_TARGET_DIR", folder.parent().unwrap()).env("ITSUP_PROFILE", profile);
        command.env("PATH", format!("{}:{path}", self.root.path("stand-in").display()));
        command.env("ITSUP_API", "off").env("ITSUP_DOCKER", "off").env("NO_COLOR", "1").current_dir("/");
        command
    }

    fn pid(&self) -> u32 {
        self.root.read("data/itsup.pid").trim().parse().unwrap()
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        if self.root.path("data/itsup.pid").exists() {
            run(&mut self.script("stop-all.sh"));
        }
    }
}

/// Two ports that are free just now.
fn free_ports() -> [u16; 2] {
    let held = [0; 2].map(|_| TcpListener::bind("[::]:0").unwrap());
    held.each_ref().map(|listener| listener.local_addr().unwrap().port())
}

fn all(finished: &Finished) -> String {
    format!("{}{}", finished.stdout, finished.stderr)
}

#[test]
fn start_all_starts_what_works_and_stop_all_stops_it() {
    let clone = Clone::new();
    let [http, https] = free_ports();
    // Where to listen stands in .env, so that the usual local ports need not be free here.
    clone.root.write(".env", format!("ITSUP_HTTP=[::]:{http}\nITSUP_HTTPS=[::]:{https}\n"));
    let started = run(clone.script("start-all.sh").arg("--local")).ok();
    assert!(started.stdout.contains("db.yml is a copy of db.yml.sample"), "{}", all(&started));
    assert_eq!(clone.root.read("db.yml"), clone.root.read("db.yml.sample"));
    let mut lines = started.stdout.lines().skip_while(|line| *line != "Try it:").skip(1);
    let (curl, open) = (lines.next().expect("a line to try").trim(), lines.next().unwrap_or_default());
    assert!(
        curl.starts_with("curl --cacert data/ca/root.pem ")
            && open.contains(&format!("https://hello.localhost:{https}/"))
    );
    // The very line, in the very folder.
    let page =
        run(Command::new("sh").args(["-c", &format!("{curl} --silent --include")]).current_dir(clone.root.path("")))
            .ok();
    assert!(page.stdout.starts_with("HTTP/2 200") && page.stdout.contains("itsUP"), "{}", page.stdout);
    let plain = format!("http://hello.localhost:{http}/x");
    let redirect = run(Command::new("curl").args(["--silent", "--include", "--noproxy", "*", &plain])).ok().stdout;
    assert!(redirect.contains(&format!("https://hello.localhost:{https}/x")), "{redirect}");

    let pid = clone.pid();
    let again = run(clone.script("start-all.sh").arg("--local")).ok();
    assert!(again.stdout.contains(&format!("already runs (process {pid})")), "{}", all(&again));
    assert!(again.stdout.contains("nothing changed") && again.stdout.contains("Try it:"), "{}", all(&again));
    assert_eq!(clone.pid(), pid);

    let began = Instant::now();
    assert!(run(&mut clone.script("stop-all.sh")).ok().stdout.contains("stopped"));
    assert!(began.elapsed() < Duration::from_secs(25), "an idle one stops at once");
    assert!(!clone.root.path("data/itsup.pid").exists() && !clone.root.path("data/itsup.sock").exists());
    assert!(run(&mut clone.script("stop-all.sh")).ok().stdout.contains("does not run"));
}

#[test]
fn start_all_says_why_it_did_not_start() {
    let clone = Clone::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    clone.root.write(".env", format!("ITSUP_HTTP=127.0.0.1:0\nITSUP_HTTPS={address}\n"));
    let failed = run(clone.script("start-all.sh").arg("--local"));
    assert_eq!(failed.code, Some(1), "{}", all(&failed));
    assert!(
        failed.stderr.contains("itsUP did not start") && failed.stderr.contains(&address.to_string()),
        "{}",
        all(&failed)
    );
    assert!(!failed.stdout.contains("itsUP runs") && !clone.root.path("data/itsup.pid").exists());
}

#[test]
fn without_root_a_missing_package_is_one_line_to_run() {
    let clone = Clone::new();
    clone.stand_in("id", "echo 1000");
    clone.stand_in("dpkg-query", "exit 1");
    for (script, purpose) in [("start-all.sh", "build"), ("test.sh", "test")] {
        let refused = run(&mut clone.script(script));
        assert_eq!(refused.code, Some(1), "{}", all(&refused));
        let line =
            format!("run this once, then start again:  sudo {} {purpose}", clone.root.path("bin/deps.sh").display());
        assert!(refused.stderr.contains(&line), "{}", all(&refused));
    }
    assert!(!clone.root.path("db.yml").exists(), "nothing was begun");
}

#[test]
fn every_script_is_sound_and_says_how_it_is_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scripts = std::fs::read_dir(root.join("bin")).unwrap().map(|entry| entry.unwrap().path());
    let mut checked = 0;
    for script in scripts.chain([root.join(".ci/run")]).filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(&script).unwrap();
        if !text.starts_with("#!/usr/bin/env bash") && !text.contains("shellcheck shell=bash") {
            continue;
        }
        run(Command::new("bash").arg("-n").arg(&script)).ok();
        if text.starts_with("#!") {
            assert!(text.contains("set -euo pipefail"), "{}", script.display());
            assert!(std::fs::metadata(&script).unwrap().permissions().mode() & 0o111 == 0o111, "{}", script.display());
        }
        checked += 1;
    }
    assert!(checked >= 8, "{checked}");
    let usage = run(Clone::new().script("start-all.sh").arg("--nonsense"));
    assert_eq!((usage.code, usage.stderr.contains("usage:")), (Some(2), true));
}
