//! `itsup service`: the systemd units, written, removed and looked at.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use itsup_control::files;
use itsup_control::settings::{Root, Settings};
use serde::Serialize;

use crate::failure::Failure;

const SERVICE: &str = "itsup.service";
const SOCKET: &str = "itsup.socket";

/// What the units are to say.
pub(crate) struct Wanted {
    /// Where the units go.
    pub(crate) folder: PathBuf,
    /// Who runs it.
    pub(crate) user: String,
    /// Whether systemd opens the sockets.
    pub(crate) socket: bool,
    /// Whether it is enabled and started.
    pub(crate) start: bool,
}

/// What was done, or is there.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Units, each with its file.
    pub(crate) units: Vec<PathBuf>,
    /// Whether they are as this version would write them.
    pub(crate) current: bool,
    /// What systemd says of the service; empty where it does not run here.
    pub(crate) active: String,
    pub(crate) enabled: String,
    pub(crate) main_pid: Option<u32>,
    /// What is left to do by hand, or was.
    pub(crate) notes: Vec<String>,
}

/// Writes the units, makes the user, and starts the service.
pub(crate) fn install(root: &Root, settings: &Settings, wanted: &Wanted) -> Result<Report, Failure> {
    let root = absolute(root)?;
    let mut report = Report { current: true, ..Report::default() };
    for (name, text) in units(&root, settings, wanted)? {
        let path = wanted.folder.join(name);
        let written = files::make_folder(&wanted.folder, 0o755)
            .and_then(|()| files::write_atomically(&path, text.as_bytes(), 0o644));
        written.map_err(|error| not_root(format!("{}: {error}", path.display())))?;
        report.units.push(path);
    }
    let socket = wanted.folder.join(SOCKET);
    if !wanted.socket && socket.exists() {
        // Of an earlier installation; the service would go on waiting for it.
        if wanted.start && has_systemd() {
            systemctl(&["disable", "--now", SOCKET])?;
        }
        std::fs::remove_file(&socket).map_err(|error| not_root(format!("{}: {error}", socket.display())))?;
    }
    if !wanted.start {
        return Ok(report);
    }
    make_user(&wanted.user, &root, &mut report.notes)?;
    give_files(&wanted.user, &root, &mut report.notes)?;
    if !has_systemd() {
        report.notes.push("systemd does not run here: the units are written and nothing is started".into());
        return Ok(report);
    }
    systemctl(&["daemon-reload"])?;
    if wanted.socket {
        systemctl(&["enable", "--now", SOCKET])?;
    }
    systemctl(&["enable", "--now", SERVICE])?;
    look(&mut report);
    Ok(report)
}

/// Stops the service and removes its units; the user and all files stay.
pub(crate) fn uninstall(folder: &Path) -> Result<Report, Failure> {
    let mut report = Report::default();
    let there: Vec<&str> = [SERVICE, SOCKET].into_iter().filter(|name| folder.join(name).exists()).collect();
    if has_systemd() {
        for name in &there {
            systemctl(&["disable", "--now", name])?;
        }
    }
    for name in there {
        let path = folder.join(name);
        std::fs::remove_file(&path).map_err(|error| not_root(format!("{}: {error}", path.display())))?;
        report.units.push(path);
    }
    if has_systemd() {
        systemctl(&["daemon-reload"])?;
    }
    Ok(report)
}

/// Looks at what is there.
pub(crate) fn status(root: &Root, settings: &Settings, wanted: &Wanted) -> Result<Report, Failure> {
    let root = absolute(root)?;
    let mut report = Report { current: true, ..Report::default() };
    let socket = wanted.folder.join(SOCKET).exists();
    let user = std::fs::read_to_string(wanted.folder.join(SERVICE)).ok().and_then(|text| user_of(&text));
    let as_installed = Wanted {
        folder: wanted.folder.clone(),
        user: user.unwrap_or_else(|| wanted.user.clone()),
        socket,
        start: false,
    };
    for (name, text) in units(&root, settings, &as_installed)? {
        let path = wanted.folder.join(name);
        match std::fs::read_to_string(&path) {
            Ok(there) => {
                report.current &= there == text;
                report.units.push(path);
            }
            Err(_) => report.current = false,
        }
    }
    match (report.units.is_empty(), report.current) {
        (true, _) => report.notes.push("not installed: `itsup service install` does that".into()),
        (false, false) => {
            report
                .notes
                .push("the units are not what this version would write: `itsup service install` renews them".into());
        }
        (false, true) => {}
    }
    look(&mut report);
    Ok(report)
}

