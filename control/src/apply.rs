//! Makes what runs what db.yml says: runs a plan, projects side by side, each by itself.
//!
//! What a project must go through is in `project.rs`. How one service is changed over while traffic flows is a [`Changer`]'s: it must
//! not be known here, so that the same steps run with and without a proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::{StreamExt as _, stream};

use crate::active::ServiceKey;
use crate::artifacts::{ArtifactError, Artifacts, ProjectFolder};
use crate::db::{Db, Project, Service};
use crate::docker::{ComposeCli, ComposeError, EngineClient, EngineError, StackFile};
use crate::jobs::{CancelToken, Event, Phase, Progress};
use crate::journal;
use crate::observed::{ContainerId, NETWORK, Observed};
use crate::pen::Held;
use crate::plan::{self, Gone, Images, Pins, Plan, Reason};
use crate::settings::Root;

mod by_compose;
mod images;
mod project;
mod report;

pub use by_compose::ByCompose;
pub use images::rollback_repository;
pub use report::{Applied, ProjectApplied, ServiceApplied};

/// Projects that are changed at a time.
const SIDE_BY_SIDE: usize = 4;

/// A future that somebody else makes.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Changes single services over, and publishes routes: with traffic where a proxy runs, without where none does.
pub trait Changer: Send + Sync {
    /// Puts new containers in the place of those that run. The old ones serve on where that fails.
    fn change<'a>(
        &'a self,
        change: &'a ServiceChange<'a>,
        progress: &'a Progress,
        cancel: &'a CancelToken,
    ) -> Later<'a, Result<Changed, ChangeFailed>>;

    /// Has the routes follow db.yml, but those of these projects, whose change has failed, stay as they are.
    fn publish<'a>(&'a self, failed: &'a BTreeSet<Arc<str>>) -> Later<'a, Result<(), String>>;

    /// Waits until nobody uses these containers any more, which nothing leads to; what it returns is held while they are
    /// stopped.
    fn emptied<'a>(&'a self, _containers: BTreeSet<String>) -> Later<'a, Option<Held>> {
        Box::pin(std::future::ready(None))
    }

    /// Waits until nothing is left to do of what a crash has interrupted in a project.
    fn settled<'a>(&'a self, _project: &'a str) -> Later<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    /// What rollbacks hold where it is.
    fn pins(&self) -> Pins {
        Pins::default()
    }

    /// Lets go of what rollbacks hold: of these services.
    fn unpin(&self, _services: &BTreeSet<ServiceKey>) -> Result<(), String> {
        Ok(())
    }
}

/// One service's change.
pub struct ServiceChange<'a> {
    pub project: &'a Project,
    pub service: &'a Service,
    /// What it is to be.
    pub target: &'a crate::compose::StackService,
    /// The compose file with the new content, not in force yet.
    pub file: &'a StackFile,
    pub compose: &'a ComposeCli,
    /// Whether the new ones may run beside the old; else in place.
    pub rolling: bool,
    /// Why.
    pub reasons: &'a [Reason],
}

/// A change that went well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// What it did, in one line.
    pub summary: String,
    /// The name of its receipt.
    pub receipt: Option<String>,
}

/// A change that was undone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeFailed {
    pub message: String,
    pub hint: Option<String>,
    /// The last lines that a new container logged.
    pub log: Vec<String>,
    pub receipt: Option<String>,
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Of one project, or of all.
    pub project: Option<Arc<str>>,
    /// Remove what db.yml no longer names.
    pub prune: bool,
    /// Replace what has not changed as well.
    pub force: bool,
    /// Let go of what rollbacks hold.
    pub unpin: bool,
    /// Of the project, these services alone; none named is all of them.
    pub services: BTreeSet<Arc<str>>,
}

/// Why nothing was begun.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Compose(#[from] ComposeError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error("db.yml has no project `{0}`")]
    Unknown(Arc<str>),
    #[error("{0}")]
    Other(String),
}

impl ApplyError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            ApplyError::Engine(_) => Some("is Docker running, and may this user speak to it?"),
            ApplyError::Compose(error) => error.hint(),
            ApplyError::Unknown(_) => Some("`itsup status` and `itsup plan` name the projects"),
            ApplyError::Artifact(_) | ApplyError::Other(_) => None,
        }
    }
}

/// What is there, read once: what a plan is made from, apart from db.yml.
pub struct Found {
    pub observed: Observed,
    pub artifacts: Artifacts,
    pub images: Images,
    pub network: bool,
}

/// Reads what is there.
pub async fn look(root: &Root, engine: &EngineClient, db: &Db, pins: &Pins) -> Result<Found, ApplyError> {
    let artifacts = Artifacts::read(root, db)?;
    let stacks = plan::stacks(db, &artifacts, pins);
    let images = stacks.values().flat_map(|stack| &stack.services).map(|service| service.image.clone());
    let images: BTreeSet<String> = images.collect();
    let (observed, images, network) =
        tokio::try_join!(observe(root, engine), engine.image_ids(images), engine.has_network(NETWORK))?;
    Ok(Found { observed, artifacts, images: Images(images), network })
}

/// Reads what containers there are, but those that only finish what they have and then go: they count for nobody.
async fn observe(root: &Root, engine: &EngineClient) -> Result<Observed, EngineError> {
    let leaving: BTreeSet<ContainerId> =
        journal::peek(root).into_values().flat_map(|j| j.retiring).flat_map(|retiring| retiring.containers).collect();
    let mut observed = engine.observe(NETWORK).await?;
    observed.containers.retain(|id, _| !leaving.contains(id));
    Ok(observed)
}

