//! Control: owns the state, and alone publishes to the proxy.
//!
//! One writer, the [`Actor`], takes commands and what Docker and DNS say, one at a time, on a thread of its
//! own, so that a table of 100,000 hosts stalls no runtime. Others hold a [`Control`]: they send commands and
//! read a snapshot, which never waits for the writer.

mod actor;
pub mod certificates;
mod changes;
mod load;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use itsup_proxy::{Class, Drained, EndpointId, HostPattern, Proxy};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use crate::acme::issuer::{self, Ask, AskError, IssuerHandle, UpdateReport, Wishes};
use crate::db::{Db, Diagnostic};
use crate::handover::{Elders, Seats};
use crate::observed::{Engine, Observed, container_of};
use crate::pen::{Held, Pen};
use crate::settings::{Root, Settings, Sources};
use crate::status::{
    CertificateReport, DockerReport, EndpointReport, InFlightReport, Listen, ReloadReport, RootReport, StatusReport,
    UpstreamReport,
};
use crate::upgrade::Upgrades;
use actor::{Actor, Issued};
use changes::Deed;
pub use changes::PublishError;
pub use load::{Refused, read_last_good, read_projects, read_settings};

/// How long websockets and passthrough connections may go on at an end that a service does not set itself.
const STREAM_DRAIN: Duration = Duration::from_secs(5 * 60);
/// How long what is under way may go on at containers that are removed for good.
const REMOVED_DRAIN: Duration = Duration::from_secs(30);

/// A handle on control. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    commands: mpsc::Sender<Command>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    observed: watch::Receiver<Arc<Observed>>,
    issuer: IssuerHandle,
    proxy: Proxy,
    started: Instant,
    pen: Pen,
    elders: Elders,
    upgrades: Upgrades,
}

/// What control is started with.
pub struct Start {
    /// The running proxy.
    pub proxy: Proxy,
    /// The settings as they were read at start.
    pub settings: Settings,
    /// Where they came from.
    pub sources: Sources,
    /// What `ITSUP_THREADS` defaults to.
    pub cores: NonZeroUsize,
    /// The API's real TCP address, where it has one.
    pub api: Option<std::net::SocketAddr>,
    /// What whoever writes `data/` or changes containers has to hold.
    pub pen: Pen,
    /// Older processes that still serve connections.
    pub elders: Elders,
    /// Where the wish for an upgrade goes.
    pub upgrades: Upgrades,
}

/// Itsup no longer takes commands, as it is shutting down.
#[derive(Debug, thiserror::Error)]
#[error("itsup is shutting down")]
pub struct ShuttingDown;

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// db.yml or `.env` has faults.
    #[error("{0}; nothing was changed")]
    Refused(Refused),
    /// Control is gone.
    #[error(transparent)]
    ShuttingDown(#[from] ShuttingDown),
}

enum Command {
    Change(Deed),
    Reload {
        but: BTreeSet<Arc<str>>,
        answer: oneshot::Sender<Result<ReloadReport, Refused>>,
    },
    /// Write nothing and publish nothing of your own accord: another process does.
    Suspend(oneshot::Sender<()>),
    /// Go on.
    Resume(oneshot::Sender<()>),
    /// Traffic goes here now, another process says.
    Follow(BTreeMap<String, Seats>, oneshot::Sender<()>),
}

/// What the writer shows of itself.
#[derive(Clone, Default)]
struct Snapshot {
    settings: Option<Settings>,
    db: Arc<Db>,
    api: Option<std::net::SocketAddr>,
    docker: Engine,
    certificates: Arc<Vec<certificates::Shown>>,
    root_not_after: Option<SystemTime>,
    root: Option<RootReport>,
    warnings: Vec<String>,
    diagnostics: Vec<Diagnostic>,
    last_good: bool,
    reloads: crate::status::Reloads,
    longest_drain: Duration,
}