fn user_of(unit: &str) -> Option<String> {
    unit.lines().find_map(|line| line.strip_prefix("User=")).map(str::to_owned)
}

fn look(report: &mut Report) {
    if !has_systemd() {
        return;
    }
    let said =
        Command::new("systemctl").args(["show", SERVICE, "--property=ActiveState,UnitFileState,MainPID"]).output();
    let Ok(said) = said else { return };
    for line in String::from_utf8_lossy(&said.stdout).lines() {
        match line.split_once('=') {
            Some(("ActiveState", state)) => report.active = state.into(),
            Some(("UnitFileState", state)) => report.enabled = state.into(),
            Some(("MainPID", pid)) => report.main_pid = pid.parse().ok().filter(|pid| *pid != 0),
            _ => {}
        }
    }
}

fn absolute(root: &Root) -> Result<Root, Failure> {
    let path = root.path().canonicalize();
    Ok(Root::new(path.with_context(|| format!("{} is not there; `itsup init` makes it", root.path().display()))?))
}

/// The units' names and texts.
fn units(root: &Root, settings: &Settings, wanted: &Wanted) -> anyhow::Result<Vec<(&'static str, String)>> {
    let binary = std::env::current_exe().context("this program's own file is not known")?;
    let mut units = vec![(SERVICE, service_unit(root, &binary, settings, wanted)?)];
    if wanted.socket {
        units.push((SOCKET, socket_unit(settings)));
    }
    Ok(units)
}

fn service_unit(root: &Root, binary: &Path, settings: &Settings, wanted: &Wanted) -> anyhow::Result<String> {
    let (binary, folder) = (quoted(binary)?, quoted(root.path())?);
    let user = &wanted.user;
    // With the time that a last write needs.
    let stop = settings.grace.as_secs() + 15;
    // `docker` rules the whole host, and so does whoever is in its group; there is no smaller way to start containers.
    let docker = if settings.docker && user != "root" { "SupplementaryGroups=docker\n" } else { "" };
    let requires = if wanted.socket { "Requires=itsup.socket\nAfter=itsup.socket\n" } else { "" };
    Ok(format!(
        "# Written by `itsup service install`, which also renews it; local changes belong in {SERVICE}.d/.\n\
        [Unit]\n\
        Description=itsUP, reverse proxy and stacks\n\
        After=network-online.target docker.service\n\
        Wants=network-online.target\n\
        {requires}\n\
        [Service]\n\
        Type=notify\n\
        # An upgrade changes the main process; only that one is listened to.\n\
        NotifyAccess=main\n\
        ExecStart={binary} --root {folder} run\n\
        ExecReload={binary} --root {folder} reload\n\
        WorkingDirectory={folder}\n\
        User={user}\n\
        Group={user}\n\
        {docker}\
        Restart=always\n\
        RestartSec=1\n\
        WatchdogSec=30\n\
        TimeoutStartSec=60\n\
        TimeoutStopSec={stop}\n\
        # The process itself ends its connections and changes in order.\n\
        KillMode=mixed\n\
        LimitNOFILE=1048576\n\
        UMask=0077\n\
        \n\
        # Ports below 1024, and nothing else that root may.\n\
        AmbientCapabilities=CAP_NET_BIND_SERVICE\n\
        CapabilityBoundingSet=CAP_NET_BIND_SERVICE\n\
        NoNewPrivileges=yes\n\
        \n\
        # It reads the system and writes its own root folder.\n\
        ProtectSystem=strict\n\
        ReadWritePaths={folder}\n\
        ProtectHome={home}\n\
        PrivateTmp=yes\n\
        PrivateDevices=yes\n\
        ProtectProc=invisible\n\
        ProcSubset=pid\n\
        ProtectClock=yes\n\
        ProtectHostname=yes\n\
        ProtectControlGroups=yes\n\
        ProtectKernelLogs=yes\n\
        ProtectKernelModules=yes\n\
        ProtectKernelTunables=yes\n\
        RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK\n\
        RestrictNamespaces=yes\n\
        RestrictRealtime=yes\n\
        RestrictSUIDSGID=yes\n\
        RemoveIPC=yes\n\
        LockPersonality=yes\n\
        MemoryDenyWriteExecute=yes\n\
        SystemCallArchitectures=native\n\
        SystemCallFilter=@system-service\n\
        SystemCallFilter=~@privileged\n\
        SystemCallErrorNumber=EPERM\n\
        \n\
        [Install]\n\
        WantedBy=multi-user.target\n",
        // A root folder below /home must stay visible.
        home = if root.path().starts_with("/home") || root.path().starts_with("/root") { "no" } else { "yes" },
    ))
}

