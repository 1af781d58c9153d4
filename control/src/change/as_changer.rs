//! Rollouts as what a plan is run by: services are changed over, routes follow db.yml, and pins hold.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::{ChangeError, Order, Receipt, Rollouts};
use crate::active::ServiceKey;
use crate::apply::{ChangeFailed, Changed, Changer, Later, ServiceChange, rollback_repository};
use crate::artifacts::COMPOSE;
use crate::compose::Written;
use crate::control::ReloadError;
use crate::jobs::{CancelToken, Progress};
use crate::pen::Held;
use crate::plan::Pins;
use crate::status::rfc3339;
use crate::versions::{self, Version};

impl Changer for Rollouts {
    fn change<'a>(
        &'a self,
        change: &'a ServiceChange<'a>,
        progress: &'a Progress,
        cancel: &'a CancelToken,
    ) -> Later<'a, Result<Changed, ChangeFailed>> {
        Box::pin(async move {
            let order = Order::new(change.project, change.service, change.file, change.target.replicas as usize);
            let before = written(&change.file.folder, &order.compose_service);
            let done = if change.rolling {
                self.roll_over(&order, progress, cancel).await
            } else {
                self.recreate(&order, progress, cancel).await
            };
            match done {
                Ok(receipt) => {
                    if !change.target.pinned {
                        self.forget_pin(&order);
                    }
                    if let Some(document) = before {
                        self.keep_version(&order, &receipt, document);
                    }
                    Ok(Changed { summary: receipt.to_string(), receipt: Some(receipt.id) })
                }
                Err(error) => Err(failed(&error)),
            }
        })
    }

    fn publish<'a>(&'a self, failed: &'a BTreeSet<Arc<str>>) -> Later<'a, Result<(), String>> {
        Box::pin(async move {
            let Some(control) = &self.inner.control else { return Ok(()) };
            match control.reload_but(failed.clone()).await {
                Ok(_) => Ok(()),
                Err(ReloadError::Refused(refused)) => Err(refused.message),
                Err(error @ ReloadError::ShuttingDown(_)) => Err(error.to_string()),
            }
        })
    }

    fn pins(&self) -> Pins {
        versions::pins(&self.inner.root).unwrap_or_else(|error| {
            tracing::error!("the pins of rollbacks cannot be read: {error}");
            Pins::default()
        })
    }

    fn unpin(&self, services: &BTreeSet<ServiceKey>) -> Result<(), String> {
        services
            .iter()
            .try_for_each(|key| versions::set_pin(&self.inner.root, key, None))
            .map_err(|error| error.to_string())
    }

    fn emptied<'a>(&'a self, containers: BTreeSet<String>) -> Later<'a, Option<Held>> {
        Box::pin(async move {
            match &self.inner.control {
                Some(control) => Some(control.emptied(containers).await),
                None => None,
            }
        })
    }

    fn settled<'a>(&'a self, project: &'a str) -> Later<'a, ()> {
        Box::pin(async move { drop(self.inner.turns.enter(project).await) })
    }
}

impl Rollouts {
    /// Keeps what has been replaced, so that a rollback can go back to it. A rollout of the very same thing replaces nothing.
    fn keep_version(&self, order: &Order, receipt: &Receipt, document: serde_yaml::Mapping) {
        let (Some(old), Some(new)) = (receipt.old.first(), receipt.new.first()) else { return };
        if old.image_id == new.image_id && old.config == new.config {
            return;
        }
        let id = old.image_id.trim_start_matches("sha256:");
        let repository = rollback_repository(&order.compose_service);
        let version = Version {
            document,
            image: format!("{repository}:{}", id.get(..12).unwrap_or(id)),
            image_id: old.image_id.clone(),
            replaced: rfc3339(SystemTime::now()),
        };
        if let Err(error) = versions::keep(&self.inner.root, &order.key(), version) {
            tracing::warn!("what {} was cannot be kept for a rollback: {error}", order.key());
        }
    }

    /// A pin ends with what it stood for.
    fn forget_pin(&self, order: &Order) {
        if let Err(error) = versions::set_pin(&self.inner.root, &order.key(), None) {
            tracing::warn!("the pin of {} cannot be taken away: {error}", order.key());
        }
    }
}

/// What the compose file that holds says of a service.
fn written(folder: &Path, compose_service: &str) -> Option<serde_yaml::Mapping> {
    let text = std::fs::read_to_string(folder.join(COMPOSE)).ok()?;
    Written::read(&text).services.remove(compose_service)
}

fn failed(error: &ChangeError) -> ChangeFailed {
    let hint = match error {
        ChangeError::Undone { .. } => Some("mend the new version, then apply again".to_owned()),
        ChangeError::Stuck { .. } => Some("look at its log; `itsup rollback` goes back to what ran before".to_owned()),
        ChangeError::NotBegun(_) | ChangeError::ShuttingDown => None,
    };
    ChangeFailed {
        message: error.to_string(),
        hint,
        log: error.log().to_vec(),
        receipt: error.receipt().map(|receipt| receipt.id.clone()),
    }
}
