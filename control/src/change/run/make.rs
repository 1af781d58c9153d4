//! Has compose make the new containers.

use super::Mode;
use crate::change::compose::{How, Lock};
use crate::change::{Order, Rollouts};
use crate::docker::{ComposeError, EngineError};
use crate::observed::NETWORK;
use crate::rollout::Ids;

/// Why compose has made nothing, or not enough.
#[derive(Debug, thiserror::Error)]
pub(super) enum MakeError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Compose(#[from] ComposeError),
    #[error("docker compose cannot be locked: {0}")]
    Lock(#[from] std::io::Error),
}

/// Has compose make the new ones. Those in the way go first: the dead ones, which compose would count and start again, and
/// in place also those that have only just been replaced.
pub(super) async fn make(rollouts: &Rollouts, order: &Order, mode: Mode, in_the_way: &Ids) -> Result<(), MakeError> {
    let _counting = rollouts.inner.counting.enter(&order.project).await;
    let lock = Lock::take(&rollouts.inner.root, &order.project).await?;
    let engine = &rollouts.inner.engine;
    rollouts.remove(in_the_way).await?;
    let count = || engine.service(&order.compose_project, &order.compose_service, NETWORK);
    let there = rollouts.persist("counting", count).await?;
    let replicas = order.terms.replicas;
    let how = match mode {
        Mode::Beside => How::Beside(there.len() + replicas),
        Mode::InPlace => How::Anew(replicas),
    };
    // Asked again, after an engine that went in between, it makes what is still missing.
    loop {
        let Err(error) = rollouts.up(order, how, &lock).await else { return Ok(()) };
        match engine.info().await {
            Ok(_) => return Err(error.into()),
            Err(away @ (EngineError::Unreachable { .. } | EngineError::Silent { .. })) => {
                tracing::warn!("docker compose: {error}, as {away}; waiting for it");
                rollouts.persist("waiting", || engine.info()).await?;
            }
            Err(refused) => return Err(refused.into()),
        }
    }
}
