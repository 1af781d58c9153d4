//! Probes: whether a set-aside endpoint answers again, and whether endpoints with a health path are healthy.
//!
//! It opens its own connections and runs apart from the data threads. What it finds it writes into the endpoints'
//! atomics; it never publishes and never closes one, so health weighs and cannot empty an upstream.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use crate::endpoint::Endpoint;
use crate::live::Store;
use crate::table::{Address, Health, Policy, Protocol};

/// How often due probes are looked for; also the time between probes of a set-aside endpoint.
const TICK: Duration = Duration::from_secs(1);
/// Endpoints looked at between two yields, so that a large table does not hold up what else runs here.
const CHUNK: usize = 1024;
/// Probes at a time.
const AT_ONCE: usize = 64;
/// Failed probes in a row that make an endpoint unhealthy; one good one makes it healthy.
const FAILURES: u8 = 2;

/// Probes what is due, until it is dropped. Spawn it on a runtime of control's, not on a data thread.
pub(crate) async fn keeper(store: Arc<Store>) {
    let mut schedule = Schedule::default();
    let mut running: JoinSet<(Arc<Endpoint>, Kind, bool)> = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                for due in collect_due(&store, &mut schedule).await {
                    if running.len() >= AT_ONCE
                        && let Some(Ok(done)) = running.join_next().await
                    {
                        schedule.conclude(&done.0, done.1, done.2, Instant::now());
                    }
                    running.spawn(async move {
                        let answered = probe(&due.endpoint, due.health.as_ref(), due.timeout).await;
                        (due.endpoint, due.kind, answered)
                    });
                }
            }
            Some(done) = running.join_next(), if !running.is_empty() => {
                if let Ok((endpoint, kind, answered)) = done {
                    schedule.conclude(&endpoint, kind, answered, Instant::now());
                }
            }
        }
    }
}

/// Why an endpoint is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It failed and is set aside.
    SetAside,
    /// Its upstream has a health path.
    Health,
}

struct Due {
    endpoint: Arc<Endpoint>,
    kind: Kind,
    health: Option<Health>,
    timeout: Duration,
}

/// When what is probed next, by endpoint key. Only endpoints that are probed at all are in it.
#[derive(Debug, Default)]
struct Schedule(HashMap<u64, Slot>);

#[derive(Debug)]
struct Slot {
    next: Instant,
    running: bool,
    failures: u8,
    /// Seen in the round that is going on; those that are not are forgotten after it.
    seen: bool,
}

impl Schedule {
    /// Decides whether an endpoint is to be probed now, and why; a probe is never started beside another.
    fn due(&mut self, endpoint: &Endpoint, policy: &Policy, now: Instant) -> Option<Kind> {
        let kind = match (endpoint.is_suspect(), &policy.health) {
            (true, _) => Kind::SetAside,
            (false, Some(_)) => Kind::Health,
            (false, None) => return None,
        };
        let slot = self.0.entry(endpoint.key).or_insert(Slot { next: now, running: false, failures: 0, seen: true });
        slot.seen = true;
        // A healthy endpoint that fails is probed at the next tick, not at the end of its health interval.
        let early = kind == Kind::SetAside && slot.next > now + TICK;
        if slot.running || (slot.next > now && !early) {
            return None;
        }
        slot.running = true;
        slot.next =
            now + policy.health.as_ref().filter(|_| kind == Kind::Health).map_or(TICK, |health| health.interval);
        Some(kind)
    }

    /// Writes what a probe found into its endpoint.
    fn conclude(&mut self, endpoint: &Endpoint, kind: Kind, answered: bool, now: Instant) {
        let Some(slot) = self.0.get_mut(&endpoint.key) else { return };
        slot.running = false;
        slot.failures = if answered { 0 } else { slot.failures.saturating_add(1) };
        match (kind, answered) {
            (_, true) => {
                endpoint.record_success();
                endpoint.probe_unhealthy(false);
            }
            (Kind::SetAside, false) => endpoint.record_probe_failure(now, now + 2 * TICK),
            (Kind::Health, false) if slot.failures >= FAILURES => endpoint.probe_unhealthy(true),
            (Kind::Health, false) => {}
        }
    }

    /// Forgets what was not looked at in this round: retired, or well again without a health path.
    fn forget_unseen(&mut self) {
        self.0.retain(|_, slot| std::mem::take(&mut slot.seen) || slot.running);
    }
}

async fn collect_due(store: &Store, schedule: &mut Schedule) -> Vec<Due> {
    let now = Instant::now();
    let mut due = Vec::new();
    let upstreams: Vec<_> = store.load().upstreams().cloned().collect();
    let mut looked_at = 0;
    for upstream in upstreams {
        for endpoint in upstream.endpoints.iter().filter(|endpoint| !endpoint.is_closed()) {
            if let Some(kind) = schedule.due(endpoint, &upstream.policy, now) {
                let health = upstream.policy.health.clone();
                let timeout = health.as_ref().map_or(upstream.policy.connect_timeout, |health| health.timeout);
                due.push(Due { endpoint: endpoint.clone(), kind, health, timeout });
            }
            looked_at += 1;
            if looked_at % CHUNK == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
    schedule.forget_unseen();
    due
}

/// Tells whether an endpoint answers in time: its health path where it has one and speaks HTTP/1, else a
/// connection that opens.
async fn probe(endpoint: &Endpoint, health: Option<&Health>, timeout: Duration) -> bool {
    let path = health.filter(|_| endpoint.protocol == Protocol::H1).map(|health| health.path.as_ref());
    answers(&endpoint.address, path, timeout).await
}

/// Tells whether an address answers in time, as the proxy would ask it: an HTTP/1 path with 2xx or 3xx, else a connection
/// that opens.
pub async fn answers(address: &Address, path: Option<&str>, limit: Duration) -> bool {
    matches!(tokio::time::timeout(limit, reach(address, path)).await, Ok(Ok(true)))
}

async fn reach(address: &Address, path: Option<&str>) -> io::Result<bool> {
    match address {
        Address::Tcp(address) => ask(TcpStream::connect(address).await?, &address.to_string(), path).await,
        Address::Unix(socket) => ask(UnixStream::connect(socket).await?, "localhost", path).await,
    }
}

/// Asks in HTTP/1.0, so that the answer is neither chunked nor kept open, and reads its status alone.
async fn ask<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, host: &str, path: Option<&str>) -> io::Result<bool> {
    let Some(path) = path else { return Ok(true) };
    let request =
        format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: itsup-probe\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut status = [0; 12];
    stream.read_exact(&mut status).await?;
    Ok(is_good_status(&status))
}

/// Tells whether a status line begins with `HTTP/1.x` and 2xx or 3xx.
fn is_good_status(line: &[u8; 12]) -> bool {
    matches!(line, [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1', b' ', b'2' | b'3', tens, ones]
        if tens.is_ascii_digit() && ones.is_ascii_digit())
}

#[cfg(test)]
mod tests;
