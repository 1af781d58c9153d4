//! What ran before: the version of each service that its last change has replaced, and what a rollback has pinned.
//!
//! `data/versions/<project>.json`, written and renamed. It must not know how anything is rolled over.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_yaml::Mapping;

use crate::active::ServiceKey;
use crate::files;
use crate::plan::{Pin, Pins};
use crate::settings::Root;

/// What a service was, as far as it takes to be that again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// Its part of the compose file.
    pub document: Mapping,
    /// The image that ran, by a name that stays with it: what its own name means may have moved on.
    pub image: String,
    pub image_id: String,
    /// RFC 3339: when it was replaced.
    pub replaced: String,
}

/// A project's file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Versions {
    previous: BTreeMap<String, Version>,
    pins: BTreeMap<String, Pin>,
}

impl Version {
    /// Its part of the compose file, with the very image that ran.
    pub fn exact(&self) -> Mapping {
        let mut document = self.document.clone();
        document.insert("image".into(), self.image.as_str().into());
        document
    }
}

/// The pins of all projects.
pub fn pins(root: &Root) -> io::Result<Pins> {
    let mut pins = Pins::new();
    let entries = match fs::read_dir(folder(root)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(pins),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name();
        let Some(project) = name.to_str().and_then(|name| name.strip_suffix(".json")) else { continue };
        if project.starts_with('.') {
            continue;
        }
        for (service, pin) in load(root, project)?.pins {
            pins.insert(ServiceKey::new(project, service), pin);
        }
    }
    Ok(pins)
}

/// The version that a service's last change has replaced.
pub fn previous(root: &Root, key: &ServiceKey) -> io::Result<Option<Version>> {
    Ok(load(root, &key.project)?.previous.remove(&*key.service))
}

/// Keeps what a change has replaced, in place of what an earlier one had.
pub fn keep(root: &Root, key: &ServiceKey, version: Version) -> io::Result<()> {
    let mut versions = load(root, &key.project)?;
    versions.previous.insert(key.service.to_string(), version);
    save(root, &key.project, &versions)
}

/// Pins a service, or lets it go.
pub fn set_pin(root: &Root, key: &ServiceKey, pin: Option<Pin>) -> io::Result<()> {
    let mut versions = load(root, &key.project)?;
    let before = match pin {
        Some(pin) => versions.pins.insert(key.service.to_string(), pin.clone()) != Some(pin),
        None => versions.pins.remove(&*key.service).is_some(),
    };
    if before { save(root, &key.project, &versions) } else { Ok(()) }
}

fn folder(root: &Root) -> PathBuf {
    root.data().join("versions")
}

fn load(root: &Root, project: &str) -> io::Result<Versions> {
    match fs::read(folder(root).join(format!("{project}.json"))) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Versions::default()),
        Err(error) => Err(error),
    }
}

fn save(root: &Root, project: &str, versions: &Versions) -> io::Result<()> {
    let folder = folder(root);
    files::make_private_folder(&folder)?;
    let bytes = serde_json::to_vec_pretty(versions)?;
    files::write_atomically(&folder.join(format!("{project}.json")), &bytes, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(image: &str) -> Version {
        let document = serde_yaml::from_str("{image: app:1, environment: {A: b}}").unwrap();
        Version { document, image: image.into(), image_id: "sha256:1".into(), replaced: String::new() }
    }

    #[test]
    fn versions_and_pins_of_a_service_are_kept_side_by_side() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let key = ServiceKey::new("Shop", "web");
        assert_eq!(previous(&root, &key).unwrap(), None);
        keep(&root, &key, version("a")).unwrap();
        keep(&root, &key, version("b")).unwrap();
        assert_eq!(previous(&root, &key).unwrap(), Some(version("b")));
        let exact = version("b").exact();
        assert_eq!((exact.get("image").unwrap(), exact.len()), (&"b".into(), 2));

        assert_eq!(pins(&root).unwrap(), Pins::new());
        let wanted = serde_json::from_value("hash".into()).unwrap();
        let pin = Pin { wanted, document: exact };
        set_pin(&root, &key, Some(pin.clone())).unwrap();
        assert_eq!(pins(&root).unwrap(), Pins::from([(key.clone(), pin)]));
        assert_eq!(previous(&root, &key).unwrap(), Some(version("b")));
        set_pin(&root, &key, None).unwrap();
        assert_eq!(pins(&root).unwrap(), Pins::new());
    }
}
