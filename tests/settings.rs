//! The contract of settings: flags, then the environment, then .env; what a reload takes up; listeners, sockets, exit codes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod harness;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Child, Itsup, PATIENCE, Root, Testd, db, eventually, project, run, with_files_over, without_ipv6};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A site that needs nothing, for its redirects.
fn hello() -> String {
    db(&["  - name: hello\n    domain: hello.test\n".to_owned()])
}

/// Where :80 sends a client of hello.test.
fn redirect(itsup: &Itsup) -> String {
    let answer = itsup.get("http://hello.test/x");
    assert_eq!(answer.status, 301);
    answer.header("location").expect("a Location").to_owned()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().expect("a list").iter().map(|text| text.as_str().expect("text")).collect()
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let root = Root::new();
    root.write("db.yml", hello());
    root.write(".env", "ITSUP_PUBLIC_HTTPS_PORT=1111\n");
    let port = "ITSUP_PUBLIC_HTTPS_PORT";
    for (starter, wanted) in [
        (Itsup::on(&root), "https://hello.test:1111/x"),
        // What is empty is as good as not set.
        (Itsup::on(&root).env(port, ""), "https://hello.test:1111/x"),
        (Itsup::on(&root).env(port, "2222"), "https://hello.test:2222/x"),
        (Itsup::on(&root).env(port, "2222").args(&["--public-https-port", "3333"]), "https://hello.test:3333/x"),
        (Itsup::on(&root).env(port, "443"), "https://hello.test/x"),
    ] {
        let itsup = starter.start();
        assert_eq!(redirect(&itsup), wanted);
        // A reload reads the file again, and it still does not win.
        root.write(".env", "ITSUP_PUBLIC_HTTPS_PORT=1111\n# read again\n");
        itsup.reload();
        assert_eq!(redirect(&itsup), wanted);
        itsup.stop();
    }
}

#[test]
fn a_reload_takes_up_what_stands_in_env() {
    let app = Testd::start();
    let root = Root::new();
    root.write("db.yml", db(&[project("app", "app.test", &[app.addr()], "")]));
    let itsup = Itsup::on(&root).start();
    let forged: &[(&str, &str)] = &[("X-Forwarded-For", "9.9.9.9")];
    let seen = |itsup: &Itsup| itsup.request("GET", "https://app.test/", forged, b"").seen("x-forwarded-for");
    assert_eq!(itsup.get("http://app.test/").header("location"), Some("https://app.test/"));
    assert_eq!(seen(&itsup), ["127.0.0.1"], "nobody is trusted by default");

    root.write(
        ".env",
        "ITSUP_PUBLIC_HTTPS_PORT=8443\nITSUP_TRUSTED_PROXIES=127.0.0.0/8,::1\nITSUP_ACCESS_LOG=logs/b.log\n",
    );
    let report = itsup.reload();
    assert_eq!(strings(&report["warnings"]), [""; 0]);
    assert_eq!(itsup.get("http://app.test/").header("location"), Some("https://app.test:8443/"));
    assert_eq!(seen(&itsup), ["9.9.9.9, 127.0.0.1"]);
    let line = eventually("a line in the new log", || {
        let text = std::fs::read_to_string(root.path("logs/b.log")).ok()?;
        text.lines().find(|line| line.contains("9.9.9.9")).map(str::to_owned)
    });
    assert!(!root.read("logs/access.log").contains("9.9.9.9"), "{line}");

    // From now on this host must say for whom it speaks.
    root.write(".env", "ITSUP_PROXY_PROTOCOL=127.0.0.1\n");
    itsup.reload();
    let mut without = harness::plain(itsup.http());
    without.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").unwrap();
    assert!(without.ended(), "no PROXY header, no answer");
    let with =
        b"PROXY TCP4 8.8.4.4 127.0.0.1 1000 80\r\nGET /y HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n";
    let mut stream = harness::plain(itsup.http());
    stream.write_all(with).unwrap();
    assert_eq!(harness::read_answer(&mut stream, "GET").header("location"), Some("https://app.test/y"));
    let logged = itsup.logged(|line| line["path"] == "/y");
    assert_eq!(logged["client"], "8.8.4.4");
}

