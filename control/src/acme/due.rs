//! When a certificate is got or renewed, and when a host that failed is tried again.
//!
//! Pure: seconds since 1970 come in as arguments, and the wall clock they are from may jump either way. What has
//! to survive a restart is in a [`Record`]; where it is kept is not known here.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// Seconds since 1970 by the wall clock.
pub type Unix = u64;

/// How often a host is tried in an hour, whatever happens: below Let's Encrypt's limit of failed validations.
pub const TRIES_AN_HOUR: usize = 5;
/// No CA's "come back later" keeps a host waiting for longer than this.
pub const LONGEST_WAIT: u64 = 10 * DAY;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// The wait after the first failure; each further one doubles it.
const FIRST_WAIT: u64 = MINUTE;
const LONGEST_BACK_OFF: u64 = 6 * HOUR;
/// What is later than now by more than this was written by a clock that has been set back since.
const SKEW: u64 = 2 * MINUTE;

/// How a name is proven to be ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Proof {
    /// A file on :80.
    #[serde(rename = "http-01")]
    Http,
    /// A certificate on :443.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn,
    /// A TXT record.
    #[serde(rename = "dns-01")]
    Dns,
}

/// A certificate's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// From when it is valid.
    pub not_before: Unix,
    /// Until when.
    pub not_after: Unix,
}

/// When the CA wants a certificate to be renewed (RFC 9773).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The certificate it is about, in the CA's spelling.
    pub certificate: String,
    /// From when.
    pub start: Unix,
    /// Until when.
    pub end: Unix,
}

/// What is remembered of an order's name across restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// When it was tried, oldest first; those of the last hour count.
    pub tries: Vec<Unix>,
    /// How often in a row it has failed.
    pub failures: u32,
    /// The last failure of that row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
    /// How the names were proven the last time that it worked, or what is to be tried next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// How many kinds of proof have failed since the last wait.
    pub round: usize,
    /// Names that have an order of their own, as they failed in this one.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub split_off: BTreeSet<String>,
    /// What the CA says of its renewal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// When.
    pub at: Unix,
    /// How long to wait after it.
    pub wait: u64,
    /// How much of that the CA asked for.
    #[serde(default)]
    pub asked_for: u64,
    /// Why, for people.
    pub why: String,
}

impl Record {
    /// Counts a try that begins now.
    pub fn begin(&mut self, now: Unix) {
        self.tries.retain(|at| counts(*at, now));
        self.tries.push(now);
    }

    /// Takes back the last try, as it has not come to the CA.
    pub fn uncount(&mut self) {
        self.tries.pop();
    }

    /// Notes that it has worked.
    pub fn succeed(&mut self) {
        self.failures = 0;
        self.failed = None;
        self.round = 0;
    }

    /// Notes that it has failed; `retry_after` is what the CA asks for, `seed` makes hosts differ.
    pub fn fail(&mut self, now: Unix, why: String, retry_after: Option<Duration>, seed: u64) {
        self.failures = self.failures.saturating_add(1);
        let doubled = FIRST_WAIT.saturating_mul(1 << (self.failures - 1).min(16)).min(LONGEST_BACK_OFF);
        // A quarter up or down.
        let wait = doubled * 3 / 4 + mix(seed, u64::from(self.failures)) % (doubled / 2);
        let asked = retry_after.map_or(0, |after| after.as_secs().saturating_add(1)).min(LONGEST_WAIT);
        self.failed = Some(Failed { at: now, wait: wait.max(asked), asked_for: asked, why });
    }

    /// When it may be tried again after its failures; `None` where it has not failed.
    pub fn back_off_ends(&self, now: Unix) -> Option<Unix> {
        let failed = self.failed.as_ref()?;
        // A failure in the future is a clock that was set back: waiting for it could take for ever.
        Some(if failed.at > now + SKEW { now } else { failed.at + failed.wait })
    }

    /// When it may be tried at the earliest if somebody asks for it: our own waits do not count, the CA's do.
    pub fn if_asked(&self, now: Unix) -> Unix {
        let failed = self.failed.as_ref().filter(|failed| failed.asked_for > 0 && failed.at <= now + SKEW);
        self.limit_ends(now).max(failed.map_or(0, |failed| failed.at + failed.asked_for))
    }

    /// From when the limit of tries an hour lets it be tried.
    pub fn limit_ends(&self, now: Unix) -> Unix {
        let counted: Vec<Unix> = self.tries.iter().copied().filter(|at| counts(*at, now)).collect();
        match counted.len().checked_sub(TRIES_AN_HOUR) {
            Some(first) => counted[first] + HOUR,
            None => now,
        }
    }

    /// When it is tried, given that it is wanted from `wanted` on.
    pub fn next_try(&self, wanted: Unix, now: Unix) -> Unix {
        let next = wanted.max(self.back_off_ends(now).unwrap_or(0));
        if next <= now { self.limit_ends(now) } else { next }
    }
}

/// When a certificate is to be renewed: where the CA says so, within its window, else at about two thirds of its life.
///
/// `seed` spreads hosts, so that those that came together do not all come again together.
pub fn renew_at(life: Life, window: Option<&Window>, seed: u64) -> Unix {
    let length = life.not_after.saturating_sub(life.not_before);
    let Some(window) = window else {
        let spread = (length / 20).max(1);
        return life.not_before + length * 2 / 3 + mix(seed, life.not_before) % spread - (spread / 2).min(length / 2);
    };
    let width = window.end.saturating_sub(window.start);
    let at = window.start + if width == 0 { 0 } else { mix(seed, window.start) % width };
    // A window that leaves no time for failures is not waited for.
    at.min(life.not_after.saturating_sub(length / 10))
}

/// A number that is always the same for this name.
pub fn seed(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// The wall clock's time as whole seconds.
pub fn unix(time: SystemTime) -> Unix {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Back to a time.
pub fn time(seconds: Unix) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn counts(at: Unix, now: Unix) -> bool {
    at + HOUR > now && at <= now + SKEW
}

fn mix(a: u64, b: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (a, b).hash(&mut hasher);
    hasher.finish()
}
