//! Whose traffic a change cares for: a running itsUP's, or nobody's.

use std::time::Duration;

use itsup_proxy::{Draining, Hold, HoldLimits, UpstreamName};

use super::{ChangeError, Order, Rollouts};
use crate::control::PublishError;
use crate::observed::Container;
use crate::rollout::{Ids, Tally};

/// The upstream that leads to a service.
pub(super) fn upstream(order: &Order) -> UpstreamName {
    format!("{}/{}", order.project, order.service).into()
}

impl Rollouts {
    pub(super) async fn freeze(&self, order: &Order) -> Result<(), ChangeError> {
        match &self.inner.control {
            Some(control) => control.freeze(&order.key()).await.map_err(|_| ChangeError::ShuttingDown),
            None => Ok(()),
        }
    }

    pub(super) async fn thaw(&self, order: &Order, leaving: Ids) -> Result<(), ChangeError> {
        match &self.inner.control {
            Some(control) => control.thaw(&order.key(), leaving).await.map_err(|_| ChangeError::ShuttingDown),
            None => Ok(()),
        }
    }

    /// Routes these and no others; an error in words is one that the change can answer.
    pub(super) async fn publish(
        &self,
        order: &Order,
        set: Ids,
        reachable: Vec<Container>,
    ) -> Result<Result<Draining, String>, ChangeError> {
        let Some(control) = &self.inner.control else { return Ok(Ok(Draining::default())) };
        match control.publish_active(&order.key(), set, reachable).await {
            Ok(draining) => Ok(Ok(draining)),
            Err(PublishError::ShuttingDown(_)) => Err(ChangeError::ShuttingDown),
            Err(why) => Ok(Err(why.to_string())),
        }
    }

    /// Has requests for a service wait.
    pub(super) fn hold(&self, order: &Order, limits: HoldLimits) -> Option<Hold> {
        Some(self.inner.control.as_ref()?.proxy().hold(&upstream(order), limits))
    }

    /// What the endpoints of a service have done together, as far as they are routed now.
    pub(super) fn tally(&self, order: &Order) -> itsup_proxy::Tally {
        let Some(control) = &self.inner.control else { return itsup_proxy::Tally::default() };
        let status = control.proxy().upstream_status(&upstream(order));
        status.map(|status| status.endpoints.iter().map(|endpoint| endpoint.tally).sum()).unwrap_or_default()
    }
}

/// What tells whether new containers fail more often than old ones.
pub(super) fn compared(tally: itsup_proxy::Tally) -> Tally {
    Tally { served: tally.asked(), failed: tally.failed() }
}

/// Over how long those that are ended are spread, so that they do not all come back at once.
pub(super) fn spread(draining: &Draining) -> Duration {
    let streams = u64::from(draining.in_flight().total());
    Duration::from_millis((streams * 20).clamp(0, 10_000))
}