#[test]
fn what_needs_a_restart_is_said_and_not_done() {
    let root = Root::new();
    root.write("db.yml", hello());
    root.write(
        ".env",
        "ITSUP_HTTP=127.0.0.1:0\nITSUP_HTTPS=127.0.0.1:0\nITSUP_API=127.0.0.1:0\nITSUP_DOCKER=off\nITSUP_THREADS=1\n",
    );
    let itsup = ["ITSUP_HTTP", "ITSUP_HTTPS", "ITSUP_API", "ITSUP_DOCKER"]
        .into_iter()
        .fold(Itsup::on(&root), |starter, name| starter.env(name, ""))
        .start();
    let before = itsup.status();
    root.write(
        ".env",
        "ITSUP_HTTP=127.0.0.1:1\nITSUP_HTTPS=127.0.0.1:2\nITSUP_API=off\nITSUP_DOCKER=on\nITSUP_THREADS=2\n\
         DOCKER_HOST=unix:///nowhere\nITSUP_PUBLIC_HTTPS_PORT=9\n",
    );
    let report = itsup.reload();
    let warned: BTreeSet<&str> = strings(&report["warnings"]).into_iter().collect();
    let names = ["ITSUP_HTTP", "ITSUP_HTTPS", "ITSUP_API", "ITSUP_DOCKER", "ITSUP_THREADS", "DOCKER_HOST"];
    let wanted: Vec<String> = names.iter().map(|name| format!("{name} has changed, which needs a restart")).collect();
    assert_eq!(warned, wanted.iter().map(String::as_str).collect());
    // What can be taken up is, all the same.
    assert_eq!(redirect(&itsup), "https://hello.test:9/x");
    let after = itsup.status();
    assert_eq!((&after["listen"], &after["docker"]), (&before["listen"], &before["docker"]));
    assert_eq!(strings(&after["warnings"]).len(), 6, "{after}");
    let shown = itsup.cli(&["reload"]).ok();
    assert!(shown.stderr.contains("warning: ITSUP_API has changed, which needs a restart"), "{}", shown.stderr);
    assert!(itsup.cli(&["status"]).ok().stdout.contains("warning: ITSUP_HTTP has changed, which needs a restart"));
}

#[test]
fn faulty_settings_are_told_all_at_once_and_nothing_starts() {
    let root = Root::new();
    root.write("db.yml", hello());
    root.write(
        ".env",
        "ITSUP_HTTP=80\nITSUP_GRACE=5\nITSUP_TRUSTED_PROXIES=10.0.0.0/33\nITSUP_DOCKER=perhaps\nITSUP_THREADS=0\n\
         ITSUP_PUBLIC_HTTPS_PORT=99999\nITSUP_GARCE=5s\nITSUP_ROOT=/tmp\n",
    );
    let env = root.path(".env").display().to_string();
    let wanted = [
        (1, "ITSUP_HTTP", "write [::]:80"),
        (2, "ITSUP_GRACE", "30s"),
        (3, "ITSUP_TRUSTED_PROXIES", "10.0.0.0/8"),
        (4, "ITSUP_DOCKER", "on or off"),
        (5, "ITSUP_THREADS", "from 1"),
        (6, "ITSUP_PUBLIC_HTTPS_PORT", "from 1 to 65535"),
        (7, "ITSUP_GARCE", "did you mean ITSUP_GRACE?"),
        (8, "ITSUP_ROOT", "--root"),
    ];
    for command in ["run", "validate"] {
        let run = root.cli(&["--json", command]);
        assert_eq!(run.code, Some(1));
        assert!(run.stderr.contains("error: "), "{}", run.stderr);
        let told = run.json();
        let told = told["diagnostics"].as_array().unwrap();
        for (line, name, hint) in wanted {
            let found = told.iter().find(|d| d["line"] == line).unwrap_or_else(|| panic!("{name}: {told:?}"));
            assert_eq!(found["file"], env.as_str());
            assert!(found["message"].as_str().unwrap().contains(name), "{found}");
            assert!(found["hint"].as_str().unwrap().contains(hint), "{found}");
        }
        assert_eq!(told.len(), wanted.len(), "{told:?}");
        let text = root.cli(&[command]);
        assert_eq!((text.code, text.stdout.as_str()), (Some(1), ""), "errors go to stderr");
        assert!(text.stderr.contains(&format!("{env}:7:1: error: unknown setting ITSUP_GARCE")), "{}", text.stderr);
    }
    assert!(!root.path("data/itsup.sock").exists());

    // One by flag or environment says so.
    root.write(".env", "");
    let flag = run(root.command().args(["run", "--grace", "soon"]).env("ITSUP_THREADS", "many"));
    assert_eq!(flag.code, Some(1));
    for place in ["command line:1:1: error: ITSUP_GRACE", "environment:1:1: error: ITSUP_THREADS"] {
        assert!(flag.stderr.contains(place), "{}", flag.stderr);
    }
}

