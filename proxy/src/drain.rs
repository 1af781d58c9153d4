//! The handle on what a publish has retired, and what came of it.
//!
//! It knows no table and no upstream; it waits until gates are empty, and has ended what does not end by itself. It never
//! closes one.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::ending::Enders;
use crate::endpoint::{Class, Endpoint};
use crate::status::InFlight;
use crate::table::EndpointId;
use crate::tally::Tally;

/// How long those that have been told to end may take, before their connections are taken from them.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take until that is seen.
const LAST: Duration = Duration::from_secs(2);

/// The endpoints that a publish has retired, with those of the same identity that were still draining.
#[derive(Clone, Debug, Default)]
#[must_use = "what is retired may be stopped only when it has drained"]
pub struct Draining {
    endpoints: Vec<Arc<Endpoint>>,
    /// In flight when it began.
    began_with: InFlight,
    enders: Arc<Enders>,
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

/// What one retired endpoint has done in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointTally {
    /// Its identity. One that was opened again while it drained is there once for each time.
    pub id: EndpointId,
    /// Its address as text.
    pub address: String,
    /// What it has done.
    pub tally: Tally,
}

impl Draining {
    /// Waits on endpoints that are closed.
    pub(crate) fn new(endpoints: Vec<Arc<Endpoint>>, enders: Arc<Enders>) -> Self {
        let began_with = sum(&endpoints);
        Self { endpoints, began_with, enders }
    }

    /// Tells whether nothing was retired.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// Returns what is still in flight.
    pub fn in_flight(&self) -> InFlight {
        sum(&self.endpoints)
    }

    /// Returns what each of them has done, now that nothing is added but by what is still in flight.
    pub fn tallies(&self) -> Vec<EndpointTally> {
        let tally = |e: &Arc<Endpoint>| EndpointTally {
            id: e.id.clone(),
            address: e.address.to_string(),
            tally: e.tally().read(),
        };
        self.endpoints.iter().map(tally).collect()
    }

    /// Returns what they have done together.
    pub fn tally(&self) -> Tally {
        self.endpoints.iter().map(|endpoint| endpoint.tally().read()).sum()
    }

    /// Waits until nothing is in flight, or the limit has passed.
    pub async fn wait(&self, limit: Duration) -> Drained {
        self.wait_for(&Class::ALL, limit).await
    }

    /// Waits until no request proper is in flight (streams, websockets and passthrough connections may go on), or the
    /// limit has passed.
    pub async fn wait_requests(&self, limit: Duration) -> Drained {
        self.wait_for(&[Class::Request], limit).await
    }

    /// Waits until nothing of these classes is in flight, or the limit has passed. A request may become a stream or a
    /// websocket, so waiting for those alone is waiting for what there is of them now.
    pub async fn wait_for(&self, classes: &[Class], limit: Duration) -> Drained {
        let began = Instant::now();
        // An elapsed limit is no error: what is left is the answer.
        let _ = tokio::time::timeout(limit, poll_fn(|cx| self.poll_empty(classes, cx))).await;
        let left = self.in_flight();
        Drained { finished: minus(self.began_with, left), left, waited: began.elapsed() }
    }

    /// Ends what there is of these classes, spread evenly over a time so that clients do not all come back at once, and
    /// waits until they are gone.
    ///
    /// Websockets get a close frame (1001) between two frames, event streams their proper end; half-sent responses are
    /// reset, so that none is taken for whole, and passthrough connections are closed. What has not gone some seconds
    /// after it was told loses its connection. Requests proper ([`Class::Request`]) are not ended: they end with their
    /// endpoint, and are retried where that is safe.
    pub async fn end(&self, classes: &[Class], spread: Duration) -> Drained {
        let began = Instant::now();
        let long: Vec<Class> = classes.iter().copied().filter(|class| Class::LONG.contains(class)).collect();
        let keys: Vec<u64> = self.endpoints.iter().map(|endpoint| endpoint.key).collect();
        let before = self.in_flight();
        self.enders.end(&keys, &long, spread);
        let mut drained = self.wait_for(&long, spread + PATIENCE).await;
        if long.iter().any(|class| drained.left.of(*class) > 0) {
            self.enders.force(&keys, &long);
            drained = self.wait_for(&long, LAST).await;
        }
        Drained { finished: minus(before, drained.left), waited: began.elapsed(), ..drained }
    }

    /// Asks every endpoint, also past one that is pending: each must know the waker.
    fn poll_empty(&self, classes: &[Class], cx: &mut Context<'_>) -> Poll<()> {
        let pending = self.endpoints.iter().filter(|e| e.gate().poll_empty(classes, cx).is_pending()).count();
        if pending == 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

fn sum(endpoints: &[Arc<Endpoint>]) -> InFlight {
    endpoints.iter().map(|endpoint| endpoint.in_flight()).sum()
}

fn minus(a: InFlight, b: InFlight) -> InFlight {
    InFlight::from_fn(|class| a.of(class).saturating_sub(b.of(class)))
}

#[cfg(test)]
mod tests;
