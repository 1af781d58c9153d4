//! Keeps what is observed true: Docker's events, and a full read on every connection and now and then.
//!
//! An event only says which container to read again; the one thing taken from an event itself is that a process
//! died, as the engine may hold a restarting container's state for longer than its traffic can wait.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::watch::Sender;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tracing::{debug, info, warn};

use super::engine::{EngineClient, EngineError, Event, EventKind};
use crate::observed::{Container, ContainerId, Engine, Observed, unix_nanos};

#[cfg(test)]
mod tests;

/// How often what no event tells is read.
#[derive(Clone, Copy)]
struct Pace {
    /// Everything.
    full_read: Duration,
    /// The containers that could not be read.
    read_again: Duration,
}

const PACE: Pace = Pace { full_read: Duration::from_secs(60), read_again: Duration::from_secs(5) };
/// The waits between attempts to reach the engine: doubling from the first to the last.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Containers read at a time in a full read; those that events name are read at once.
const AT_A_TIME: usize = 8;

/// Keeps `out` true, with addresses as they are on `network`, until nobody listens to it any more.
///
/// While the engine is away the last known containers stay, and [`Engine::Away`] says so. After it comes back, what
/// has changed is shown in one step, once everything has been read.
pub async fn watch(engine: EngineClient, network: &str, out: Sender<Arc<Observed>>) {
    watch_at(PACE, engine, network, out).await;
}

async fn watch_at(pace: Pace, engine: EngineClient, network: &str, out: Sender<Arc<Observed>>) {
    let mut wait = BACK_OFF.0;
    loop {
        let mut session = Session::new(&engine, network, &out);
        let error = tokio::select! {
            error = session.run(pace) => error,
            () = out.closed() => return,
        };
        if session.settled {
            wait = BACK_OFF.0;
        }
        away(&out, &error);
        tokio::select! {
            () = sleep(wait) => {}
            () = out.closed() => return,
        }
        wait = (wait * 2).min(BACK_OFF.1);
    }
}

/// Says that the engine is away: since when it first was, and why it is now.
fn away(out: &Sender<Arc<Observed>>, error: &EngineError) {
    let why = error.to_string();
    out.send_if_modified(|observed| {
        let since = match &observed.engine {
            Engine::Away { why: known, .. } if *known == why => return false,
            Engine::Away { since, .. } => *since,
            Engine::Off | Engine::Up { .. } => SystemTime::now(),
        };
        warn!(%why, "the Docker engine is away; routes stay");
        Arc::make_mut(observed).engine = Engine::Away { since, why };
        true
    });
}

type Read = (ContainerId, Result<Option<Container>, EngineError>);

/// What is known of a read that is under way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Its answer counts.
    Fresh,
    /// Something happened since it was asked for: its answer may be old, and the container is read again.
    Stale,
}

/// One connection to the engine, from the first read to the error that ends it.
struct Session<'a> {
    engine: &'a EngineClient,
    network: &'a str,
    out: &'a Sender<Arc<Observed>>,
    version: String,
    containers: BTreeMap<ContainerId, Container>,
    /// Reads under way.
    reads: FuturesUnordered<BoxFuture<'a, Read>>,
    under_way: BTreeMap<ContainerId, Answer>,
    /// Reads of a full read that wait for their turn.
    queue: VecDeque<ContainerId>,
    /// Containers that could not be read, to be tried again.
    unread: BTreeSet<ContainerId>,
    /// What the first full read still waits for; `None` until the list is there.
    first: Option<BTreeSet<ContainerId>>,
    /// Whether the first full read is done, so that what is known may be shown.
    settled: bool,
}

impl<'a> Session<'a> {
    fn new(engine: &'a EngineClient, network: &'a str, out: &'a Sender<Arc<Observed>>) -> Self {
        let containers = out.borrow().containers.clone();
        Self {
            engine,
            network,
            out,
            version: String::new(),
            containers,
            reads: FuturesUnordered::new(),
            under_way: BTreeMap::new(),
            queue: VecDeque::new(),
            unread: BTreeSet::new(),
            first: None,
            settled: false,
        }
    }

    /// Runs until the engine fails; returns why.
    async fn run(&mut self, pace: Pace) -> EngineError {
        match self.follow(pace).await {
            Err(error) => error,
            Ok(never) => match never {},
        }
    }

