//! What a change would do: the difference between db.yml and what is there, as a value.
//!
//! Pure. The dry run prints what the real run executes. It must not know how anything is read or done; `apply.rs` runs it.
//!
//! The rules, in the order in which they are asked of a service:
//! - Nothing of it runs, and it is not one that runs once and has: *start*.
//! - What runs has another hash or another image: *roll over* where traffic leads to it, else *recreate in place*.
//! - Too few run: *start*. Too many: as if it had changed, so that those that go are drained.
//! - *No change* otherwise. A container without a hash (of the old tool) is taken for what the compose file on disk says.
//!
//! What db.yml no longer names is only removed where that is asked for (`prune`); `enabled: false` asks for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_yaml::Mapping;

use crate::active::ServiceKey;
use crate::artifacts::{Artifacts, Folder};
use crate::compose::{self, ConfigHash, Stack, StackService, Written};
use crate::db::{self, Db, Project, RolloutStrategy};
use crate::observed::{Container, Observed};

mod impact;
mod reasons;
#[cfg(test)]
mod tests;

pub use impact::{Impact, Live};
pub use reasons::Reason;

/// The images that are here: the id of each reference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images(pub BTreeMap<String, String>);

impl Images {
    /// The id of the image that a reference names now; `None` where it is not here.
    pub fn id(&self, reference: &str) -> Option<&str> {
        self.0.get(reference).map(String::as_str)
    }
}

/// A service that a rollback holds where it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pin {
    /// The hash of what db.yml said at the time. With another one the pin no longer holds.
    pub wanted: ConfigHash,
    /// What runs in place of what db.yml says.
    pub document: Mapping,
}

/// The pins of all services.
pub type Pins = BTreeMap<ServiceKey, Pin>;

/// The stacks of all projects in service, by their names.
pub type Stacks = BTreeMap<Arc<str>, Stack>;

/// Makes the stacks, with the pins that still hold in them.
pub fn stacks(db: &Db, artifacts: &Artifacts, pins: &Pins) -> Stacks {
    let stack = |project: &Project| {
        let files = artifacts.of(&project.name).map(|folder| folder.files.clone()).unwrap_or_default();
        let mut stack = compose::stack(project, &files);
        for (key, pin) in pins.iter().filter(|(key, _)| key.project == project.name) {
            if stack.service(&key.service).is_some_and(|service| service.wanted == pin.wanted) {
                stack.pin(&key.service, pin.document.clone());
            }
        }
        (project.name.clone(), stack)
    };
    db.projects.iter().filter(|project| project.enabled).map(stack).collect()
}

/// Everything that a plan is made from.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub db: &'a Db,
    /// Those of `db`.
    pub stacks: &'a Stacks,
    pub observed: &'a Observed,
    pub images: &'a Images,
    pub artifacts: &'a Artifacts,
    /// Whether the shared network is there.
    pub network: bool,
    /// What is served now; `None` where that is not known.
    pub serving: Option<&'a Db>,
    /// The one project to plan for.
    pub only: Option<&'a str>,
    /// Replace what has not changed as well.
    pub force: bool,
    /// Remove what db.yml no longer names.
    pub prune: bool,
}

/// What a change would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Whether the shared network has to be made.
    pub create_network: bool,
    pub projects: Vec<ProjectPlan>,
    /// Folders of projects that db.yml no longer names.
    pub gone: Vec<Gone>,
    pub hosts_added: Vec<String>,
    pub hosts_dropped: Vec<String>,
}

/// What becomes of a project.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProjectPlan {
    pub project: String,
    pub change: Change,
    /// Dependencies before dependents, what goes last.
    pub services: Vec<ServicePlan>,
    /// Images that are not here yet.
    pub pulls: Vec<String>,
    /// Whether the compose file on disk is another one.
    pub writes: bool,
    /// Commands that run once before the new containers take over.
    pub before: Vec<String>,
}

/// What becomes of a stack as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    #[default]
    None,
    Create,
    Change,
    /// It is out of service.
    Remove,
}

