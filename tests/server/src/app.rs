//! What the whole server knows: who it is, whether it is well, whether it is ending.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::args::{Args, Healthy};

/// Shared by all connections.
pub(crate) struct App {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Another for each process.
    pub(crate) instance: String,
    pub(crate) requests: AtomicU64,
    start: Instant,
    ready_delay: Duration,
    healthy: Healthy,
    /// What `POST /health` set: 0 nothing, 1 ill, 2 well.
    switched: AtomicU8,
    /// Turns true once, at a graceful end.
    ending: watch::Receiver<bool>,
}

impl App {
    pub(crate) fn new(args: &Args, start: Instant, ending: watch::Receiver<bool>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Self {
            name: args.name.clone(),
            version: args.app_version.clone(),
            instance: format!("{:x}-{:x}", std::process::id(), now),
            requests: AtomicU64::new(0),
            start,
            ready_delay: args.start_delay + args.ready_delay,
            healthy: args.healthy,
            switched: AtomicU8::new(0),
            ending,
        }
    }

    /// False while the server still answers 503 to everything.
    pub(crate) fn ready(&self) -> bool {
        self.start.elapsed() >= self.ready_delay
    }

    /// What `/health` says.
    pub(crate) fn healthy(&self) -> bool {
        match self.switched.load(Ordering::Relaxed) {
            1 => false,
            2 => true,
            _ => match self.healthy {
                Healthy::Always(well) => well,
                Healthy::After(delay) => self.start.elapsed() >= delay,
            },
        }
    }

    /// Comes back when a graceful end has begun.
    pub(crate) async fn ended(&self) {
        // An error means that nobody is left to announce the end: it is one.
        let _ = self.ending.clone().wait_for(|end| *end).await;
    }

    pub(crate) fn switch_health(&self, well: bool) {
        self.switched.store(if well { 2 } else { 1 }, Ordering::Relaxed);
    }
}