    async fn follow(&mut self, pace: Pace) -> Result<std::convert::Infallible, EngineError> {
        let engine = self.engine;
        let told = engine.info().await?;
        self.version = told.version;
        // A second early, as the engine's clock was cut to seconds: what is told twice is only read twice.
        let mut events = engine.events(self.network, told.now - 1)?;
        let mut list = Some(engine.list().boxed());
        let mut full_read = ticks(pace.full_read);
        let mut read_again = ticks(pace.read_again);
        loop {
            self.fill();
            tokio::select! {
                biased;
                event = events.next() => match event {
                    Some(event) => self.event(&event?),
                    None => return Err(engine.ended()),
                },
                Some((id, answer)) = self.reads.next() => self.read(id, answer)?,
                ids = wait_for(&mut list) => {
                    list = None;
                    self.listed(ids?);
                }
                _ = full_read.tick() => if list.is_none() { list = Some(engine.list().boxed()) },
                _ = read_again.tick() => self.queue.extend(self.unread.iter().cloned()),
            }
            self.show();
        }
    }

    /// Takes the list of a full read: everything on it, and everything known that is not, is read.
    fn listed(&mut self, ids: Vec<ContainerId>) {
        let all: BTreeSet<ContainerId> = ids.into_iter().chain(self.containers.keys().cloned()).collect();
        self.queue.extend(all.iter().cloned());
        self.first.get_or_insert(all);
    }

    fn event(&mut self, event: &Event) {
        debug!(container = event.container.short(), kind = ?event.kind, "event");
        if event.kind == EventKind::Died
            && let Some(container) = self.containers.get_mut(&event.container)
            && container.running
            && unix_nanos(&container.started_at).is_some_and(|started| started < event.at)
        {
            container.running = false;
            container.address = None;
        }
        match self.under_way.get_mut(&event.container) {
            Some(answer) => *answer = Answer::Stale,
            None => self.start(event.container.clone()),
        }
    }

    /// Starts reads that wait, as far as there is room.
    fn fill(&mut self) {
        while self.under_way.len() < AT_A_TIME
            && let Some(id) = self.queue.pop_front()
        {
            if !self.under_way.contains_key(&id) {
                self.start(id);
            }
        }
    }

    fn start(&mut self, id: ContainerId) {
        self.under_way.insert(id.clone(), Answer::Fresh);
        let (engine, network) = (self.engine, self.network);
        self.reads.push(Box::pin(async move {
            let answer = engine.inspect(&id, network).await;
            (id, answer)
        }));
    }

    /// Takes what was read. One container that cannot be read is no reason to call the engine away.
    fn read(&mut self, id: ContainerId, answer: Result<Option<Container>, EngineError>) -> Result<(), EngineError> {
        if self.under_way.remove(&id) == Some(Answer::Stale) {
            self.start(id);
            return Ok(());
        }
        if answer.is_ok() {
            self.unread.remove(&id);
        }
        match answer {
            Ok(Some(container)) => {
                self.containers.insert(id.clone(), container);
            }
            Ok(None) => {
                self.containers.remove(&id);
            }
            Err(error @ (EngineError::Refused(_) | EngineError::Silent { .. })) => {
                if self.unread.insert(id.clone()) {
                    warn!(container = id.short(), %error, "cannot read the container; what was known of it stays");
                }
            }
            Err(error) => return Err(error),
        }
        if let Some(first) = &mut self.first {
            first.remove(&id);
        }
        Ok(())
    }

    /// Shows what is known, once the first full read is done, where it differs from what was shown.
    fn show(&mut self) {
        if !self.settled {
            self.settled = self.first.as_ref().is_some_and(BTreeSet::is_empty);
            if !self.settled {
                return;
            }
            info!(version = %self.version, containers = self.containers.len(), "the Docker engine is up");
        }
        self.out.send_if_modified(|observed| {
            let up = matches!(&observed.engine, Engine::Up { version } if *version == self.version);
            if up && observed.containers == self.containers {
                return false;
            }
            let engine = Engine::Up { version: self.version.clone() };
            *observed = Arc::new(Observed { engine, containers: self.containers.clone() });
            true
        });
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Waits for a future that may not be there; then for ever.
async fn wait_for<T>(future: &mut Option<BoxFuture<'_, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
