//! Path prefixes of whole segments, and the paths they match.
//!
//! Pure; knows nothing of hosts or upstreams. Paths are compared byte by byte, as they are on the wire:
//! nothing is decoded, so that what is matched is what is forwarded.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Why a text is no path prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not begin with a slash.
    #[error("a path must begin with `/`")]
    NoSlash,
    /// It has a `.` or `..` segment, plain or encoded.
    #[error("a path must not have `.` or `..` segments, plain or encoded: requests for such paths are refused")]
    DotSegment,
    /// It has two slashes in a row.
    #[error("a path must not have empty segments (`//`)")]
    EmptySegment,
    /// It has a query or a fragment.
    #[error("a path is matched without its query: leave out everything from `{0}`")]
    Query(char),
    /// `%` without two hex digits.
    #[error("`%` must be followed by two hex digits")]
    PercentEncoding,
    /// A character that no path has.
    #[error("`{0}` has no place in a path: write it percent-encoded, as requests have it")]
    Character(char),
}

/// A path prefix that matches whole segments: `/api` matches `/api` and `/api/x`, never `/apix`.
///
/// Kept without a trailing slash; the root is the empty string.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathPrefix(Arc<str>);

impl PathPrefix {
    /// Reads a prefix, with or without a trailing slash. Percent-encoding is kept as it is written.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if !text.starts_with('/') {
            return Err(PathError::NoSlash);
        }
        if let Some(mark) = text.chars().find(|c| matches!(c, '?' | '#')) {
            return Err(PathError::Query(mark));
        }
        if has_dot_segments(text.as_bytes()) {
            return Err(PathError::DotSegment);
        }
        if text.contains("//") {
            return Err(PathError::EmptySegment);
        }
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            match c {
                '%' if rest.as_str().bytes().take(2).filter(u8::is_ascii_hexdigit).count() < 2 => {
                    return Err(PathError::PercentEncoding);
                }
                '%' | '/' => {}
                c if is_pchar(c) => {}
                c => return Err(PathError::Character(c)),
            }
        }
        Ok(Self(text.strip_suffix('/').unwrap_or(text).into()))
    }

    /// Returns the prefix as text, `/` for the root.
    pub fn as_str(&self) -> &str {
        if self.0.is_empty() { "/" } else { &self.0 }
    }

    /// Tells whether a path (with or without its query) is this prefix or lies below it.
    pub fn matches(&self, path: impl AsRef<[u8]>) -> bool {
        let prefix = self.0.as_bytes();
        path.as_ref().strip_prefix(prefix).is_some_and(|rest| matches!(rest.first(), None | Some(b'/' | b'?')))
    }

    /// Returns a path (without its query) as seen from this prefix: at least `/`. A path that does not
    /// match comes back as it is.
    pub fn strip<'a>(&self, path: &'a str) -> &'a str {
        match path.strip_prefix(&*self.0) {
            Some("") => "/",
            Some(rest) if rest.starts_with('/') => rest,
            _ => path,
        }
    }

    /// Returns how many bytes of a matching path this prefix is; the longest match wins.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether this is the root, which matches every path.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for PathPrefix {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        Self::parse(text)
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// RFC 3986, section 3.3, without the percent sign.
fn is_pchar(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || matches!(
            c,
            '-' | '.' | '_' | '~' | '!' | '$' | '&' | '\'' | '(' | ')' | '*' | '+' | ',' | ';' | '=' | ':' | '@'
        )
}