/// Makes the plan for what was found.
pub fn plan_for(db: &Db, found: &Found, pins: &Pins, request: &Request, serving: Option<&Db>) -> Plan {
    plan::plan(&plan::Inputs {
        db,
        stacks: &plan::stacks(db, &found.artifacts, pins),
        observed: &found.observed,
        images: &found.images,
        artifacts: &found.artifacts,
        network: found.network,
        serving,
        only: request.project.as_deref(),
        force: request.force,
        prune: request.prune,
    })
}

/// Runs plans.
pub struct Applier {
    pub root: Root,
    pub engine: EngineClient,
    pub changer: Arc<dyn Changer>,
}

impl Applier {
    /// Does what is asked for. One failing project never stops the others.
    pub async fn run(
        &self,
        db: &Db,
        request: &Request,
        progress: &Progress,
        cancel: &CancelToken,
    ) -> Result<Applied, ApplyError> {
        let begun = Instant::now();
        if let Some(name) = &request.project
            && db.project(name).is_none()
        {
            return Err(ApplyError::Unknown(name.clone()));
        }
        progress.say(Event::of_all(Phase::Planning, "reading what is there"));
        let pins = self.pins(db, request)?;
        let found = look(&self.root, &self.engine, db, &pins).await?;
        let plan = plan_for(db, &found, &pins, request, None);
        let mut applied = Applied::default();
        let compose = match plan.projects.is_empty() && !plan.gone.iter().any(|gone| gone.removed) {
            true => None,
            false => Some(ComposeCli::find(Some(self.engine.host())).await?),
        };
        if plan.create_network {
            self.engine.make_network(NETWORK).await?;
            applied.network_created = true;
        }
        if let Some(compose) = &compose {
            let planned: BTreeMap<&str, _> = plan.projects.iter().map(|one| (one.project.as_str(), one)).collect();
            let mut runs: Vec<Later<'_, ProjectApplied>> = Vec::new();
            for project in db.projects.iter().filter(|project| planned.contains_key(&*project.name)) {
                let (found, pins) = (&found, &pins);
                let run = project::Run { applier: self, compose, db, project, request, found, pins, progress, cancel };
                runs.push(Box::pin(run.run()));
            }
            applied.projects = stream::iter(runs).buffer_unordered(SIDE_BY_SIDE).collect().await;
            let place = |one: &ProjectApplied| db.projects.iter().position(|project| *project.name == *one.project);
            applied.projects.sort_by_key(place);
        }
        let failed: BTreeSet<Arc<str>> =
            applied.projects.iter().filter(|one| !one.ok).map(|one| one.project.as_str().into()).collect();
        if let Err(error) = self.changer.publish(&failed).await {
            applied.warnings.push(format!("the routes were not published: {error}"));
            applied.unpublished = true;
        }
        if let Some(compose) = &compose
            && !applied.unpublished
        {
            // Only now that nothing leads there any more.
            for one in applied.projects.iter_mut().filter(|one| one.ok) {
                project::remove_services(self, &found, &plan, one, progress).await;
            }
            for gone in plan.gone.iter().filter(|gone| gone.removed) {
                self.remove_project(compose, gone, &found, &mut applied, progress).await;
            }
        }
        applied.gone = plan.gone.into_iter().filter(|gone| !gone.removed).map(|gone| gone.folder).collect();
        applied.seconds = begun.elapsed().as_secs_f64();
        Ok(applied)
    }

    fn pins(&self, db: &Db, request: &Request) -> Result<Pins, ApplyError> {
        let pins = self.changer.pins();
        if !request.unpin {
            return Ok(pins);
        }
        let of_request = |key: &ServiceKey| request.project.as_ref().is_none_or(|project| key.project == *project);
        let loose: BTreeSet<ServiceKey> =
            pins.keys().filter(|key| of_request(key) && db.project(&key.project).is_some()).cloned().collect();
        self.changer.unpin(&loose).map_err(ApplyError::Other)?;
        Ok(pins.into_iter().filter(|(key, _)| !loose.contains(key)).collect())
    }

    /// Takes down what is left of a project that db.yml no longer names. Its volumes stay.
    async fn remove_project(
        &self,
        compose: &ComposeCli,
        gone: &Gone,
        found: &Found,
        applied: &mut Applied,
        progress: &Progress,
    ) {
        let _gate = progress.enter(&gone.folder).await;
        let folder = ProjectFolder::new(&self.root, &gone.folder);
        let removed = async {
            if gone.containers > 0 {
                progress.say(Event::of_project(gone.folder.as_str(), Phase::Stopping, "no longer in db.yml"));
                let all = found.observed.containers.values();
                let ours = all.filter(|container| *container.compose_project == *gone.compose_name);
                let _held = self.changer.emptied(ours.map(|container| container.id.to_string()).collect()).await;
                let file = [folder.compose(), folder.next()].into_iter().find(|path| path.exists());
                let file = file.unwrap_or_else(|| folder.compose());
                let stack = StackFile::new(folder.path(), &file, &gone.compose_name)
                    .map_err(|error| ApplyError::Other(error.to_string()))?;
                compose.run(&stack, ["down", "--remove-orphans"], |_| {}).await?;
            }
            Ok::<(), ApplyError>(folder.remove()?)
        };
        match removed.await {
            Ok(()) => {
                progress.say(Event::of_project(gone.folder.as_str(), Phase::Done, "removed"));
                applied.removed.push(gone.folder.clone());
            }
            Err(error) => {
                let message = format!("cannot be removed: {error}");
                progress.say(Event::of_project(gone.folder.as_str(), Phase::Failed, message.clone()));
                applied.projects.push(ProjectApplied::failed(&gone.folder, message, error.hint()));
            }
        }
    }
}
