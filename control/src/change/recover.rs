//! What a crash has left, finished or undone, before anything else of those projects.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt as _;
use itsup_proxy::{Address, Draining, HoldLimits};

use super::compose::{How, Lock};
use super::retire::{self, Parting};
use super::{ChangeError, DRAIN, Order, Rollouts, STREAM_DRAIN, Teller, run};
use crate::artifacts::ProjectFolder;
use crate::docker::StackFile;
use crate::journal::{Change, Kind, Retiring};
use crate::observed::{Container, NETWORK};
use crate::rollout::{Ids, PROBE_EVERY};

/// How often it is looked whether the process before this one is gone.
const LOOK: Duration = Duration::from_secs(1);

/// Begins with everything that the journals name. Their projects' turns are taken when this returns.
pub(super) fn start(rollouts: &Rollouts) {
    for (project, journal) in rollouts.inner.journals.all() {
        for retiring in journal.retiring {
            let busy = rollouts.busy(format!("{} is draining", retiring.id));
            let (rollouts, project) = (rollouts.clone(), project.clone());
            tokio::spawn(async move {
                see_off(&rollouts, &project, &retiring).await;
                drop(busy);
            });
        }
        let Some(change) = journal.change else { continue };
        // Nobody else can have it yet.
        let turn = rollouts.inner.turns.enter(&project).now_or_never();
        let busy = rollouts.busy(format!("recovery of {project}"));
        let rollouts = rollouts.clone();
        tokio::spawn(async move {
            let id = change.id.clone();
            tracing::warn!(%project, service = %change.service, kind = ?change.kind, "a change was interrupted");
            match settle(&rollouts, &project, change).await {
                Ok(told) => tracing::warn!(%project, %id, "{told}"),
                Err(error) => tracing::error!(%project, %id, "{error}"),
            }
            drop((turn, busy));
        });
    }
}

/// Finishes or undoes a change; says which.
async fn settle(rollouts: &Rollouts, project: &Arc<str>, change: Change) -> Result<String, ChangeError> {
    // A compose that outlived the crash may still be making containers.
    let lock = Lock::take(&rollouts.inner.root, project).await;
    let lock = lock.map_err(|error| ChangeError::NotBegun(format!("docker compose cannot be locked: {error}")))?;
    let order = order(rollouts, project, &change);
    let teller = Teller::silent(&order.project, &order.service);
    match change.kind {
        Kind::Rolling(_) => {
            drop(lock);
            match run::resume(rollouts, &order, &teller, change).await {
                Ok(_) => {
                    holds(rollouts, &order, true);
                    Ok("the interrupted rollout is finished: the new containers serve".to_owned())
                }
                Err(ChangeError::Undone { .. }) => {
                    holds(rollouts, &order, false);
                    Ok("the interrupted rollout is undone: the old containers serve".to_owned())
                }
                Err(error) => Err(error),
            }
        }
        Kind::InPlace => in_place(rollouts, &order, &change, &lock).await,
    }
}

/// Lets the compose file that was tried hold, or forgets it, as the change itself would have done in the end.
fn holds(rollouts: &Rollouts, order: &Order, finished: bool) {
    let folder = ProjectFolder::new(&rollouts.inner.root, &order.project);
    if order.file.file != folder.next() || !folder.next().exists() {
        return;
    }
    if let Err(error) = if finished { folder.commit() } else { folder.discard() } {
        tracing::warn!("{error}; the next apply writes it anew");
    }
}

