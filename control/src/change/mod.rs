//! Changes carried out: the pure rollout, given hands. Containers by the engine and compose, traffic by control, every
//! step in the journal first.
//!
//! What is decided here is only how a command of [`crate::rollout`] is done; when and whether is decided there. It must not know
//! what db.yml asks for as a whole (`plan.rs`), nor who asked.

mod as_changer;
mod compose;
mod fault;
mod receipt;
mod recover;
mod retire;
pub mod rollback;
mod run;
mod traffic;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::active::{ServiceKey, compose_service};
use crate::control::Control;
use crate::db::{Project, Service};
use crate::docker::{self, ComposeCli, ComposeError, EngineClient, EngineError, StackFile};
use crate::jobs::{CancelToken, Event, Gates, Phase, Progress};
use crate::journal::Journals;
use crate::observed::{ContainerId, NETWORK, Observed};
use crate::rollout::{Failure, Ids, Terms};
use crate::settings::Root;

pub use receipt::{Counts, Receipt, Result as ReceiptResult, Side, Times, names as receipt_names, restarts};

/// What a rollout holds to where db.yml says nothing.
const TIMEOUT: Duration = Duration::from_secs(60);
const WATCH: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_secs(30);
const STREAM_DRAIN: Duration = Duration::from_secs(300);
/// How long one probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// Log lines that are shown of a container that failed.
const LOG_LINES: usize = 20;

/// Carries out changes. Cheap to clone.
#[derive(Clone)]
pub struct Rollouts {
    inner: Arc<Inner>,
}

struct Inner {
    root: Root,
    engine: EngineClient,
    journals: Journals,
    observed: watch::Receiver<Arc<Observed>>,
    /// The running itsUP's; `None` where none runs.
    control: Option<Control>,
    /// One change of a project at a time, also against what a crash has left.
    turns: Gates,
    /// Compose counts containers while none of them goes.
    counting: Gates,
    /// Rollouts and retirements that a shutdown would interrupt.
    busy: watch::Sender<BTreeSet<String>>,
}

/// What a change of one service is to do.
#[derive(Clone, Debug)]
pub struct Order {
    pub project: Arc<str>,
    pub service: Arc<str>,
    /// Compose's names.
    pub compose_project: Arc<str>,
    pub compose_service: String,
    /// The compose file to use.
    pub file: StackFile,
    pub terms: Terms,
    /// How long requests may take to end on the old ones.
    pub drain: Duration,
    /// The same for streams, websockets and passthrough.
    pub stream_drain: Duration,
    /// Where new containers are probed, unless they say so themselves.
    pub port: u16,
    /// Asked for by HTTP; `None` where a connection that opens will do.
    pub health_path: Option<String>,
    pub probe_limit: Duration,
}

/// A change that did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// It was undone: what served before serves.
    #[error("{failure}; the old containers serve as before")]
    Undone { failure: Failure, log: Vec<String>, receipt: Box<Receipt> },
    /// In place there is no way back: what there is was left for a person to look at.
    #[error("{why}")]
    Stuck { why: String, log: Vec<String>, receipt: Box<Receipt> },
    /// It was not even begun.
    #[error("{0}; nothing was changed")]
    NotBegun(String),
    /// itsUP ends; the next start goes on from the journal.
    #[error("itsup is shutting down; the next start finishes or undoes the change")]
    ShuttingDown,
}

impl ChangeError {
    /// The last lines of the log of the container that failed.
    pub fn log(&self) -> &[String] {
        match self {
            ChangeError::Undone { log, .. } | ChangeError::Stuck { log, .. } => log,
            _ => &[],
        }
    }

    pub fn receipt(&self) -> Option<&Receipt> {
        match self {
            ChangeError::Undone { receipt, .. } | ChangeError::Stuck { receipt, .. } => Some(receipt),
            _ => None,
        }
    }
}