#[test]
fn a_reload_with_faulty_settings_changes_nothing() {
    let itsup = Itsup::start(&hello());
    itsup.root().write(".env", "ITSUP_PUBLIC_HTTPS_PORT=8443\nITSUP_GRACE=soon\n");
    let refused = itsup.cli(&["reload"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains(".env:2:1: error: ITSUP_GRACE"), "{}", refused.stderr);
    assert_eq!(redirect(&itsup), "https://hello.test/x");
}

#[test]
fn exit_codes_are_0_done_1_failed_2_usage() {
    let root = Root::new();
    root.write("db.yml", hello());
    for (arguments, code) in [
        (&["--version"][..], 0),
        (&["--help"], 0),
        (&["help", "run"], 0),
        (&["validate"], 0),
        (&["status"], 1),
        (&["reload"], 1),
        (&[], 2),
        (&["nonsense"], 2),
        (&["run", "--nonsense"], 2),
        (&["run", "--grace"], 2),
        (&["status", "and", "more"], 2),
    ] {
        let run = root.cli(arguments);
        assert_eq!(run.code, Some(code), "{arguments:?}: {}", run.stderr);
        assert_eq!(
            run.stderr.is_empty(),
            code == 0,
            "{arguments:?}: errors, and they alone, go to stderr: {}",
            run.stderr
        );
        if code != 0 {
            assert_eq!(run.stdout, "", "{arguments:?}");
            let json = run_json(&root, arguments);
            assert_eq!(json.0, Some(code));
            assert!(json.1["error"].is_string(), "{}", json.1);
        }
    }
    let text = root.cli(&["status"]).stderr;
    assert!(text.contains("no itsup runs on") && text.contains("hint: start it with `itsup run`"), "{text}");
}

fn run_json(root: &Root, arguments: &[&str]) -> (Option<i32>, Value) {
    let run = root.cli(&[&["--json"], arguments].concat());
    (run.code, run.json())
}

#[test]
fn the_root_is_a_flag_or_a_variable_or_the_current_folder() {
    let (one, two) = (Root::new(), Root::new());
    one.write("db.yml", hello());
    two.write("db.yml", "projects: [\n");
    let itsup = |root: &Root, variable: Option<&Root>, flag: Option<&Root>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_itsup"));
        command.current_dir(root.path("")).env_remove("ITSUP_ROOT").arg("validate");
        variable.map(|root| command.env("ITSUP_ROOT", root.path("")));
        flag.map(|root| command.arg("--root").arg(root.path("")));
        run(&mut command)
    };
    assert_eq!(itsup(&one, None, None).code, Some(0));
    let here = itsup(&two, None, None);
    assert_eq!(here.code, Some(1));
    assert!(here.stderr.contains("\ndb.yml:2:1: error") || here.stderr.starts_with("db.yml:"), "{}", here.stderr);
    assert_eq!(itsup(&two, Some(&one), None).code, Some(0));
    assert_eq!(itsup(&one, Some(&two), None).code, Some(1));
    assert_eq!(itsup(&two, Some(&two), Some(&one)).code, Some(0));
    assert_eq!(itsup(&one, Some(&one), Some(&two)).code, Some(1));
}

/// Runs `itsup run` with just these settings, and reads its first line.
fn ready_line(root: &Root, arguments: &[&str]) -> (Child, String) {
    let mut command = root.command();
    let child = Child::start("itsup run", command.arg("run").args(arguments).env("ITSUP_DOCKER", "off"));
    let line = child.line(|_| true);
    (child, line)
}

