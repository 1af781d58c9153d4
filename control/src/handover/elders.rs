//! The older processes that still serve connections, as the newest one sees them; and what they do when it asks.
//!
//! A container may be stopped only when no process uses it any more. So the newest tells the older ones where traffic goes, which makes
//! them retire what is no longer there, and asks what they still serve.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use itsup_proxy::status::{EndpointStatus, InFlight};
use itsup_proxy::{Proxy, RouteTable};
use tokio::runtime::Handle;

use super::channel::{Channel, ChannelError};
use super::follow::{self, Seats};
use super::words::Word;
use crate::control::Control;
use crate::status::InFlightReport;

/// An older process that takes longer to answer is asked again later, and counts as one that uses everything.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often they are asked while something is waited for.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Upstreams and endpoints in one message.
const AT_ONCE: usize = 500;

/// The older processes. A clone is the same set.
#[derive(Clone, Debug, Default)]
pub struct Elders(Arc<Mutex<Vec<Elder>>>);

#[derive(Debug)]
struct Elder {
    channel: Channel,
    /// What it was told last.
    told: BTreeMap<String, Seats>,
    turn: u64,
}

/// What older processes still serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// How many processes there are.
    pub processes: usize,
    /// Their open client connections.
    pub connections: u64,
    /// What they serve, by endpoint.
    pub held: BTreeMap<String, InFlightReport>,
    /// Whether one of them did not answer.
    pub unknown: bool,
}

