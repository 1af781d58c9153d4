//! Control: owns the state, and alone publishes to the proxy.
//!
//! One writer, the [`Actor`], takes commands and what Docker and DNS say, one at a time, on a thread of its
//! own, so that a table of 100,000 hosts stalls no runtime. Others hold a [`Control`]: they send commands and
//! read a snapshot, which never waits for the writer.

pub mod certificates;
mod changes;
mod load;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use itsup_proxy::{Changes, Draining, Edge, HostPattern, Proxy, RouteTable};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::acme::issuer::{self, Ask, AskError, IssuerHandle, Report, UpdateReport, Wishes};
use crate::active::{self, ActiveSets};
use crate::db::{Db, Diagnostic, Project};
use crate::docker::{self, EngineClient};
use crate::handover::{Elders, Seats, follow};
use crate::local::OwnAddresses;
use crate::observed::{Engine, NETWORK, Observed};
use crate::pen::{Held, Pen};
use crate::resolve::{self, Resolved};
use crate::routes::{self, RouteInputs};
use crate::settings::{Root, Settings, Sources};
use crate::status::{
    CertificateReport, DockerReport, EndpointReport, InFlightReport, Listen, ReloadReport, RootReport, StatusReport,
    UpstreamReport,
};
use crate::upgrade::Upgrades;
use certificates::Certificates;
pub use changes::PublishError;
use changes::{Changing, Deed};
pub use load::{Refused, read_last_good, read_projects, read_settings};

/// How long a start waits for Docker's first word, and a start or reload for the addresses of new static hosts.
const FIRST_WORD: Duration = Duration::from_secs(3);
/// How long websockets and passthrough connections may go on at an end that a service does not set itself.
const STREAM_DRAIN: Duration = Duration::from_secs(5 * 60);
/// How often certificates are looked at: by the wall clock, which may jump.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(60);

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
        let issuer = issuer::start(start.settings.root.clone(), proxy.clone(), wished, changed, &handle);
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
        let ours = |endpoint: &str| endpoint.split('@').next().is_some_and(|id| containers.contains(id));
        let left = self.elders.wait(&self.proxy, ours, self.longest_drain()).await;
        if left != InFlightReport::default() {
            tracing::warn!(?left, "an older process still uses what is stopped now");
        }
        pen
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

/// What the issuer is told, and tells.
struct Issued {
    wishes: watch::Sender<Arc<Wishes>>,
    /// Folders in `certs/` that have a new pair.
    changes: mpsc::UnboundedReceiver<String>,
    report: watch::Receiver<Arc<Report>>,
}

/// The single writer.
struct Actor {
    proxy: Proxy,
    settings: Settings,
    sources: Sources,
    cores: NonZeroUsize,
    api: Option<std::net::SocketAddr>,
    db: Arc<Db>,
    diagnostics: Vec<Diagnostic>,
    last_good: bool,
    observed: watch::Receiver<Arc<Observed>>,
    /// Kept open where nobody watches Docker.
    _observing: Option<watch::Sender<Arc<Observed>>>,
    names: watch::Sender<BTreeSet<Arc<str>>>,
    resolved: watch::Receiver<Arc<Resolved>>,
    active: ActiveSets,
    changing: Changing,
    certificates: Certificates,
    issued: Issued,
    /// Settings that changed and need a restart, and what the reload itself had to say.
    reload_warnings: Vec<String>,
    route_warnings: Vec<String>,
    reloads: crate::status::Reloads,
    out: watch::Sender<Arc<Snapshot>>,
}

