//! Where the snapshot is kept: publish order, what is draining, and where old snapshots die.
//!
//! Reading is wait-free. Publishing takes a lock that no data thread takes.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};

use super::rebuild::{Rebuilt, rebuild};
use super::{Live, LiveUpstream};
use crate::drain::Draining;
use crate::ending::Enders;
use crate::endpoint::Endpoint;
use crate::status::{Status, UpstreamStatus};
use crate::table::{EndpointId, RouteTable};

/// What a publish did.
#[derive(Clone, Debug)]
#[must_use = "what is retired may be stopped only when it has drained"]
pub struct Published {
    /// The generation that is live now.
    pub generation: u64,
    /// Whether the table differed from the one before.
    pub changed: bool,
    /// What it has retired.
    pub draining: Draining,
}

/// The one snapshot, behind the one `ArcSwap`.
#[derive(Debug)]
pub(crate) struct Store {
    live: ArcSwap<Live>,
    /// Retired endpoints that had traffic at last look. Its lock is also what makes publishes one at a time.
    draining: Mutex<Vec<Arc<Endpoint>>>,
    reaper: Option<Sender<Arc<Live>>>,
    enders: Arc<Enders>,
}

impl Store {
    /// An empty snapshot, generation 0.
    pub(crate) fn new() -> Arc<Self> {
        let (reaper, old) = mpsc::channel();
        let spawned = std::thread::Builder::new().name("reaper".into()).spawn(move || reap(&old));
        if let Err(error) = &spawned {
            tracing::warn!(%error, "no thread for old tables: they are dropped where they are last used");
        }
        Arc::new(Self {
            live: ArcSwap::from_pointee(Live::default()),
            draining: Mutex::default(),
            reaper: spawned.is_ok().then_some(reaper),
            enders: Arc::default(),
        })
    }

    /// Returns the snapshot as it is now. Look up, take what is needed, drop the guard before any await.
    pub(crate) fn load(&self) -> Guard<Arc<Live>> {
        self.live.load()
    }

    /// Who ends what outstays a retired endpoint.
    pub(crate) fn enders(&self) -> &Enders {
        &self.enders
    }

    /// Makes `table` live and retires what it no longer names. An equal table touches nothing.
    ///
    /// Takes time in proportion to the table: never call it on a data thread.
    pub(crate) fn publish(&self, table: RouteTable) -> Published {
        let mut draining = self.draining();
        let old = self.live.load_full();
        let Some(Rebuilt { live, retired }) = rebuild(&old, table, Instant::now()) else {
            return Published { generation: old.generation, changed: false, draining: Draining::default() };
        };
        let generation = live.generation;
        // The order is the promise: who is turned away by a closed endpoint finds the new snapshot.
        drop(self.live.swap(Arc::new(live)));
        for endpoint in &retired {
            endpoint.close();
        }
        self.bury(old);
        draining.retain(|endpoint| endpoint.load() > 0);
        // The same container may still be draining from an earlier life in the table: it may be stopped only when
        // both are empty.
        let earlier = draining.iter().filter(|e| retired.iter().any(|r| r.id == e.id));
        let handle = Draining::new(retired.iter().chain(earlier).cloned().collect(), self.enders.clone());
        draining.extend(retired.into_iter().filter(|endpoint| endpoint.load() > 0));
        Published { generation, changed: true, draining: handle }
    }

    /// Waits on those that earlier publishes have retired and that still have traffic, as far as they are these.
    pub(crate) fn draining_of(&self, ours: impl Fn(&EndpointId) -> bool) -> Draining {
        let endpoints = self.draining().iter().filter(|endpoint| ours(&endpoint.id)).cloned().collect();
        Draining::new(endpoints, self.enders.clone())
    }

    /// Waits on every endpoint that has traffic, those in use included: for the very end.
    pub(crate) fn everything(&self) -> Draining {
        let live = self.live.load_full();
        let in_use = live.upstreams().flat_map(|upstream| upstream.endpoints.iter()).filter(|e| e.load() > 0);
        let endpoints = self.draining().iter().chain(in_use).cloned().collect();
        Draining::new(endpoints, self.enders.clone())
    }

    /// Returns what it knows for `status`; connections and holds are the caller's to add.
    pub(crate) fn statuses(&self, now: Instant) -> Status {
        let draining = {
            let mut draining = self.draining();
            draining.retain(|endpoint| endpoint.load() > 0);
            draining.iter().map(|endpoint| endpoint.status(now)).collect()
        };
        let live = self.live.load_full();
        let upstreams = live.upstreams().map(|upstream| upstream_status(upstream, now)).collect();
        Status { generation: live.generation, hosts: live.hosts(), connections: 0, upstreams, draining }
    }

    /// Returns what it knows of one upstream, at no cost that grows with the table.
    pub(crate) fn upstream_status(&self, name: &str, now: Instant) -> Option<UpstreamStatus> {
        self.live.load().upstream(name).map(|upstream| upstream_status(upstream, now))
    }

    fn draining(&self) -> MutexGuard<'_, Vec<Arc<Endpoint>>> {
        self.draining.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a snapshot that is live no more to the reaper, which holds it until nobody else does.
    fn bury(&self, live: Arc<Live>) {
        if let Some(reaper) = &self.reaper {
            let _ = reaper.send(live);
        }
    }
}

fn upstream_status(upstream: &LiveUpstream, now: Instant) -> UpstreamStatus {
    UpstreamStatus {
        name: upstream.name.clone(),
        endpoints: upstream.endpoints.iter().map(|endpoint| endpoint.status(now)).collect(),
        held: None,
    }
}

/// Drops old snapshots when nobody else holds them: dropping 100,000 hosts takes long enough to be felt on a
/// data thread, so none may be the last to hold one. `ArcSwap::swap` has turned guards on the old
/// snapshot into counts, so a count of one is final.
fn reap(old: &Receiver<Arc<Live>>) {
    const PATIENCE: Duration = Duration::from_millis(10);
    const MAX_PATIENCE: Duration = Duration::from_secs(1);
    let mut held: Vec<Arc<Live>> = Vec::new();
    let mut patience = PATIENCE;
    loop {
        let next =
            if held.is_empty() { old.recv().map_err(RecvTimeoutError::from) } else { old.recv_timeout(patience) };
        match next {
            Ok(live) => {
                held.push(live);
                patience = PATIENCE;
            }
            Err(RecvTimeoutError::Timeout) => patience = (patience * 2).min(MAX_PATIENCE),
            Err(RecvTimeoutError::Disconnected) => return,
        }
        held = held.into_iter().filter_map(|live| Arc::try_unwrap(live).err()).collect();
    }
}

#[cfg(test)]
mod tests;