/// Tells whether a path has a segment that some server could read as `.` or `..`, and so leave the
/// route that the path was matched to.
///
/// Servers differ in what they decode first, so every reading that is in use counts: `.` as `%2e`; as ends
/// of a segment `/` and `\`, plain or encoded (`%2f`, `%5c`), and `;` and `%3b` (path parameters: `..;/` is
/// `../` to servlet containers) and `%00` (the end, to whatever passes it to C); and each percent sign of these encoded again, any
/// number of times (`%252e`). Hex digits count in any case. The query is not looked at.
pub(crate) fn has_dot_segments(path: &[u8]) -> bool {
    // All but a few paths have no dot and no percent sign at the start of a segment: one quick pass.
    let path = memchr::memchr(b'?', path).map_or(path, |query| &path[..query]);
    if memchr::memchr2(b'.', b'%', path).is_none() {
        return false;
    }
    /// What the segment has been so far: this many dots and nothing else, or something else.
    enum Segment {
        Dots(u8),
        Name,
    }
    let mut segment = Segment::Dots(0);
    let mut rest = path;
    loop {
        let (byte, width) = decoded(rest);
        match byte {
            None | Some(b'/' | b'\\' | b';' | 0) => {
                if matches!(segment, Segment::Dots(1 | 2)) {
                    return true;
                }
                // What follows `;` is a parameter up to the next slash, yet `;..` may be a segment to
                // those that do not know parameters; `/;/../` is caught either way.
                segment = Segment::Dots(0);
            }
            Some(b'.') => {
                segment = match segment {
                    Segment::Dots(dots) => Segment::Dots(dots.saturating_add(1)),
                    Segment::Name => Segment::Name,
                }
            }
            Some(_) => segment = Segment::Name,
        }
        if byte.is_none() {
            return false;
        }
        rest = &rest[width..];
    }
}