#[test]
fn the_ready_line_tells_the_real_ports() {
    let root = Root::new();
    root.write("db.yml", hello());
    let free = ["--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--api", "127.0.0.1:0"];
    let (mut child, line) = ready_line(&root, &free);
    let words: Vec<&str> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    let ["itsup", "is", "ready:", "http", http, "https", https, "api", api] = words[..] else { panic!("{line}") };
    for address in [http, https, api] {
        let address: SocketAddr = address.parse().unwrap();
        assert_ne!(address.port(), 0);
        TcpStream::connect(address).expect("it listens where it says");
    }
    let status = root.cli(&["--json", "status"]).ok().json();
    assert_eq!(status["listen"], serde_json::json!({"http": http, "https": https, "api": api}));
    assert_eq!(child.stdout().lines().count(), 1);
    child.signal(Signal::SIGTERM);
    assert!(child.wait(PATIENCE).success());

    let mut command = root.command();
    command.args(["--json", "run", "--api", "off"]).args(&free[..4]).env("ITSUP_DOCKER", "off");
    let child = Child::start("itsup run", &mut command);
    let ready: Value = serde_json::from_str(&child.line(|_| true)).unwrap();
    assert_eq!((&ready["ready"], &ready["pid"], &ready["api"]), (&true.into(), &child.pid().into(), &Value::Null));
    let status = root.cli(&["status"]).ok().stdout;
    assert!(status.contains("api off"), "{status}");
}

#[test]
fn all_addresses_are_both_families() {
    let itsup = Itsup::with().env("ITSUP_HTTP", "[::]:0").env("ITSUP_HTTPS", "[::]:0").db(&hello()).start();
    assert_eq!(itsup.http().ip(), Ipv6Addr::UNSPECIFIED);
    for ip in [Ipv4Addr::LOCALHOST.to_ipv6_mapped().to_canonical(), Ipv6Addr::LOCALHOST.into()] {
        for port in [itsup.http().port(), itsup.https().port()] {
            TcpStream::connect((ip, port)).unwrap_or_else(|error| panic!("{ip}:{port}: {error}"));
        }
    }
}

#[test]
fn ipv4_alone_where_the_kernel_has_no_ipv6() {
    let root = Root::new();
    root.write("db.yml", hello());
    let mut command = root.command();
    command.args(["--json", "run", "--http", "[::]:0", "--https", "[::]:0", "--api", "[::]:0"]);
    let child = Child::start("itsup run", without_ipv6(command.env("ITSUP_DOCKER", "off")));
    let ready: Value = serde_json::from_str(&child.line(|_| true)).unwrap();
    for name in ["http", "https", "api"] {
        let address: SocketAddr = ready[name].as_str().unwrap().parse().unwrap();
        assert_eq!(address.ip(), Ipv4Addr::UNSPECIFIED, "{name}");
        TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).unwrap();
    }
}

#[test]
fn the_control_socket_is_its_owners_alone_or_the_groups() {
    let root = Root::new();
    root.write("db.yml", hello());
    let group = root.path("group");
    let lines = std::fs::read_to_string("/etc/group").unwrap();
    let others: Vec<&str> = lines.lines().filter(|line| !line.starts_with("itsup:")).collect();
    let root_user = nix::unistd::geteuid().is_root();
    // A user may give files to his own group alone, which is 0 in his namespace.
    let gid = if root_user { 54_321 } else { 0 };
    for (with, mode, folder) in [(false, 0o600, 0o700), (true, 0o660, 0o710)] {
        let mut text = others.join("\n") + "\n";
        if with {
            text.push_str(&format!("itsup:x:{gid}:\n"));
        }
        std::fs::write(&group, text).unwrap();
        let itsup = Itsup::on(&root).through(&with_files_over(&[("/etc/group", &group)])).start();
        let socket = std::fs::metadata(root.path("data/itsup.sock")).unwrap();
        assert_eq!(socket.permissions().mode() & 0o777, mode, "with the group: {with}");
        let data = std::fs::metadata(root.path("data")).unwrap();
        assert_eq!(data.permissions().mode() & 0o777, folder, "with the group: {with}");
        if with {
            let wanted = if root_user { gid } else { nix::unistd::getegid().as_raw() };
            assert_eq!((socket.gid(), data.gid()), (wanted, wanted));
        }
        // Secrets stay the owner's, whoever may go through the folder.
        for secret in ["data/api.sock", "data/ca/root.key", "data/db.last-good.yml"] {
            let path = root.path(secret);
            if let Ok(about) = std::fs::metadata(&path) {
                assert_eq!(about.permissions().mode() & 0o077, 0, "{secret}");
            }
        }
        itsup.stop();
        assert!(!root.path("data/itsup.sock").exists(), "a clean end leaves no socket");
    }
}

