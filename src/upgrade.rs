//! An upgrade, as the older process sees it: start the new one, give it the sockets, and either leave or go on as before.
//!
//! ```text
//! old                                     new
//! lays the pen down, control rests
//! starts it, sends the sockets  ───────▶  opens what is missing, loads db.yml and certificates,
//!                               ◀───────  asks every data thread: Loaded
//! pauses accepting: Accept      ───────▶  accepts, asks itself through the sockets
//! drains, tells what it serves  ◀───────  Ready
//! ```
//! Until `Ready` every step can be taken back: nothing has been closed, and what waits in a queue is answered by whoever accepts next.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use itsup_control::handover::{self, Channel, ChannelError, PROTOCOL, SocketName, Word};
use itsup_control::pen::LaidDown;
use itsup_control::status::ErrorReport;
use itsup_control::upgrade::{UpgradeReport, UpgradeRequest};

use crate::failure::Failure;
use crate::inherit::HANDOVER;
use crate::serve::House;
use crate::systemd;

/// How long changes that are under way are waited for: a rollout may be one.
const CHANGES: Duration = Duration::from_secs(15 * 60);
/// File descriptors in one message.
const AT_ONCE: usize = 100;

/// A new process has taken over.
pub(crate) struct Successor {
    pub(crate) report: UpgradeReport,
    /// On which it asks what is still served.
    pub(crate) channel: Arc<Channel>,
    /// The other one writes now; this one never does again.
    _pen: LaidDown,
}

/// Replaces this process by another; on failure everything is as it was.
pub(crate) async fn upgrade(house: &mut House, request: UpgradeRequest) -> Result<Successor, Failure> {
    let binary = check(&request.to)?;
    let jobs = house.jobs.clone();
    let paused = tokio::time::timeout(CHANGES, async {
        if let Some(jobs) = &jobs {
            jobs.pause().await;
        }
    });
    let outcome = if paused.await.is_ok() { with_jobs_paused(house, request, &binary).await } else { Err(too_long()) };
    if let (Err(_), Some(jobs)) = (&outcome, &jobs) {
        jobs.resume();
    }
    outcome
}

fn too_long() -> Failure {
    Failure::with_hint(
        "changes have been under way for too long to upgrade now",
        "`itsup jobs` shows what is under way; try again",
    )
}

async fn with_jobs_paused(house: &mut House, request: UpgradeRequest, binary: &Path) -> Result<Successor, Failure> {
    let Some(down) = house.control.pen().lay_down(CHANGES).await else {
        return Err(too_long());
    };
    house.control.suspend().await.context("control cannot be paused")?;
    let began = Instant::now();
    let patience = Duration::from_secs(request.patience_seconds.clamp(1, 600));
    tracing::info!("upgrading to {}", binary.display());
    match replace(house, binary, began + patience).await {
        Ok((channel, pid, version)) => {
            tracing::info!(pid, "version {version} has taken over");
            let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let draining = house.proxy.status().connections;
            Ok(Successor { report: UpgradeReport { pid, version, took_ms, draining }, channel, _pen: down })
        }
        Err(failure) => {
            tracing::error!("the upgrade failed, and this process goes on: {}", failure.report.error);
            house.proxy.resume();
            house.open_api()?;
            house.control.resume().await.context("control cannot go on")?;
            Err(failure)
        }
    }
}

/// Only what its owner alone can change may be run by him.
fn check(binary: &Path) -> Result<PathBuf, Failure> {
    let fail = |why: String| Failure::with_hint(why, "say which binary with --to");
    if std::process::id() == 1 {
        return Err(Failure::with_hint(
            "itsup is process 1 here, and its container would end with it",
            "start a container with the new version instead",
        ));
    }
    let binary = binary.canonicalize().map_err(|error| fail(format!("{}: {error}", binary.display())))?;
    let meta = binary.metadata().map_err(|error| fail(format!("{}: {error}", binary.display())))?;
    let shown = binary.display();
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return Err(fail(format!("{shown} is not a program")));
    }
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() != own && meta.uid() != 0 {
        return Err(fail(format!("{shown} belongs to somebody else (user {})", meta.uid())));
    }
    if meta.permissions().mode() & 0o002 != 0 {
        return Err(Failure::with_hint(format!("{shown} can be changed by anybody"), format!("chmod o-w {shown}")));
    }
    Ok(binary)
}

/// A started process, which does not outlive its failure.
struct Started(Option<Child>);

impl Started {
    fn keep(mut self) {
        self.0 = None;
    }

