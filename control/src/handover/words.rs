//! The words of the conversation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::follow::Seats;
use crate::status::{ErrorReport, InFlightReport};

/// Which conversation this is. A process that does not know it refuses, and the older one goes on.
pub const PROTOCOL: u32 = 1;

/// What a file descriptor is, that goes with a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketName {
    /// Listens for plain HTTP.
    Http,
    /// Listens for TLS.
    Https,
    /// Listens for the API on TCP.
    Api,
    /// Listens on the control socket.
    Control,
    /// Listens on the socket by which the proxy reaches the API.
    Proxy,
    /// The locked file that says whose the state folder is.
    Claim,
    /// The channel to a still older process.
    Elder,
}

/// One thing that one process says to the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum Word {
    /// Old to new: these are the sockets, in this order, with the word itself.
    Take {
        protocol: u32,
        sockets: Vec<SocketName>,
        /// Whether there are more to come.
        more: bool,
    },
    /// New to old: everything is loaded, and every data thread serves.
    Loaded,
    /// Old to new: I accept no more; it is for you to do.
    Accept,
    /// New to old: I accept and have seen it work. From here on the old one leaves.
    Ready { pid: u32, version: String },
    /// New to old: I cannot.
    Failed { report: ErrorReport },
    /// New to old, later: this is where traffic goes now; tell me what you still serve.
    Follow {
        /// Tells the answer from an earlier one.
        turn: u64,
        upstreams: BTreeMap<String, Seats>,
        more: bool,
    },
    /// Old to new: what I still serve, by endpoint, after what you said.
    Leases { turn: u64, connections: u64, held: BTreeMap<String, InFlightReport>, more: bool },
}
