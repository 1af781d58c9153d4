//! What the proxy says of itself: plain data for `status` and `/metrics`.

use std::iter::Sum;

use crate::endpoint::Class;
use crate::hold::Held;
use crate::table::{EndpointId, UpstreamName};
use crate::tally::Tally;

/// The proxy's state at one moment.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// How many tables have been published since start.
    pub generation: u64,
    /// Hosts in the live table.
    pub hosts: usize,
    /// Open client connections.
    pub connections: u64,
    /// Upstreams in the live table, with their endpoints, by name.
    pub upstreams: Vec<UpstreamStatus>,
    /// Endpoints that have been retired and still have traffic.
    pub draining: Vec<EndpointStatus>,
}

/// An upstream at one moment.
#[derive(Clone, Debug)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: UpstreamName,
    /// Its endpoints.
    pub endpoints: Vec<EndpointStatus>,
    /// Whether its new requests are made to wait, and how many do.
    pub held: Option<Held>,
}

impl UpstreamStatus {
    /// Adds up what its endpoints are serving: what retiring all of them now would have to wait for.
    pub fn in_flight(&self) -> InFlight {
        self.endpoints.iter().map(|endpoint| endpoint.in_flight).sum()
    }
}

/// An endpoint at one moment.
#[derive(Clone, Debug)]
pub struct EndpointStatus {
    /// Its identity.
    pub id: EndpointId,
    /// Its address as text.
    pub address: String,
    /// Whether it gets traffic.
    pub state: EndpointState,
    /// What it is serving.
    pub in_flight: InFlight,
    /// What it has done since it came.
    pub tally: Tally,
}

/// Whether an endpoint gets traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// It does.
    Up,
    /// Known to be unhealthy: last choice.
    Unhealthy,
    /// Set aside after failures, until a probe answers or its back-off ends.
    SetAside,
    /// Retired, finishing what it has.
    Draining,
}

/// Leases at one moment, by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// HTTP requests that are soon over.
    pub requests: u32,
    /// HTTP requests that go on for a while: event streams, uploads, downloads.
    pub streams: u32,
    /// Websockets (upgraded connections).
    pub websockets: u32,
    /// Passthrough connections.
    pub passthrough: u32,
}

impl InFlight {
    /// Returns the leases of one class.
    pub fn of(&self, class: Class) -> u32 {
        match class {
            Class::Request => self.requests,
            Class::Stream => self.streams,
            Class::Websocket => self.websockets,
            Class::Passthrough => self.passthrough,
        }
    }

    /// Returns the leases of all classes.
    pub fn total(&self) -> u32 {
        Class::ALL.iter().fold(0, |sum, class| sum.saturating_add(self.of(*class)))
    }

    /// Makes one from a count of each class.
    pub fn from_fn(count: impl Fn(Class) -> u32) -> Self {
        Self {
            requests: count(Class::Request),
            streams: count(Class::Stream),
            websockets: count(Class::Websocket),
            passthrough: count(Class::Passthrough),
        }
    }
}

impl Sum for InFlight {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self::from_fn(|class| a.of(class).saturating_add(b.of(class))))
    }
}