impl Elders {
    /// Takes note of an older process.
    pub fn adopt(&self, channel: Channel) {
        self.all().push(Elder { channel, told: BTreeMap::new(), turn: 0 });
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    /// The channels once more, for a still newer process.
    pub fn channels(&self) -> std::io::Result<Vec<Channel>> {
        self.all().iter().map(|elder| elder.channel.try_clone()).collect()
    }

    /// Tells them where traffic goes and asks what they still serve. Those that have ended are forgotten.
    pub async fn ask(&self, table: Arc<RouteTable>) -> Served {
        if self.is_empty() {
            return Served::default();
        }
        let elders = self.clone();
        let asked = tokio::task::spawn_blocking(move || elders.ask_all(&table)).await;
        asked.unwrap_or_else(|_| Served { unknown: true, ..Served::default() })
    }

    /// Waits until none of them uses these endpoints any more, or `limit` has passed; returns what is left. `is` says
    /// by its identity whether an endpoint is one of these.
    ///
    /// Call it after the publish that takes them out of `proxy`'s table.
    pub async fn wait(&self, proxy: &Proxy, is: impl Fn(&str) -> bool, limit: Duration) -> InFlightReport {
        let end = Instant::now() + limit;
        loop {
            let served = self.ask(proxy.table()).await;
            let held = served.held.iter().filter(|(id, _)| is(id));
            let left = held.fold(InFlightReport::default(), |sum, (_, held)| add(sum, *held));
            if (left == InFlightReport::default() && !served.unknown) || Instant::now() >= end {
                return left;
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Keeps them told, for as long as there are any.
    pub async fn keep_told(&self, proxy: Proxy) {
        let mut generations = proxy.generations();
        while !self.is_empty() {
            self.ask(proxy.table()).await;
            let changed = tokio::time::timeout(Duration::from_secs(10), generations.changed()).await;
            if matches!(changed, Ok(Err(_))) {
                return;
            }
        }
    }

    fn ask_all(&self, table: &RouteTable) -> Served {
        let mut served = Served::default();
        self.all().retain_mut(|elder| match elder.ask(table) {
            Ok((connections, held)) => {
                served.processes += 1;
                served.connections += connections;
                for (id, in_flight) in held {
                    let sum = served.held.entry(id).or_default();
                    *sum = add(*sum, in_flight);
                }
                true
            }
            Err(ChannelError::Closed) => {
                tracing::info!("the older process has left");
                false
            }
            Err(error) => {
                tracing::warn!("an older process that still serves connections: {error}");
                served.processes += 1;
                served.unknown = true;
                true
            }
        });
        served
    }

    fn all(&self) -> MutexGuard<'_, Vec<Elder>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Elder {
    fn ask(&mut self, table: &RouteTable) -> Result<(u64, BTreeMap<String, InFlightReport>), ChannelError> {
        let now = table.upstreams.iter().map(|(name, upstream)| (name.to_string(), follow::seats(upstream)));
        let now: BTreeMap<String, Seats> = now.collect();
        let mut news: BTreeMap<String, Seats> = BTreeMap::new();
        news.extend(now.iter().filter(|(name, seats)| self.told.get(*name) != Some(*seats)).map(own));
        news.extend(self.told.keys().filter(|name| !now.contains_key(*name)).map(|name| (name.clone(), Seats::new())));
        // Another process may have asked on this very channel; its answers are not ours.
        self.turn = self.turn.wrapping_add(1).max(u64::from(std::process::id()) << 32);
        let turn = self.turn;
        for (upstreams, more) in in_parts(news) {
            self.channel.send(&Word::Follow { turn, upstreams, more }, &[])?;
        }
        self.told = now;
        self.hear(turn)
    }

    fn hear(&self, turn: u64) -> Result<(u64, BTreeMap<String, InFlightReport>), ChannelError> {
        let mut all = BTreeMap::new();
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.channel.receive(Some(left))?.0 {
                Word::Leases { turn: of, connections, held, more } if of == turn => {
                    all.extend(held);
                    if !more {
                        return Ok((connections, all));
                    }
                }
                Word::Leases { .. } => {}
                _ => return Err(ChannelError::Garbled("it speaks of something else".into())),
            }
        }
    }
}

fn own((name, seats): (&String, &Seats)) -> (String, Seats) {
    (name.clone(), seats.clone())
}

/// Splits a map into messages; an empty one is one message, too.
fn in_parts<V>(mut all: BTreeMap<String, V>) -> impl Iterator<Item = (BTreeMap<String, V>, bool)> {
    let mut done = false;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        let rest = all.keys().nth(AT_ONCE).cloned().map_or_else(BTreeMap::new, |key| all.split_off(&key));
        let part = std::mem::replace(&mut all, rest);
        done = all.is_empty();
        Some((part, !done))
    })
}

fn add(a: InFlightReport, b: InFlightReport) -> InFlightReport {
    InFlightReport {
        requests: a.requests.saturating_add(b.requests),
        streams: a.streams.saturating_add(b.streams),
        websockets: a.websockets.saturating_add(b.websockets),
        passthrough: a.passthrough.saturating_add(b.passthrough),
    }
}

/// Answers the newer process for as long as it asks: what an older one does, on a thread of its own, until it ends.
pub fn serve_younger(channel: &Channel, control: &Control, proxy: &Proxy, runtime: &Handle) {
    let mut news = BTreeMap::new();
    loop {
        match channel.receive(None) {
            Ok((Word::Follow { turn, upstreams, more }, _)) => {
                news.extend(upstreams);
                if more {
                    continue;
                }
                let news = std::mem::take(&mut news);
                if !news.is_empty() && runtime.block_on(control.follow(news)).is_err() {
                    return;
                }
                if let Err(error) = answer(channel, turn, proxy) {
                    tracing::warn!("the newer process cannot be answered: {error}");
                    return;
                }
            }
            Ok(_) => {}
            Err(ChannelError::Garbled(what)) => tracing::warn!("the newer process cannot be understood: {what}"),
            Err(ChannelError::Closed) => return,
            Err(error) => {
                tracing::warn!("the newer process cannot be heard: {error}");
                return;
            }
        }
    }
}

fn answer(channel: &Channel, turn: u64, proxy: &Proxy) -> Result<(), ChannelError> {
    let status = proxy.status();
    let live = status.upstreams.iter().flat_map(|upstream| &upstream.endpoints);
    let mut held: BTreeMap<String, InFlightReport> = BTreeMap::new();
    for EndpointStatus { id, in_flight, .. } in live.chain(&status.draining) {
        if *in_flight != InFlight::default() {
            let sum = held.entry(id.to_string()).or_default();
            *sum = add(*sum, InFlightReport::from(*in_flight));
        }
    }
    for (held, more) in in_parts(held) {
        channel.send(&Word::Leases { turn, connections: status.connections, held, more }, &[])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::channel::pair;
    use super::*;

    fn count(requests: u32) -> InFlightReport {
        InFlightReport { requests, ..InFlightReport::default() }
    }

    /// An older process that serves less each time it is asked, then ends.
    fn fading(channel: Channel, mut requests: u32) {
        std::thread::spawn(move || {
            while let Ok((Word::Follow { turn, more: false, .. }, _)) = channel.receive(None) {
                let held = [("box@1".to_owned(), count(requests)), ("other@1".to_owned(), count(7))].into();
                // Left over from an exchange with somebody else.
                channel
                    .send(&Word::Leases { turn: 1, connections: 99, held: BTreeMap::new(), more: false }, &[])
                    .unwrap();
                channel.send(&Word::Leases { turn, connections: 3, held, more: false }, &[]).unwrap();
                match requests.checked_sub(1) {
                    Some(fewer) => requests = fewer,
                    None => return,
                }
            }
        });
    }

    #[tokio::test]
    async fn counts_of_all_older_processes_are_added_and_the_ended_forgotten() {
        let elders = Elders::default();
        assert_eq!(elders.ask(Arc::default()).await, Served::default());
        for requests in [1, 2] {
            let (ours, theirs) = pair().unwrap();
            elders.adopt(ours);
            fading(theirs, requests);
        }
        let served = elders.ask(Arc::default()).await;
        assert_eq!((served.processes, served.connections, served.unknown), (2, 6, false));
        assert_eq!(served.held["box@1"], count(3));
        while !elders.is_empty() {
            elders.ask(Arc::default()).await;
        }
    }

    #[test]
    fn maps_of_any_size_go_in_parts() {
        for size in [0, 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE] {
            let all: BTreeMap<String, usize> = (0..size).map(|n| (format!("{n:06}"), n)).collect();
            let parts: Vec<_> = in_parts(all.clone()).collect();
            assert_eq!(parts.len(), size.div_ceil(AT_ONCE).max(1));
            assert!(parts.iter().rev().skip(1).all(|(_, more)| *more) && !parts[parts.len() - 1].1);
            assert_eq!(parts.into_iter().flat_map(|(part, _)| part).collect::<BTreeMap<_, _>>(), all);
        }
    }
}
