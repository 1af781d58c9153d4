//! Host names as the wire spells them: lower-cased DNS names, exact or `*.` one label deep.
//!
//! Pure; knows nothing of routes, certificates or sockets.

use std::borrow::Borrow;
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::sync::Arc;

/// The longest name, without a trailing dot (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;
/// The longest label.
const MAX_LABEL: usize = 63;

/// Why a text is no host name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// There is nothing there.
    #[error("a host name must not be empty")]
    Empty,
    /// It is longer than DNS allows.
    #[error("a host name has at most {MAX_NAME} characters, this one has {0}")]
    TooLong(usize),
    /// Two dots in a row, or a dot in front.
    #[error("a host name must not have an empty label (two dots in a row, or one in front)")]
    EmptyLabel,
    /// A label is longer than DNS allows.
    #[error("a label has at most {MAX_LABEL} characters, `{0}` has more")]
    LabelTooLong(String),
    /// A label begins or ends with a hyphen.
    #[error("a label must not begin or end with a hyphen, `{0}` does")]
    Hyphen(String),
    /// A character that no host name has.
    #[error("`{0}` has no place in a host name (letters, digits, `-`, `_` and `.` do)")]
    Character(char),
    /// A U-label: DNS and TLS carry the A-label.
    #[error(
        "`{0}` is not ASCII: write the name in its punycode form, as DNS has it (`bücher.example` is `xn--bcher-kva.example`)"
    )]
    NotAscii(char),
    /// An IP address: TLS clients send no name for one.
    #[error("`{0}` is an IP address or ends like one: a host name is needed, as clients send no address in TLS")]
    Address(String),
    /// `*` where it cannot be, or where only an exact name can be.
    #[error("`*` can only be the whole first label, in front of a name of its own (`*.example.com`)")]
    Wildcard,
}

/// A DNS host name: ASCII, lower-cased, without a trailing dot, 1 to 253 bytes (RFC 1035, RFC 1123).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(Arc<str>);

impl Host {
    /// Reads a name in any case, with or without a trailing dot.
    ///
    /// Underscores are let through, as such names are in use.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if let Some(c) = name.chars().find(|c| !c.is_ascii()) {
            return Err(HostError::NotAscii(c));
        }
        if name.is_empty() {
            return Err(HostError::Empty);
        }
        for label in name.split('.') {
            if let Some(c) = label.chars().find(|&c| !is_label_byte(c as u8)) {
                return Err(if c == '*' { HostError::Wildcard } else { HostError::Character(c) });
            }
            if label.is_empty() {
                return Err(HostError::EmptyLabel);
            }
            if label.len() > MAX_LABEL {
                return Err(HostError::LabelTooLong(label.to_owned()));
            }
            if label.starts_with('-') || label.ends_with('-') {
                return Err(HostError::Hyphen(label.to_owned()));
            }
        }
        if name.len() > MAX_NAME {
            return Err(HostError::TooLong(name.len()));
        }
        if ends_in_number(name.as_bytes()) {
            return Err(HostError::Address(name.to_owned()));
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }

    /// Returns the name as text, lower-cased.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        Self::parse(text)
    }
}

impl Borrow<str> for Host {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a site answers to: one host, or every host exactly one label below it (`*.example.com`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// This host alone.
    Exact(Host),
    /// `*.` in front of this host: one label, no more and no less (RFC 6125, section 6.4.3).
    Wildcard(Host),
}

impl HostPattern {
    /// Reads a host, or `*.` in front of one.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        match text.strip_prefix("*.") {
            Some(parent) => match Host::parse(parent) {
                Ok(host) => Ok(Self::Wildcard(host)),
                Err(HostError::Empty | HostError::EmptyLabel) => Err(HostError::Wildcard),
                Err(error) => Err(error),
            },
            None => Host::parse(text).map(Self::Exact),
        }
    }

    /// Tells whether a name, lower-cased and without a trailing dot, is one of these.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(host) => host.as_str() == name,
            Self::Wildcard(parent) => {
                name.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent.as_str())
            }
        }
    }
}

impl FromStr for HostPattern {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        Self::parse(text)
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => host.fmt(f),
            Self::Wildcard(parent) => write!(f, "*.{parent}"),
        }
    }
}

