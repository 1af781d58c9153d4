//! itsUP's data plane: hosts, routes, upstreams, endpoints and certificates.
//!
//! It knows no YAML, no Docker and no project. Others build a [`RouteTable`] and publish it.

pub mod access;
pub mod config;
mod error_page;
mod head;
mod headers;
mod hello;
pub mod host;
#[doc(hidden)]
pub mod internals;
pub mod path;
mod proxy_protocol;
pub mod status;
pub mod table;
mod welcome;

pub use access::{Access, AccessError, BasicUser};
pub use config::{AccessLogTarget, Config, Limits};
pub use host::{Host, HostError, HostPattern};
pub use path::{PathError, PathPrefix};
pub use status::Status;
pub use table::{
    Action, Address, Edge, EndpointId, EndpointSpec, HeaderEdits, Health, Passthrough, Policy, Protocol, ProxyVersion,
    Route, RouteTable, Site, Target, Upstream, UpstreamName, Verify, VerifyAgainst,
};
