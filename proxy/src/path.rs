//! Path prefixes of whole segments, and the paths they match.
//!
//! Pure; knows nothing of hosts or upstreams.

use std::sync::Arc;

/// A path prefix that matches whole segments: `/api` matches `/api` and `/api/x`, never `/apix`.
///
/// Kept without a trailing slash; the root is the empty string.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathPrefix(Arc<str>);

/// Why a text is not a path prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PathError(&'static str);

impl PathPrefix {
    /// Parses a prefix.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if !text.starts_with('/') {
            return Err(PathError("a path begins with `/`"));
        }
        if text.contains(['?', '#']) || text.bytes().any(|b| b <= b' ' || b == 0x7f) {
            return Err(PathError("a path has no spaces, `?` or `#`"));
        }
        let text = text.strip_suffix('/').unwrap_or(text);
        if text.split('/').skip(1).any(|s| matches!(s, "" | "." | "..")) {
            return Err(PathError("a path has no empty or dot segments"));
        }
        Ok(Self(text.into()))
    }

    /// Returns the prefix as text, `/` for the root.
    pub fn as_str(&self) -> &str {
        if self.0.is_empty() { "/" } else { &self.0 }
    }
}