/// Brings an SNI or a Host header's value into the form that tables are keyed by: no port, no trailing
/// dot, lower-cased. It does not allocate.
///
/// `None` means that this is no host name. IP addresses (also `[::1]`) are valid: no [`Host`] is spelled like one, so they match nothing.
pub(crate) fn normalize<'a>(raw: &'a [u8], buf: &'a mut [u8; 256]) -> Option<&'a str> {
    if raw.first() == Some(&b'[') {
        return address_literal(raw, buf);
    }
    let name = match memchr::memchr(b':', raw) {
        Some(colon) => {
            port(&raw[colon + 1..])?;
            &raw[..colon]
        }
        None => raw,
    };
    let name = name.strip_suffix(b".").unwrap_or(name);
    if name.is_empty() || name.len() > MAX_NAME {
        return None;
    }
    let mut label = 0;
    for (to, &from) in buf.iter_mut().zip(name) {
        if from == b'.' {
            if label == 0 {
                return None;
            }
            label = 0;
        } else {
            label += 1;
            if label > MAX_LABEL || !is_label_byte(from) {
                return None;
            }
        }
        *to = from.to_ascii_lowercase();
    }
    if label == 0 {
        return None;
    }
    std::str::from_utf8(&buf[..name.len()]).ok()
}

/// `[address]` with an optional port.
fn address_literal<'a>(raw: &[u8], buf: &'a mut [u8; 256]) -> Option<&'a str> {
    let end = memchr::memchr(b']', raw)?;
    match &raw[end + 1..] {
        [] => {}
        [b':', digits @ ..] => port(digits)?,
        _ => return None,
    }
    let literal = buf.get_mut(..=end)?;
    literal.copy_from_slice(&raw[..=end]);
    literal.make_ascii_lowercase();
    let literal = std::str::from_utf8(literal).ok()?;
    literal[1..end].parse::<Ipv6Addr>().ok().map(|_| literal)
}

/// A port, or nothing after the colon (RFC 3986, section 3.2.3).
fn port(digits: &[u8]) -> Option<()> {
    let mut port = 0u32;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        port = port.checked_mul(10)? + u32::from(digit - b'0');
        if port > u32::from(u16::MAX) {
            return None;
        }
    }
    Some(())
}

fn is_label_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

