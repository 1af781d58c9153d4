//! Old containers on their way out: they finish what they have, and then they go.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use itsup_proxy::{Class, Drained, Draining};

use super::{Rollouts, fault, traffic};
use crate::docker::EngineError;
use crate::journal::Retiring;
use crate::rollout::Ids;

/// What is to go, and how long it may take over it.
pub(super) struct Parting {
    pub(super) project: Arc<str>,
    pub(super) id: String,
    pub(super) containers: Ids,
    pub(super) draining: Draining,
    /// What is left of the limits.
    pub(super) drain: Duration,
    pub(super) stream_drain: Duration,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parted {
    pub(super) drained: u64,
    pub(super) cut: u64,
    pub(super) waited: Duration,
    pub(super) stopping: Duration,
}

/// Notes in the journal what is going to go; from then on there is no way back.
pub(super) fn entry(id: &str, service: &Arc<str>, containers: &Ids, limit: Duration) -> Retiring {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Retiring {
        id: id.to_owned(),
        service: service.to_string(),
        containers: containers.clone(),
        process: std::process::id(),
        until: (now + limit).as_secs(),
    }
}

/// Waits until they have nothing left, or may have no more, then stops and removes them.
pub(super) async fn part(rollouts: &Rollouts, parting: &Parting) -> Result<Parted, EngineError> {
    let draining = &parting.draining;
    let began = Instant::now();
    let at_first = draining.in_flight().total();
    let _: Drained = draining.wait_requests(parting.drain).await;
    let _: Drained = draining.wait(parting.stream_drain.saturating_sub(began.elapsed())).await;
    let left = draining.in_flight();
    let mut cut = 0;
    if left.total() > 0 {
        let _: Drained = draining.end(&Class::LONG, traffic::spread(draining)).await;
        cut = u64::from(left.total());
    }
    let waited = began.elapsed();
    fault::point("drained");
    let stopping = Instant::now();
    // Compose counts containers, and would start again one that is stopped and not yet removed.
    let _counting = rollouts.inner.counting.enter(&parting.project).await;
    rollouts.remove(&parting.containers).await?;
    fault::point("removed");
    forget(rollouts, parting);
    let drained = u64::from(at_first).saturating_sub(cut);
    Ok(Parted { drained, cut, waited, stopping: stopping.elapsed() })
}

/// Strikes them from the journal, as they are gone.
fn forget(rollouts: &Rollouts, parting: &Parting) {
    let struck = rollouts.inner.journals.update(&parting.project, |journal| {
        journal.retiring.retain(|retiring| retiring.id != parting.id);
    });
    if let Err(error) = struck {
        tracing::warn!("the journal of {} cannot be written: {error}; the next start will", parting.project);
    }
}