impl Actor {
    fn new(
        start: Start,
        out: watch::Sender<Arc<Snapshot>>,
        issued: Issued,
        runtime: &Handle,
    ) -> Result<Actor, Refused> {
        let Start { proxy, settings, sources, cores, api, .. } = start;
        let root = settings.root.clone();
        let at_start = load::load_at_start(&root)?;
        let mut warnings = Vec::new();
        if at_start.last_good {
            warnings.push(format!("{} cannot be used; the last good one serves", root.db().display()));
        }
        for diagnostic in &at_start.diagnostics {
            match (&diagnostic.project, diagnostic.is_error()) {
                (Some(project), true) => tracing::error!("project {project} is left out\n{diagnostic}"),
                (None, true) => tracing::error!("{diagnostic}"),
                (_, false) => tracing::warn!("{diagnostic}"),
            }
        }
        let active = active::load(&root.data().join("active.json")).unwrap_or_else(|error| {
            warnings.push(format!("{error}; containers that run are routed"));
            ActiveSets::default()
        });
        let (observing, observed) = watch::channel(Arc::new(Observed::default()));
        let observing = watch_docker(&settings, observing, runtime, &mut warnings);
        let names = watch::Sender::new(resolve::names(&at_start.db));
        let (resolving, resolved) = watch::channel(Arc::new(Resolved::default()));
        runtime.spawn(resolve::run(names.subscribe(), resolving));
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        Ok(Actor {
            proxy,
            settings,
            sources,
            cores,
            api,
            db: Arc::new(at_start.db),
            diagnostics: at_start.diagnostics,
            last_good: at_start.last_good,
            observed,
            _observing: observing,
            names,
            resolved,
            active,
            changing: Changing::from_journals(&root),
            certificates: Certificates::open(root, SystemTime::now()),
            issued,
            reload_warnings: warnings,
            route_warnings: Vec::new(),
            reloads: crate::status::Reloads::default(),
            out,
        })
    }

    async fn first_publish(&mut self) {
        let new = resolve::names(&self.db);
        let docker = async {
            if self.settings.docker {
                let mut observed = self.observed.clone();
                let word = observed.wait_for(|observed| observed.engine != Engine::Off);
                // Without a word within the time, the sets of the last run serve.
                let _ = tokio::time::timeout(FIRST_WORD, word).await;
            }
        };
        tokio::join!(docker, self.wait_for_addresses(&new));
        self.certificates.read(&self.db, SystemTime::now());
        self.take_journals();
        self.publish();
    }