#[test]
fn one_itsup_to_a_root_and_one_to_a_port() {
    let itsup = Itsup::start(&hello());
    let second = run(itsup.root().command().args(["run", "--http", "127.0.0.1:0", "--https", "127.0.0.1:0"]));
    assert_eq!(second.code, Some(1));
    assert!(second.stderr.contains("another itsup runs on"), "{}", second.stderr);
    itsup.status();

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--http", "--https", "--api"] {
        let root = Root::new();
        root.write("db.yml", hello());
        let free = ["--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--api", "off"];
        let mut arguments: Vec<&str> = free.chunks(2).filter(|pair| pair[0] != flag).flatten().copied().collect();
        arguments.extend([flag, &address]);
        let run = run(root.command().arg("run").args(&arguments));
        assert_eq!(run.code, Some(1), "{flag}");
        assert!(run.stderr.contains(&address) && run.stderr.contains("hint: "), "{flag}: {}", run.stderr);
    }
    // A crash leaves the socket's file behind; that is no reason not to start.
    let root = itsup.kill();
    assert!(root.path("data/itsup.sock").exists());
    Itsup::on(&root).start().status();
}

#[test]
fn threads_are_as_many_as_asked_for() {
    for (asked, wanted) in [("3", 3), ("", std::thread::available_parallelism().unwrap().get())] {
        let itsup = Itsup::with().env("ITSUP_THREADS", asked).db(&hello()).start();
        let tasks = std::fs::read_dir(format!("/proc/{}/task", itsup.pid())).unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        assert_eq!(names.filter(|name| name.starts_with("itsup-data-")).count(), wanted);
    }
}

#[test]
fn docker_is_off_or_away_and_static_hosts_serve_all_the_same() {
    let app = Testd::start();
    let text = db(&[project("app", "app.test", &[app.addr()], "")]);
    let off = Itsup::with().env("ITSUP_DOCKER", "off").db(&text).start();
    assert_eq!(off.status()["docker"]["state"], "off");
    assert_eq!(off.get("https://app.test/").status, 200);

    let root = Root::new();
    root.write(".env", "DOCKER_HOST=unix:///nowhere/docker.sock\n");
    let start = Instant::now();
    let away = Itsup::on(&root).env("DOCKER_HOST", "").docker().db(&text).start();
    assert!(start.elapsed() < Duration::from_secs(30), "a start does not wait for an engine that is away");
    let status = away.status();
    assert_eq!(status["docker"]["state"], "away");
    assert!(status["docker"]["detail"].as_str().unwrap().contains("/nowhere/docker.sock"), "{status}");
    assert_eq!(away.get("https://app.test/").status, 200);
    assert_eq!(away.metric("itsup_docker_up"), 0.0);
}

#[test]
fn every_setting_has_a_flag_and_stands_in_the_sample() {
    let root = Root::new();
    let help = root.cli(&["run", "--help"]).ok().stdout;
    let sample = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/.env.sample")).unwrap();
    for name in [
        "HTTP",
        "HTTPS",
        "PUBLIC_HTTPS_PORT",
        "API",
        "TRUSTED_PROXIES",
        "PROXY_PROTOCOL",
        "ACCESS_LOG",
        "GRACE",
        "DOCKER",
        "THREADS",
    ] {
        let flag = format!("--{} ", name.to_lowercase().replace('_', "-"));
        assert!(help.contains(&flag), "{flag} is not in:\n{help}");
        assert!(help.contains(&format!("ITSUP_{name}")) && sample.contains(&format!("#ITSUP_{name}=")), "{name}");
    }
    // The sample is what it says: nothing but defaults, and all of it can be read.
    root.write("db.yml", hello());
    root.write(".env", &sample);
    root.cli(&["validate"]).ok();
    let own = |line: &&str| line.starts_with("#ITSUP_") || line.starts_with("#DOCKER_HOST=");
    let uncommented: String = sample.lines().filter(own).map(|line| format!("{}\n", &line[1..])).collect();
    root.write(".env", &uncommented);
    root.cli(&["validate"]).ok();
}
