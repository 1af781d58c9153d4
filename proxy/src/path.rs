//! Path prefixes of whole segments, and the paths they match.
//!
//! Pure; knows nothing of hosts or upstreams.

use std::sync::Arc;

/// A path prefix that matches whole segments: `/api` matches `/api` and `/api/x`, never `/apix`.
///
/// Kept without a trailing slash; the root is the empty string.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathPrefix(Arc<str>);

impl PathPrefix {
    /// Returns the prefix as text, `/` for the root.
    pub fn as_str(&self) -> &str {
        if self.0.is_empty() { "/" } else { &self.0 }
    }
}
