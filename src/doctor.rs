//! `itsup doctor`: looks at everything that itsUP stands on, and says how to mend what is not as it ought to be.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use itsup_control::control::{read_settings, validate};
use itsup_control::db::{Db, Project};
use itsup_control::settings::{Root, Settings, Sources, Variable, without_ipv6};
use itsup_control::status::StatusReport;
use serde::Serialize;

use crate::client;
use crate::serve::{cores, has_ipv6};

/// Hosts that are looked up; a thousand would take too long.
const HOSTS: usize = 50;
/// The longest that all look-ups, or one program, may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Certificates that end sooner ought to have been renewed.
const DAYS: i64 = 7;
/// Less free space than this is a fault, than four times this a warning.
const SPACE: u64 = 512 * 1024 * 1024;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Good,
    /// Works, and may not for long, or not as meant.
    Warning,
    /// Does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) what: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) found: String,
    /// How to mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
}

fn good(what: &'static str, found: impl Into<String>) -> Check {
    Check { what, verdict: Verdict::Good, found: found.into(), hint: None }
}

fn not_good(what: &'static str, verdict: Verdict, found: impl Into<String>, hint: impl Into<String>) -> Check {
    Check { what, verdict, found: found.into(), hint: Some(hint.into()) }
}

/// Looks at everything.
pub(crate) fn examine(root: &Root, mut sources: Sources) -> Vec<Check> {
    let mut checks = Vec::new();
    let settings = match read_settings(root, &mut sources, cores()) {
        Ok(settings) => {
            checks.push(good("settings", "read without a fault"));
            settings
        }
        Err(faults) => {
            for fault in faults {
                let hint = fault.hint.clone().unwrap_or_else(|| "see .env.sample".into());
                checks.push(not_good(
                    "settings",
                    Verdict::Bad,
                    format!("{}:{}: {}", fault.file, fault.line, fault.message),
                    hint,
                ));
            }
            return checks;
        }
    };
    let db = files(root, &mut sources, &mut checks);
    pitfalls(&settings, db.as_ref(), &sources, &mut checks);
    let running = client::status(root).ok();
    permissions(root, &mut checks);
    ports(&settings, running.as_ref(), &mut checks);
    checks.push(running_version(running.as_ref()));
    if let Some(db) = &db {
        names(db, &mut checks);
    }
    docker(&settings, &mut checks);
    checks.push(space("disk", root.path()));
    if settings.docker && Path::new("/var/lib/docker").is_dir() {
        checks.push(space("disk for images", Path::new("/var/lib/docker")));
    }
    checks.push(clock());
    certificates(running.as_ref(), &mut checks);
    checks
}

fn files(root: &Root, sources: &mut Sources, checks: &mut Vec<Check>) -> Option<Db> {
    match validate(root, sources, cores()) {
        Ok(warnings) if warnings.is_empty() => checks.push(good("db.yml", "valid")),
        Ok(warnings) => {
            for warning in warnings {
                let hint = warning.hint.clone().unwrap_or_else(|| "see db.yml.sample".into());
                checks.push(not_good(
                    "db.yml",
                    Verdict::Warning,
                    format!("{}:{}: {}", warning.file, warning.line, warning.message),
                    hint,
                ));
            }
        }
        Err(refused) => {
            let hint = if root.db().exists() { "`itsup validate` shows every fault" } else { "`itsup init` makes one" };
            checks.push(not_good("db.yml", Verdict::Bad, refused.message, hint));
        }
    }
    itsup_control::db::parse("db.yml", &std::fs::read(root.db()).ok()?).db
}

/// Settings that work, and not as somebody may think.
fn pitfalls(settings: &Settings, db: Option<&Db>, sources: &Sources, checks: &mut Vec<Check>) {
    let rules = &settings.api_rules;
    let projects = db.map(|db| db.projects.as_slice()).unwrap_or_default();
    let own = |project: &&Project| project.webhook.as_ref().is_some_and(|webhook| webhook.secret.is_some());
    let without: Vec<&str> = projects.iter().filter(|one| !own(one)).map(|one| &*one.name).collect();
    if rules.webhook_secret.is_none() && !rules.keys.is_empty() && !without.is_empty() {
        let found = format!("signed with API_KEY where a project has no secret of its own: {}", without.join(", "));
        let hint = "set WEBHOOK_SECRET in .env, or `webhook: {secret}` on the projects: who may deploy need not manage";
        checks.push(not_good("webhooks", Verdict::Warning, found, hint));
    }
    if sources.sets(Variable::AcmeDirectory) && settings.acme.is_none() {
        let found = "ACME_DIRECTORY is set and LE_EMAIL is not, so no CA is asked";
        checks.push(not_good("certificates", Verdict::Warning, found, "set LE_EMAIL in .env"));
    }
}

