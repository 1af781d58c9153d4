//! What an endpoint has done since it came: plain counts, added to without a lock.
//!
//! It knows no endpoint; `Endpoint` owns one, and it is read for status, for receipts, and to tell whether new
//! endpoints fail more often than the ones before them.

use std::iter::Sum;
use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts of what went to an endpoint and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests and passthrough connections that it has served to their end, whatever the status.
    pub served: u64,
    /// Of those, requests that it answered with a status of 500 or above.
    pub server_errors: u64,
    /// Requests that the client saw fail because it gave no valid answer, or broke off in the middle of one.
    pub broken: u64,
    /// Connections to it that could not be opened.
    pub connect_failures: u64,
    /// Requests that were given to another endpoint or connection after it had failed them. The clients saw nothing of it.
    pub retried: u64,
    /// Requests, websockets and passthrough connections that were ended from here because it was to go.
    pub cut: u64,
}

impl Tally {
    /// Returns how often it failed: errors it answered with, answers it broke, connections it did not take.
    pub fn failed(&self) -> u64 {
        self.server_errors + self.broken + self.connect_failures
    }

    /// Returns how much it was asked to do: what [`Self::failed`] is to be compared with.
    pub fn asked(&self) -> u64 {
        self.served + self.broken + self.connect_failures
    }
}

impl Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            served: self.served + other.served,
            server_errors: self.server_errors + other.server_errors,
            broken: self.broken + other.broken,
            connect_failures: self.connect_failures + other.connect_failures,
            retried: self.retried + other.retried,
            cut: self.cut + other.cut,
        }
    }
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

/// The counts as data threads add to them.
#[derive(Debug, Default)]
pub(crate) struct Tallies {
    pub(crate) served: AtomicU64,
    pub(crate) server_errors: AtomicU64,
    pub(crate) broken: AtomicU64,
    pub(crate) connect_failures: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) cut: AtomicU64,
}

impl Tallies {
    /// Counts one.
    pub(crate) fn add(&self, count: fn(&Self) -> &AtomicU64) {
        count(self).fetch_add(1, Relaxed);
    }

    /// Returns the counts as they are.
    pub(crate) fn read(&self) -> Tally {
        Tally {
            served: self.served.load(Relaxed),
            server_errors: self.server_errors.load(Relaxed),
            broken: self.broken.load(Relaxed),
            connect_failures: self.connect_failures.load(Relaxed),
            retried: self.retried.load(Relaxed),
            cut: self.cut.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up() {
        let tallies = Tallies::default();
        tallies.add(|t| &t.served);
        tallies.add(|t| &t.served);
        tallies.add(|t| &t.server_errors);
        tallies.add(|t| &t.connect_failures);
        tallies.add(|t| &t.broken);
        let one = tallies.read();
        assert_eq!((one.failed(), one.asked()), (3, 4));
        let two: Tally = [one, one].into_iter().sum();
        assert_eq!((two.served, two.failed(), two.asked()), (4, 6, 8));
    }
}
