//! `itsup run`: wires proxy, control and API together, and listens to signals; as a newer process's elder or an older one's heir, too.

use std::fs::File;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener as StdTcpListener};
use std::num::NonZeroUsize;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use itsup_control::api::{self, Api, Claim, SocketError};
use itsup_control::apply::ByCompose;
use itsup_control::change::Rollouts;
use itsup_control::control::{Control, ReloadError, Start, read_settings, validate};
use itsup_control::files;
use itsup_control::handover::{self, Channel, ChannelError, Elders, Word};
use itsup_control::jobs::{Jobs, Origin, Work};
use itsup_control::pen::{LaidDown, Pen};
use itsup_control::reconcile;
use itsup_control::self_update::take_promise;
use itsup_control::settings::{Root, Settings, Sources, without_ipv6};
use itsup_control::upgrade::{Upgrades, Wish};
use itsup_control::worker::{Changes, Published};
use itsup_proxy::{Config, Limits, Listeners, Proxy, SelfTestError, Through};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::cli::SettingFlags;
use crate::failure::Failure;
use crate::inherit::{Inherited, is_at};
use crate::render::{Output, Ready};
use crate::systemd;
use crate::upgrade::{Successor, upgrade};

/// The data threads are the proxy's own; these serve Docker, certificates and the API.
const CONTROL_THREADS: usize = 2;
/// How long an older process waits for the API's clients to take their answers.
const API_GRACE: Duration = Duration::from_secs(5);

/// What `ITSUP_THREADS` defaults to.
pub(crate) fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Serves until a signal ends it, or a newer process has taken over.
pub(crate) fn run(root: Root, flags: Box<SettingFlags>, output: &Output) -> Result<(), Failure> {
    let mut inherited = Inherited::find()?;
    let older = inherited.older.take();
    let done = run_with(root, flags, inherited, older.as_ref(), output);
    if let (Err(failure), Some(older)) = (&done, &older) {
        // It may have lost patience by now; then it knows already.
        let _ = older.send(&Word::Failed { report: failure.report.clone() }, &[]);
    }
    done
}

fn run_with(
    root: Root,
    flags: Box<SettingFlags>,
    inherited: Inherited,
    older: Option<&Channel>,
    output: &Output,
) -> Result<(), Failure> {
    let mut sources = flags.sources();
    let settings = read_settings(&root, &mut sources, cores())
        .map_err(|faults| Failure::faults("the settings have faults", faults))?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("itsup-control-io")
        .enable_all()
        .build()
        .context("the async runtime cannot be started")?;
    let done = runtime.block_on(async {
        // Before anybody can know of this process.
        let signals = Signals::new()?;
        let house = match older {
            None => {
                let (mut house, pen) = House::open(settings, sources, inherited, false).await?;
                house.open_api()?;
                drop(pen);
                house
            }
            Some(older) => House::succeed(settings, sources, inherited, older).await?,
        };
        house.note_pid();
        house.keep_promise();
        output.ready(&house.ready())?;
        systemd::notify("READY=1");
        house.live(signals).await
    });
    // Look-ups may hang in the system's resolver; nobody waits for them.
    runtime.shutdown_background();
    done
}

/// Everything that runs.
pub(crate) struct House {
    pub(crate) root: Root,
    pub(crate) proxy: Proxy,
    pub(crate) control: Control,
    /// Changes; none before this process may write.
    pub(crate) jobs: Option<Jobs>,
    pub(crate) doors: Doors,
    wishes: mpsc::Receiver<Wish>,
    /// Tells the API's sockets to close.
    close: watch::Sender<bool>,
    api: JoinSet<io::Result<()>>,
}

/// How it came that nothing is to be served any more.
enum End {
    Stopped,
    Succeeded(Successor),
}

impl House {
    /// Starts everything but the API. Nobody may write until the pen is let go.
    async fn open(
        settings: Settings,
        sources: Sources,
        inherited: Inherited,
        succeeds: bool,
    ) -> Result<(House, Option<LaidDown>), Failure> {
        let root = settings.root.clone();
        let Inherited { listeners, api, control, proxy, claim, elders: older, .. } = inherited;
        let doors = Doors::open(&settings, api, control, proxy, claim)?;
        let proxy = bind_proxy(&settings, listeners, succeeds)?;
        let (pen, elders) = (Pen::default(), Elders::default());
        older.into_iter().for_each(|older| elders.adopt(older));
        let down = pen.lay_down(Duration::MAX).await;
        let (upgrades, wishes) = Upgrades::channel();
        let api = doors.tcp_address();
        let start = Start { proxy: proxy.clone(), settings, sources, cores: cores(), api, pen, elders, upgrades };
        let control = Control::start(start).await?;
        tokio::spawn(systemd::watchdog(proxy.clone()));
        let (close, api) = (watch::Sender::new(false), JoinSet::new());
        Ok((House { root, proxy, control, jobs: None, doors, wishes, close, api }, down))
    }

