//! itsUP's data plane: hosts, routes, upstreams, endpoints and certificates.
//!
//! It knows no YAML, no Docker and no project. Others build a [`RouteTable`] and publish it.

pub mod access;
pub mod certs;
pub mod challenges;
pub mod config;
pub mod drain;
mod endpoint;
pub mod host;
mod live;
pub mod path;
mod probe;
pub mod status;
mod sync;
pub mod table;
mod tls;

pub use access::{Access, BasicUser};
pub use certs::{Cert, CertTable, Certs};
pub use challenges::Challenges;
pub use config::{AccessLogTarget, Config, Limits};
pub use drain::{Drained, Draining};
pub use host::{Host, HostPattern};
pub use live::Published;
pub use path::PathPrefix;
pub use status::Status;
pub use table::{
    Action, Address, Changes, Edge, EndpointId, EndpointSpec, HeaderEdits, Health, Passthrough, Policy, Protocol,
    ProxyVersion, Route, RouteTable, Site, Target, Upstream, UpstreamName, Verify, VerifyAgainst,
};
