//! itsUP's data plane: hosts, routes, upstreams, endpoints and certificates.
//!
//! It knows no YAML, no Docker and no project. Others build a [`RouteTable`] and publish it.

mod acceptor;
pub mod access;
mod access_log;
pub mod certs;
pub mod challenges;
mod chunked;
mod coding;
pub mod config;
mod conn;
mod crowd;
mod dial;
pub mod drain;
mod ending;
mod endpoint;
mod error_page;
mod frames;
mod front;
mod h1;
mod hangup;
mod head;
mod headers;
mod hello;
mod hold;
pub mod host;
mod http;
#[doc(hidden)]
pub mod internals;
mod listen;
mod live;
mod metrics;
pub mod path;
mod peer;
mod pieces;
mod plain;
mod prefixed;
mod probe;
mod proxy;
mod proxy_protocol;
mod redirect;
mod relay;
mod request_id;
mod self_test;
mod shared;
pub mod status;
mod stream;
mod sync;
pub mod table;
mod tally;
mod tls;
mod welcome;
mod worker;

pub use access::{Access, AccessError, BasicUser};
pub use certs::{Cert, CertTable, Certs};
pub use challenges::Challenges;
pub use config::{AccessLogTarget, Config, Limits};
pub use drain::{Drained, Draining, EndpointTally};
pub use endpoint::Class;
pub use hold::{Held, Hold, HoldLimits};
pub use host::{Host, HostError, HostPattern};
pub use listen::{BindError, Listeners, listens_on};
pub use live::Published;
pub use path::{PathError, PathPrefix};
pub use probe::answers;
pub use proxy::{Proxy, StartError};
pub use self_test::{SelfTestError, Through};
pub use status::Status;
pub use table::{
    Action, Address, Changes, Edge, EndpointId, EndpointSpec, HeaderEdits, Health, Passthrough, Policy, Protocol,
    ProxyVersion, Route, RouteTable, Site, Target, Upstream, UpstreamName, Verify, VerifyAgainst,
};
pub use tally::Tally;