/// Secrets are nobody else's to read, and what is to be written can be.
fn permissions(root: &Root, checks: &mut Vec<Check>) {
    let before = checks.len();
    for (path, private) in [(root.env(), true), (root.db(), true), (root.data(), true), (root.certs(), true)] {
        let Ok(meta) = std::fs::metadata(&path) else { continue };
        let (shown, mode) = (path.display(), meta.permissions().mode());
        if private && mode & 0o007 != 0 {
            checks.push(not_good(
                "permissions",
                Verdict::Warning,
                format!("{shown} can be used by everybody on this host ({:03o}), and may hold secrets", mode & 0o777),
                format!("chmod o-rwx {shown}"),
            ));
        }
    }
    let own = rustix::process::geteuid().as_raw();
    if let Ok(meta) = std::fs::metadata(root.data())
        && meta.uid() != own
        && own != 0
    {
        let found = format!("{} belongs to user {}, and you are {own}", root.data().display(), meta.uid());
        checks.push(not_good("permissions", Verdict::Bad, found, "use the user that itsup runs as"));
    }
    if checks.len() == before {
        checks.push(good("permissions", "secrets are private"));
    }
}

fn ports(settings: &Settings, running: Option<&StatusReport>, checks: &mut Vec<Check>) {
    if let Some(running) = running {
        let listen = &running.listen;
        let api = listen.api.as_deref().unwrap_or("off");
        checks.push(good("ports", format!("itsup listens: http {}, https {}, api {api}", listen.http, listen.https)));
        return;
    }
    let all = [("ITSUP_HTTP", Some(settings.http)), ("ITSUP_HTTPS", Some(settings.https)), ("ITSUP_API", settings.api)];
    for (name, address) in all {
        let Some(address) = address else { continue };
        let address = if has_ipv6() { address } else { without_ipv6(address) };
        checks.push(match TcpListener::bind(address) {
            Ok(_) => good("ports", format!("{address} is free ({name})")),
            Err(error) => {
                let hint = match error.kind() {
                    io::ErrorKind::AddrInUse => holder(address),
                    io::ErrorKind::PermissionDenied => {
                        "ports below 1024 need root or CAP_NET_BIND_SERVICE, as `itsup service install` gives it".into()
                    }
                    _ => format!("set {name} to an address of this host"),
                };
                not_good("ports", Verdict::Bad, format!("{address} cannot be listened on ({name}): {error}"), hint)
            }
        });
    }
}

/// Who has a port, as far as `ss` tells.
fn holder(address: SocketAddr) -> String {
    let filter = format!("sport = :{}", address.port());
    let said = said_by("ss", &["-Hltnp", &filter]).unwrap_or_default();
    let name = said.split("((\"").nth(1).and_then(|rest| rest.split('"').next());
    match name {
        Some(name) => format!("{name} has it: stop it, or give one of the two another port"),
        None => "another program has it: `ss -ltnp` as root shows which".into(),
    }
}

fn running_version(running: Option<&StatusReport>) -> Check {
    let own = env!("CARGO_PKG_VERSION");
    match running {
        None => not_good("itsup", Verdict::Warning, "does not run", "`itsup run`, or `itsup service install`"),
        Some(running) if running.version != own => not_good(
            "itsup",
            Verdict::Warning,
            format!("version {} runs, and this is {own}", running.version),
            "`itsup upgrade` has this one take over",
        ),
        Some(running) if running.last_good => not_good(
            "itsup",
            Verdict::Bad,
            "runs on the last good db.yml, as the real one cannot be used",
            "mend what `itsup validate` shows, then `itsup reload`",
        ),
        Some(running) => good("itsup", format!("version {own} runs as process {}", running.pid)),
    }
}

/// Whether clients that ask for the hosts find anybody.
fn names(db: &Db, checks: &mut Vec<Check>) {
    let projects = db.projects.iter().filter(|project| project.enabled);
    let hosts: BTreeSet<String> = projects
        .flat_map(|project| project.domain.iter().chain(project.services.iter().filter_map(|s| s.domain.as_ref())))
        .map(|host| host.as_str().to_owned())
        .filter(|host| !host.ends_with(".localhost") && host != "localhost")
        .take(HOSTS)
        .collect();
    if hosts.is_empty() {
        return;
    }
    let (send, found) = mpsc::channel();
    let count = hosts.len();
    for host in hosts {
        let send = send.clone();
        // The system's resolver cannot be hurried; who is late is left behind.
        std::thread::spawn(move || {
            let is_found = (host.as_str(), 443).to_socket_addrs().is_ok_and(|mut all| all.next().is_some());
            let _ = send.send((host, is_found));
        });
    }
    drop(send);
    let end = std::time::Instant::now() + PATIENCE;
    let (mut well, mut heard) = (0, 0);
    while let Ok((host, is_found)) = found.recv_timeout(end.saturating_duration_since(std::time::Instant::now())) {
        heard += 1;
        if is_found {
            well += 1;
        } else {
            let hint = "make a record for it that points to this host; no public certificate can be had without";
            checks.push(not_good("DNS", Verdict::Warning, format!("{host} has no address"), hint));
        }
    }
    if heard < count {
        let found = format!("{} hosts could not be looked up in {PATIENCE:?}", count - heard);
        checks.push(not_good("DNS", Verdict::Warning, found, "see /etc/resolv.conf"));
    }
    if well > 0 {
        checks.push(good("DNS", format!("{well} of {count} hosts have an address")));
    }
}

