//! What runs jobs in a running itsUP: reads db.yml anew for each, and hands it to what does the work.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::apply::{Applier, ApplyError, ByCompose, ChangeFailed, Changed, Changer, Later, Request, ServiceChange};
use crate::change::rollback::rollback;
use crate::control::{Control, ReloadError, read_projects};
use crate::db::Db;
use crate::docker::EngineClient;
use crate::jobs::{CancelToken, Event, Outcome, Phase, Progress, Running, Work, Worker};
use crate::plan::Pins;
use crate::self_update::{SelfUpdateError, self_update};
use crate::settings::{Root, Settings};

/// Runs jobs.
pub struct Changes {
    pub root: Root,
    /// `None` where containers are not looked for.
    pub engine: Option<EngineClient>,
    pub changer: Arc<dyn Changer>,
    /// The running itsUP's; `None` where none runs.
    pub control: Option<Control>,
}

impl Worker for Changes {
    fn run<'a>(&'a self, work: &'a Work, progress: &'a Progress, cancel: &'a CancelToken) -> Running<'a> {
        Box::pin(async move {
            match work {
                Work::Apply { project, prune, force, unpin } => {
                    let (prune, force, unpin) = (*prune, *force, *unpin);
                    let request = Request { project: project.clone(), prune, force, unpin, services: BTreeSet::new() };
                    self.apply(&request, progress, cancel).await
                }
                Work::Rollout { project, service } => {
                    let db = match self.db() {
                        Ok(db) => db,
                        Err(outcome) => return *outcome,
                    };
                    match rollout_request(&db, project, service.as_ref()) {
                        Ok(request) => self.apply(&request, progress, cancel).await,
                        Err(error) => refused(&error),
                    }
                }
                Work::Rollback { project, service } => {
                    self.rollback((project, service.as_ref()), progress, cancel).await
                }
                Work::SelfUpdate { project } => self.self_update(project, progress, cancel).await,
            }
        })
    }
}

impl Changes {
    /// On the engine that the settings name, with a changer that knows of no traffic.
    pub fn new(settings: &Settings) -> Changes {
        // One that cannot be spoken to has been warned of at start.
        let engine = EngineClient::new(settings.docker_host.as_deref()).ok().filter(|_| settings.docker);
        Changes { root: settings.root.clone(), engine, changer: Arc::new(ByCompose), control: None }
    }

    async fn apply(&self, request: &Request, progress: &Progress, cancel: &CancelToken) -> Outcome {
        let Some(engine) = self.engine.clone() else {
            return Outcome::failed("containers are switched off").hint("set ITSUP_DOCKER to on");
        };
        let db = match self.db() {
            Ok(db) => db,
            Err(outcome) => return *outcome,
        };
        let applier = Applier { root: self.root.clone(), engine, changer: self.changer.clone() };
        match applier.run(&db, request, progress, cancel).await {
            Ok(applied) => applied.outcome(),
            Err(error) => refused(&error),
        }
    }

    async fn rollback(
        &self,
        what: (&Arc<str>, Option<&Arc<str>>),
        progress: &Progress,
        cancel: &CancelToken,
    ) -> Outcome {
        let Some(engine) = self.engine.clone() else {
            return Outcome::failed("containers are switched off").hint("set ITSUP_DOCKER to on");
        };
        let db = match self.db() {
            Ok(db) => db,
            Err(outcome) => return *outcome,
        };
        let applier = Applier { root: self.root.clone(), engine, changer: self.changer.clone() };
        match rollback(&applier, &db, what, progress, cancel).await {
            Ok(applied) => applied.outcome(),
            Err(error) => refused(&error),
        }
    }