    /// Takes an older process's place, step by step; before the last one it can still go on as if nothing had been.
    async fn succeed(
        settings: Settings,
        mut sources: Sources,
        inherited: Inherited,
        older: &Channel,
    ) -> Result<House, Failure> {
        let cut_off = |error: ChannelError| Failure::faults(format!("the older process goes on: {error}"), Vec::new());
        // At a start faulty projects are left out; an upgrade must not take a project off the network.
        validate(&settings.root, &mut sources, cores())?;
        let (mut house, pen) = House::open(settings, sources, inherited, true).await?;
        let untested = |error: SelfTestError| Failure::faults(error.to_string(), Vec::new());
        house.proxy.test_itself(Through::Threads).await.map_err(untested)?;
        older.send(&Word::Loaded, &[]).map_err(cut_off)?;
        let listening = older.try_clone().context("the channel cannot be duplicated")?;
        let heard = tokio::task::spawn_blocking(move || listening.receive(None)).await;
        match heard.context("nobody listens to the older process")?.map_err(cut_off)? {
            (Word::Accept, _) => {}
            _ => return Err(Failure::faults("the older process says something unexpected", Vec::new())),
        }
        house.proxy.resume();
        house.open_api()?;
        house.proxy.test_itself(Through::Listeners).await.map_err(untested)?;
        let elders = house.control.elders();
        elders.adopt(older.try_clone().context("the channel cannot be duplicated")?);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        older.send(&Word::Ready { pid: std::process::id(), version }, &[]).map_err(cut_off)?;
        drop(pen);
        let (elders, proxy) = (elders.clone(), house.proxy.clone());
        tokio::spawn(async move { elders.keep_told(proxy).await });
        Ok(house)
    }

    fn ready(&self) -> Ready {
        Ready {
            http: self.proxy.http_addr().to_string(),
            https: self.proxy.https_addr().to_string(),
            api: self.doors.tcp_address().map(|address| address.to_string()),
        }
    }

    /// Applies db.yml where the process before has promised that of this one.
    fn keep_promise(&self) {
        let Some(jobs) = self.jobs.as_ref().filter(|_| take_promise(&self.root)) else { return };
        let work = Work::Apply { project: None, prune: false, force: false, unpin: false };
        if let Err(error) = jobs.submit(work, Origin::Cli) {
            tracing::error!("after the self-update, db.yml was not applied: {error}; `itsup apply` does it");
        }
    }

    /// For scripts, which then find this process also after an upgrade.
    fn note_pid(&self) {
        let path = self.root.pid_file();
        if let Err(error) = files::write_atomically(&path, format!("{}\n", std::process::id()).as_bytes(), 0o644) {
            tracing::warn!("{}: {error}; bin/stop-all.sh will not find this process", path.display());
        }
    }

    /// Serves the API on all of its sockets.
    pub(crate) fn open_api(&mut self) -> anyhow::Result<()> {
        let failed = "the API's sockets cannot be listened on";
        self.close = watch::Sender::new(false);
        let jobs = match &self.jobs {
            Some(jobs) => jobs.clone(),
            None => {
                let settings = self.control.settings().context("control has no settings yet")?;
                let worker = changer(&settings, &self.control)?;
                let jobs = self.jobs.insert(Jobs::start(self.root.jobs(), Arc::new(worker))).clone();
                tokio::spawn(reconcile::run(self.control.clone(), jobs.clone()));
                jobs
            }
        };
        let api = Api::new(self.control.clone(), jobs);
        let control = UnixListener::from_std(self.doors.control.try_clone().context(failed)?).context(failed)?;
        self.api.spawn(api::serve_control(control, api.clone(), self.close.subscribe()));
        let proxy = UnixListener::from_std(self.doors.proxy.try_clone().context(failed)?).context(failed)?;
        self.api.spawn(api::serve_proxy(proxy, api.clone(), self.close.subscribe()));
        if let Some(tcp) = &self.doors.tcp {
            let tcp = TcpListener::from_std(tcp.try_clone().context(failed)?).context(failed)?;
            self.api.spawn(api::serve_tcp(tcp, api, self.close.subscribe()));
        }
        Ok(())
    }