impl Order {
    /// What db.yml asks of a service's change, with this compose file and so many containers.
    pub fn new(project: &Project, service: &Service, file: &StackFile, replicas: usize) -> Order {
        let rollout = &service.rollout;
        // What is behind a PROXY header or TLS answers no plain request of ours.
        let plain = service.proxy_protocol.is_none() && !service.passthrough && service.http == crate::db::Http::H1;
        Order {
            project: project.name.clone(),
            service: service.name.clone(),
            compose_project: project.compose_name.clone(),
            compose_service: compose_service(project, service),
            file: file.clone(),
            terms: Terms {
                replicas,
                timeout: rollout.timeout.unwrap_or(TIMEOUT),
                watch: rollout.watch.unwrap_or(WATCH),
            },
            drain: rollout.drain.unwrap_or(DRAIN),
            stream_drain: rollout.stream_drain.unwrap_or(STREAM_DRAIN),
            port: service.port,
            health_path: service.health.as_ref().filter(|_| plain).map(|health| health.path.clone()),
            probe_limit: service.health.as_ref().map_or(PROBE_LIMIT, |health| health.timeout),
        }
    }

    fn key(&self) -> ServiceKey {
        ServiceKey::new(self.project.clone(), self.service.clone())
    }
}

impl Rollouts {
    /// With a running itsUP's traffic: what a crash has left is dealt with from now on, before anything else of those
    /// projects.
    pub fn start(root: Root, engine: EngineClient, control: Control) -> io::Result<Rollouts> {
        let observed = control.observed();
        let rollouts = Rollouts::open(root, engine, Some(control), observed)?;
        recover::start(&rollouts);
        Ok(rollouts)
    }

    /// Where no itsUP runs: with the claim on its state, and nobody's traffic to care for. Returns once what a crash has
    /// left is dealt with.
    pub async fn alone(root: Root, engine: EngineClient) -> io::Result<Rollouts> {
        let (out, observed) = watch::channel(Arc::new(Observed::default()));
        let watching = engine.clone();
        tokio::spawn(async move { docker::watch(watching, NETWORK, out).await });
        let rollouts = Rollouts::open(root, engine, None, observed)?;
        recover::start(&rollouts);
        rollouts.idle().await;
        Ok(rollouts)
    }

    fn open(
        root: Root,
        engine: EngineClient,
        control: Option<Control>,
        observed: watch::Receiver<Arc<Observed>>,
    ) -> io::Result<Rollouts> {
        let (journals, warnings) = Journals::open(&root)?;
        for warning in warnings {
            tracing::error!("{warning}");
        }
        let (turns, counting) = (Gates::default(), Gates::default());
        let busy = watch::Sender::new(BTreeSet::new());
        Ok(Rollouts { inner: Arc::new(Inner { root, engine, journals, observed, control, turns, counting, busy }) })
    }

    /// Rolls a service over: new containers beside the old ones, one switch, a watch.
    ///
    /// Returns when the new ones have been watched. What the old ones still have to finish, they finish in the
    /// background, and then they go.
    pub async fn roll_over(
        &self,
        order: &Order,
        progress: &Progress,
        cancel: &CancelToken,
    ) -> Result<Receipt, ChangeError> {
        let _turn = self.inner.turns.enter(&order.project).await;
        run::change(self, order, run::Mode::Beside, &Teller::new(order, progress), cancel).await
    }

    /// Makes a service's containers anew in their place, while requests for it wait.
    pub async fn recreate(
        &self,
        order: &Order,
        progress: &Progress,
        cancel: &CancelToken,
    ) -> Result<Receipt, ChangeError> {
        let _turn = self.inner.turns.enter(&order.project).await;
        run::change(self, order, run::Mode::InPlace, &Teller::new(order, progress), cancel).await
    }

    /// The journals: what is under way, and which containers are on their way out.
    pub fn journals(&self) -> &Journals {
        &self.inner.journals
    }

    /// The containers of a service that finish what they have and then go: they count for nobody.
    pub fn leaving(&self, project: &str, service: &str) -> Ids {
        self.inner.journals.of(project).leaving(service)
    }

    /// Waits until nothing is under way, drains in the background included.
    pub async fn idle(&self) {
        let mut busy = self.inner.busy.subscribe();
        // The sender is ours, so this ends by the condition alone.
        let _ = busy.wait_for(BTreeSet::is_empty).await;
    }