/// What becomes of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServicePlan {
    /// Its name in db.yml; in compose's spelling where db.yml no longer names it.
    pub service: String,
    /// Its name in the compose file.
    pub compose_service: String,
    pub step: Step,
    pub reasons: Vec<Reason>,
    /// How many containers there will be.
    pub replicas: u32,
    /// Whether containers that are there were made from something else.
    pub replaces: bool,
    /// Whether traffic leads to it.
    pub routed: bool,
    /// Whether a rollback holds it where it is.
    pub pinned: bool,
    /// Only done where it is asked for.
    pub needs_prune: bool,
    /// What becomes of the traffic of now, where that is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub impact: Option<Impact>,
}

/// What is done with a service's containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Containers are brought up; none that runs is touched.
    Start,
    /// The new ones beside the old, then one switch.
    RollOver,
    /// The old ones make room for the new; requests are held meanwhile.
    RecreateInPlace,
    NoChange,
    /// Its containers go; its volumes stay.
    Remove,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Step::Start => "start",
            Step::RollOver => "roll over",
            Step::RecreateInPlace => "recreate in place",
            Step::NoChange => "no change",
            Step::Remove => "remove",
        })
    }
}

/// A project's folder that is still there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    pub folder: String,
    /// The project to compose.
    pub compose_name: String,
    /// Containers of it that are still there.
    pub containers: usize,
    /// Whether it is removed now.
    pub removed: bool,
}

impl Plan {
    /// Whether anything is to be done.
    pub fn has_changes(&self) -> bool {
        let hosts = !self.hosts_added.is_empty() || !self.hosts_dropped.is_empty();
        self.create_network
            || hosts
            || self.gone.iter().any(|gone| gone.removed)
            || self.projects.iter().any(|p| p.acts())
    }

    /// The plan as programs are shown it: with whether there is anything to do.
    pub fn shown(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(object) = value.as_object_mut() {
            object.insert("changes".into(), self.has_changes().into());
        }
        value
    }

    /// Leaves out what only those may see who may change things: values of variables, labels and commands.
    pub fn mask(&mut self) {
        for project in &mut self.projects {
            project.before.iter_mut().for_each(|command| *command = reasons::HIDDEN.to_owned());
            project.services.iter_mut().flat_map(|service| &mut service.reasons).for_each(Reason::mask);
        }
    }

    /// Says what becomes of the traffic of now.
    pub fn judge(&mut self, db: &Db, live: &Live) {
        for project in &mut self.projects {
            let Some(of_db) = db.project(&project.project) else { continue };
            for plan in &mut project.services {
                if let Some(service) = of_db.service(&plan.service) {
                    plan.impact = impact::impact(of_db, service, plan, live);
                }
            }
        }
    }
}

impl ProjectPlan {
    /// Whether anything is to be done.
    pub fn acts(&self) -> bool {
        self.writes || self.services.iter().any(ServicePlan::acts)
    }
}

impl ServicePlan {
    /// Whether anything is to be done.
    pub fn acts(&self) -> bool {
        self.step != Step::NoChange && !self.needs_prune
    }
}

/// Makes the plan.
pub fn plan(inputs: &Inputs<'_>) -> Plan {
    let chosen = |project: &&Project| inputs.only.is_none_or(|only| only == &*project.name);
    let projects: Vec<ProjectPlan> =
        inputs.db.projects.iter().filter(chosen).filter_map(|project| plan_project(inputs, project)).collect();
    let runs_something = projects.iter().any(|p| p.change != Change::Remove && !p.services.is_empty());
    let (hosts_added, hosts_dropped) = hosts(inputs);
    Plan {
        create_network: runs_something && !inputs.network,
        projects,
        gone: if inputs.only.is_none() { gone(inputs) } else { Vec::new() },
        hosts_added,
        hosts_dropped,
    }
}

