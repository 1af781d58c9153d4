//! The traffic's side of changes: what a rollout asks of the single writer.
//!
//! While a service is frozen, events do not change what is routed for it: only what is published here does. It must
//! not know how containers come and go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use itsup_proxy::{Draining, EndpointId, Proxy, RouteTable, UpstreamName};
use tokio::sync::{oneshot, watch};

use super::actor::Actor;
use super::{Command, Control, ShuttingDown};
use crate::active::ServiceKey;
use crate::journal::{self, Journal, Kind};
use crate::observed::{Container, ContainerId, Observed};
use crate::rollout::Ids;

/// How long what the engine has told a rollout may take to be seen here too.
const TO_BE_SEEN: Duration = Duration::from_secs(10);

/// Why a set was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// What was asked for differs from what is observed.
    #[error("container {0} is not seen running at its address")]
    NotSeen(String),
    /// A container has no address of its own on the network.
    #[error("container {0} has no address of its own on {network}", network = crate::observed::NETWORK)]
    NoAddress(String),
    /// Control is gone.
    #[error(transparent)]
    ShuttingDown(#[from] ShuttingDown),
}

/// What a rollout asks for.
pub(super) enum Deed {
    Freeze {
        key: ServiceKey,
        answer: oneshot::Sender<()>,
    },
    Publish {
        key: ServiceKey,
        set: Ids,
        reachable: Vec<Container>,
        answer: oneshot::Sender<Result<Draining, PublishError>>,
    },
    Thaw {
        key: ServiceKey,
        leaving: Ids,
        answer: oneshot::Sender<()>,
    },
}

impl Control {
    /// What Docker says is there, as it changes.
    pub fn observed(&self) -> watch::Receiver<Arc<Observed>> {
        self.observed.clone()
    }

    /// The proxy that serves.
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// From now on, only [`Control::publish_active`] changes what is routed for this service.
    pub async fn freeze(&self, key: &ServiceKey) -> Result<(), ShuttingDown> {
        let key = key.clone();
        self.ask(|answer| Deed::Freeze { key, answer }).await
    }

    /// Routes these containers of a frozen service and no others, in one publish; returns what that has retired.
    ///
    /// Those that are `reachable`, as the engine has just told, must be seen here as well, with the same start and address:
    /// a re-used address is nobody's until it is known whose it is.
    pub async fn publish_active(
        &self,
        key: &ServiceKey,
        set: Ids,
        reachable: Vec<Container>,
    ) -> Result<Draining, PublishError> {
        for container in &reachable {
            let mut observed = self.observed.clone();
            let seen = observed.wait_for(|observed| is_seen(observed, container));
            match tokio::time::timeout(TO_BE_SEEN, seen).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return Err(ShuttingDown.into()),
                Err(_) => return Err(PublishError::NotSeen(container.id.short().to_owned())),
            }
        }
        let key = key.clone();
        self.ask(|answer| Deed::Publish { key, set, reachable, answer }).await?
    }

    /// Lets events have their say again; these containers, which are on their way out, never join.
    pub async fn thaw(&self, key: &ServiceKey, leaving: Ids) -> Result<(), ShuttingDown> {
        let key = key.clone();
        self.ask(|answer| Deed::Thaw { key, leaving, answer }).await
    }

    async fn ask<T>(&self, deed: impl FnOnce(oneshot::Sender<T>) -> Deed) -> Result<T, ShuttingDown> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Change(deed(answer))).await.map_err(|_| ShuttingDown)?;
        answered.await.map_err(|_| ShuttingDown)
    }
}

/// What changes have left under way, as the writer keeps it.
#[derive(Default)]
pub(super) struct Changing {
    /// Services whose set is left alone.
    frozen: BTreeSet<ServiceKey>,
    /// Containers that are on their way out.
    leaving: BTreeSet<ContainerId>,
    /// What a crash has left, until the first publish.
    left: Vec<(Arc<str>, Journal)>,
}

impl Changing {
    /// Reads what a crash has left: those services are frozen until somebody has finished or undone their change.
    pub(super) fn from_journals(root: &crate::settings::Root) -> Changing {
        let mut changing = Changing { left: journal::peek(root).into_iter().collect(), ..Changing::default() };
        for (project, journal) in &changing.left {
            changing.leaving.extend(journal.retiring.iter().flat_map(|retiring| retiring.containers.iter().cloned()));
            // In place there is one set alone, and what of it runs is to be routed.
            let rolling = journal.change.as_ref().filter(|change| change.kind != Kind::InPlace);
            changing.frozen.extend(rolling.map(|change| change.key(project)));
        }
        changing
    }

    pub(super) fn frozen(&self) -> &BTreeSet<ServiceKey> {
        &self.frozen
    }

    pub(super) fn leaving(&self) -> &BTreeSet<ContainerId> {
        &self.leaving
    }

    /// Forgets those that are gone.
    pub(super) fn look(&mut self, observed: &Observed) {
        if observed.engine.is_up() {
            self.leaving.retain(|id| observed.containers.contains_key(id));
        }
    }
}

impl Actor {
    /// Routes what the journals say, where a crash has left a change half done.
    pub(super) fn take_journals(&mut self) {
        let observed = self.observed.borrow().clone();
        for (project, journal) in std::mem::take(&mut self.changing.left) {
            if let Some(change) = journal.change.filter(|change| change.kind != Kind::InPlace) {
                self.active.set(change.key(&project), change.routed(&observed).clone());
            }
        }
    }

    pub(super) fn change(&mut self, deed: Deed) {
        // Whoever asked may be gone; what was done is done, and the journal knows how to go on.
        match deed {
            Deed::Freeze { key, answer } => {
                self.changing.frozen.insert(key);
                let _ = answer.send(());
            }
            Deed::Publish { key, set, reachable, answer } => {
                let _ = answer.send(self.publish_set(key, set, &reachable));
            }
            Deed::Thaw { key, leaving, answer } => {
                self.changing.frozen.remove(&key);
                self.changing.leaving.extend(leaving);
                self.publish();
                let _ = answer.send(());
            }
        }
    }

    fn publish_set(&mut self, key: ServiceKey, set: Ids, reachable: &[Container]) -> Result<Draining, PublishError> {
        let before = self.active.clone();
        let upstream: UpstreamName = format!("{}/{}", key.project, key.service).into();
        self.active.set(key, set);
        let (observed, resolved) = self.look();
        let table = self.table(&observed, &resolved);
        let missing = reachable.iter().find(|container| !leads_to(&table, &upstream, &container.endpoint_id()));
        if let Some(container) = missing {
            self.active = before;
            return Err(PublishError::NoAddress(container.id.short().to_owned()));
        }
        self.save_active();
        let (_, draining) = self.publish_table(table);
        Ok(draining)
    }
}

fn is_seen(observed: &Observed, container: &Container) -> bool {
    observed.containers.get(&container.id).is_some_and(|seen| {
        seen.running && seen.endpoint_id() == container.endpoint_id() && seen.address == container.address
    })
}

/// Whether traffic for a service reaches this endpoint; a service that nothing leads to has no upstream.
fn leads_to(table: &RouteTable, upstream: &UpstreamName, endpoint: &EndpointId) -> bool {
    table.upstreams.get(upstream).is_none_or(|upstream| upstream.endpoints.iter().any(|e| e.id == *endpoint))
}
