//! `itsup plan`, `write` and `apply`: by the running itsup where there is one, and by this process where there is none.

use std::sync::Arc;

use anyhow::Context as _;
use itsup_control::api::{Claim, SocketError};
use itsup_control::apply::{self, Applied, Applier, ApplyError, Found, Request};
use itsup_control::artifacts::{Artifacts, ProjectFolder};
use itsup_control::change::rollback::rollback;
use itsup_control::change::{Rollouts, restarts};
use itsup_control::compose::Stack;
use itsup_control::control::{read_last_good, read_projects, read_settings};
use itsup_control::db::{Db, Diagnostic};
use itsup_control::docker::{ComposeCli, EngineClient, StackFile};
use itsup_control::jobs::{CancelToken, Note, Progress, Work};
use itsup_control::plan::{self, Live, Pins, Plan};
use itsup_control::settings::{Root, Settings};
use itsup_control::worker::rollout_request;

use crate::cli::SettingFlags;
use crate::client;
use crate::failure::Failure;
use crate::follow;
use crate::render::Output;
use crate::serve::cores;

/// Shows what an apply would do.
pub(crate) fn plan(root: &Root, request: &Request, exit_code: bool, output: &Output) -> Result<(), Failure> {
    let (db, warnings) = read(root, request.project.as_deref())?;
    let engine = engine(&settings(root)?)?;
    // Without a running itsup there is no traffic to speak of.
    let live = client::status(root).ok().map(|status| Live::of(&status, restarts(root)));
    let pins = pins(root)?;
    let plan = client::runtime()?.block_on(async {
        let found: Found = apply::look(root, &engine, &db, &pins).await?;
        let serving = read_last_good(root);
        let mut plan: Plan = apply::plan_for(&db, &found, &pins, request, serving.as_ref());
        if let Some(live) = &live {
            plan.judge(&db, live);
        }
        Ok::<Plan, ApplyError>(plan)
    });
    output.plan(&plan.map_err(apply_failure)?, &warnings, live.is_some(), exit_code)
}

/// Writes the compose files, each checked by compose first.
pub(crate) fn write(root: &Root, project: Option<&str>, output: &Output) -> Result<(), Failure> {
    let (db, warnings) = read(root, project)?;
    output.diagnostics(&warnings);
    let settings = settings(root)?;
    let pins = pins(root)?;
    client::runtime()?.block_on(async {
        let artifacts = Artifacts::read(root, &db).map_err(|error| apply_failure(error.into()))?;
        let stacks = plan::stacks(&db, &artifacts, &pins);
        let chosen = stacks.values().filter(|stack| project.is_none_or(|only| only == &*stack.project));
        let chosen: Vec<&Stack> = chosen.filter(|stack| !stack.is_empty()).collect();
        let mut written = Vec::new();
        if !chosen.is_empty() {
            let compose = compose(&settings).await?;
            for stack in chosen {
                let on_disk = artifacts.of(&stack.project).and_then(|folder| folder.compose.as_deref());
                let changed = on_disk != Some(&*stack.text());
                written.push((stack.project.to_string(), changed));
                write_one(root, &compose, stack, changed, output).await?;
            }
        }
        output.written(&written)
    })
}

async fn write_one(
    root: &Root,
    compose: &ComposeCli,
    stack: &Stack,
    changed: bool,
    output: &Output,
) -> Result<(), Failure> {
    let folder = ProjectFolder::new(root, &stack.project);
    let failed = |error: ApplyError| {
        let mut failure = apply_failure(error);
        failure.report.error = format!("{}: {}", stack.project, failure.report.error);
        failure
    };
    folder.make_folders(stack).map_err(|error| failed(error.into()))?;
    if !changed {
        return Ok(());
    }
    folder.stage(stack).map_err(|error| failed(error.into()))?;
    let file = StackFile::new(folder.path(), &folder.next(), &stack.compose_name);
    let file = file.with_context(|| format!("{}", folder.next().display()))?;
    match compose.check(&file).await {
        Ok(warnings) => warnings.iter().for_each(|warning| output.warning(&format!("{}: {warning}", stack.project))),
        Err(error) => {
            folder.discard().map_err(|error| failed(error.into()))?;
            return Err(failed(error.into()));
        }
    }
    folder.commit().map_err(|error| failed(error.into()))
}

/// Makes what runs what db.yml says.
pub(crate) fn apply(root: &Root, request: &Request, output: &Output) -> Result<(), Failure> {
    // Faults are told at once, and with their places.
    let (db, warnings) = read(root, request.project.as_deref())?;
    output.diagnostics(&warnings);
    let Request { project, prune, force, unpin, .. } = request.clone();
    let work = Work::Apply { project, prune, force, unpin };
    change(root, &work, &db, output)
}

