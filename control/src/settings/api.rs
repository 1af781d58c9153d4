//! Who may use the API, and what for: `API_KEY`, `WEBHOOK_SECRET`, `ITSUP_API_COMPOSE`, `ITSUP_RECONCILE`.
//!
//! No message names a secret.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};

use super::{Problem, Reader, Variable, is_off, parse_switch, problem};
use crate::units::parse_duration;

/// The fewest bytes that a key or a secret may have.
const SHORTEST: usize = 16;
/// The shortest time between two runs of `ITSUP_RECONCILE`.
const OFTEN: Duration = Duration::from_secs(60);

/// What the API allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiRules {
    /// `API_KEY`. Without one, the API on TCP is closed.
    pub keys: Vec<ApiKey>,
    /// `WEBHOOK_SECRET`: of projects that have none of their own.
    pub webhook_secret: Option<Secret>,
    /// `ITSUP_API_COMPOSE`: whether the API may write what gives root on this host. Off.
    pub compose: bool,
    /// `ITSUP_RECONCILE`: how often everything is applied. Never.
    pub reconcile: Option<Duration>,
}

/// One key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// What the log calls it.
    pub name: Option<String>,
    /// The key itself.
    pub secret: Secret,
    /// Whether it may only look, with secrets masked.
    pub read_only: bool,
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Secret {
    /// A secret.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// Its bytes, to sign with.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Compares in a time that tells nothing about either, not even the length.
    pub fn is(&self, other: &[u8]) -> bool {
        let hash = |bytes: &[u8]| digest(&SHA256, bytes);
        verify_slices_are_equal(hash(self.bytes()).as_ref(), hash(other).as_ref()).is_ok()
    }
}

pub(super) fn read(reader: &mut Reader<'_>) -> ApiRules {
    ApiRules {
        keys: reader.value(Variable::ApiKey, Vec::new(), parse_keys),
        webhook_secret: reader.value(Variable::WebhookSecret, None, |text| Ok(Some(Secret::new(text)))),
        compose: reader.value(Variable::ApiCompose, false, parse_switch),
        reconcile: reader.value(Variable::Reconcile, None, parse_reconcile),
    }
}

/// `KEY`, or `name=KEY,other:ro=KEY`.
fn parse_keys(text: &str) -> Result<Vec<ApiKey>, Problem> {
    let mut keys: Vec<ApiKey> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, read_only, key) = match part.split_once('=') {
            // The `=` at a key's end are base64's.
            Some((name, key)) if !key.trim_matches('=').is_empty() => match name.strip_suffix(":ro") {
                Some(name) => (Some(name), true, key),
                None => (Some(name), false, key),
            },
            _ => (None, false, part),
        };
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_some_and(|name| name.is_empty() || name.len() > 64 || !name.chars().all(good)) {
            let hint = "write API_KEY=KEY, or API_KEY=name=KEY,other:ro=KEY with names of letters, digits, - _ and .";
            return Err(problem("a key's name is not one", hint));
        }
        if key.len() < SHORTEST || key.chars().any(|c| c.is_whitespace() || c.is_control()) {
            let which = name.map(|name| format!("the key `{name}`")).unwrap_or_else(|| "the key".into());
            let hint =
                format!("use {SHORTEST} characters or more without blanks, as `openssl rand -hex 32` makes them");
            return Err(problem(format!("{which} is too short, or has blanks in it"), hint));
        }
        if keys.iter().any(|other| other.name.as_deref() == name) {
            return Err(problem(
                "two keys have the same name, or none",
                "give each a name of its own: API_KEY=name=KEY,...",
            ));
        }
        keys.push(ApiKey { name: name.map(str::to_owned), secret: Secret::new(key), read_only });
    }
    Ok(keys)
}

fn parse_reconcile(text: &str) -> Result<Option<Duration>, Problem> {
    if is_off(text) {
        return Ok(None);
    }
    match parse_duration(text) {
        Ok(every) if every >= OFTEN => Ok(Some(every)),
        _ => Err(problem(format!("`{text}` is not a duration of a minute or more"), "write 1h, or off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef";

    fn keys(text: &str) -> Result<Vec<(Option<String>, bool)>, String> {
        let keys = parse_keys(text).map_err(|problem| problem.message)?;
        Ok(keys.into_iter().map(|key| (key.name, key.read_only)).collect())
    }

    #[test]
    fn one_key_or_a_list_of_named_ones() {
        assert_eq!(keys(KEY), Ok(vec![(None, false)]));
        assert_eq!(keys("MDEyMzQ1Njc4OWFiY2RlZg=="), Ok(vec![(None, false)]));
        let list = format!("deploy={KEY}, dash:ro={KEY}x");
        assert_eq!(keys(&list), Ok(vec![(Some("deploy".into()), false), (Some("dash".into()), true)]));
        for bad in ["short", "a=short", &format!("a={KEY},a={KEY}"), &format!("a b={KEY}"), "0123456789 abcdef"] {
            let message = keys(bad).unwrap_err();
            assert!(!message.contains(KEY), "{message}");
        }
    }

    #[test]
    fn secrets_are_compared_whole_and_never_shown() {
        let secret = Secret::new(KEY);
        assert!(secret.is(KEY.as_bytes()));
        assert!(!secret.is(b"0123456789abcde") && !secret.is(b""));
        assert_eq!(format!("{secret:?}"), "***");
    }

    #[test]
    fn reconcile_is_off_or_a_minute_and_more() {
        assert_eq!(parse_reconcile("off").ok(), Some(None));
        assert_eq!(parse_reconcile("1h").ok(), Some(Some(Duration::from_secs(3600))));
        assert!(parse_reconcile("1s").is_err());
    }
}
