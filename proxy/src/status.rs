//! What the proxy says of itself: plain data for `status` and `/metrics`.

use crate::table::{EndpointId, UpstreamName};

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
    /// HTTP requests.
    pub requests: u32,
    /// Websockets (upgraded connections).
    pub websockets: u32,
    /// Passthrough connections.
    pub passthrough: u32,
}