    /// Fetches, builds, upgrades, applies. Where a new version takes over, that one applies.
    async fn self_update(&self, project: &Arc<str>, progress: &Progress, cancel: &CancelToken) -> Outcome {
        let Some(control) = &self.control else {
            return Outcome::failed("there is no running itsup to update");
        };
        let say = |doing: &str| progress.say(Event::of_project(project.clone(), Phase::Planning, doing));
        let updated = match self_update(control, &say).await {
            Ok(updated) => updated,
            Err(error) => return not_updated(error),
        };
        if let (Some(step), Some(upgraded)) = (&updated.itsup, &updated.upgraded) {
            let message = format!("{} has taken over as process {}, which applies db.yml", step.to, upgraded.pid);
            return Outcome { detail: serde_json::to_value(&updated).ok(), ..Outcome::done(message) };
        }
        if self.engine.is_none() {
            return Outcome::done("up to date; containers are switched off");
        }
        self.apply(&Request::default(), progress, cancel).await
    }

    fn db(&self) -> Result<Db, Box<Outcome>> {
        read_projects(&self.root).map(|(db, _)| db).map_err(|refused| {
            let message = format!("{}; nothing was changed", refused.message);
            Box::new(Outcome { diagnostics: refused.diagnostics, ..Outcome::failed(message) })
        })
    }
}

fn not_updated(error: SelfUpdateError) -> Outcome {
    let failed = Outcome::failed(error.to_string());
    match error {
        SelfUpdateError::NotProduction => failed.hint("set ITSUP_ENV=production in .env, then `itsup reload`"),
        SelfUpdateError::Upgrade(report) => Outcome { hint: report.hint, diagnostics: report.diagnostics, ..failed },
        _ => failed,
    }
}

/// What a rollout of a project asks for: all of its services that traffic leads to, or the one named, changed or not.
pub fn rollout_request(db: &Db, project: &Arc<str>, service: Option<&Arc<str>>) -> Result<Request, ApplyError> {
    let found = db.project(project).ok_or_else(|| ApplyError::Unknown(project.clone()))?;
    let rolled = found.services.iter().filter(|one| !one.is_static());
    let services: BTreeSet<Arc<str>> = match service {
        Some(name) => rolled.filter(|one| one.name == *name).map(|one| one.name.clone()).collect(),
        None => rolled.filter(|one| found.is_routed(one)).map(|one| one.name.clone()).collect(),
    };
    if services.is_empty() {
        return Err(ApplyError::Other(match service {
            Some(service) => format!("the project {project} has no service `{service}` with an image"),
            None => format!("the project {project} has no service with an image that traffic leads to"),
        }));
    }
    Ok(Request { project: Some(project.clone()), force: true, services, ..Request::default() })
}

/// What came of an apply that was not begun.
pub fn refused(error: &ApplyError) -> Outcome {
    let outcome = Outcome::failed(error.to_string());
    match error.hint() {
        Some(hint) => outcome.hint(hint),
        None => outcome,
    }
}

/// A [`Changer`] that publishes by a running control, and has another one change services over.
pub struct Published<C = ByCompose> {
    pub control: Control,
    pub changer: C,
}

impl<C: Changer> Changer for Published<C> {
    fn change<'a>(
        &'a self,
        change: &'a ServiceChange<'a>,
        progress: &'a Progress,
        cancel: &'a CancelToken,
    ) -> Later<'a, Result<Changed, ChangeFailed>> {
        self.changer.change(change, progress, cancel)
    }

    fn publish<'a>(&'a self, failed: &'a BTreeSet<Arc<str>>) -> Later<'a, Result<(), String>> {
        Box::pin(async move {
            match self.control.reload_but(failed.clone()).await {
                Ok(_) => Ok(()),
                Err(ReloadError::Refused(refused)) => Err(refused.message),
                Err(error @ ReloadError::ShuttingDown(_)) => Err(error.to_string()),
            }
        })
    }

    fn pins(&self) -> Pins {
        self.changer.pins()
    }

    fn unpin(&self, services: &BTreeSet<crate::active::ServiceKey>) -> Result<(), String> {
        self.changer.unpin(services)
    }
}