impl Control {
    /// Reads db.yml, publishes its routes and goes on publishing as the world changes.
    ///
    /// Returns once the first table is live. Faulty projects are left out and logged.
    pub async fn start(start: Start) -> Result<Control, Refused> {
        let handle = Handle::current();
        let (commands, inbox) = mpsc::channel(16);
        let (out, snapshot) = watch::channel(Arc::new(Snapshot::default()));
        let (ready, is_ready) = oneshot::channel();
        let proxy = start.proxy.clone();
        let (wishes, wished) = watch::channel(Arc::new(Wishes::default()));
        let (changed, changes) = mpsc::unbounded_channel();
        let (root, pen) = (start.settings.root.clone(), start.pen.clone());
        let issuer = issuer::start(root, proxy.clone(), wished, changed, pen, &handle);
        let issued = Issued { wishes, changes, report: issuer.report.clone() };
        let (pen, elders, upgrades) = (start.pen.clone(), start.elders.clone(), start.upgrades.clone());
        let run = move || {
            let runtime = handle.clone();
            match Actor::new(start, out, issued, &runtime) {
                Ok(mut actor) => handle.block_on(async {
                    actor.first_publish().await;
                    // Whoever started us may be gone already; then there is nothing to do but to go on.
                    let _ = ready.send(Ok(actor.observed.clone()));
                    actor.run(inbox).await;
                }),
                Err(refused) => {
                    let _ = ready.send(Err(refused));
                }
            }
        };
        let gone = || Refused { message: "control did not start".into(), diagnostics: Vec::new() };
        std::thread::Builder::new().name("itsup-control".into()).spawn(run).map_err(|_| gone())?;
        let observed = is_ready.await.map_err(|_| gone())??;
        Ok(Control { commands, snapshot, observed, issuer, proxy, started: Instant::now(), pen, elders, upgrades })
    }

    /// Reads db.yml, `.env` and the certificates again, and publishes what they say.
    pub async fn reload(&self) -> Result<ReloadReport, ReloadError> {
        self.reload_but(BTreeSet::new()).await
    }

