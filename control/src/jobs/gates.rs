//! One gate for each project, through which one change passes at a time, in the order of coming.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

/// A project's gate.
type Turns = HashMap<Arc<str>, Arc<Turn<()>>>;

/// The gates of all projects. Cheap to clone.
#[derive(Clone, Default)]
pub struct Gates {
    gates: Arc<Mutex<Turns>>,
}

/// The turn with a project; dropping it lets the next one in.
#[must_use]
pub struct Gate {
    _turn: Option<OwnedMutexGuard<()>>,
}

impl Gates {
    /// Waits for its turn.
    pub async fn enter(&self, project: &str) -> Gate {
        let gate = {
            let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody uses or waits for go; projects come and go too.
            gates.retain(|_, gate| Arc::strong_count(gate) > 1);
            gates.entry(project.into()).or_default().clone()
        };
        Gate { _turn: Some(gate.lock_owned().await) }
    }
}

impl Gate {
    /// The gate of a project that this very job has passed already.
    pub(super) fn held() -> Gate {
        Gate { _turn: None }
    }
}
