//! An upstream at run time, and which of its endpoints takes the next request.
//!
//! The choice is least in flight of two at random ("power of two choices"): near-even load with two reads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::endpoint::{Class, Endpoint, Lease};
use crate::table::{Policy, UpstreamName};

/// A named set of endpoints.
#[derive(Debug)]
pub(crate) struct LiveUpstream {
    /// Its name in the table.
    pub name: UpstreamName,
    /// How its endpoints are used.
    pub policy: Policy,
    /// Where traffic goes.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// Why there is no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoEndpoint {
    /// What is left here has been retired, so a newer snapshot is there: load `Live` and look up again.
    Stale,
    /// Every endpoint has been tried: 503.
    Down {
        /// When the first of them may be back; a second at least.
        retry_after: Duration,
    },
    /// The upstream has no endpoints: 503.
    Empty,
}

/// How good a choice an endpoint is, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Good,
    Unhealthy,
    SetAside,
}

impl LiveUpstream {
    /// Leases the less loaded of two random endpoints, by no means one of `tried` (their keys). Unhealthy
    /// ones come only when no good one is left, and set-aside ones last.
    pub(crate) fn lease(&self, class: Class, tried: &[u64], now: Instant) -> Result<Lease, NoEndpoint> {
        match self.endpoints.as_slice() {
            [] => return Err(NoEndpoint::Empty),
            [only] if !tried.contains(&only.key) => {
                if let Some(lease) = only.try_lease(class) {
                    return Ok(lease);
                }
            }
            [_] => {}
            many => {
                if let Some(lease) = two_good(many, tried, now).and_then(|(a, b)| less_loaded(a, b).try_lease(class)) {
                    return Ok(lease);
                }
                if let Some(lease) = self.scan(class, tried, now) {
                    return Ok(lease);
                }
            }
        }
        // Any that is closed was closed by a publish whose snapshot is already there, and may have others.
        if self.endpoints.iter().any(|endpoint| endpoint.is_closed()) {
            return Err(NoEndpoint::Stale);
        }
        Err(NoEndpoint::Down { retry_after: self.retry_after(now) })
    }

    /// The slow way, for when the two at random were not both good: the best rank that is left, and in it the
    /// less loaded of two at random. An endpoint that closes or fills meanwhile is passed over.
    fn scan(&self, class: Class, tried: &[u64], now: Instant) -> Option<Lease> {
        for rank in [Rank::Good, Rank::Unhealthy, Rank::SetAside] {
            let (mut seen, mut first, mut second) = (0usize, None, None);
            for endpoint in self.endpoints.iter().filter(|e| usable(e, tried) && rank_of(e, now) == rank) {
                // A reservoir of two: each of those seen is kept with the same chance, in one pass.
                seen += 1;
                match (first, second) {
                    (None, _) => first = Some(endpoint),
                    (Some(_), None) => second = Some(endpoint),
                    _ => match fastrand::usize(..seen) {
                        0 => first = Some(endpoint),
                        1 => second = Some(endpoint),
                        _ => {}
                    },
                }
            }
            let (best, other) = match (first, second) {
                (None, _) => continue,
                (Some(only), None) => (only, None),
                (Some(a), Some(b)) => {
                    // The reservoir keeps the table's order; a tie must not always go to the first.
                    let (a, b) = if fastrand::bool() { (a, b) } else { (b, a) };
                    if b.load() < a.load() { (b, Some(a)) } else { (a, Some(b)) }
                }
            };
            let lease = best.try_lease(class).or_else(|| other.and_then(|other| other.try_lease(class)));
            // Both gone between look and lease: any other will do, in order of rank.
            if let Some(lease) = lease.or_else(|| self.first_of(rank, class, tried, now)) {
                return Some(lease);
            }
        }
        None
    }

    fn first_of(&self, rank: Rank, class: Class, tried: &[u64], now: Instant) -> Option<Lease> {
        let mut left = self.endpoints.iter().filter(|e| usable(e, tried) && rank_of(e, now) == rank);
        left.find_map(|endpoint| endpoint.try_lease(class))
    }

    fn retry_after(&self, now: Instant) -> Duration {
        let soonest = self.endpoints.iter().map(|endpoint| endpoint.set_aside_for(now)).min();
        soonest.unwrap_or_default().max(Duration::from_secs(1))
    }
}

/// Two different endpoints at random, where both are good.
fn two_good<'a>(
    many: &'a [Arc<Endpoint>],
    tried: &[u64],
    now: Instant,
) -> Option<(&'a Arc<Endpoint>, &'a Arc<Endpoint>)> {
    let first = fastrand::usize(..many.len());
    let second = (first + fastrand::usize(1..many.len())) % many.len();
    let good = |endpoint: &Arc<Endpoint>| usable(endpoint, tried) && rank_of(endpoint, now) == Rank::Good;
    let (a, b) = (many.get(first)?, many.get(second)?);
    (good(a) && good(b)).then_some((a, b))
}

fn less_loaded<'a>(a: &'a Arc<Endpoint>, b: &'a Arc<Endpoint>) -> &'a Arc<Endpoint> {
    if b.load() < a.load() { b } else { a }
}

fn usable(endpoint: &Endpoint, tried: &[u64]) -> bool {
    !endpoint.is_closed() && !tried.contains(&endpoint.key)
}

fn rank_of(endpoint: &Endpoint, now: Instant) -> Rank {
    if endpoint.is_set_aside(now) {
        Rank::SetAside
    } else if endpoint.is_unhealthy() {
        Rank::Unhealthy
    } else {
        Rank::Good
    }
}

#[cfg(test)]
mod tests;
