//! The wish for an upgrade, on its way from whoever has it (the API, a webhook) to the process's main loop, which alone can
//! start a successor.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::status::ErrorReport;

/// What a new process has to be ready within, unless said otherwise.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Where wishes go. A clone is the same place.
#[derive(Clone, Debug)]
pub struct Upgrades(mpsc::Sender<Wish>);

/// What is to run instead of this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeRequest {
    /// The binary, an absolute path.
    pub to: PathBuf,
    /// How long it may take until it is ready. 30 s.
    #[serde(default = "default_patience")]
    pub patience_seconds: u64,
}

fn default_patience() -> u64 {
    PATIENCE.as_secs()
}

/// A request, and where the answer goes.
#[derive(Debug)]
pub struct Wish {
    /// What is wanted.
    pub request: UpgradeRequest,
    /// Where the outcome goes.
    pub answer: oneshot::Sender<Result<UpgradeReport, ErrorReport>>,
}

/// A successor has taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeReport {
    /// The new process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// From start to takeover.
    pub took_ms: u64,
    /// Connections that the old process had open then, and goes on serving.
    pub draining: u64,
}

impl Upgrades {
    /// A place for wishes, and its other end.
    pub fn channel() -> (Upgrades, mpsc::Receiver<Wish>) {
        let (wishes, inbox) = mpsc::channel(1);
        (Upgrades(wishes), inbox)
    }

    /// Has a successor started; returns when it has taken over, or has failed and this process goes on.
    pub async fn upgrade(&self, request: UpgradeRequest) -> Result<UpgradeReport, ErrorReport> {
        let refused = |error: &str| ErrorReport { error: error.into(), hint: None, diagnostics: Vec::new() };
        let (answer, answered) = oneshot::channel();
        self.0.try_send(Wish { request, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => refused("another upgrade is under way"),
            mpsc::error::TrySendError::Closed(_) => refused("itsup is shutting down"),
        })?;
        answered.await.unwrap_or_else(|_| Err(refused("itsup was stopped before the upgrade was done")))
    }
}