/// `None` for a project without containers, now and then.
fn plan_project(inputs: &Inputs<'_>, project: &Project) -> Option<ProjectPlan> {
    let folder = inputs.artifacts.of(&project.name);
    let empty = Stack::empty(project);
    let stack = inputs.stacks.get(&project.name).unwrap_or(&empty);
    let written = folder.and_then(|folder| folder.compose.as_deref()).map(Written::read).unwrap_or_default();
    let mut services: Vec<ServicePlan> = stack
        .services
        .iter()
        .map(|service| Judge { inputs, project, stack, service, written: &written }.judge())
        .collect();
    services.extend(removed(inputs, project, stack));
    let text = (!stack.is_empty()).then(|| stack.text());
    let on_disk = folder.and_then(|folder| folder.compose.as_deref());
    let writes = text.is_some() && text.as_deref() != on_disk;
    if services.is_empty() && !writes {
        return None;
    }
    let change = match () {
        () if !project.enabled => Change::Remove,
        () if on_disk.is_none() && services.iter().all(|s| s.step == Step::Start) => Change::Create,
        () if writes || services.iter().any(ServicePlan::acts) => Change::Change,
        () => Change::None,
    };
    let pulled = stack.services.iter().filter(|service| !service.built && !service.pinned);
    let pulls: BTreeSet<&str> =
        pulled.map(|service| service.image.as_str()).filter(|image| inputs.images.id(image).is_none()).collect();
    let acts = services.iter().any(|service| service.acts() && service.step != Step::Remove);
    Some(ProjectPlan {
        project: project.name.to_string(),
        change,
        pulls: pulls.into_iter().map(str::to_owned).collect(),
        writes,
        before: if acts { project.before.clone() } else { Vec::new() },
        services,
    })
}

/// One service against what is there of it.
struct Judge<'a> {
    inputs: &'a Inputs<'a>,
    project: &'a Project,
    stack: &'a Stack,
    service: &'a StackService,
    written: &'a Written,
}

impl Judge<'_> {
    fn judge(self) -> ServicePlan {
        let Self { inputs, stack, service, written, .. } = self;
        let there: Vec<&Container> = inputs.observed.service(&stack.compose_name, &service.compose_service).collect();
        let (live, dead): (Vec<&Container>, Vec<&Container>) =
            there.into_iter().partition(|container| container.running || container.restarting);
        let judged = if live.is_empty() { &dead } else { &live };
        let changed = judged.iter().any(|container| self.is_other(container));
        let mut reasons = Vec::new();
        if changed {
            reasons = reasons::reasons(written.services.get(&*service.compose_service), &service.document);
            reasons.extend(judged.iter().find_map(|container| self.image_moved(container)));
            if reasons.is_empty() {
                reasons.push(self.unseen(judged));
            }
        }
        let wanted = service.replicas as usize;
        let count = || Reason::new("containers", Some(live.len().to_string()), Some(wanted.to_string()));
        let in_place = || if self.is_rolled() { Step::RollOver } else { Step::RecreateInPlace };
        let step = if live.is_empty() && !changed && self.has_run(&dead) && !inputs.force {
            Step::NoChange
        } else if live.is_empty() {
            reasons.push(count());
            Step::Start
        } else if changed {
            in_place()
        } else if live.len() < wanted {
            reasons.push(count());
            Step::Start
        } else if live.len() > wanted {
            reasons.push(count());
            in_place()
        } else if inputs.force {
            reasons.push(Reason::new("forced", None, None));
            in_place()
        } else {
            Step::NoChange
        };
        ServicePlan {
            service: service.name.to_string(),
            compose_service: service.compose_service.to_string(),
            step,
            reasons,
            replicas: service.replicas,
            replaces: changed,
            routed: service.routed,
            pinned: service.pinned,
            needs_prune: false,
            impact: None,
        }
    }

    /// Whether it was to run once, and has.
    fn has_run(&self, dead: &[&Container]) -> bool {
        let policy = self.service.document.get("restart").and_then(serde_yaml::Value::as_str).unwrap_or("no");
        let once = policy == "no" || policy.starts_with("on-failure");
        once && dead.len() >= self.service.replicas as usize && dead.iter().all(|one| one.exit_code == Some(0))
    }

    /// Whether two of it may run at a time for a change-over.
    fn is_rolled(&self) -> bool {
        let strategy = self.project.service(&self.service.name).map(|service| service.rollout.strategy);
        self.service.routed && strategy != Some(RolloutStrategy::Recreate)
    }

    fn is_other(&self, container: &Container) -> bool {
        let Self { service, written, .. } = self;
        let made_from = container.config_hash.clone().or_else(|| {
            // Of the old tool, or of an itsUP that adopted it: made from what the file says.
            written.config(&service.compose_service).map(|hash| hash.as_str().to_owned())
        });
        made_from.is_some_and(|hash| hash != service.config.as_str())
            || (container.config_hash.is_none() && container.image != service.image)
            || self.image_moved(container).is_some()
    }

    /// The container's reference names another image by now.
    fn image_moved(&self, container: &Container) -> Option<Reason> {
        let id = self.inputs.images.id(&self.service.image)?;
        let same_reference = container.image == self.service.image;
        (same_reference && id != container.image_id)
            .then(|| Reason::new("image id", Some(short(&container.image_id)), Some(short(id))))
    }

    /// Something has changed, and the files on disk do not tell what.
    fn unseen(&self, judged: &[&Container]) -> Reason {
        let hash = |text: &str| text.get(..8).unwrap_or(text).to_owned();
        let old = judged.iter().find_map(|container| container.config_hash.as_deref()).map(hash);
        if self.written.config(&self.service.compose_service).as_ref() != Some(&self.service.config) {
            return Reason::new("files that are read (.env, env_file)", old, Some(hash(self.service.config.as_str())));
        }
        Reason::new("settings since it was started", old, Some(hash(self.service.config.as_str())))
    }
}

