//! Why a service is changed: which keys of its compose document, from what to what.
//!
//! Pure. What may be a secret is never shown: a plan is printed, logged and answered by the API.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_yaml::{Mapping, Value};

use crate::observed::LABEL_CONFIG;
use crate::yaml;

/// What is shown of a value that may be a secret.
pub(super) const HIDDEN: &str = "***";
/// Parts of variables' names that make their values secrets.
const SECRET: [&str; 9] = ["PASS", "SECRET", "TOKEN", "KEY", "CREDENTIAL", "PRIVATE", "AUTH", "SALT", "DSN"];
/// Keys that say nothing about a single container.
const QUIET: [&str; 3] = ["depends_on", "deploy.replicas", "scale"];

/// A key that has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Which key, with dots between its parts.
    pub key: String,
    /// `None` where it was not there.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub old: Option<String>,
    /// `None` where it is there no more.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub new: Option<String>,
}

impl Reason {
    pub fn new(key: impl Into<String>, old: Option<String>, new: Option<String>) -> Reason {
        Reason { key: key.into(), old, new }
    }

    /// Hides the values of what people put secrets into.
    pub(super) fn mask(&mut self) {
        let top = self.key.split('.').next().unwrap_or_default();
        if matches!(top, "env" | "environment" | "labels" | "command" | "entrypoint" | "healthcheck" | "build") {
            [&mut self.old, &mut self.new].into_iter().flatten().for_each(|value| *value = HIDDEN.to_owned());
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, old, new } = self;
        match (old, new) {
            (Some(old), Some(new)) => write!(f, "{key}: {old} -> {new}"),
            (None, Some(new)) => write!(f, "{key}: added, {new}"),
            (Some(old), None) => write!(f, "{key}: removed, was {old}"),
            (None, None) => f.write_str(key),
        }
    }
}

/// Compares a service's document on disk with the new one; without one on disk there is nothing to say.
pub(super) fn reasons(old: Option<&Mapping>, new: &Mapping) -> Vec<Reason> {
    let Some(old) = old else { return Vec::new() };
    let (old, new) = (leaves(old), leaves(new));
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let changed = keys.into_iter().filter(|key| old.get(*key) != new.get(*key) && !QUIET.contains(&key.as_str()));
    changed
        .map(|key| {
            let shown = |leaves: &BTreeMap<String, String>| leaves.get(key).map(|value| shown(key, value));
            Reason::new(key.replacen("environment.", "env.", 1), shown(&old), shown(&new))
        })
        .collect()
}

/// The scalars and lists of a document, by their paths.
fn leaves(document: &Mapping) -> BTreeMap<String, String> {
    fn walk(leaves: &mut BTreeMap<String, String>, path: &str, value: &Value) {
        match value {
            Value::Mapping(inner) => {
                for (key, value) in inner {
                    let key = key.as_str().map_or_else(|| yaml::scalar(key), str::to_owned);
                    let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                    walk(leaves, &path, value);
                }
            }
            Value::Sequence(elements) => {
                // The old tool wrote these two as lists.
                if matches!(path, "environment" | "labels") {
                    for (key, value) in elements.iter().filter_map(|item| item.as_str()?.split_once('=')) {
                        leaves.insert(format!("{path}.{key}"), value.to_owned());
                    }
                    return;
                }
                let elements: Vec<String> = elements.iter().map(one_line).collect();
                leaves.insert(path.to_owned(), format!("[{}]", elements.join(", ")));
            }
            Value::Tagged(tagged) => walk(leaves, path, &tagged.value),
            one => drop(leaves.insert(path.to_owned(), one_line(one))),
        }
    }
    let mut leaves = BTreeMap::new();
    walk(&mut leaves, "", &Value::from(document.clone()));
    leaves.remove(&format!("labels.{LABEL_CONFIG}"));
    leaves
}

fn one_line(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Sequence(elements) => format!("[{}]", elements.iter().map(one_line).collect::<Vec<_>>().join(", ")),
        Value::Mapping(inner) => {
            let entries = inner.iter().map(|(key, value)| format!("{}: {}", one_line(key), one_line(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        other => yaml::scalar(other),
    }
}

/// What is shown of a value: no secret, one line, not too long.
fn shown(key: &str, value: &str) -> String {
    const SHOWN: usize = 80;
    let name = key.rsplit('.').next().unwrap_or(key).to_ascii_uppercase();
    let of_environment = key.starts_with("environment.");
    // `postgres://user:password@host` is one as well, wherever it stands.
    let in_url = value.split_once("://").is_some_and(|(_, rest)| {
        rest.split(['/', ' ']).next().is_some_and(|authority| authority.contains('@') && authority.contains(':'))
    });
    if in_url || (of_environment && SECRET.iter().any(|part| name.contains(part))) {
        return HIDDEN.to_owned();
    }
    let clean: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match clean.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &clean[..end]),
        None => clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(old: &str, new: &str) -> Vec<String> {
        let read = |text: &str| serde_yaml::from_str::<Mapping>(text).unwrap();
        reasons(Some(&read(old)), &read(new)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_changed_key_is_told_once() {
        for (old, new, told) in [
            ("image: a:1", "image: a:2", &["image: a:1 -> a:2"][..]),
            (
                "environment: {A: '1', B: x}",
                "environment: {B: x, C: '2'}",
                &["env.A: removed, was 1", "env.C: added, 2"],
            ),
            ("environment: [A=1]", "environment: {A: '1'}", &[]),
            ("volumes: [a, b]", "volumes: [a, c]", &["volumes: [a, b] -> [a, c]"]),
            ("deploy: {replicas: 1}", "deploy: {replicas: 2}", &[]),
            ("depends_on: [a]", "{}", &[]),
            (
                "labels: {itsup.config: a, itsup.port: '1'}",
                "labels: {itsup.config: b, itsup.port: '2'}",
                &["labels.itsup.port: 1 -> 2"],
            ),
            (
                "healthcheck: {test: [CMD, x], retries: 3}",
                "healthcheck: {test: [CMD, y], retries: 3}",
                &["healthcheck.test: [CMD, x] -> [CMD, y]"],
            ),
        ] {
            assert_eq!(changed(old, new), told, "{old} {new}");
        }
    }

    #[test]
    fn who_may_only_look_sees_no_variables_and_no_commands() {
        let reason = |key: &str| Reason::new(key, Some("a".into()), None);
        for (key, old) in [("env.A", HIDDEN), ("labels.x", HIDDEN), ("command", HIDDEN), ("image", "a")] {
            let mut reason = reason(key);
            reason.mask();
            assert_eq!((reason.old.as_deref(), &reason.new), (Some(old), &None), "{key}");
        }
    }

    #[test]
    fn secrets_and_control_characters_are_not_shown() {
        for (old, new, told) in [
            ("environment: {DB_PASSWORD: a}", "environment: {DB_PASSWORD: b}", "env.DB_PASSWORD: *** -> ***"),
            ("environment: {api_key: a}", "environment: {api_key: b}", "env.api_key: *** -> ***"),
            ("environment: {URL: x}", "environment: {URL: 'pg://u:p@h/d'}", "env.URL: x -> ***"),
            ("command: x", "command: \"a\\e[2J\"", "command: x -> a [2J"),
        ] {
            assert_eq!(changed(old, new), [told]);
        }
        let long = format!("command: {}", "x".repeat(200));
        assert!(changed("command: y", &long)[0].len() < 120);
    }
}