    async fn run(&mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut certificates = tokio::time::interval(CERTIFICATES_EVERY);
        certificates.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::Reload { but, answer }) => {
                        let report = self.reload(&but).await;
                        // Whoever asked may have hung up; what was done is done.
                        let _ = answer.send(report);
                    }
                    Some(Command::Change(deed)) => self.change(deed),
                    Some(Command::Suspend(done)) => {
                        let _ = done.send(());
                        if !self.rest(&mut inbox).await {
                            return;
                        }
                        self.publish();
                    }
                    Some(Command::Resume(done) | Command::Follow(_, done)) => {
                        let _ = done.send(());
                    }
                    None => return,
                },
                Ok(()) = self.observed.changed() => { self.publish(); }
                Ok(()) = self.resolved.changed() => { self.publish(); }
                Some(folder) = self.issued.changes.recv() => {
                    self.certificates.reread(&folder);
                    // Many come together; they are shown together.
                    while let Ok(folder) = self.issued.changes.try_recv() {
                        self.certificates.reread(&folder);
                    }
                    self.publish_certificates(&self.proxy.table());
                    self.show();
                }
                Ok(()) = self.issued.report.changed() => {
                    self.show();
                }
                _ = certificates.tick() => {
                    self.publish_certificates(&self.proxy.table());
                    self.show();
                }
            }
        }
    }

    /// Does nothing but follow another process; false where there is nothing left to do for.
    async fn rest(&mut self, inbox: &mut mpsc::Receiver<Command>) -> bool {
        // The issuer orders what is wished for; the other process's does now.
        self.issued.wishes.send_replace(Arc::new(Wishes::default()));
        while let Some(command) = inbox.recv().await {
            match command {
                Command::Resume(done) => {
                    let _ = done.send(());
                    return true;
                }
                Command::Follow(upstreams, done) => {
                    // What is retired by it is what the other process asks after.
                    let _ = self.proxy.publish(follow(&self.proxy.table(), upstreams));
                    let _ = done.send(());
                }
                Command::Suspend(done) => {
                    let _ = done.send(());
                }
                // Whoever changes containers holds the pen, so there is nobody to disappoint.
                Command::Change(deed) => drop(deed),
                Command::Reload { answer, .. } => {
                    let message = "an upgrade is under way".into();
                    let _ = answer.send(Err(Refused { message, diagnostics: Vec::new() }));
                }
            }
        }
        false
    }

    async fn reload(&mut self, but: &BTreeSet<Arc<str>>) -> Result<ReloadReport, Refused> {
        let root = self.settings.root.clone();
        let mut loaded = match load::load(&root, &mut self.sources, self.cores) {
            Ok(loaded) => loaded,
            Err(refused) => {
                self.reloads.refused += 1;
                self.show();
                return Err(refused);
            }
        };
        loaded.keep(&root);
        loaded.db.projects = without(loaded.db.projects, but, &self.db);
        self.take_settings(&loaded.settings);
        let names = resolve::names(&loaded.db);
        let new = names.difference(&resolve::names(&self.db)).cloned().collect();
        self.names.send_if_modified(|held| std::mem::replace(held, names.clone()) != names);
        self.wait_for_addresses(&new).await;
        self.db = Arc::new(loaded.db);
        self.diagnostics = loaded.warnings;
        self.last_good = false;
        self.certificates.read(&self.db, SystemTime::now());
        let changes = self.publish();
        self.reloads.done += 1;
        self.show();
        Ok(ReloadReport {
            generation: self.proxy.generation(),
            changed: changes.is_some(),
            warnings: self.diagnostics.iter().map(one_line).chain(self.warnings()).collect(),
            ..changes.map(report).unwrap_or_default()
        })
    }

    fn take_settings(&mut self, new: &Settings) {
        let (settings, restart) = self.settings.reloaded(new);
        self.reload_warnings =
            restart.iter().map(|variable| format!("{} has changed, which needs a restart", variable.name())).collect();
        if settings.access_log != self.settings.access_log {
            if let Err(error) = settings.make_log_folder() {
                self.reload_warnings.push(format!("the access log's folder cannot be made: {error}"));
            }
            self.proxy.set_access_log(settings.access_log.clone());
        }
        self.settings = settings;
    }

    /// Waits a while for the addresses of names that nobody has asked for before.
    async fn wait_for_addresses(&self, names: &BTreeSet<Arc<str>>) {
        let mut resolved = self.resolved.clone();
        let all = resolved.wait_for(|resolved| names.iter().all(|name| !resolved.addresses(name).is_empty()));
        // A name without an address answers 503 until it has one.
        let _ = tokio::time::timeout(FIRST_WORD, all).await;
    }

    /// Makes the table of what is known now and publishes it; `None` where nothing has changed.
    fn publish(&mut self) -> Option<Changes> {
        let (observed, resolved) = self.look();
        self.step_active(&observed);
        let table = self.table(&observed, &resolved);
        self.publish_table(table).0
    }

    fn look(&mut self) -> (Arc<Observed>, Arc<Resolved>) {
        (self.observed.borrow_and_update().clone(), self.resolved.borrow_and_update().clone())
    }

    fn publish_table(&mut self, table: RouteTable) -> (Option<Changes>, Draining) {
        // A host is known only when its certificate is.
        self.publish_certificates(&table);
        let changes = self.proxy.table().changes(&table);
        let published = self.proxy.publish(table);
        let changes = published.changed.then_some(changes);
        if let Some(Changes { added, removed, changed, .. }) = &changes {
            let generation = published.generation;
            tracing::info!(
                generation,
                added = added.len(),
                removed = removed.len(),
                changed = changed.len(),
                "published"
            );
        }
        self.show();
        (changes, published.draining)
    }

    fn step_active(&mut self, observed: &Observed) {
        self.changing.look(observed);
        let (frozen, leaving) = (self.changing.frozen(), self.changing.leaving());
        let next = active::step(&self.active, &self.db, observed, frozen, leaving);
        if next != self.active {
            self.active = next;
            self.save_active();
        }
    }

    fn save_active(&self) {
        let path = self.settings.root.data().join("active.json");
        if let Err(error) = active::save(&path, &self.active) {
            tracing::warn!("{}: {error}; after a restart without Docker, containers are not known", path.display());
        }
    }

    fn table(&mut self, observed: &Observed, resolved: &Resolved) -> RouteTable {
        self.route_warnings.clear();
        let own_addresses = OwnAddresses::read().unwrap_or_else(|error| {
            self.route_warnings.push(format!("this host's addresses cannot be read: {error}"));
            OwnAddresses::default()
        });
        let root = &self.settings.root;
        let mut ca_files = BTreeMap::new();
        for file in routes::ca_files(&self.db, observed) {
            match read_ca(&root.path().join(&file)) {
                Ok(pem) => {
                    ca_files.insert(file, pem);
                }
                Err(error) => {
                    let warning = format!("CA file {}: {error}; nothing verifies against it", file.display());
                    self.route_warnings.push(warning);
                }
            }
        }
        routes::route_table(&RouteInputs {
            db: &self.db,
            observed,
            active: &self.active,
            resolved,
            own_addresses: &own_addresses,
            api: self.api.map(|address| (address.port(), root.api_socket())),
            edge: Edge {
                public_https_port: self.settings.public_https_port,
                trusted_proxies: self.settings.trusted_proxies.clone(),
                proxy_protocol: self.settings.proxy_protocol.clone(),
            },
            ca_files: &ca_files,
        })
    }

    fn publish_certificates(&mut self, table: &RouteTable) {
        let before: BTreeSet<String> = self.certificates.warnings().cloned().collect();
        let now = SystemTime::now();
        if let Some(certs) = self.certificates.table(&self.db, table, now) {
            self.proxy.certs().publish(certs);
        }
        let wishes = self.certificates.wishes(&self.db, table, self.settings.acme.as_ref(), now);
        self.issued.wishes.send_if_modified(|held| {
            let changed = **held != wishes;
            if changed {
                *held = Arc::new(wishes);
            }
            changed
        });
        for warning in self.certificates.warnings().filter(|warning| !before.contains(*warning)) {
            tracing::warn!("{warning}");
        }
    }

    fn warnings(&self) -> impl Iterator<Item = String> + '_ {
        let of_issuer = self.issued.report.borrow().warnings.clone();
        let own = self.reload_warnings.iter().chain(&self.route_warnings).chain(self.certificates.warnings());
        own.cloned().chain(of_issuer)
    }

    fn show(&self) {
        let certificates = {
            let before = self.out.borrow();
            let same = before.certificates.as_slice() == self.certificates.shown();
            if same { before.certificates.clone() } else { Arc::new(self.certificates.shown().to_vec()) }
        };
        self.out.send_replace(Arc::new(Snapshot {
            settings: Some(self.settings.clone()),
            db: self.db.clone(),
            api: self.api,
            docker: self.observed.borrow().engine.clone(),
            certificates,
            root_not_after: self.certificates.root_not_after(),
            root: self.certificates.ca().map(RootReport::new),
            warnings: self.warnings().collect(),
            diagnostics: self.diagnostics.clone(),
            last_good: self.last_good,
            reloads: self.reloads,
            longest_drain: longest_drain(&self.db),
        }));
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

/// Has Docker watched, or gives the sender back for nobody to use.
fn watch_docker(
    settings: &Settings,
    out: watch::Sender<Arc<Observed>>,
    runtime: &Handle,
    warnings: &mut Vec<String>,
) -> Option<watch::Sender<Arc<Observed>>> {
    if !settings.docker {
        return Some(out);
    }
    match EngineClient::new(settings.docker_host.as_deref()) {
        Ok(engine) => {
            runtime.spawn(async move { docker::watch(engine, NETWORK, out).await });
            None
        }
        Err(error) => {
            let why = error.to_string();
            warnings.push(why.clone());
            let engine = Engine::Away { since: SystemTime::now(), why };
            out.send_replace(Arc::new(Observed { engine, ..Observed::default() }));
            Some(out)
        }
    }
}

fn read_ca(path: &PathBuf) -> io::Result<Arc<str>> {
    std::fs::read_to_string(path).map(Arc::from)
}

fn one_line(diagnostic: &Diagnostic) -> String {
    let Diagnostic { file, line, message, .. } = diagnostic;
    format!("{file}:{line}: {message}")
}

/// Puts what was before in the place of these projects, or nothing where they are new.
fn without(projects: Vec<Project>, but: &BTreeSet<Arc<str>>, before: &Db) -> Vec<Project> {
    let kept = |project: Project| {
        if but.contains(&project.name) { before.project(&project.name).cloned() } else { Some(project) }
    };
    projects.into_iter().filter_map(kept).collect()
}

fn report(Changes { added, removed, changed, .. }: Changes) -> ReloadReport {
    let names = |hosts: Vec<HostPattern>| hosts.iter().map(ToString::to_string).collect();
    ReloadReport {
        added: names(added),
        removed: names(removed),
        changed_hosts: names(changed),
        ..ReloadReport::default()
    }
}

/// Checks the user's files without a running itsUP: what `itsup validate` does.
pub fn validate(root: &Root, sources: &mut Sources, cores: NonZeroUsize) -> Result<Vec<Diagnostic>, Refused> {
    load::load(root, sources, cores).map(|loaded| loaded.warnings)
}
