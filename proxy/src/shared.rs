//! What all data threads share: snapshots that are swapped, atomics, and nothing that locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::access_log::AccessLog;
use crate::certs::Certs;
use crate::challenges::Challenges;
use crate::config::Limits;
use crate::crowd::{Crowd, Place};
use crate::hold::Holds;
use crate::live::Store;
use crate::metrics::Metrics;
use crate::tls::Tls;

pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) holds: Arc<Holds>,
    pub(crate) certs: Arc<Certs>,
    pub(crate) challenges: Arc<Challenges>,
    pub(crate) tls: Tls,
    pub(crate) metrics: Metrics,
    pub(crate) log: Arc<AccessLog>,
    pub(crate) crowd: Arc<Crowd>,
    pub(crate) limits: Limits,
    open: AtomicU64,
    emptied: Notify,
}

impl Shared {
    pub(crate) fn new(
        store: Arc<Store>,
        challenges: Arc<Challenges>,
        certs: Arc<Certs>,
        tls: Tls,
        log: Arc<AccessLog>,
        limits: Limits,
        threads: usize,
    ) -> Self {
        Self {
            tls,
            store,
            holds: Arc::default(),
            certs,
            challenges,
            metrics: Metrics::new(threads),
            log,
            crowd: Arc::new(Crowd::new(limits.connections_per_client)),
            limits,
            open: AtomicU64::new(0),
            emptied: Notify::new(),
        }
    }

    /// Open client connections.
    pub(crate) fn connections(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Returns when no client connection is open.
    pub(crate) async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            if self.connections() == 0 {
                return;
            }
            emptied.await;
        }
    }
}

/// One open client connection; dropping it counts down.
pub(crate) struct Seat {
    shared: Arc<Shared>,
    _place: Option<Place>,
}

impl Seat {
    pub(crate) fn take(shared: &Arc<Shared>, place: Option<Place>) -> Self {
        shared.open.fetch_add(1, Ordering::Relaxed);
        Self { shared: shared.clone(), _place: place }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.shared.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.emptied.notify_waiters();
        }
    }
}