    /// How it ended.
    fn ending(&mut self) -> String {
        let Some(child) = &mut self.0 else { return "the new process hung up".into() };
        // Who has hung up has ended, or is of no use.
        let _ = child.kill();
        match child.wait() {
            Ok(status) => format!("the new process ended before it was ready ({status})"),
            Err(error) => format!("the new process hung up: {error}"),
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn replace(house: &mut House, binary: &Path, end: Instant) -> Result<(Arc<Channel>, u32, String), Failure> {
    let (ours, theirs) = handover::pair().context("no channel can be made")?;
    let ours = Arc::new(ours);
    let mut started = Started(Some(start(binary, theirs)?));
    give(house, &ours, &mut started)?;
    expect(&ours, &mut started, end, |word| matches!(word, Word::Loaded).then_some(())).await?;
    house.proxy.pause().await;
    house.close_api();
    // Nothing runs: this keeps late ones out, and has the queue on disk for the new one to read.
    house.close_jobs().await;
    ours.send(&Word::Accept, &[]).map_err(|error| broken(&mut started, error))?;
    let ready = |word: &Word| match word {
        Word::Ready { pid, version } => Some((*pid, version.clone())),
        _ => None,
    };
    let (pid, version) = expect(&ours, &mut started, end, ready).await?;
    started.keep();
    systemd::notify(&format!("MAINPID={pid}"));
    Ok((ours, pid, version))
}

fn start(binary: &Path, channel: Channel) -> Result<Child, Failure> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut command = Command::new(binary);
    command.args(arguments).stdin(Stdio::from(channel.into_fd())).env(HANDOVER, "1");
    for passed_to_us in ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(passed_to_us);
    }
    command.spawn().map_err(|error| Failure::faults(format!("{} cannot be started: {error}", binary.display()), vec![]))
}

/// Sends every socket and the claim.
fn give(house: &House, channel: &Channel, started: &mut Started) -> Result<(), Failure> {
    let listeners = house.proxy.listeners().context("sockets cannot be duplicated")?;
    let elders = house.control.elders().channels().context("channels cannot be duplicated")?;
    let elders: Vec<OwnedFd> = elders.into_iter().map(Channel::into_fd).collect();
    let mut all: Vec<(SocketName, BorrowedFd<'_>)> = Vec::new();
    all.extend(listeners.http.iter().map(|socket| (SocketName::Http, socket.as_fd())));
    all.extend(listeners.https.iter().map(|socket| (SocketName::Https, socket.as_fd())));
    all.extend(house.doors.tcp.iter().map(|socket| (SocketName::Api, socket.as_fd())));
    all.push((SocketName::Control, house.doors.control.as_fd()));
    all.push((SocketName::Proxy, house.doors.proxy.as_fd()));
    all.push((SocketName::Claim, house.doors.claim.as_fd()));
    all.extend(elders.iter().map(|elder| (SocketName::Elder, elder.as_fd())));
    let mut parts = all.chunks(AT_ONCE).peekable();
    while let Some(part) = parts.next() {
        let (sockets, fds): (Vec<SocketName>, Vec<BorrowedFd<'_>>) = part.iter().copied().unzip();
        let word = Word::Take { protocol: PROTOCOL, sockets, more: parts.peek().is_some() };
        channel.send(&word, &fds).map_err(|error| broken(started, error))?;
    }
    Ok(())
}

/// Waits for the one word that is due.
async fn expect<T>(
    channel: &Arc<Channel>,
    started: &mut Started,
    end: Instant,
    due: impl Fn(&Word) -> Option<T>,
) -> Result<T, Failure> {
    let left = end.saturating_duration_since(Instant::now());
    let listening = channel.clone();
    let heard = tokio::task::spawn_blocking(move || listening.receive(Some(left))).await;
    match heard.context("nobody listens to the new process")? {
        Ok((Word::Failed { report }, _)) => Err(refused(report)),
        Ok((word, _)) => due(&word).ok_or_else(|| Failure::faults("the new process says something unexpected", vec![])),
        Err(error) => Err(broken(started, error)),
    }
}

fn refused(report: ErrorReport) -> Failure {
    let error = format!("the new process cannot serve: {}", report.error);
    Failure { report: ErrorReport { error, ..report } }
}

fn broken(started: &mut Started, error: ChannelError) -> Failure {
    let why = match error {
        ChannelError::Closed => started.ending(),
        ChannelError::TimedOut => "the new process was not ready in time".into(),
        other => format!("the new process: {other}"),
    };
    Failure::with_hint(why, "its own log says more")
}
