//! Who fails more: what tells a new version from the old one.

use serde::{Deserialize, Serialize};

/// Requests that endpoints were given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// All of them.
    pub served: u64,
    /// Those answered 5xx, and connections that could not be made.
    pub failed: u64,
}

impl Tally {
    fn rate(self) -> f64 {
        // Precise enough: these are requests of seconds or days.
        if self.served == 0 { 0.0 } else { self.failed.min(self.served) as f64 / self.served as f64 }
    }
}

/// Whether the new ones fail clearly more often than the old ones did: a handful of failures at least, and a rate that is
/// more than twice the old one and five percent besides.
pub fn clearly_worse(old: Tally, new: Tally) -> bool {
    const HANDFUL: u64 = 5;
    new.failed >= HANDFUL && new.rate() > 2.0 * old.rate() + 0.05
}
