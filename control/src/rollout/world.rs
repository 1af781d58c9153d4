//! A small world for rollouts to run in: containers that behave as told, a journal that survives, and a process that may
//! be killed after any single thing it does.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::journal::{Change, Kind};
use crate::observed::Observed;
use crate::testing::{container, observed};

/// What the new version is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Good,
    NeverAnswers,
    Unhealthy,
    /// Its process ends at once.
    EndsAtStart,
    /// It ends this long after its start.
    EndsAfter(u64),
    /// Compose fails after having made some.
    NotMade,
}

pub(super) const REPLICAS: usize = 2;
const STEP: Duration = Duration::from_millis(100);

pub(super) fn terms() -> Terms {
    Terms { replicas: REPLICAS, timeout: Duration::from_secs(5), watch: Duration::from_secs(2) }
}

/// The process was killed.
pub(super) struct Killed;

pub(super) struct World {
    pub(super) containers: BTreeMap<ContainerId, Container>,
    born: BTreeMap<ContainerId, Duration>,
    pub(super) change: Option<Change>,
    pub(super) retiring: Ids,
    pub(super) routed: Ids,
    version: Version,
    now: Duration,
    made: usize,
    /// Things that may be done until the process is killed.
    fuel: Option<usize>,
    /// When the engine is away.
    away: (Duration, Duration),
}

impl World {
    pub(super) fn new(version: Version, kill_after: Option<usize>, away: (Duration, Duration)) -> World {
        let mut world = World {
            containers: BTreeMap::new(),
            born: BTreeMap::new(),
            change: None,
            retiring: Ids::new(),
            routed: Ids::new(),
            version,
            now: Duration::ZERO,
            made: 0,
            fuel: kill_after,
            away,
        };
        for n in 0..REPLICAS {
            let one = container(&format!("old-{n}"), "shop", "shop-web");
            world.routed.insert(one.id.clone());
            world.containers.insert(one.id.clone(), one);
        }
        world
    }

    /// Runs a rollout and, where it is killed, the next process's recovery, until nothing is left to do.
    pub(super) fn run(&mut self) -> Option<Ended> {
        let old = self.routed.clone();
        let change = Change {
            id: "1".into(),
            service: "web".into(),
            compose_project: "shop".into(),
            compose_service: "shop-web".into(),
            file: "docker-compose.yml".into(),
            terms: terms(),
            kind: Kind::Rolling(Stage::Starting),
            old: old.clone(),
            new: Ids::new(),
        };
        let first = self.process(Rollout::new(terms(), old, Ids::new()), &change);
        if let Ok(ended) = first {
            self.retire();
            return Some(ended);
        }
        self.fuel = None;
        let Some(left) = self.change.clone() else {
            // Killed before the journal or after the end of it.
            self.retire();
            return None;
        };
        self.routed = left.routed(&self.seen()).clone();
        self.check();
        let Kind::Rolling(stage) = left.kind else { panic!("not a rolling change") };
        let rollout = Rollout::resume(stage, terms(), left.old.clone(), left.new.clone(), self.retiring.clone());
        let Ok(ended) = self.process(rollout, &left) else { panic!("killed twice") };
        self.retire();
        Some(ended)
    }

    fn process(&mut self, mut rollout: Rollout, change: &Change) -> Result<Ended, Killed> {
        let mut queue = vec![Event::Begin];
        for _ in 0..10_000 {
            while let Some(event) = (!queue.is_empty()).then(|| queue.remove(0)) {
                for command in rollout.step(event, self.now) {
                    queue.extend(self.execute(command, &rollout, change)?);
                    self.check();
                }
            }
            if let Some(ended) = rollout.ended() {
                return Ok(ended.clone());
            }
            self.pass();
            queue.push(if self.is_away() {
                Event::EngineAway
            } else {
                Event::Seen(self.containers.values().cloned().collect())
            });
            let probed: Vec<ContainerId> = rollout.to_probe().cloned().collect();
            let answered = self.version != Version::NeverAnswers;
            queue.extend(probed.into_iter().map(|container| Event::Probed { container, answered }));
            queue.push(Event::Tick);
        }
        panic!("it does not end: {rollout:?}");
    }