/// An image's id as people know it.
fn short(id: &str) -> String {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..12).unwrap_or(id).to_owned()
}

/// The services of a project that are there and not in db.yml, or not to run.
fn removed<'a>(
    inputs: &'a Inputs<'_>,
    project: &'a Project,
    stack: &'a Stack,
) -> impl Iterator<Item = ServicePlan> + use<'a> {
    let containers = inputs.observed.containers.values();
    let of_project = containers.filter(|c| !c.oneoff && *c.compose_project == *project.compose_name);
    let names: BTreeSet<&str> = of_project.filter_map(|container| container.compose_service.as_deref()).collect();
    let known = |name: &str| stack.services.iter().any(|service| &*service.compose_service == name);
    let gone = names.into_iter().filter(move |name| !known(name));
    gone.map(move |name| {
        let of_db = project.services.iter().find(|service| project.container_service_name(service) == name);
        let why = if project.enabled { "not in db.yml" } else { "enabled: false" };
        ServicePlan {
            service: of_db.map_or(name, |service| &service.name).to_owned(),
            compose_service: name.to_owned(),
            step: Step::Remove,
            reasons: vec![Reason::new(why, None, None)],
            replicas: 0,
            replaces: false,
            routed: of_db.is_some_and(|service| project.is_routed(service)),
            pinned: false,
            needs_prune: project.enabled && !inputs.prune,
            impact: None,
        }
    })
}

/// The folders of projects that db.yml no longer names.
fn gone(inputs: &Inputs<'_>) -> Vec<Gone> {
    let left = inputs.artifacts.folders.iter().filter(|(name, folder)| {
        (folder.compose.is_some() || folder.next.is_some()) && inputs.db.project(name).is_none()
    });
    let gone = left.map(|(name, folder): (&String, &Folder)| {
        let written = folder.compose.as_deref().or(folder.next.as_deref()).map(Written::read).unwrap_or_default();
        let compose_name = written.name.unwrap_or_else(|| db::compose_name(name));
        let containers = inputs.observed.containers.values().filter(|c| *c.compose_project == *compose_name);
        // The same project to compose by another spelling: its containers are that one's.
        let taken = inputs.db.projects.iter().any(|project| *project.compose_name == *compose_name);
        let containers = if taken { 0 } else { containers.count() };
        Gone { folder: name.clone(), compose_name, containers, removed: inputs.prune }
    });
    gone.collect()
}

fn hosts(inputs: &Inputs<'_>) -> (Vec<String>, Vec<String>) {
    let Some(serving) = inputs.serving else { return Default::default() };
    let of = |db: &Db| -> BTreeSet<String> {
        let projects = db.projects.iter().filter(|project| inputs.only.is_none_or(|only| only == &*project.name));
        projects.filter(|project| project.enabled).flat_map(hosts_of).collect()
    };
    let (new, old) = (of(inputs.db), of(serving));
    (new.difference(&old).cloned().collect(), old.difference(&new).cloned().collect())
}

fn hosts_of(project: &Project) -> impl Iterator<Item = String> {
    let exact = project.domain.iter().chain(&project.redirect_from);
    let of_services = project.services.iter().filter_map(|service| service.domain.as_ref());
    exact.chain(of_services).map(ToString::to_string).chain(project.aliases.iter().map(ToString::to_string))
}