    /// The same, but these projects stay as they are: what db.yml says of them could not be brought about.
    pub async fn reload_but(&self, but: BTreeSet<Arc<str>>) -> Result<ReloadReport, ReloadError> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Reload { but, answer }).await.map_err(|_| ShuttingDown)?;
        answered.await.map_err(|_| ShuttingDown)?.map_err(ReloadError::Refused)
    }

    /// Has the issuer order what is due, of this host or of all; returns when it is done.
    pub async fn update_certificates(&self, host: Option<HostPattern>, force: bool) -> Result<UpdateReport, AskError> {
        let (answer, answered) = oneshot::channel();
        self.ask_issuer(Ask::Update { host, force, answer }, answered).await
    }

    /// Has the CA revoke the certificate of a host, and another ordered in its place.
    pub async fn revoke_certificate(&self, host: HostPattern) -> Result<UpdateReport, AskError> {
        let (answer, answered) = oneshot::channel();
        self.ask_issuer(Ask::Revoke { host, answer }, answered).await
    }

    async fn ask_issuer(
        &self,
        ask: Ask,
        answered: oneshot::Receiver<Result<UpdateReport, AskError>>,
    ) -> Result<UpdateReport, AskError> {
        let gone = || AskError(ShuttingDown.to_string());
        self.issuer.asks.send(ask).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Every certificate that is shown, and how it stands with its renewal.
    pub fn certificates(&self) -> Vec<CertificateReport> {
        let (shown, report) = (self.snapshot.borrow().certificates.clone(), self.issuer.report.borrow().clone());
        let now = SystemTime::now();
        shown.iter().map(|shown| CertificateReport::new(shown, report.hosts.get(&shown.host), now)).collect()
    }

    /// The internal CA's root; `None` where it does not work.
    pub fn root_certificate(&self) -> Option<RootReport> {
        self.snapshot.borrow().root.clone()
    }

    /// What to hold while writing `data/` or changing containers.
    pub fn pen(&self) -> &Pen {
        &self.pen
    }

    /// The older processes that still serve connections: what they use may not be stopped.
    pub fn elders(&self) -> &Elders {
        &self.elders
    }

    /// Waits until no older process uses these containers any more, as long as an older one serves at all; returns
    /// with the pen held, so that they can be stopped.
    pub(crate) async fn spared_by_elders(&self, containers: BTreeSet<String>) -> Held {
        let pen = self.pen.hold().await;
        let ours = |endpoint: &str| container_of(endpoint).is_some_and(|id| containers.contains(id));
        let left = self.elders.wait(&self.proxy, ours, self.longest_drain()).await;
        if left != InFlightReport::default() {
            tracing::warn!(?left, "an older process still uses what is stopped now");
        }
        pen
    }

    /// Waits until nothing is in flight on these containers, which nothing leads to any more, and ends what goes on for
    /// longer than [`REMOVED_DRAIN`]; returns with the pen held, so that they can be stopped.
    pub(crate) async fn emptied(&self, containers: BTreeSet<String>) -> Held {
        let ours = |endpoint: &EndpointId| container_of(endpoint).is_some_and(|id| containers.contains(id));
        let draining = self.proxy.draining_of(ours);
        let left = draining.wait(REMOVED_DRAIN).await.left;
        if left.total() > 0 {
            tracing::info!(?left, "what is to be removed is still in use: its connections are closed");
            let _: Drained = draining.end(&Class::LONG, Duration::ZERO).await;
        }
        self.spared_by_elders(containers).await
    }

    /// Where the wish for an upgrade goes.
    pub fn upgrades(&self) -> &Upgrades {
        &self.upgrades
    }

    /// Writes and publishes nothing more until [`Control::resume`]; routes stay as they are.
    pub async fn suspend(&self) -> Result<(), ShuttingDown> {
        self.tell(Command::Suspend).await
    }

    /// Goes on after [`Control::suspend`], and catches up.
    pub async fn resume(&self) -> Result<(), ShuttingDown> {
        self.tell(Command::Resume).await
    }

    /// Routes traffic where the newer process says, while suspended.
    pub async fn follow(&self, upstreams: BTreeMap<String, Seats>) -> Result<(), ShuttingDown> {
        self.tell(|done| Command::Follow(upstreams, done)).await
    }

    async fn tell(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) -> Result<(), ShuttingDown> {
        let (done, is_done) = oneshot::channel();
        self.commands.send(command(done)).await.map_err(|_| ShuttingDown)?;
        is_done.await.map_err(|_| ShuttingDown)
    }

    /// How long a shutdown waits, as last read.
    pub fn grace(&self) -> Duration {
        self.snapshot.borrow().settings.as_ref().map_or(Duration::from_secs(30), |settings| settings.grace)
    }

    /// The settings, as last read.
    pub fn settings(&self) -> Option<Settings> {
        self.snapshot.borrow().settings.clone()
    }

    /// db.yml, as last read.
    pub fn db(&self) -> Arc<Db> {
        self.snapshot.borrow().db.clone()
    }

    /// How long a process that has been succeeded goes on serving what it has, at the most.
    pub fn longest_drain(&self) -> Duration {
        self.snapshot.borrow().longest_drain
    }

    /// Everything, at this moment.
    pub fn status(&self) -> StatusReport {
        let snapshot = self.snapshot.borrow().clone();
        let proxy = self.proxy.status();
        StatusReport {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            generation: proxy.generation,
            hosts: proxy.hosts,
            connections: proxy.connections,
            listen: Listen {
                http: self.proxy.http_addr().to_string(),
                https: self.proxy.https_addr().to_string(),
                api: snapshot.api.map(|address| address.to_string()),
            },
            docker: DockerReport::from(&snapshot.docker),
            upstreams: proxy.upstreams.iter().map(UpstreamReport::from).collect(),
            draining: proxy.draining.iter().map(EndpointReport::from).collect(),
            // Who has the queue adds these.
            changes: Vec::new(),
            pins: Vec::new(),
            certificates: self.certificates(),
            reloads: snapshot.reloads,
            last_good: snapshot.last_good,
            diagnostics: snapshot.diagnostics.clone(),
            warnings: snapshot.warnings.clone(),
        }
    }

    /// The proxy's metrics and control's own, as Prometheus reads them.
    pub fn metrics(&self) -> String {
        let mut text = self.proxy.metrics();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        let snapshot = self.snapshot.borrow().clone();
        crate::api::metrics::write(&mut text, &snapshot.metrics());
        text
    }
}

impl Snapshot {
    fn metrics(&self) -> crate::api::metrics::Own<'_> {
        crate::api::metrics::Own {
            docker: &self.docker,
            reloads: self.reloads,
            certificates: &self.certificates,
            root_not_after: self.root_not_after,
            projects_with_faults: self
                .diagnostics
                .iter()
                .filter(|diagnostic| diagnostic.is_error())
                .map(|diagnostic| diagnostic.project.as_deref().unwrap_or_default())
                .collect::<BTreeSet<_>>()
                .len(),
        }
    }
}

/// The longest that any service lets websockets and passthrough connections go on; never less than an idle connection
/// may wait for its next request.
fn longest_drain(db: &Db) -> Duration {
    const LEAST: Duration = Duration::from_secs(90);
    let services = db.projects.iter().flat_map(|project| &project.services);
    let limits = services.map(|service| service.rollout.stream_drain.unwrap_or(STREAM_DRAIN).max(LEAST));
    limits.max().unwrap_or(STREAM_DRAIN)
}

/// Checks the user's files without a running itsUP: what `itsup validate` does.
pub fn validate(root: &Root, sources: &mut Sources, cores: NonZeroUsize) -> Result<Vec<Diagnostic>, Refused> {
    load::load(root, sources, cores).map(|loaded| loaded.warnings)
}
