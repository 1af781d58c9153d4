//! One address that traffic goes to: its gate, its leases and its health.
//!
//! It knows no route, no upstream policy and no socket. Everything in it that changes is an atomic: data
//! threads share it without a lock.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::status::{EndpointState, EndpointStatus, InFlight};
use crate::table::{Address, EndpointId, EndpointSpec, Protocol};
use crate::tally::Tallies;

mod gate;

pub use gate::Class;
use gate::{Counts, Gate};

/// The first time a failing endpoint is set aside for; each further round doubles it.
const BACK_OFF: Duration = Duration::from_secs(1);
/// The longest time a failing endpoint is set aside for.
const MAX_BACK_OFF: Duration = Duration::from_secs(30);

/// One address that traffic goes to, from the publish that brings it to the end of its last lease.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Its identity in the table.
    pub id: EndpointId,
    /// Where it listens.
    pub address: Address,
    /// How HTTP is spoken to it.
    pub protocol: Protocol,
    /// Unique in this process for this endpoint's lifetime; upstream pools are keyed by it, so that a re-used
    /// address never inherits another container's sockets.
    pub key: u64,
    gate: Gate,
    /// Beside the gate: whoever counts has just had the gate's cache line to itself.
    tally: Tallies,
    born: Instant,
    /// The table says that it is unhealthy.
    listed_unhealthy: AtomicBool,
    /// Our own probe says that it is unhealthy.
    probed_unhealthy: AtomicBool,
    /// A [`SetAside`], packed.
    set_aside: AtomicU64,
}

impl Endpoint {
    /// An open endpoint with nothing in flight.
    pub(crate) fn new(spec: &EndpointSpec, now: Instant) -> Self {
        static KEYS: AtomicU64 = AtomicU64::new(1);
        Self {
            id: spec.id.clone(),
            address: spec.address.clone(),
            protocol: spec.protocol.clone(),
            key: KEYS.fetch_add(1, Ordering::Relaxed),
            gate: Gate::new(),
            tally: Tallies::default(),
            born: now,
            listed_unhealthy: AtomicBool::new(spec.unhealthy),
            probed_unhealthy: AtomicBool::new(false),
            set_aside: AtomicU64::new(0),
        }
    }

