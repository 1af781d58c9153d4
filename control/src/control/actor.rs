//! The single writer: takes commands and what Docker and DNS say, one at a time, and alone publishes to the proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use itsup_proxy::{Changes, Draining, Edge, HostPattern, Proxy, RouteTable};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::certificates::Certificates;
use super::changes::Changing;
use super::{Command, Refused, Snapshot, Start, load, longest_drain};
use crate::acme::issuer::{Report, Wishes};
use crate::active::{self, ActiveSets};
use crate::db::{Db, Diagnostic, Project};
use crate::docker::{self, EngineClient};
use crate::handover::follow;
use crate::local::OwnAddresses;
use crate::observed::{Engine, NETWORK, Observed};
use crate::resolve::{self, Resolved};
use crate::routes::{self, RouteInputs};
use crate::settings::{Settings, Sources};
use crate::status::{ReloadReport, Reloads, RootReport};

/// How long a start waits for Docker's first word, and a start or reload for the addresses of new static hosts.
const FIRST_WORD: Duration = Duration::from_secs(3);
/// How often certificates are looked at: by the wall clock, which may jump.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(60);

/// What the issuer is told, and tells.
pub(super) struct Issued {
    pub(super) wishes: watch::Sender<Arc<Wishes>>,
    /// Folders in `certs/` that have a new pair.
    pub(super) changes: mpsc::UnboundedReceiver<String>,
    pub(super) report: watch::Receiver<Arc<Report>>,
}

/// The single writer.
pub(super) struct Actor {
    proxy: Proxy,
    settings: Settings,
    sources: Sources,
    cores: NonZeroUsize,
    api: Option<std::net::SocketAddr>,
    pub(super) db: Arc<Db>,
    diagnostics: Vec<Diagnostic>,
    last_good: bool,
    pub(super) observed: watch::Receiver<Arc<Observed>>,
    /// Kept open where nobody watches Docker.
    _observing: Option<watch::Sender<Arc<Observed>>>,
    names: watch::Sender<BTreeSet<Arc<str>>>,
    resolved: watch::Receiver<Arc<Resolved>>,
    pub(super) active: ActiveSets,
    pub(super) changing: Changing,
    certificates: Certificates,
    issued: Issued,
    /// Settings that changed and need a restart, and what the reload itself had to say.
    reload_warnings: Vec<String>,
    route_warnings: Vec<String>,
    reloads: Reloads,
    out: watch::Sender<Arc<Snapshot>>,
}

impl Actor {
    pub(super) fn new(
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
            reloads: Reloads::default(),
            out,
        })
    }

    pub(super) async fn first_publish(&mut self) {
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

    pub(super) async fn run(&mut self, mut inbox: mpsc::Receiver<Command>) {
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
        self.wait_and_serve(&new).await;
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
        let all = resolved.wait_for(|resolved| resolved.has_all(names));
        // A name without an address answers 503 until it has one.
        let _ = tokio::time::timeout(FIRST_WORD, all).await;
    }

    /// The same, while what Docker says is followed: a container that goes is not routed to for the sake of a new name.
    async fn wait_and_serve(&mut self, names: &BTreeSet<Arc<str>>) {
        let limit = tokio::time::sleep(FIRST_WORD);
        tokio::pin!(limit);
        while !self.resolved.borrow().has_all(names) {
            tokio::select! {
                () = &mut limit => return,
                Ok(()) = self.resolved.changed() => {}
                Ok(()) = self.observed.changed() => { self.publish(); }
            }
        }
    }

    /// Makes the table of what is known now and publishes it; `None` where nothing has changed.
    pub(super) fn publish(&mut self) -> Option<Changes> {
        let (observed, resolved) = self.look();
        self.step_active(&observed);
        let table = self.table(&observed, &resolved);
        self.publish_table(table).0
    }

    pub(super) fn look(&mut self) -> (Arc<Observed>, Arc<Resolved>) {
        (self.observed.borrow_and_update().clone(), self.resolved.borrow_and_update().clone())
    }

    pub(super) fn publish_table(&mut self, table: RouteTable) -> (Option<Changes>, Draining) {
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

    pub(super) fn save_active(&self) {
        let path = self.settings.root.data().join("active.json");
        if let Err(error) = active::save(&path, &self.active) {
            tracing::warn!("{}: {error}; after a restart without Docker, containers are not known", path.display());
        }
    }

    pub(super) fn table(&mut self, observed: &Observed, resolved: &Resolved) -> RouteTable {
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
