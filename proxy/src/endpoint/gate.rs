//! The gate of one endpoint: a closed bit and four counts in one atomic word, and who waits for it to empty.
//!
//! It knows no endpoint, no address and no runtime. Its atomics come from `crate::sync`, so that
//! `tests/loom_gate.rs` runs this very file under loom's scheduler.
//!
//! Two promises:
//! - Once [`Gate::close`] has returned, no [`Gate::enter`] succeeds, and an `enter` that failed because of the
//!   close sees everything its closer wrote before it (Release on close, Acquire on enter).
//! - Counts of a closed gate only fall, and whoever waits for zero is woken by whoever makes it zero.

use std::task::{Context, Poll, Waker};

use crate::sync::{AtomicU64, Mutex, Ordering};

/// What a lease is used for. Draining treats the classes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// An HTTP request that is soon over.
    Request,
    /// An HTTP request whose body or response goes on for a while: an event stream, an upload, a download. A request may
    /// become one; it never turns back.
    Stream,
    /// An upgraded connection.
    Websocket,
    /// A passthrough connection.
    Passthrough,
}

const CLOSED: u64 = 1 << 63;

impl Class {
    /// Every class.
    pub const ALL: [Class; 4] = [Class::Request, Class::Stream, Class::Websocket, Class::Passthrough];
    /// What may go on for long: all but requests proper.
    pub const LONG: [Class; 3] = [Class::Stream, Class::Websocket, Class::Passthrough];

    /// Where the class's count stands in the word, and how many bits it has: as many leases as there are ports that
    /// connections to one address could come from.
    const fn field(self) -> (u32, u32) {
        match self {
            Class::Request => (0, 16),
            Class::Stream => (16, 15),
            Class::Websocket => (31, 16),
            Class::Passthrough => (47, 16),
        }
    }

    const fn unit(self) -> u64 {
        1 << self.field().0
    }

    const fn max(self) -> u64 {
        (1 << self.field().1) - 1
    }
}

/// The counts at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts(u64);

impl Counts {
    /// Returns the leases of one class.
    pub(crate) const fn of(self, class: Class) -> u32 {
        ((self.0 >> class.field().0) & class.max()) as u32
    }

    /// Returns the leases of all classes.
    pub(crate) const fn total(self) -> u32 {
        self.of(Class::Request) + self.of(Class::Stream) + self.of(Class::Websocket) + self.of(Class::Passthrough)
    }

    const fn is_closed(self) -> bool {
        self.0 & CLOSED != 0
    }

    const fn is_full(self, class: Class) -> bool {
        self.of(class) as u64 == class.max()
    }
}

/// Lets leases in until it is closed, and tells when the last one is out.
#[derive(Debug)]
pub(crate) struct Gate {
    word: AtomicU64,
    /// Touched only while a closed gate empties, never on the way in.
    waiters: Mutex<Vec<Waker>>,
}

impl Gate {
    /// An open gate with nobody in.
    pub(crate) fn new() -> Self {
        Self { word: AtomicU64::new(0), waiters: Mutex::new(Vec::new()) }
    }

    /// Counts one in; false where the gate is closed, or full (which only a leak would bring about).
    pub(crate) fn enter(&self, class: Class) -> bool {
        // Acquire also on the failing load: who is turned away must see what the closer stored before it closed.
        let mut now = self.word.load(Ordering::Acquire);
        loop {
            if Counts(now).is_closed() || Counts(now).is_full(class) {
                return false;
            }
            match self.word.compare_exchange_weak(now, now + class.unit(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(seen) => now = seen,
            }
        }
    }

    /// Counts one out; `class` is what [`Self::enter`] or the last [`Self::change`] said.
    pub(crate) fn leave(&self, class: Class) {
        let before = Counts(self.word.fetch_sub(class.unit(), Ordering::AcqRel));
        if before.is_closed() && before.of(class) == 1 {
            self.wake();
        }
    }

    /// Moves one from a class to another, closed or not, without ever being counted in neither; returns
    /// the class it is counted in now.
    pub(crate) fn change(&self, from: Class, to: Class) -> Class {
        let mut now = self.word.load(Ordering::Acquire);
        loop {
            if from == to || Counts(now).is_full(to) {
                return from;
            }
            let next = now - from.unit() + to.unit();
            match self.word.compare_exchange_weak(now, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(seen) => now = seen,
            }
        }
        if Counts(now).is_closed() && Counts(now).of(from) == 1 {
            self.wake();
        }
        to
    }

    /// Lets nobody in any more; returns what is still inside.
    pub(crate) fn close(&self) -> Counts {
        let before = Counts(self.word.fetch_or(CLOSED, Ordering::AcqRel));
        if !before.is_closed() {
            self.wake();
        }
        before
    }

    /// Tells whether it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        Counts(self.word.load(Ordering::Acquire)).is_closed()
    }

    /// Returns the counts now.
    pub(crate) fn counts(&self) -> Counts {
        Counts(self.word.load(Ordering::Acquire))
    }

    /// Ready when the gate is closed and none of `classes` is inside. A class that only others change into
    /// may rise again: ask for every class that may become it, too.
    pub(crate) fn poll_empty(&self, classes: &[Class], cx: &mut Context<'_>) -> Poll<()> {
        if self.is_empty(classes) {
            return Poll::Ready(());
        }
        self.register(cx.waker());
        // Looked at again: a last one that left before the waker was there has woken nobody. The lock
        // orders the two: either its `wake` finds our waker, or we see its count.
        if self.is_empty(classes) { Poll::Ready(()) } else { Poll::Pending }
    }

    fn is_empty(&self, classes: &[Class]) -> bool {
        let now = self.counts();
        now.is_closed() && classes.iter().all(|class| now.of(*class) == 0)
    }

    fn register(&self, waker: &Waker) {
        let mut waiters = self.waiters.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !waiters.iter().any(|known| known.will_wake(waker)) {
            waiters.push(waker.clone());
        }
    }

    /// Wakes outside the lock: a waker may run anything.
    fn wake(&self) {
        let woken = std::mem::take(&mut *self.waiters.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        for waker in woken {
            waker.wake();
        }
    }
}