    /// Has compose bring up one service, and hold the lock for as long as it lives.
    async fn up(&self, order: &Order, how: compose::How, lock: &compose::Lock) -> Result<(), ComposeError> {
        let compose = ComposeCli::find(Some(self.inner.engine.host())).await?;
        let held = lock.input().map_err(|error| ComposeError::Start { program: "docker compose".into(), error })?;
        let arguments = how.arguments(&order.compose_service);
        let told = |line: &str| {
            fault::point("starting");
            tracing::debug!("{line}");
        };
        compose.run_holding(&order.file, arguments, held, told).await
    }

    /// Marks something as under way.
    fn busy(&self, what: impl Into<String>) -> Busy {
        let what = what.into();
        self.inner.busy.send_modify(|busy| {
            busy.insert(what.clone());
        });
        Busy { rollouts: self.clone(), what }
    }

    /// Does something to the engine, and again as long as it is away: that is waited out.
    async fn persist<T, F>(&self, what: &str, mut attempt: impl FnMut() -> F) -> Result<T, EngineError>
    where
        F: Future<Output = Result<T, EngineError>>,
    {
        let mut told = false;
        loop {
            match attempt().await {
                Err(error @ (EngineError::Unreachable { .. } | EngineError::Silent { .. })) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!("{what}: {error}; waiting for it");
                    }
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                other => return other,
            }
        }
    }

    /// Stops and removes containers, all at a time. What the engine refuses is tried again some times.
    async fn remove(&self, containers: &Ids) -> Result<(), EngineError> {
        // Held, as a process that has been succeeded must not stop what its successor has decided to keep.
        let _pen = match &self.inner.control {
            Some(control) => Some(control.spared_by_elders(containers.iter().map(ToString::to_string).collect()).await),
            None => None,
        };
        for attempt in 1.. {
            let results = futures_util::future::join_all(containers.iter().map(|id| async move {
                self.persist("stopping", || self.inner.engine.stop(id)).await?;
                fault::point("stopped");
                self.persist("removing", || self.inner.engine.remove(id)).await
            }))
            .await;
            match results.into_iter().find_map(Result::err) {
                Some(error) if attempt < 5 => {
                    tracing::warn!("{error}; trying again");
                    tokio::time::sleep(Duration::from_secs(attempt)).await;
                }
                Some(error) => return Err(error),
                None => break,
            }
        }
        Ok(())
    }
}

struct Busy {
    rollouts: Rollouts,
    what: String,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.rollouts.inner.busy.send_modify(|busy| {
            busy.remove(&self.what);
        });
    }
}

/// Tells how far a service's change is.
#[derive(Clone)]
struct Teller {
    project: Arc<str>,
    service: Arc<str>,
    progress: Option<Progress>,
}

impl Teller {
    fn new(order: &Order, progress: &Progress) -> Teller {
        let (project, service) = (order.project.clone(), order.service.clone());
        Teller { project, service, progress: Some(progress.clone()) }
    }

    /// Of what nobody waits for: it is logged.
    fn silent(project: &Arc<str>, service: &Arc<str>) -> Teller {
        Teller { project: project.clone(), service: service.clone(), progress: None }
    }

    fn say(&self, phase: Phase, detail: impl Into<String>) {
        let detail = detail.into();
        tracing::info!(project = %self.project, service = %self.service, "{detail}");
        if let Some(progress) = &self.progress {
            progress.say(Event::of_service(self.project.clone(), self.service.clone(), phase, detail));
        }
    }

    fn count(&self, phase: Phase, detail: impl Into<String>, (done, total): (usize, usize)) {
        if let Some(progress) = &self.progress {
            let event = Event::of_service(self.project.clone(), self.service.clone(), phase, detail);
            progress.say(event.count(done as u64, total as u64));
        }
    }
}

fn short(ids: &Ids) -> String {
    ids.iter().map(ContainerId::short).collect::<Vec<_>>().join(", ")
}