    /// Leaves the API's sockets to somebody else; what has been asked is answered.
    pub(crate) fn close_api(&mut self) {
        self.close.send_replace(true);
    }

    async fn live(mut self, mut signals: Signals) -> Result<(), Failure> {
        match self.until_the_end(&mut signals).await {
            End::Stopped => {
                systemd::notify("STOPPING=1");
                self.shut_down(&mut signals).await;
                remove_sockets(&self.root);
            }
            End::Succeeded(successor) => self.leave(&mut signals, successor).await,
        }
        Ok(())
    }

    /// Does what signals and the API ask for.
    async fn until_the_end(&mut self, signals: &mut Signals) -> End {
        loop {
            tokio::select! {
                () = signals.ends.any() => return End::Stopped,
                _ = signals.hang_up.recv() => { tokio::spawn(reload(Arc::new(self.control.clone()))); }
                _ = signals.user1.recv() => self.proxy.reopen_access_log(),
                Some(Wish { request, answer }) = self.wishes.recv() => {
                    let outcome = tokio::select! {
                        outcome = upgrade(self, request) => outcome,
                        () = signals.ends.any() => return End::Stopped,
                    };
                    // Whoever asked may have hung up; what was done is done.
                    match outcome {
                        Ok(successor) => {
                            let _ = answer.send(Ok(successor.report.clone()));
                            return End::Succeeded(successor);
                        }
                        Err(failure) => {
                            let _ = answer.send(Err(failure.report));
                        }
                    }
                }
            }
        }
    }

    /// Begins no more changes, and waits for those that run; what waits is the next process's.
    pub(crate) async fn close_jobs(&self) {
        if let Some(jobs) = &self.jobs {
            jobs.close().await;
        }
    }

    /// Ends, within the grace.
    async fn shut_down(&self, signals: &mut Signals) {
        let grace = self.control.grace();
        tracing::info!("shutting down, within {grace:?}");
        tokio::select! {
            // A change that is not done within the grace is finished or undone at the next start.
            (cut, _) = async { tokio::join!(self.proxy.shutdown(grace), tokio::time::timeout(grace, self.close_jobs())) } => {
                if cut > 0 {
                    tracing::warn!(connections = cut, "the grace is over: connections were cut");
                }
            }
            () = signals.ends.second_interrupt() => {
                remove_sockets(&self.root);
                tracing::warn!("interrupted again: what was under way is cut");
                std::process::exit(130);
            }
        }
    }

    /// Leaves the field to a newer process, and serves what is left as long as that lasts.
    async fn leave(self, signals: &mut Signals, successor: Successor) {
        let House { proxy, control, doors, mut api, .. } = self;
        // Nobody but the newer process has the claim and the sockets from here on.
        drop(doors);
        let younger = {
            let (proxy, control, runtime) = (proxy.clone(), control.clone(), Handle::current());
            move || handover::serve_younger(&successor.channel, &control, &proxy, &runtime)
        };
        if let Err(error) = std::thread::Builder::new().name("itsup-younger".into()).spawn(younger) {
            tracing::warn!("the newer process cannot be answered: {error}");
        }
        tokio::select! {
            () = proxy.drain(control.longest_drain()) => {}
            () = signals.ends.any() => {}
        }
        let cut = proxy.shutdown(control.grace()).await;
        tracing::info!(cut, "everything has been served: leaving");
        let answered = async { while api.join_next().await.is_some() {} };
        // A client of the API that stays connected has had its answers.
        let _ = tokio::time::timeout(API_GRACE, answered).await;
    }
}

/// The API's sockets, bound and not served yet, and the claim on the state folder.
pub(crate) struct Doors {
    pub(crate) control: StdUnixListener,
    pub(crate) proxy: StdUnixListener,
    pub(crate) tcp: Option<StdTcpListener>,
    pub(crate) claim: Claim,
}

impl Doors {
    fn open(
        settings: &Settings,
        api: Vec<StdTcpListener>,
        control: Option<StdUnixListener>,
        proxy: Option<StdUnixListener>,
        claim: Option<File>,
    ) -> Result<Doors, Failure> {
        let root = &settings.root;
        let claim = match claim {
            Some(lock) => Claim::inherit(root, lock),
            None => Claim::take(root),
        };
        let claim = claim.map_err(claim_failure)?;
        let tcp = settings.api.map(|address| bind_tcp(address, api)).transpose()?;
        let control = match control.filter(|socket| is_at(socket, &root.socket())) {
            Some(socket) => socket,
            None => claim.bind_control(root).map_err(claim_failure)?,
        };
        let proxy = match proxy.filter(|socket| is_at(socket, &root.api_socket())) {
            Some(socket) => socket,
            None => claim.bind_api(root).map_err(claim_failure)?,
        };
        Ok(Doors { control, proxy, tcp, claim })
    }

    fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|listener| listener.local_addr().ok())
    }
}

fn bind_tcp(address: SocketAddr, inherited: Vec<StdTcpListener>) -> Result<StdTcpListener, Failure> {
    let address = if has_ipv6() { address } else { without_ipv6(address) };
    let taken = inherited.into_iter().find(|socket| itsup_proxy::listens_on(socket, address));
    let bound = taken.map_or_else(|| StdTcpListener::bind(address), Ok);
    bound.and_then(|socket| socket.set_nonblocking(true).map(|()| socket)).map_err(|error| {
        Failure::with_hint(
            format!("ITSUP_API: {address} cannot be listened on: {error}"),
            "set ITSUP_API (or --api) to another address, or to off",
        )
    })
}

fn claim_failure(error: SocketError) -> Failure {
    let hint = match &error {
        SocketError::Running(_) => "use `itsup status` to see it, or another --root",
        SocketError::TooLong(_) => "use a root folder with a shorter path",
        SocketError::Io { .. } => "itsup must be able to write to data/ in its root folder",
    };
    Failure::with_hint(error.to_string(), hint)
}

fn bind_proxy(settings: &Settings, inherited: Listeners, succeeds: bool) -> Result<Proxy, Failure> {
    settings.make_log_folder().context("the access log's folder cannot be made")?;
    let address = |address| if has_ipv6() { address } else { without_ipv6(address) };
    let config = Config {
        http: address(settings.http),
        https: address(settings.https),
        threads: settings.threads,
        access_log: settings.access_log.clone(),
        limits: Limits::default(),
    };
    let bind = if succeeds { Proxy::take_over } else { Proxy::bind_with };
    bind(config, inherited).map_err(|error| {
        let hint = "ports below 1024 need root or CAP_NET_BIND_SERVICE; `itsup run --local` takes 8080 and 8443";
        Failure::with_hint(error.to_string(), hint)
    })
}

/// A socket for all addresses is what the proxy will ask for; a kernel without IPv6 refuses it.
pub(crate) fn has_ipv6() -> bool {
    StdTcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok()
}

/// What runs the jobs. Where a crash has left changes half done, they are finished from here on.
fn changer(settings: &Settings, control: &Control) -> anyhow::Result<Changes> {
    let mut worker = Changes { control: Some(control.clone()), ..Changes::new(settings) };
    worker.changer = match worker.engine.clone() {
        Some(engine) => {
            let rollouts = Rollouts::start(worker.root.clone(), engine, control.clone());
            Arc::new(rollouts.context("data/journal cannot be used")?)
        }
        None => Arc::new(Published { control: control.clone(), changer: ByCompose }),
    };
    Ok(worker)
}

fn remove_sockets(root: &Root) {
    for path in [root.socket(), root.api_socket(), root.pid_file()] {
        // The next start replaces what is left.
        let _ = std::fs::remove_file(path);
    }
}

struct Signals {
    ends: Ends,
    hang_up: Signal,
    user1: Signal,
}

/// The signals that end the process.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Signals> {
        let listen = |kind| signal(kind).context("signals cannot be listened to");
        let ends = Ends { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? };
        Ok(Signals { ends, hang_up: listen(SignalKind::hangup())?, user1: listen(SignalKind::user_defined1())? })
    }
}

impl Ends {
    /// Returns at SIGTERM or SIGINT.
    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    async fn second_interrupt(&mut self) {
        self.interrupt.recv().await;
    }
}

/// A reload that nobody waits for: what came of it is logged.
async fn reload(control: Arc<Control>) {
    systemd::reloading();
    let reloaded = control.reload().await;
    systemd::notify("READY=1");
    match reloaded {
        Ok(report) => {
            for warning in &report.warnings {
                tracing::warn!("{warning}");
            }
            tracing::info!(generation = report.generation, changed = report.changed, "reloaded");
        }
        Err(error) => {
            if let ReloadError::Refused(refused) = &error {
                for diagnostic in &refused.diagnostics {
                    tracing::error!("{diagnostic}");
                }
            }
            tracing::error!("reload: {error}");
        }
    }
}

/// Every connection is a file; the usual soft limit of 1,024 is soon reached.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        tracing::warn!("the limit on open files cannot be raised: {error}");
    }
}
