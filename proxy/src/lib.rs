//! itsUP's data plane: hosts, routes, upstreams, endpoints and certificates.
//!
//! It knows no YAML, no Docker and no project. Others build a [`RouteTable`] and publish it.

pub mod access;
pub mod certs;
pub mod config;
pub mod host;
pub mod path;
pub mod proxy;
pub mod status;
pub mod table;

pub use access::{Access, BasicUser};
pub use certs::{Cert, CertTable, Certs};
pub use config::{AccessLogTarget, Config, Limits};
pub use host::{Host, HostPattern};
pub use path::PathPrefix;
pub use proxy::{BindError, Draining, Proxy, Published};
pub use status::Status;
pub use table::{
    Action, Address, Edge, EndpointId, EndpointSpec, HeaderEdits, Health, Passthrough, Policy, Protocol, ProxyVersion,
    Route, RouteTable, Site, Target, Upstream, UpstreamName, Verify, VerifyAgainst,
};
