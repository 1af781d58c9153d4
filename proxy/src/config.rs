//! What the proxy is told once, at start.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// Settings that hold from start to end of the process.
#[derive(Clone, Debug)]
pub struct Config {
    /// The plain listener (:80).
    pub http: SocketAddr,
    /// The TLS listener (:443).
    pub https: SocketAddr,
    /// Data threads, one runtime and one set of listeners each.
    pub threads: NonZeroUsize,
    /// Where access log lines go.
    pub access_log: AccessLogTarget,
    /// Limits on clients.
    pub limits: Limits,
}

/// Where access log lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Nowhere.
    #[default]
    Off,
    /// To standard output.
    Stdout,
    /// To this file, created where missing, appended to.
    File(PathBuf),
}

/// Limits on slow and greedy clients.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The PROXY header and the ClientHello must be there within this. 10 s.
    pub hello: Duration,
    /// The TLS handshake must be done within this. 10 s.
    pub handshake: Duration,
    /// A request's whole header block must be there within this, from its first byte. 30 s.
    pub header: Duration,
    /// The longest wait for the next byte of a promised h1 body before the response begins. 30 s.
    pub body_stall: Duration,
    /// The longest wait for the next request on a connection. 75 s.
    pub keep_alive: Duration,
    /// The largest header block, bytes. 64 KiB.
    pub header_bytes: usize,
    /// The most header fields. 128.
    pub header_fields: usize,
    /// Connections at a time for one client address. 1,024.
    pub connections_per_client: u32,
    /// Streams at a time on one h2 connection. 128.
    pub h2_streams: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(30),
            body_stall: Duration::from_secs(30),
            keep_alive: Duration::from_secs(75),
            header_bytes: 64 * 1024,
            header_fields: 128,
            connections_per_client: 1024,
            h2_streams: 128,
        }
    }
}
