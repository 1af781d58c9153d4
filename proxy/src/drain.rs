//! The handle on what a publish has retired, and what came of it.
//!
//! It knows no table and no upstream; it only waits until gates are empty. It never closes one.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::endpoint::{Class, Endpoint};
use crate::status::InFlight;

/// The endpoints that a publish has retired, with those of the same identity that were still draining.
#[derive(Clone, Debug, Default)]
#[must_use = "what is retired may be stopped only when it has drained"]
pub struct Draining {
    endpoints: Vec<Arc<Endpoint>>,
    /// In flight when it began.
    began_with: InFlight,
}

/// What came of a drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// What has ended since the publish.
    pub finished: InFlight,
    /// What was still in flight when the limit had passed. All zero: nothing was cut short.
    pub left: InFlight,
    /// How long was waited.
    pub waited: Duration,
}

impl Draining {
    /// Waits on endpoints that are closed.
    pub(crate) fn new(endpoints: Vec<Arc<Endpoint>>) -> Self {
        let began_with = sum(&endpoints);
        Self { endpoints, began_with }
    }

    /// Tells whether nothing was retired.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// Returns what is still in flight.
    pub fn in_flight(&self) -> InFlight {
        sum(&self.endpoints)
    }

    /// Waits until nothing is in flight, or the limit has passed.
    pub async fn wait(&self, limit: Duration) -> Drained {
        self.wait_for(&Class::ALL, limit).await
    }

    /// Waits until no request is in flight (websockets and passthrough connections may go on), or the limit has
    /// passed.
    pub async fn wait_requests(&self, limit: Duration) -> Drained {
        self.wait_for(&[Class::Request], limit).await
    }

    async fn wait_for(&self, classes: &[Class], limit: Duration) -> Drained {
        let began = Instant::now();
        // An elapsed limit is no error: what is left is the answer.
        let _ = tokio::time::timeout(limit, poll_fn(|cx| self.poll_empty(classes, cx))).await;
        let left = self.in_flight();
        Drained { finished: minus(self.began_with, left), left, waited: began.elapsed() }
    }

    /// Asks every endpoint, also past one that is pending: each must know the waker.
    fn poll_empty(&self, classes: &[Class], cx: &mut Context<'_>) -> Poll<()> {
        let pending = self.endpoints.iter().filter(|e| e.gate().poll_empty(classes, cx).is_pending()).count();
        if pending == 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

fn sum(endpoints: &[Arc<Endpoint>]) -> InFlight {
    endpoints.iter().map(|endpoint| endpoint.in_flight()).fold(InFlight::default(), |a, b| InFlight {
        requests: a.requests.saturating_add(b.requests),
        websockets: a.websockets.saturating_add(b.websockets),
        passthrough: a.passthrough.saturating_add(b.passthrough),
    })
}

fn minus(a: InFlight, b: InFlight) -> InFlight {
    InFlight {
        requests: a.requests.saturating_sub(b.requests),
        websockets: a.websockets.saturating_sub(b.websockets),
        passthrough: a.passthrough.saturating_sub(b.passthrough),
    }
}

#[cfg(test)]
mod tests;
