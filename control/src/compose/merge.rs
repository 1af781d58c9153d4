//! How `compose:` goes over what was generated.
//!
//! As compose merges files: mappings key by key, lists that gather (volumes, networks, ...) by their elements, and all else
//! is replaced. Pure.

use serde_yaml::{Mapping, Value};

/// Lists whose elements are added to what is there.
const GATHERED: [&str; 6] = ["volumes", "networks", "expose", "ports", "env_file", "depends_on"];

/// Merges a block over a generated service.
pub(super) fn into(base: &mut Mapping, over: &Mapping) {
    for (key, value) in over {
        let name = key.as_str().unwrap_or_default();
        let (old, value) = match name {
            "labels" | "environment" => (base.get(key).map(as_assignments), as_assignments(value)),
            _ => (base.get(key).cloned(), value.clone()),
        };
        let merged = match (old, value) {
            (Some(Value::Mapping(mut old)), Value::Mapping(new)) => {
                deep(&mut old, &new);
                Value::Mapping(old)
            }
            (Some(old), new) if GATHERED.contains(&name) => gather(name, old, new),
            (_, new) => new,
        };
        base.insert(key.clone(), merged);
    }
}

fn deep(base: &mut Mapping, over: &Mapping) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Mapping(old)), Value::Mapping(new)) => deep(old, new),
            _ => drop(base.insert(key.clone(), value.clone())),
        }
    }
}

/// `NAME=value` lists as mappings; mappings stay. A name without `=` has no value: compose takes it from the environment.
fn as_assignments(value: &Value) -> Value {
    let Value::Sequence(list) = value else { return value.clone() };
    let assignment = |item: &Value| {
        let text = item.as_str()?;
        Some(match text.split_once('=') {
            Some((name, value)) => (name.into(), value.into()),
            None => (text.into(), Value::Null),
        })
    };
    Value::Mapping(list.iter().filter_map(assignment).collect())
}

fn gather(name: &str, old: Value, new: Value) -> Value {
    match (old, new) {
        // One of them says more than names: the other one's names become keys.
        (Value::Sequence(old), Value::Mapping(new)) => {
            let mut all = as_keys(name, old);
            deep(&mut all, &new);
            Value::Mapping(all)
        }
        (Value::Mapping(mut old), Value::Sequence(new)) => {
            for (key, value) in as_keys(name, new) {
                old.entry(key).or_insert(value);
            }
            Value::Mapping(old)
        }
        (old, new) => {
            let mut all = as_list(old);
            for element in as_list(new) {
                all.retain(|known| *known != element && !same_target(name, known, &element));
                all.push(element);
            }
            Value::Sequence(all)
        }
    }
}

fn as_keys(name: &str, list: Vec<Value>) -> Mapping {
    let value = if name == "depends_on" {
        Value::Mapping(Mapping::from_iter([("condition".into(), "service_started".into())]))
    } else {
        Value::Null
    };
    list.into_iter().map(|key| (key, value.clone())).collect()
}

fn as_list(value: Value) -> Vec<Value> {
    match value {
        Value::Sequence(list) => list,
        Value::Null => Vec::new(),
        one => vec![one],
    }
}

/// Two volumes at one place in the container: the later one counts.
fn same_target(name: &str, a: &Value, b: &Value) -> bool {
    name == "volumes" && target(a).is_some() && target(a) == target(b)
}

fn target(volume: &Value) -> Option<&str> {
    match volume {
        Value::String(text) => text.split(':').nth(1).or(Some(text)),
        long => long.get("target")?.as_str(),
    }
}