    fn execute(&mut self, command: Command, rollout: &Rollout, change: &Change) -> Result<Option<Event>, Killed> {
        match command {
            Command::Journal(stage) => {
                let new = rollout.new_ids();
                self.change = Some(Change { kind: Kind::Rolling(stage), new, ..change.clone() });
                self.burn()?;
            }
            Command::Start => {
                for _ in 0..REPLICAS {
                    if self.version == Version::NotMade && self.made > 0 {
                        return Ok(Some(Event::Started(Err("no such image".into()))));
                    }
                    self.make();
                    self.burn()?;
                }
                return Ok(Some(Event::Started(Ok(()))));
            }
            Command::Trim(ids) => self.remove(&ids)?,
            Command::Publish(ids) => {
                self.routed = ids;
                self.burn()?;
                return Ok(Some(Event::Published(Ok(()))));
            }
            Command::Revive(ids) => {
                for id in ids {
                    if let Some(container) = self.containers.get_mut(&id) {
                        container.running = true;
                    }
                }
                self.burn()?;
            }
            Command::RemoveNew => {
                let kept = |id: &&ContainerId| !change.old.contains(*id) && !self.retiring.contains(*id);
                let new: Ids = self.containers.keys().filter(kept).cloned().collect();
                self.remove(&new)?;
                self.change = None;
                self.burn()?;
                return Ok(Some(Event::Removed));
            }
            Command::Commit => {
                self.retiring.extend(change.old.iter().cloned());
                self.change = None;
                self.burn()?;
            }
        }
        Ok(None)
    }

    /// What goes on in the background, and after a crash at the next start.
    fn retire(&mut self) {
        for id in std::mem::take(&mut self.retiring) {
            assert!(!self.routed.contains(&id), "{id} is routed");
            self.containers.remove(&id);
        }
    }

    fn remove(&mut self, ids: &Ids) -> Result<(), Killed> {
        for id in ids {
            assert!(!self.routed.contains(id), "{id} is routed and must not go");
            self.containers.remove(id);
            self.burn()?;
        }
        Ok(())
    }

    fn make(&mut self) {
        let mut one = container(&format!("new-{}", self.made), "shop", "shop-web");
        self.made += 1;
        one.health = if self.version == Version::Unhealthy { Health::Unhealthy } else { Health::None };
        if self.version == Version::EndsAtStart {
            (one.running, one.exit_code) = (false, Some(1));
        }
        self.born.insert(one.id.clone(), self.now);
        self.containers.insert(one.id.clone(), one);
    }

    fn burn(&mut self) -> Result<(), Killed> {
        match &mut self.fuel {
            Some(0) => return Err(Killed),
            Some(fuel) => *fuel -= 1,
            None => {}
        }
        Ok(())
    }

    fn pass(&mut self) {
        self.now += STEP;
        if let Version::EndsAfter(millis) = self.version {
            for (id, born) in &self.born {
                if self.now >= *born + Duration::from_millis(millis)
                    && let Some(container) = self.containers.get_mut(id)
                {
                    (container.running, container.exit_code) = (false, Some(1));
                }
            }
        }
    }

    fn is_away(&self) -> bool {
        self.now >= self.away.0 && self.now < self.away.1
    }

    fn seen(&self) -> Observed {
        observed(self.containers.values().cloned())
    }

    /// At every moment: what is routed is one version alone, and somebody of it is there to serve, or the old ones are
    /// all there to go back to.
    fn check(&self) {
        let version = |id: &ContainerId| id.as_str().starts_with("old");
        let old = self.routed.iter().filter(|id| version(id)).count();
        assert!(old == 0 || old == self.routed.len(), "mixed versions: {:?}", self.routed);
        let serves = self.routed.iter().any(|id| self.containers.get(id).is_some_and(|c| c.running));
        let way_back = self.containers.values().filter(|c| version(&c.id) && c.running).count() == REPLICAS;
        assert!(serves || way_back, "nobody serves: {:?}", self.routed);
    }
}