/// systemd holds the ports, so that connections wait rather than fail while the service starts anew.
fn socket_unit(settings: &Settings) -> String {
    let mut text = format!(
        "# Written by `itsup service install --socket`.\n\
        [Unit]\n\
        Description=itsUP's ports\n\
        \n\
        [Socket]\n\
        ListenStream={}\n\
        ListenStream={}\n",
        settings.http, settings.https
    );
    if let Some(api) = settings.api {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "ListenStream={api}");
    }
    text.push_str(
        "BindIPv6Only=both\nBacklog=4096\nNoDelay=yes\nService=itsup.service\n\n[Install]\nWantedBy=sockets.target\n",
    );
    text
}

/// A path as a unit file wants it.
fn quoted(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().filter(|text| !text.contains(|c: char| c.is_control() || c == '"' || c == '\\'));
    let text = text.with_context(|| format!("{} cannot stand in a unit file", path.display()))?.replace('%', "%%");
    Ok(if text.contains(' ') { format!("\"{text}\"") } else { text })
}

fn has_systemd() -> bool {
    // sd_booted(3)
    Path::new("/run/systemd/system").is_dir()
}

fn systemctl(arguments: &[&str]) -> Result<(), Failure> {
    run("systemctl", arguments)
}

fn run(program: &str, arguments: &[&str]) -> Result<(), Failure> {
    let said = Command::new(program).args(arguments).output().with_context(|| format!("{program} cannot be run"))?;
    if said.status.success() {
        return Ok(());
    }
    Err(Failure::faults(
        format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&said.stderr).trim()),
        Vec::new(),
    ))
}

fn make_user(user: &str, root: &Root, notes: &mut Vec<String>) -> Result<(), Failure> {
    if nix::unistd::User::from_name(user).ok().flatten().is_some() {
        return Ok(());
    }
    let home = root.path().display().to_string();
    let shell = "/usr/sbin/nologin";
    run("useradd", &["--system", "--user-group", "--home-dir", &home, "--no-create-home", "--shell", shell, user])?;
    notes.push(format!("the user {user} was made; members of the group {user} may use the control socket"));
    Ok(())
}

/// What it writes belongs to the service's user from now on; db.yml and .env it may read.
fn give_files(user: &str, root: &Root, notes: &mut Vec<String>) -> Result<(), Failure> {
    let owner = format!("{user}:{user}");
    for name in ["data", "logs", "upstream", "certs", "db.yml", ".env"] {
        let path = root.path().join(name);
        if matches!(name, "data" | "logs" | "upstream") {
            files::make_folder(&path, if name == "data" { 0o700 } else { 0o755 })
                .with_context(|| format!("{} cannot be made", path.display()))?;
        }
        if path.exists() {
            run("chown", &["--recursive", &owner, &path.display().to_string()])?;
        }
    }
    notes.push(format!("data, logs, upstream, certs, db.yml and .env in {} belong to {user}", root.path().display()));
    Ok(())
}

fn not_root(error: String) -> Failure {
    Failure::with_hint(error, "run it as root, or write the units elsewhere with --unit-dir and --no-start")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_as_unit_files_want_them() {
        assert_eq!(quoted(Path::new("/opt/itsup")).unwrap(), "/opt/itsup");
        assert_eq!(quoted(Path::new("/opt/its up")).unwrap(), "\"/opt/its up\"");
        assert_eq!(quoted(Path::new("/opt/100%")).unwrap(), "/opt/100%%");
        assert!(quoted(Path::new("/opt/\"")).is_err() && quoted(Path::new("/opt/\n")).is_err());
    }

    #[test]
    fn the_user_is_read_back() {
        assert_eq!(user_of("[Service]\nUser=someone\n").as_deref(), Some("someone"));
        assert_eq!(user_of("[Service]\n"), None);
    }
}
