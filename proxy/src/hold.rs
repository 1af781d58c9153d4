//! Requests that wait for their upstream: while a service is made anew in its place, what comes for it is held here and
//! goes on when it is back.
//!
//! It knows upstreams by name alone, so that a hold outlives publishes. What waits, and with what in its hands, is the
//! caller's: see [`crate::http`] and [`crate::dial`]. Where nothing is held, asking costs one load of one atomic.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::table::UpstreamName;

/// How long [`Hold::release`] lets those that wait be on their way before it counts.
const SETTLE: Duration = Duration::from_secs(2);

/// What a hold asks of those that wait, and of whom it turns away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldLimits {
    /// The longest that one request waits. 30 s.
    pub wait: Duration,
    /// The most that wait at a time. 1,000.
    pub most: u32,
}

impl Default for HoldLimits {
    fn default() -> Self {
        Self { wait: Duration::from_secs(30), most: 1000 }
    }
}

/// What has become of the requests and connections that came during a hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Waiting now.
    pub waiting: u32,
    /// All that have waited or do.
    pub waited: u64,
    /// Turned away (503), because too many were waiting or they had waited too long.
    pub refused: u64,
    /// Those whose client left while it waited.
    pub left: u64,
    /// The longest that one has waited. Those that wait now are not in it.
    pub longest: Duration,
}

/// What those that come for one upstream find closed.
#[derive(Debug)]
pub(crate) struct Door {
    limits: HoldLimits,
    released: watch::Sender<bool>,
    /// Guards that have not been released.
    holders: AtomicU32,
    waiting: AtomicU32,
    waited: AtomicU64,
    refused: AtomicU64,
    left: AtomicU64,
    longest_micros: AtomicU64,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// The hold is over: go on.
    Released,
    /// Too many, or too long: 503.
    Refused,
    /// The client has left.
    Left,
}

impl Door {
    fn new(limits: HoldLimits) -> Self {
        Self {
            limits,
            released: watch::Sender::new(false),
            holders: AtomicU32::new(1),
            waiting: AtomicU32::new(0),
            waited: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            left: AtomicU64::new(0),
            longest_micros: AtomicU64::new(0),
        }
    }

    /// Waits until the hold is over, a limit is passed, or `gone` (the client has left).
    pub(crate) async fn wait(&self, gone: impl Future<Output = ()>) -> Waited {
        let Some(place) = Place::take(self) else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Waited::Refused;
        };
        let mut released = self.released.subscribe();
        let waited = tokio::select! {
            biased;
            // The sender lives as long as the door does.
            _ = released.wait_for(|released| *released) => Waited::Released,
            () = tokio::time::sleep(self.limits.wait) => Waited::Refused,
            () = gone => Waited::Left,
        };
        match waited {
            Waited::Released => {}
            Waited::Refused => drop(self.refused.fetch_add(1, Ordering::Relaxed)),
            Waited::Left => drop(self.left.fetch_add(1, Ordering::Relaxed)),
        }
        drop(place);
        waited
    }

    fn held(&self) -> Held {
        Held {
            waiting: self.waiting.load(Ordering::Relaxed),
            waited: self.waited.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            left: self.left.load(Ordering::Relaxed),
            longest: Duration::from_micros(self.longest_micros.load(Ordering::Relaxed)),
        }
    }
}

/// One place among those that wait; dropping it frees it.
struct Place<'a> {
    door: &'a Door,
    since: Instant,
}

impl<'a> Place<'a> {
    fn take(door: &'a Door) -> Option<Self> {
        let most = door.limits.most;
        let taken = door.waiting.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| (n < most).then_some(n + 1));
        taken.ok()?;
        door.waited.fetch_add(1, Ordering::Relaxed);
        Some(Self { door, since: Instant::now() })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let micros = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.door.longest_micros.fetch_max(micros, Ordering::Relaxed);
        self.door.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The upstreams that are held.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    /// Whether any is: all that a request looks at where none is.
    any: AtomicBool,
    doors: ArcSwap<HashMap<UpstreamName, Arc<Door>>>,
    /// One change at a time; no data thread takes it.
    changing: Mutex<()>,
}

impl Holds {
    /// Whether anything at all is held.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Finds what those that come for `upstream` have to wait at.
    ///
    /// A hold that began before a publish is seen by everyone who has seen that publish.
    pub(crate) fn door(&self, upstream: &str) -> Option<Arc<Door>> {
        if !self.any() {
            return None;
        }
        self.doors.load().get(upstream).cloned()
    }

    /// Returns what waits for `upstream`, where it is held.
    pub(crate) fn held(&self, upstream: &str) -> Option<Held> {
        self.door(upstream).map(|door| door.held())
    }

    /// Holds `upstream` until the guard goes. A second hold joins the first, with the limits of the first.
    pub(crate) fn hold(self: &Arc<Self>, upstream: &UpstreamName, limits: HoldLimits) -> Hold {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let doors = self.doors.load_full();
        let door = match doors.get(upstream) {
            Some(door) => {
                door.holders.fetch_add(1, Ordering::Relaxed);
                door.clone()
            }
            None => {
                let door = Arc::new(Door::new(limits));
                let mut next = HashMap::clone(&doors);
                next.insert(upstream.clone(), door.clone());
                self.doors.store(Arc::new(next));
                self.any.store(true, Ordering::Release);
                door
            }
        };
        Hold { holds: self.clone(), upstream: upstream.clone(), door: Some(door) }
    }

    fn let_go(&self, upstream: &UpstreamName, door: &Door) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if door.holders.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        let mut next = HashMap::clone(&self.doors.load());
        next.remove(upstream);
        self.any.store(!next.is_empty(), Ordering::Release);
        self.doors.store(Arc::new(next));
        door.released.send_replace(true);
    }
}

/// Holds an upstream: its new requests and connections wait until this is released or dropped.
#[must_use = "dropping it lets everyone go on"]
pub struct Hold {
    holds: Arc<Holds>,
    upstream: UpstreamName,
    /// None once it has been released.
    door: Option<Arc<Door>>,
}

impl Hold {
    /// Returns what has become of those that came so far.
    pub fn held(&self) -> Held {
        self.door.as_ref().map_or(Held::default(), |door| door.held())
    }

    /// Lets everyone go on, and returns what has become of them all. Publish where they are to go first.
    pub async fn release(mut self) -> Held {
        let Some(door) = self.door.take() else { return Held::default() };
        self.holds.let_go(&self.upstream, &door);
        // They count themselves out on threads of their own; under another hold they stay.
        let settled = Instant::now() + SETTLE;
        while door.waiting.load(Ordering::Acquire) > 0 && *door.released.borrow() && Instant::now() < settled {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        door.held()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(door) = self.door.take() {
            self.holds.let_go(&self.upstream, &door);
        }
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hold").field("upstream", &self.upstream).field("held", &self.held()).finish()
    }
}

#[cfg(test)]
mod tests;