fn docker(settings: &Settings, checks: &mut Vec<Check>) {
    if !settings.docker {
        checks.push(good("Docker", "off (ITSUP_DOCKER)"));
        return;
    }
    match said_by("docker", &["version", "--format", "{{.Server.Version}}"]) {
        Ok(version) => checks.push(good("Docker", format!("engine {}", version.trim()))),
        Err(why) => {
            let hint = "start it (`systemctl start docker`), join the group docker, or set ITSUP_DOCKER=off";
            checks.push(not_good("Docker", Verdict::Bad, why, hint));
            return;
        }
    }
    let compose = said_by("docker", &["compose", "version", "--short"])
        .or_else(|_| said_by("docker-compose", &["version", "--short"]));
    checks.push(match compose {
        Ok(version) if version.trim().trim_start_matches('v').starts_with("1.") => {
            let found = format!("version {}, and 2 or later is needed", version.trim());
            not_good("compose", Verdict::Bad, found, "install docker-compose-plugin, or run `bin/deps.sh build`")
        }
        Ok(version) => good("compose", format!("version {}", version.trim())),
        Err(why) => not_good("compose", Verdict::Bad, why, "install docker-compose-plugin"),
    });
}

fn space(what: &'static str, folder: &Path) -> Check {
    let stat = match rustix::fs::statvfs(folder) {
        Ok(stat) => stat,
        Err(error) => {
            return not_good(what, Verdict::Warning, format!("{}: {error}", folder.display()), "is it there?");
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let found = format!("{} MB free at {}", free / (1024 * 1024), folder.display());
    let hint = "`docker image prune` and old logs are the usual places to look";
    if stat.f_files > 0 && stat.f_favail == 0 {
        return not_good(what, Verdict::Bad, format!("no more files can be made at {}", folder.display()), hint);
    }
    match free {
        free if free < SPACE => not_good(what, Verdict::Bad, found, hint),
        free if free < 4 * SPACE => not_good(what, Verdict::Warning, found, hint),
        _ => good(what, found),
    }
}

/// A wrong clock makes every certificate invalid.
fn clock() -> Check {
    let newest = std::env::current_exe().and_then(|exe| exe.metadata()?.modified());
    if newest.is_ok_and(|made| made > std::time::SystemTime::now() + Duration::from_secs(24 * 3600)) {
        let found = "this very program was made in the future";
        return not_good("clock", Verdict::Bad, found, "set the clock: `timedatectl set-ntp true`");
    }
    match said_by("timedatectl", &["show", "--property=NTPSynchronized", "--value"]).as_deref().map(str::trim) {
        Ok("yes") => good("clock", "synchronized"),
        Ok("no") => not_good("clock", Verdict::Warning, "not synchronized", "`timedatectl set-ntp true`"),
        _ => good("clock", "plausible; whether it is synchronized cannot be told here"),
    }
}

fn certificates(running: Option<&StatusReport>, checks: &mut Vec<Check>) {
    let Some(running) = running else { return };
    let mut well = 0;
    for certificate in &running.certificates {
        let (host, days) = (&certificate.host, certificate.days_left);
        if days < 0 {
            let hint = "`itsup certs` tells why it was not renewed";
            checks.push(not_good("certificates", Verdict::Bad, format!("that of {host} has ended"), hint));
        } else if days < DAYS && certificate.source != "internal" {
            let found = format!("that of {host} ends in {days} days");
            checks.push(not_good(
                "certificates",
                Verdict::Warning,
                found,
                "`itsup certs` tells why it was not renewed",
            ));
        } else {
            well += 1;
        }
    }
    if well > 0 {
        checks.push(good("certificates", format!("{well} are good for a while")));
    }
}

/// What a program says, or why it says nothing.
fn said_by(program: &str, arguments: &[&str]) -> Result<String, String> {
    let started = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let child = started.map_err(|error| format!("{program} cannot be run: {error}"))?;
    let pid = child.id();
    let (send, ended) = mpsc::channel();
    std::thread::spawn(move || _ = send.send(child.wait_with_output()));
    let output = match ended.recv_timeout(PATIENCE) {
        Ok(output) => output.map_err(|error| format!("{program}: {error}"))?,
        Err(_) => {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                // It may just have ended.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            return Err(format!("{program} does not answer"));
        }
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().next().unwrap_or("it says nothing").to_owned())
}
