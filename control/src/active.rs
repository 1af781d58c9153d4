//! Which containers are routed for each service: the active sets, and their file.
//!
//! A set says *which* containers a service's traffic may go to; whether one of them can be reached right now is for
//! `routes.rs` to see. It must not know how Docker is asked, nor who keeps a service frozen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use crate::db::{Db, Project, Service};
use crate::observed::{ContainerId, Engine, Observed};

/// A service of a project, by the names in db.yml.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    pub project: Arc<str>,
    pub service: Arc<str>,
}

impl ServiceKey {
    pub fn new(project: impl Into<Arc<str>>, service: impl Into<Arc<str>>) -> Self {
        Self { project: project.into(), service: service.into() }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.project, self.service)
    }
}

/// The name of a service in its compose file: `<project>-<name>`.
pub fn compose_service(project: &Project, service: &Service) -> String {
    format!("{}-{}", project.name, service.name)
}

/// For each service with an image, the containers that are routed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ActiveSets(BTreeMap<ServiceKey, BTreeSet<ContainerId>>);

impl ActiveSets {
    /// Returns a service's set; `None` where nothing has ever been routed for it.
    pub fn of(&self, key: &ServiceKey) -> Option<&BTreeSet<ContainerId>> {
        self.0.get(key)
    }

    /// Puts a set in place of another: what a rollout's publish does.
    pub fn set(&mut self, key: ServiceKey, containers: BTreeSet<ContainerId>) {
        self.0.insert(key, containers);
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ServiceKey, &BTreeSet<ContainerId>)> {
        self.0.iter()
    }
}

/// Brings the sets up to date with what is there.
///
/// Running containers join and those that died or vanished leave; health has no say. Those on their way out never
/// join. Frozen services (those with a rollout under way) stay as they are, and while the engine is away or off
/// everyone does. Services that are gone from db.yml, or whose project is disabled, lose their set.
pub fn step(
    active: &ActiveSets,
    db: &Db,
    observed: &Observed,
    frozen: &BTreeSet<ServiceKey>,
    leaving: &BTreeSet<ContainerId>,
) -> ActiveSets {
    let known = matches!(observed.engine, Engine::Up { .. });
    let running = running(observed, leaving);
    let mut next = BTreeMap::new();
    for project in db.projects.iter().filter(|p| p.enabled) {
        for service in project.services.iter().filter(|s| s.image.is_some()) {
            let key = ServiceKey::new(project.name.clone(), service.name.clone());
            if known && !frozen.contains(&key) {
                let name = compose_service(project, service);
                next.insert(key, running.get(&(&*project.compose_name, &*name)).cloned().unwrap_or_default());
            } else if let Some(set) = active.of(&key) {
                next.insert(key, set.clone());
            }
        }
    }
    let kept = active.0.iter().filter(|(key, _)| frozen.contains(key));
    next.extend(kept.map(|(key, set)| (key.clone(), set.clone())));
    ActiveSets(next)
}

/// Groups the running containers by compose project and service.
fn running<'a>(
    observed: &'a Observed,
    leaving: &BTreeSet<ContainerId>,
) -> BTreeMap<(&'a str, &'a str), BTreeSet<ContainerId>> {
    let mut groups: BTreeMap<(&str, &str), BTreeSet<ContainerId>> = BTreeMap::new();
    for container in observed.containers.values().filter(|c| c.running && !c.oneoff && !leaving.contains(&c.id)) {
        if let Some(service) = &container.compose_service {
            groups.entry((&container.compose_project, service)).or_default().insert(container.id.clone());
        }
    }
    groups
}

