//! How many connections each client address holds, bounded without a lock.
//!
//! A fixed array of counters, indexed by a keyed hash of the address: memory is bounded whatever clients do, and the data
//! threads share nothing but single atomics. Two addresses may share a counter; with 65,536 of them that matters only to
//! an address that is itself near the limit.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const SLOTS: usize = 1 << 16;

/// Counts connections by client address.
#[derive(Debug)]
pub(crate) struct Crowd {
    slots: Box<[AtomicU32]>,
    hasher: RandomState,
    limit: u32,
}

/// One connection's place; dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Place {
    crowd: Arc<Crowd>,
    slot: usize,
}

impl Crowd {
    pub(crate) fn new(limit: u32) -> Self {
        Self { slots: (0..SLOTS).map(|_| AtomicU32::new(0)).collect(), hasher: RandomState::new(), limit }
    }

    /// Takes a place for a connection from `client`; `None` when it holds the limit already.
    ///
    /// IPv6 clients are counted by their /64, which is what one customer has.
    pub(crate) fn enter(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let slot = (self.hasher.hash_one(network(client)) as usize) % SLOTS;
        if self.slots[slot].fetch_add(1, Ordering::Relaxed) >= self.limit {
            self.slots[slot].fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Place { crowd: self.clone(), slot })
    }
}

fn network(client: IpAddr) -> u128 {
    match client.to_canonical() {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits() >> 64 << 64,
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.slots[self.slot].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_each_client_and_gives_places_back() {
        let crowd = Arc::new(Crowd::new(2));
        let a: IpAddr = "192.0.2.1".parse().expect("address");
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().expect("address");
        let first = crowd.enter(a).expect("first");
        let _second = crowd.enter(mapped).expect("second");
        assert!(crowd.enter(a).is_none());
        drop(first);
        assert!(crowd.enter(a).is_some());
    }

    #[test]
    fn counts_ipv6_by_customer() {
        let crowd = Arc::new(Crowd::new(1));
        let _first = crowd.enter("2001:db8::1".parse().expect("address")).expect("first");
        assert!(crowd.enter("2001:db8::ffff:1".parse().expect("address")).is_none());
        assert_ne!(network("2001:db8::1".parse().expect("a")), network("2001:db8:0:1::1".parse().expect("a")));
    }
}