/// Rolls services over, or back.
pub(crate) fn roll(root: &Root, work: &Work, output: &Output) -> Result<(), Failure> {
    let (db, warnings) = read(root, work.project().map(|project| &**project))?;
    output.diagnostics(&warnings);
    change(root, work, &db, output)
}

/// Has the running itsup do it; where none runs it is done here.
fn change(root: &Root, work: &Work, db: &Db, output: &Output) -> Result<(), Failure> {
    let progress = output.progress();
    if client::is_running(root) {
        let report = follow::run(root, work, |note| progress.note(note));
        progress.end();
        let report = report?;
        let detail = report.outcome.as_ref().and_then(|outcome| outcome.detail.clone());
        let applied: Option<Applied> = detail.and_then(|detail| serde_json::from_value(detail).ok());
        return match applied {
            Some(applied) => output.applied(&applied),
            None => follow::success(&report),
        };
    }
    let _claim = Claim::take(root).map_err(claim_failure)?;
    let engine = engine(&settings(root)?)?;
    let told = progress.clone();
    let cancel = CancelToken::new();
    let applied = client::runtime()?.block_on(async {
        let rollouts = Rollouts::alone(root.clone(), engine.clone()).await.context("data/ cannot be used")?;
        let applier = Applier { root: root.clone(), engine, changer: Arc::new(rollouts.clone()) };
        let say = Progress::alone(move |event| told.note(&Note::Progress(event)));
        let run = alone(&applier, work, db, &say, &cancel);
        tokio::pin!(run);
        let applied = loop {
            tokio::select! {
                applied = &mut run => break applied,
                _ = tokio::signal::ctrl_c(), if !cancel.is_cancelled() => {
                    eprintln!("stopping after the step that is under way");
                    cancel.cancel();
                }
            }
        };
        rollouts.idle().await;
        applied.map_err(apply_failure)
    });
    progress.end();
    output.applied(&applied?)
}

async fn alone(
    applier: &Applier,
    work: &Work,
    db: &Db,
    say: &Progress,
    cancel: &CancelToken,
) -> Result<Applied, ApplyError> {
    match work {
        Work::Rollback { project, service } => rollback(applier, db, (project, service.as_ref()), say, cancel).await,
        Work::Rollout { project, service } => {
            let request = rollout_request(db, project, service.as_ref())?;
            applier.run(db, &request, say, cancel).await
        }
        Work::Apply { project, prune, force, unpin } => {
            let (prune, force, unpin) = (*prune, *force, *unpin);
            let request = Request { project: project.clone(), prune, force, unpin, ..Request::default() };
            applier.run(db, &request, say, cancel).await
        }
        other => Err(ApplyError::Other(format!("{other}: needs a running itsup"))),
    }
}

/// What rollbacks hold.
fn pins(root: &Root) -> Result<Pins, Failure> {
    Ok(itsup_control::versions::pins(root).context("the pins of rollbacks cannot be read")?)
}

/// Reads db.yml, in which the project must be.
fn read(root: &Root, project: Option<&str>) -> Result<(Db, Vec<Diagnostic>), Failure> {
    let (db, warnings) = read_projects(root)?;
    match project {
        Some(name) if db.project(name).is_none() => {
            let names: Vec<&str> = db.projects.iter().map(|project| &*project.name).collect();
            let hint = match names.len() {
                0 => "it has none at all".to_owned(),
                1..=20 => format!("its projects: {}", names.join(", ")),
                _ => "look at the names in db.yml".to_owned(),
            };
            Err(Failure::with_hint(format!("db.yml has no project `{name}`"), hint))
        }
        _ => Ok((db, warnings)),
    }
}

pub(crate) fn settings(root: &Root) -> Result<Settings, Failure> {
    let mut sources = SettingFlags::default().sources();
    read_settings(root, &mut sources, cores()).map_err(|faults| Failure::faults("the settings have faults", faults))
}

fn engine(settings: &Settings) -> Result<EngineClient, Failure> {
    if !settings.docker {
        return Err(Failure::with_hint("containers are switched off", "set ITSUP_DOCKER to on"));
    }
    EngineClient::new(settings.docker_host.as_deref()).map_err(|error| apply_failure(error.into()))
}

/// Finds compose v2.
pub(crate) async fn compose(settings: &Settings) -> Result<ComposeCli, Failure> {
    ComposeCli::find(settings.docker_host.as_deref()).await.map_err(|error| apply_failure(error.into()))
}

fn apply_failure(error: ApplyError) -> Failure {
    match error.hint() {
        Some(hint) => Failure::with_hint(error.to_string(), hint),
        None => Failure::faults(error.to_string(), Vec::new()),
    }
}

fn claim_failure(error: SocketError) -> Failure {
    match error {
        SocketError::Running(_) => {
            Failure::with_hint("another itsup is changing this root, or is about to run", "wait until it is done")
        }
        other => Failure::faults(other.to_string(), Vec::new()),
    }
}
