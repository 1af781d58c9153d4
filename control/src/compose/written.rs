//! A compose file as it stands on disk, read for what has changed since.
//!
//! Pure. It may be of the old tool or of anybody else, so nothing is taken for granted.

use std::collections::BTreeMap;

use serde_yaml::{Mapping, Value};

use super::ConfigHash;
use crate::observed::LABEL_CONFIG;

/// What a compose file says of its services, by their compose names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// The compose project's name, where the file says it.
    pub name: Option<String>,
    pub services: BTreeMap<String, Mapping>,
}

impl Written {
    /// Reads a compose file; one that cannot be read says nothing.
    pub fn read(text: &str) -> Written {
        let Ok(Value::Mapping(document)) = serde_yaml::from_str(text) else { return Written::default() };
        let services = document.get("services").and_then(Value::as_mapping).into_iter().flatten();
        let service = |(name, value): (&Value, &Value)| Some((name.as_str()?.to_owned(), value.as_mapping()?.clone()));
        let name = document.get("name").and_then(Value::as_str).map(str::to_owned);
        Written { name, services: services.filter_map(service).collect() }
    }

    /// The hash that a service was written with; `None` where the file is none of ours.
    pub fn config(&self, compose_service: &str) -> Option<ConfigHash> {
        config(self.services.get(compose_service)?)
    }
}

/// The hash that stands in a service's document.
pub(super) fn config(document: &Mapping) -> Option<ConfigHash> {
    document.get("labels")?.get(LABEL_CONFIG)?.as_str().map(|hash| ConfigHash(hash.to_owned()))
}