/// Asks compose once more, as nobody knows how far it came.
async fn in_place(rollouts: &Rollouts, order: &Order, change: &Change, lock: &Lock) -> Result<String, ChangeError> {
    let engine = &rollouts.inner.engine;
    let refused = |error: String| ChangeError::NotBegun(error);
    rollouts.persist("waiting", || engine.info()).await.map_err(|error| refused(error.to_string()))?;
    // As before the crash: those who come meanwhile are late, and not lost.
    let hold = rollouts.hold(order, HoldLimits::default());
    let made = rollouts.up(order, How::AsNeeded(change.terms.replicas), lock).await;
    if made.is_ok() {
        answering(rollouts, order).await;
    }
    let struck = rollouts.inner.journals.update(&order.project, |journal| journal.change = None);
    if let Err(error) = struck {
        tracing::error!("the journal cannot be written: {error}");
    }
    rollouts.thaw(order, Ids::new()).await?;
    if let Some(hold) = hold {
        hold.release().await;
    }
    match made {
        Ok(()) => {
            holds(rollouts, order, true);
            Ok("the interrupted restart is finished".to_owned())
        }
        Err(error) => Err(refused(format!("the interrupted restart cannot be finished: {error}; see `itsup plan`"))),
    }
}

/// Waits until the containers of a service answer where they say that they listen, or may take no longer.
async fn answering(rollouts: &Rollouts, order: &Order) {
    let (project, service) = (&order.compose_project, &order.compose_service);
    let all = async {
        let mut ticks = tokio::time::interval(PROBE_EVERY);
        loop {
            ticks.tick().await;
            let Ok(there) = rollouts.inner.engine.service(project, service, NETWORK).await else { continue };
            let place = |one: &Container| Some(Address::Tcp(SocketAddr::new(one.address?, one.port?)));
            let places: Vec<Address> = there.iter().filter(|one| one.running).filter_map(place).collect();
            let answers = places.iter().map(|place| itsup_proxy::answers(place, None, order.probe_limit));
            if futures_util::future::join_all(answers).await.into_iter().all(|answers| answers) {
                return;
            }
        }
    };
    if tokio::time::timeout(order.terms.timeout, all).await.is_err() {
        tracing::warn!("{project}: {service} does not answer yet; it is routed all the same");
    }
}

/// Stops and removes what was on its way out, once the process that it still served is gone.
async fn see_off(rollouts: &Rollouts, project: &Arc<str>, retiring: &Retiring) {
    while is_served(retiring) {
        tokio::time::sleep(LOOK).await;
    }
    let parting = Parting {
        project: project.clone(),
        id: retiring.id.clone(),
        containers: retiring.containers.clone(),
        draining: Draining::default(),
        drain: Duration::ZERO,
        stream_drain: Duration::ZERO,
    };
    if let Err(error) = retire::part(rollouts, &parting).await {
        tracing::error!("{project}: old containers cannot be removed: {error}; the next start tries again");
    }
}

/// Whether an itsUP before this one may still carry their connections: after an upgrade it does, after a crash not.
fn is_served(retiring: &Retiring) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |since| since.as_secs());
    let alive = retiring.process != std::process::id() && is_itsup(retiring.process);
    alive && now < retiring.until
}

/// Whether this process is one of the same program as we are.
fn is_itsup(process: u32) -> bool {
    let name = |path: String| std::fs::read_to_string(path).ok();
    let ours = name("/proc/self/comm".to_owned());
    ours.is_some() && name(format!("/proc/{process}/comm")) == ours
}

/// The compose file of a change; where it has gone, the one that holds.
fn file(rollouts: &Rollouts, project: &str, change: &Change) -> StackFile {
    let folder = ProjectFolder::new(&rollouts.inner.root, project);
    let tried = PathBuf::from(&change.file);
    let file = if tried.exists() { tried } else { folder.compose() };
    StackFile { folder: folder.path().to_owned(), file, project: change.compose_project.clone() }
}

/// What can be told of the order from the journal.
fn order(rollouts: &Rollouts, project: &Arc<str>, change: &Change) -> Order {
    Order {
        project: project.clone(),
        service: change.service.as_str().into(),
        compose_project: change.compose_project.as_str().into(),
        compose_service: change.compose_service.clone(),
        file: file(rollouts, project, change),
        terms: change.terms.clone(),
        drain: DRAIN,
        stream_drain: STREAM_DRAIN,
        // Nothing is probed any more.
        port: 0,
        health_path: None,
        probe_limit: super::PROBE_LIMIT,
    }
}