/// Why the sets could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read the active sets: {0}")]
    Read(#[source] io::Error),
    #[error("the active sets are damaged: {0}")]
    Damaged(#[source] serde_json::Error),
}

/// The file: project, service, containers.
type OnDisk = BTreeMap<String, BTreeMap<String, BTreeSet<ContainerId>>>;

/// Reads the sets; a file that is not there means that there are none.
pub fn load(path: &Path) -> Result<ActiveSets, LoadError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ActiveSets::default()),
        Err(error) => return Err(LoadError::Read(error)),
    };
    let disk: OnDisk = serde_json::from_slice(&bytes).map_err(LoadError::Damaged)?;
    let sets = disk.into_iter().flat_map(|(project, services)| {
        let project: Arc<str> = project.into();
        services.into_iter().map(move |(service, set)| (ServiceKey::new(project.clone(), service), set))
    });
    Ok(ActiveSets(sets.collect()))
}

/// Writes the sets so that after a crash either the old file or the new one is there, whole.
pub fn save(path: &Path, active: &ActiveSets) -> io::Result<()> {
    let mut disk = OnDisk::new();
    for (key, set) in active.iter() {
        disk.entry(key.project.to_string()).or_default().insert(key.service.to_string(), set.clone());
    }
    replace(path, &serde_json::to_vec_pretty(&disk)?)
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("json.new");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::observed::Health;
    use crate::testing::{container, image, observed, project};

    fn key() -> ServiceKey {
        ServiceKey::new("Shop", "web")
    }

    fn db() -> Db {
        Db { projects: vec![project("Shop", vec![image("web")])] }
    }

    fn set(ids: &[&str]) -> BTreeSet<ContainerId> {
        ids.iter().map(|id| ContainerId::from(*id)).collect()
    }

    fn sets(ids: &[&str]) -> ActiveSets {
        let mut sets = ActiveSets::default();
        sets.set(key(), set(ids));
        sets
    }

    fn stepped(active: &ActiveSets, observed: &Observed) -> BTreeSet<ContainerId> {
        step(active, &db(), observed, &BTreeSet::new(), &BTreeSet::new()).of(&key()).cloned().unwrap_or_default()
    }

    #[test]
    fn the_running_join_and_the_dead_leave() {
        let mut there = observed([
            container("a", "shop", "Shop-web"),
            container("b", "shop", "Shop-web"),
            container("c", "shop", "Shop-db"),
            container("d", "other", "Shop-web"),
        ]);
        assert_eq!(stepped(&ActiveSets::default(), &there), set(&["a", "b"]));
        there.containers.get_mut(&"a".into()).unwrap().running = false;
        assert_eq!(stepped(&sets(&["a", "b", "gone"]), &there), set(&["b"]));
    }

    #[test]
    fn health_never_empties_a_set() {
        for health in [Health::None, Health::Starting, Health::Healthy, Health::Unhealthy] {
            let mut one = container("a", "shop", "Shop-web");
            one.health = health;
            assert_eq!(stepped(&sets(&["a"]), &observed([one])), set(&["a"]), "{health:?}");
        }
    }

    #[test]
    fn what_compose_run_made_is_not_routed() {
        let mut one = container("a", "shop", "Shop-web");
        one.oneoff = true;
        assert_eq!(stepped(&ActiveSets::default(), &observed([one])), set(&[]));
    }

    #[test]
    fn an_engine_that_is_away_or_off_changes_nothing() {
        for engine in [Engine::Off, Engine::Away { since: UNIX_EPOCH, why: "gone".into() }] {
            let there = Observed { engine, ..observed([container("b", "shop", "Shop-web")]) };
            assert_eq!(stepped(&sets(&["a"]), &there), set(&["a"]));
            assert_eq!(
                step(&ActiveSets::default(), &db(), &there, &BTreeSet::new(), &BTreeSet::new()),
                ActiveSets::default()
            );
        }
    }

    #[test]
    fn a_frozen_service_keeps_its_set_while_others_move() {
        let mut db = db();
        db.projects.push(project("blog", vec![image("web")]));
        let there = observed([container("b", "shop", "Shop-web"), container("c", "blog", "blog-web")]);
        let next = step(&sets(&["a"]), &db, &there, &BTreeSet::from([key()]), &BTreeSet::new());
        assert_eq!(next.of(&key()), Some(&set(&["a"])));
        assert_eq!(next.of(&ServiceKey::new("blog", "web")), Some(&set(&["c"])));

        // Frozen before its first container is routed: nothing joins but by a publish.
        let next = step(&ActiveSets::default(), &db, &there, &BTreeSet::from([key()]), &BTreeSet::new());
        assert_eq!(next.of(&key()), None);
        // Taken out of db.yml in the middle of its rollout: the rollout still finds its set.
        let next = step(&sets(&["a"]), &Db::default(), &there, &BTreeSet::from([key()]), &BTreeSet::new());
        assert_eq!(next.of(&key()), Some(&set(&["a"])));
    }

    #[test]
    fn services_that_are_gone_or_disabled_lose_their_set() {
        let there = observed([container("a", "shop", "Shop-web")]);
        assert_eq!(
            step(&sets(&["a"]), &Db::default(), &there, &BTreeSet::new(), &BTreeSet::new()),
            ActiveSets::default()
        );
        let mut db = db();
        db.projects[0].enabled = false;
        assert_eq!(step(&sets(&["a"]), &db, &there, &BTreeSet::new(), &BTreeSet::new()), ActiveSets::default());
    }

    #[test]
    fn those_on_their_way_out_never_join() {
        let there = observed([container("a", "shop", "Shop-web"), container("b", "shop", "Shop-web")]);
        let next = step(&sets(&["b"]), &db(), &there, &BTreeSet::new(), &set(&["a"]));
        assert_eq!(next.of(&key()), Some(&set(&["b"])));
    }

    #[test]
    fn the_file_reads_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("active.json");
        assert_eq!(load(&path).unwrap(), ActiveSets::default());
        save(&path, &sets(&["a", "b"])).unwrap();
        save(&path, &sets(&["b", "c"])).unwrap();
        assert_eq!(load(&path).unwrap(), sets(&["b", "c"]));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside the file");
        fs::write(&path, b"{\"Shop\":").unwrap();
        assert!(matches!(load(&path), Err(LoadError::Damaged(_))));
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("active.json");
        save(&path, &sets(&["a"])).unwrap();
        fs::create_dir(folder.path().join("active.json.new")).unwrap();
        assert!(save(&path, &sets(&["b"])).is_err());
        assert_eq!(load(&path).unwrap(), sets(&["a"]));
    }

    proptest::proptest! {
        /// Whatever was there before: a set is what runs, a frozen one what it was, and a second step changes nothing.
        #[test]
        fn a_step_is_what_runs_or_what_was_frozen(
            before in proptest::collection::btree_set("[a-f]", 0..5),
            there in proptest::collection::btree_map("[a-f]", (proptest::bool::ANY, 0..4u8), 0..5),
            is_frozen in proptest::bool::ANY,
        ) {
            let containers = there.iter().map(|(id, (running, health))| {
                let mut one = container(id, "shop", "Shop-web");
                one.running = *running;
                one.health = [Health::None, Health::Starting, Health::Healthy, Health::Unhealthy][*health as usize];
                one
            });
            let there = observed(containers);
            let before: BTreeSet<ContainerId> = before.iter().map(|id| ContainerId::from(id.as_str())).collect();
            let mut active = ActiveSets::default();
            active.set(key(), before.clone());
            let frozen: BTreeSet<ServiceKey> = is_frozen.then(key).into_iter().collect();
            let running = there.containers.values().filter(|c| c.running).map(|c| c.id.clone()).collect();
            let next = step(&active, &db(), &there, &frozen, &BTreeSet::new());
            proptest::prop_assert_eq!(next.of(&key()), Some(if is_frozen { &before } else { &running }));
            proptest::prop_assert_eq!(step(&next, &db(), &there, &frozen, &BTreeSet::new()), next);
        }
    }
}