/// The first byte of a path, percent-decoded as often as it is encoded, and how many bytes it takes up.
fn decoded(path: &[u8]) -> (Option<u8>, usize) {
    let Some(&first) = path.first() else { return (None, 0) };
    if first != b'%' {
        return (Some(first), 1);
    }
    let mut at = 1;
    while path[at..].starts_with(b"25") {
        at += 2;
    }
    let hex = |at: usize| path.get(at).and_then(|&digit| char::from(digit).to_digit(16));
    match (hex(at), hex(at + 1)) {
        (Some(high), Some(low)) => (Some((high * 16 + low) as u8), at + 2),
        _ => (Some(b'%'), 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> PathPrefix {
        PathPrefix::parse(text).unwrap()
    }

    #[test]
    fn matches_whole_segments() {
        for (pattern, path, matches, stripped) in [
            ("/", "/", true, "/"),
            ("/", "/a/b", true, "/a/b"),
            ("/api", "/api", true, "/"),
            ("/api", "/api/", true, "/"),
            ("/api/", "/api", true, "/"),
            ("/api", "/api/x", true, "/x"),
            ("/api", "/api/x/", true, "/x/"),
            ("/api", "/apix", false, "/apix"),
            ("/api", "/ap", false, "/ap"),
            ("/api", "/API", false, "/API"),
            ("/api", "/api%2Fx", false, "/api%2Fx"),
            ("/api", "//api", false, "//api"),
            ("/a/b", "/a/b/c", true, "/c"),
            ("/a/b", "/a/c", false, "/a/c"),
            ("/caf%C3%A9", "/caf%C3%A9/x", true, "/x"),
        ] {
            assert_eq!(prefix(pattern).matches(path), matches, "{pattern} {path}");
            assert_eq!(prefix(pattern).matches(path.as_bytes()), matches, "{pattern} {path}");
            assert_eq!(prefix(pattern).strip(path), stripped, "{pattern} {path}");
        }
        assert!(prefix("/api").matches("/api?x=/y"));
        assert!(!prefix("/").matches("*"));
        assert_eq!(prefix("/api/").to_string(), "/api");
        assert_eq!(prefix("/").to_string(), "/");
    }

    #[test]
    fn says_why_a_text_is_no_prefix() {
        for (text, want) in [
            ("", PathError::NoSlash),
            ("api", PathError::NoSlash),
            ("/..", PathError::DotSegment),
            ("/a/./b", PathError::DotSegment),
            ("/a/%2E%2e", PathError::DotSegment),
            ("//", PathError::EmptySegment),
            ("/a//b", PathError::EmptySegment),
            ("/a?b", PathError::Query('?')),
            ("/a#b", PathError::Query('#')),
            ("/a%2", PathError::PercentEncoding),
            ("/a%zz", PathError::PercentEncoding),
            ("/a%2é", PathError::PercentEncoding),
            ("/%", PathError::PercentEncoding),
            ("/a b", PathError::Character(' ')),
            ("/é", PathError::Character('é')),
            ("/a\\b", PathError::Character('\\')),
            ("/a\"", PathError::Character('"')),
        ] {
            assert_eq!(PathPrefix::parse(text), Err(want), "{text}");
        }
    }

    #[test]
    fn finds_dot_segments_in_every_reading() {
        for path in [
            "/.",
            "/..",
            "/./",
            "/../",
            "/a/..",
            "/a/../b",
            "/a/./b",
            ".",
            "..",
            "../a",
            "/%2e",
            "/%2E",
            "/%2e%2e",
            "/.%2e",
            "/%2E.",
            "/a/%2e%2E/b",
            "/a%2f..",
            "/a%2F%2e%2e%2fb",
            "/..%2f",
            "/..%2Fb",
            "/%2e%2e%5cb",
            "/a\\..\\b",
            "/..\\b",
            "/a%5C..%5Cb",
            "\\..",
            "/..;/admin",
            "/..;x=1/admin",
            "/.;/a",
            "/%2e%2e%3b/a",
            "/a;/../b",
            "/a/..;",
            "/a;..",
            "/;../x",
            "/%252e%252e/a",
            "/%25252e/",
            "/a%252f..",
            "/..%252f",
            "/..%255c",
            "/..%253bx/",
            "/..%00/",
            "/..%2500",
            "/../?a",
            "/a/..?b",
        ] {
            assert!(has_dot_segments(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn leaves_other_dots_alone() {
        for path in [
            "",
            "/",
            "*",
            "/a",
            "/a.b",
            "/.well-known/acme-challenge/x",
            "/...",
            "/a..b",
            "/..a",
            "/a..",
            "/.a/",
            "/a/.b",
            "/%2ehtaccess",
            "/a%2e",
            "/%2e%2e%2e",
            "/%2",
            "/%",
            "/.%",
            "/..%2",
            "/%zz",
            "/%25",
            "/..%25",
            "/a%2fb",
            "/a;b=..x",
            "/a?/../b",
            "/a?..",
            "/?/..",
            "/.\u{e9}",
            "/v1.0/x.tar.gz",
        ] {
            assert!(!has_dot_segments(path.as_bytes()), "{path}");
        }
    }

    proptest! {
        #[test]
        fn stripping_keeps_a_path(p in "(/[a-c%2f.]{1,3}){0,3}", path in "(/[a-c.]{0,3}){1,5}") {
            if let Ok(prefix) = PathPrefix::parse(&p) {
                let stripped = prefix.strip(&path);
                prop_assert!(stripped.starts_with('/'));
                prop_assert!(path.ends_with(stripped) || stripped == "/");
                prop_assert_eq!(prefix.matches(&path), prefix.is_empty() || path == prefix.as_str() || path.starts_with(&format!("{prefix}/")));
            }
        }

        #[test]
        fn what_decodes_to_dot_segments_is_found(path in "([/.a;\\\\]|%2[eEfF5]|%5c){0,12}") {
            // Decode until nothing changes, split at every separator, and look.
            let mut text = format!("/{path}");
            for _ in 0..12 {
                for (from, to) in [("%2e", "."), ("%2E", "."), ("%2f", "/"), ("%2F", "/"), ("%5c", "\\"), ("%25", "%")] {
                    text = text.replace(from, to);
                }
            }
            let dots = text.split(['/', '\\', ';']).any(|segment| segment == "." || segment == "..");
            prop_assert_eq!(has_dot_segments(format!("/{path}").as_bytes()), dots, "{}", text);
        }

        #[test]
        fn never_panics(path in prop::collection::vec(any::<u8>(), 0..40)) {
            has_dot_segments(&path);
            if let Ok(text) = std::str::from_utf8(&path) {
                if let Ok(prefix) = PathPrefix::parse(text) {
                    prop_assert!(prefix.matches(text));
                    prop_assert_eq!(PathPrefix::parse(prefix.as_str()), Ok(prefix));
                }
            }
        }
    }
}