/// No top-level domain is a number; what ends in one is read as an IPv4 address by clients.
fn ends_in_number(name: &[u8]) -> bool {
    name.rsplit(|&byte| byte == b'.').next().is_some_and(|label| label.iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn normalized(raw: &[u8]) -> Option<String> {
        normalize(raw, &mut [0; 256]).map(str::to_owned)
    }

    #[test]
    fn reads_names_in_any_spelling() {
        for (text, want) in [
            ("example.com", "example.com"),
            ("EXAMPLE.Com", "example.com"),
            ("example.com.", "example.com"),
            ("localhost", "localhost"),
            ("_acme-challenge.example.com", "_acme-challenge.example.com"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("r3---sn.example", "r3---sn.example"),
            ("1.example", "1.example"),
        ] {
            assert_eq!(Host::parse(text).map(|h| h.to_string()), Ok(want.to_owned()), "{text}");
            assert_eq!(normalized(text.as_bytes()).as_deref(), Some(want), "{text}");
        }
    }

    #[test]
    fn says_why_a_text_is_no_host() {
        let long_label = "a".repeat(64);
        let long_name = ["a"; 128].join(".");
        for (text, want) in [
            ("", HostError::Empty),
            (".", HostError::Empty),
            ("a..b", HostError::EmptyLabel),
            (".a", HostError::EmptyLabel),
            ("a..", HostError::EmptyLabel),
            (&long_label, HostError::LabelTooLong(long_label.clone())),
            (&long_name, HostError::TooLong(255)),
            ("a b", HostError::Character(' ')),
            ("a/b", HostError::Character('/')),
            ("a:80", HostError::Character(':')),
            ("a\0b", HostError::Character('\0')),
            ("bücher.example", HostError::NotAscii('ü')),
            ("192.168.1.1", HostError::Address("192.168.1.1".into())),
            ("foo.123", HostError::Address("foo.123".into())),
            ("*.example.com", HostError::Wildcard),
            ("*", HostError::Wildcard),
        ] {
            assert_eq!(Host::parse(text), Err(want), "{text}");
        }
        assert!(Host::parse("bücher.example").unwrap_err().to_string().contains("punycode"));
    }

    #[test]
    fn wildcards_are_one_label_deep() {
        let pattern = HostPattern::parse("*.Example.com").unwrap();
        assert_eq!(pattern.to_string(), "*.example.com");
        assert!(pattern.matches("a.example.com"));
        for no in ["example.com", "a.b.example.com", ".example.com", "aexample.com", "a.example.org"] {
            assert!(!pattern.matches(no), "{no}");
        }
        assert!(HostPattern::parse("example.com").unwrap().matches("example.com"));
        for bad in ["*", "*.", "a.*.b", "*.*.b", "*a.b", "a*.b", "**.b", "*..b"] {
            assert_eq!(HostPattern::parse(bad), Err(HostError::Wildcard), "{bad}");
        }
        assert!(matches!(HostPattern::parse("*.1.2.3"), Err(HostError::Address(_))));
    }

    #[test]
    fn normalizes_what_is_on_the_wire() {
        let longest = ["a"; 127].join(".");
        for (raw, want) in [
            ("Example.COM:443", Some("example.com")),
            ("example.com.:443", Some("example.com")),
            ("example.com:", Some("example.com")),
            ("example.com:65535", Some("example.com")),
            ("example.com:65536", None),
            ("example.com:99999999999999999999", None),
            ("example.com:+1", None),
            ("example.com:1:2", None),
            ("user@example.com", None),
            ("example.com/", None),
            ("a,b", None),
            (" a", None),
            ("a ", None),
            ("", None),
            (":443", None),
            (".", None),
            ("a..b", None),
            ("a..", None),
            ("*.example.com", None),
            ("127.0.0.1:80", Some("127.0.0.1")),
            ("[::1]", Some("[::1]")),
            ("[::1]:443", Some("[::1]")),
            ("[FE80::A]", Some("[fe80::a]")),
            ("[::1]x", None),
            ("[::1", None),
            ("[fe80::1%eth0]", None),
            ("[v1.x]", None),
            ("::1", None),
            (&longest, Some(&longest)),
            (&format!("{longest}."), Some(&longest)),
            (&format!("{longest}a"), Some(&format!("{longest}a")).filter(|n| n.len() <= 253).map(String::as_str)),
            (&format!("{longest}.a"), None),
        ] {
            assert_eq!(normalized(raw.as_bytes()).as_deref(), want, "{raw}");
        }
        assert_eq!(normalized(b"b\xc3\xbccher.example"), None);
        assert_eq!(normalized(b"a\0.example"), None);
    }

    proptest! {
        #[test]
        fn normalizing_agrees_with_parsing(raw in prop::collection::vec(any::<u8>(), 0..300)) {
            check(&raw);
        }

        #[test]
        fn normalizing_agrees_with_parsing_near_names(raw in "[a-cA-C0-9_.*:\\[\\]-]{0,20}") {
            check(raw.as_bytes());
        }

        #[test]
        fn names_come_back_as_they_were(name in "([a-z0-9_]([a-z0-9_-]{0,6}[a-z0-9_])?\\.){0,4}[a-z]{1,8}", upper in any::<bool>()) {
            let text = if upper { name.to_uppercase() } else { name.clone() };
            let host = Host::parse(&text).unwrap();
            prop_assert_eq!(host.as_str(), &name);
            prop_assert_eq!(normalized(format!("{text}.:8443").as_bytes()), Some(name));
        }
    }

    fn check(raw: &[u8]) {
        let text = std::str::from_utf8(raw).ok();
        let parsed = text.and_then(|text| Host::parse(text).ok());
        let normal = normalized(raw);
        if let Some(host) = parsed {
            assert_eq!(normal.as_deref(), Some(host.as_str()));
        } else if let Some(name) = normal {
            let again = normalized(name.as_bytes());
            assert_eq!(again.as_deref(), Some(&*name), "normal form is stable");
            assert!(
                Host::parse(&name).is_ok()
                    || matches!(Host::parse(&name), Err(HostError::Hyphen(_)))
                    || name.starts_with('[')
                    || ends_in_number(name.as_bytes()),
                "{name} is neither a host nor an address"
            );
        }
    }
}