    /// Where its connections go, where that is a TCP address.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        match self.address {
            Address::Tcp(address) => Some(address),
            Address::Unix(_) => None,
        }
    }

    /// Tells whether this is the endpoint that `spec` names. Its health is no part of its identity.
    pub(crate) fn is(&self, spec: &EndpointSpec) -> bool {
        self.id == spec.id && self.address == spec.address && self.protocol == spec.protocol
    }

    /// Returns the right to use it once, or nothing where it is closed (retired): load `Live` again then.
    pub(crate) fn try_lease(self: &Arc<Self>, class: Class) -> Option<Lease> {
        self.gate.enter(class).then(|| Lease { endpoint: self.clone(), class })
    }

    /// Retires it for good: no lease is given from here on. Returns what is still in flight.
    pub(crate) fn close(&self) -> InFlight {
        self.gate.close().into()
    }

    /// Tells whether it is retired.
    pub(crate) fn is_closed(&self) -> bool {
        self.gate.is_closed()
    }

    /// Returns its leases by class.
    pub(crate) fn in_flight(&self) -> InFlight {
        self.gate.counts().into()
    }

    /// Returns its leases of all classes: what "least in flight" compares.
    pub(crate) fn load(&self) -> u32 {
        self.gate.counts().total()
    }

    /// The gate, for whoever waits until it is empty.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// What it has done, to be added to.
    pub(crate) fn tally(&self) -> &Tallies {
        &self.tally
    }

    /// Takes over what the table says of its health.
    pub(crate) fn list_unhealthy(&self, unhealthy: bool) {
        self.listed_unhealthy.store(unhealthy, Ordering::Relaxed);
    }

    /// Takes over what a health probe found.
    pub(crate) fn probe_unhealthy(&self, unhealthy: bool) {
        self.probed_unhealthy.store(unhealthy, Ordering::Relaxed);
    }

    /// Tells whether the table or a probe calls it unhealthy.
    pub(crate) fn is_unhealthy(&self) -> bool {
        self.listed_unhealthy.load(Ordering::Relaxed) || self.probed_unhealthy.load(Ordering::Relaxed)
    }

    /// It answered: it is set aside no longer, and its back-off starts over.
    pub(crate) fn record_success(&self) {
        // Read first: the usual success must not dirty a cache line that all data threads share.
        if self.set_aside.load(Ordering::Relaxed) != 0 {
            self.set_aside.store(0, Ordering::Relaxed);
        }
    }

    /// It could not be reached: it is set aside, longer each time. Failures while it is set aside do not add up,
    /// so a burst of requests that fail together counts once.
    pub(crate) fn record_failure(&self, now: Instant) {
        self.fail(now, now);
    }

    /// A probe could not reach it: it stays set aside at least until the next probe.
    pub(crate) fn record_probe_failure(&self, now: Instant, next_probe: Instant) {
        self.fail(now, next_probe);
    }

    fn fail(&self, now: Instant, until_at_least: Instant) {
        let random = fastrand::u64(..);
        let (now, least) = (self.millis(now), self.millis(until_at_least));
        // A lost race means that another thread has just recorded the same failure.
        let seen = self.set_aside.load(Ordering::Relaxed);
        let next = SetAside::unpack(seen).fail(now, least, random).pack();
        if next != seen {
            let _ = self.set_aside.compare_exchange(seen, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Tells whether it is set aside now. Once its back-off has ended it gets traffic again.
    pub(crate) fn is_set_aside(&self, now: Instant) -> bool {
        let seen = self.set_aside.load(Ordering::Relaxed);
        seen != 0 && SetAside::unpack(seen).until > self.millis(now)
    }

    /// Tells whether it has failed and not answered since; true beyond the end of the back-off.
    pub(crate) fn is_suspect(&self) -> bool {
        self.set_aside.load(Ordering::Relaxed) != 0
    }

    /// Returns how long it stays set aside, zero where it is not.
    pub(crate) fn set_aside_for(&self, now: Instant) -> Duration {
        let until = SetAside::unpack(self.set_aside.load(Ordering::Relaxed)).until;
        Duration::from_millis(until.saturating_sub(self.millis(now)))
    }

    /// Returns what `status` shows of it.
    pub(crate) fn status(&self, now: Instant) -> EndpointStatus {
        let state = if self.is_closed() {
            EndpointState::Draining
        } else if self.is_set_aside(now) {
            EndpointState::SetAside
        } else if self.is_unhealthy() {
            EndpointState::Unhealthy
        } else {
            EndpointState::Up
        };
        EndpointStatus {
            id: self.id.clone(),
            address: self.address.to_string(),
            state,
            in_flight: self.in_flight(),
            tally: self.tally.read(),
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX >> 8)
    }
}

/// How long an endpoint is set aside, and in which round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SetAside {
    /// Milliseconds of the endpoint's life at which it ends.
    until: u64,
    /// Failures in a row, each after the back-off of the one before.
    rounds: u8,
}

impl SetAside {
    const fn pack(self) -> u64 {
        self.until << 8 | self.rounds as u64
    }

    const fn unpack(word: u64) -> Self {
        Self { until: word >> 8, rounds: (word & 0xff) as u8 }
    }

    /// The next round, unless this one still holds until `least`.
    fn fail(self, now: u64, least: u64, random: u64) -> Self {
        if self.rounds > 0 && self.until > least.max(now) {
            return self;
        }
        let rounds = self.rounds.saturating_add(1);
        Self { until: (now + back_off(rounds, random)).max(least + 1), rounds }
    }
}

/// The back-off of a round (from 1), milliseconds: doubling, capped, less up to a fifth at random, so that
/// endpoints that fell together are not tried together.
fn back_off(round: u8, random: u64) -> u64 {
    let whole = (BACK_OFF.as_millis() as u64) << u32::from(round.saturating_sub(1)).min(16);
    let whole = whole.min(MAX_BACK_OFF.as_millis() as u64);
    whole - random % (whole / 5 + 1)
}

impl From<Counts> for InFlight {
    fn from(counts: Counts) -> Self {
        Self::from_fn(|class| counts.of(class))
    }
}

/// The right to use an endpoint for one request or one connection. Dropping it counts down.
#[derive(Debug)]
#[must_use = "dropping a lease ends it"]
pub(crate) struct Lease {
    endpoint: Arc<Endpoint>,
    class: Class,
}

impl Lease {
    /// The endpoint to use.
    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// What it is counted as.
    pub(crate) fn class(&self) -> Class {
        self.class
    }

    /// Counts it as another class from here on: a request that has become a websocket.
    pub(crate) fn become_class(&mut self, class: Class) {
        self.class = self.endpoint.gate.change(self.class, class);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.gate.leave(self.class);
    }
}

#[cfg(test)]
mod tests;
