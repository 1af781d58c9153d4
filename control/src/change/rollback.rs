//! Back to what a service was before its last change, by the same path as every other change, and pinned there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::active::ServiceKey;
use crate::apply::{Applied, Applier, ApplyError, Request};
use crate::artifacts::Artifacts;
use crate::db::Db;
use crate::jobs::{CancelToken, Progress};
use crate::plan::{self, Pin};
use crate::versions;

/// Goes back to the previous version of a service, or of every service of a project that has one.
///
/// What it goes back to is pinned first, so that the change is the usual one towards it; a change that fails unpins.
pub async fn rollback(
    applier: &Applier,
    db: &Db,
    (project, service): (&Arc<str>, Option<&Arc<str>>),
    progress: &Progress,
    cancel: &CancelToken,
) -> Result<Applied, ApplyError> {
    let Some(found) = db.project(project) else { return Err(ApplyError::Unknown(project.clone())) };
    if let Some(name) = service
        && found.service(name).is_none()
    {
        return Err(ApplyError::Other(format!("the project {project} has no service `{name}`")));
    }
    let other = |error: std::io::Error| ApplyError::Other(format!("the earlier versions cannot be read: {error}"));
    let mut versions = BTreeMap::new();
    for one in found.services.iter().filter(|one| service.is_none_or(|name| *name == one.name)) {
        let key = ServiceKey::new(project.clone(), one.name.clone());
        if let Some(version) = versions::previous(&applier.root, &key).map_err(other)? {
            versions.insert(key, version);
        }
    }
    if versions.is_empty() {
        let of = service.map_or_else(|| project.to_string(), |service| format!("{project}/{service}"));
        return Err(ApplyError::Other(format!("there is no earlier version of {of} to go back to")));
    }
    let before = applier.changer.pins();
    // What db.yml asks for now, apart from any pin: with that the pin will hold.
    let stacks = plan::stacks(db, &Artifacts::read(&applier.root, db)?, &before);
    let mut services = BTreeSet::new();
    for (key, version) in &versions {
        let Some(wanted) = stacks.get(project).and_then(|stack| stack.service(&key.service)) else { continue };
        let pin = Pin { wanted: wanted.wanted.clone(), document: version.exact() };
        versions::set_pin(&applier.root, key, Some(pin)).map_err(other)?;
        services.insert(key.service.clone());
    }
    let request =
        Request { project: Some(project.clone()), force: true, services: services.clone(), ..Request::default() };
    let applied = applier.run(db, &request, progress, cancel).await;
    if !applied.as_ref().is_ok_and(|applied| applied.projects.iter().all(|project| project.ok)) {
        for key in versions.keys() {
            versions::set_pin(&applier.root, key, before.get(key).cloned()).map_err(other)?;
        }
    }
    applied
}
