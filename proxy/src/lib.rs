//! itsUP's data plane: hosts, routes, upstreams, endpoints and certificates.
//!
//! It knows no YAML, no Docker and no project. Others build a [`RouteTable`] and publish it.

pub mod access;
pub mod certs;
pub mod challenges;
pub mod config;
pub mod drain;
mod endpoint;
mod head;
mod hello;
pub mod host;
mod live;
pub mod path;
mod probe;
mod proxy_protocol;
pub mod status;
mod sync;
pub mod table;
mod tls;

/// Inner functions for fuzz targets and benches alone: no part of the API.
#[doc(hidden)]
pub mod internals {
    pub use crate::live::bench::Snapshots;
    pub mod head {
        pub use crate::head::*;
    }
    pub mod hello {
        pub use crate::hello::*;
    }
    pub mod proxy_protocol {
        pub use crate::proxy_protocol::*;
    }

    /// See `host::normalize`.
    pub fn normalize<'a>(raw: &'a [u8], buf: &'a mut [u8; 256]) -> Option<&'a str> {
        crate::host::normalize(raw, buf)
    }

    /// See `path::has_dot_segments`.
    pub fn has_dot_segments(path: &[u8]) -> bool {
        crate::path::has_dot_segments(path)
    }
}

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
