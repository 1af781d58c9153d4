//! One project, from its compose file to its containers.
//!
//! In this order: write what is new beside what holds, pull, plan again with what was pulled, change service by service with
//! dependencies first, and only then let what is new hold. A failure leaves the file that held, and what was not reached as it was.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::{Applier, ApplyError, ChangeFailed, Found, ProjectApplied, Request, ServiceApplied, ServiceChange};
use super::{images, plan_for};
use crate::artifacts::{ArtifactError, ProjectFolder};
use crate::compose::{Condition, Stack, StackService};
use crate::db::{Db, Project};
use crate::docker::{ComposeCli, ComposeError, EngineClient, EngineError, StackFile};
use crate::jobs::{CancelToken, Event, Phase, Progress};
use crate::observed::{Container, ContainerId, Health, NETWORK, Observed};
use crate::plan::{self, Change, Images, Pins, Plan, ProjectPlan, ServicePlan, Step};

/// How long new containers may take to be ready, unless the service says otherwise.
const READY: Duration = Duration::from_secs(60);
/// How long containers without a health check must have been well to count as ready.
const SETTLED: Duration = Duration::from_secs(1);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How often containers that start are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The last lines of a failed container's log that are shown.
const LOG_LINES: &str = "20";

/// One project's run.
pub(super) struct Run<'a> {
    pub(super) applier: &'a Applier,
    pub(super) compose: &'a ComposeCli,
    pub(super) db: &'a Db,
    pub(super) project: &'a Project,
    pub(super) request: &'a Request,
    pub(super) found: &'a Found,
    pub(super) pins: &'a Pins,
    pub(super) progress: &'a Progress,
    pub(super) cancel: &'a CancelToken,
}

/// Why a project's run ended.
struct Failed {
    message: String,
    hint: Option<String>,
    log: Vec<String>,
}

impl Failed {
    fn new(message: impl Into<String>) -> Failed {
        Failed { message: message.into(), hint: None, log: Vec::new() }
    }

    fn of(error: &ApplyError) -> Failed {
        Failed { message: error.to_string(), hint: error.hint().map(str::to_owned), log: Vec::new() }
    }
}

impl From<EngineError> for Failed {
    fn from(error: EngineError) -> Self {
        Failed::of(&error.into())
    }
}

impl From<ComposeError> for Failed {
    fn from(error: ComposeError) -> Self {
        Failed::of(&error.into())
    }
}

impl From<ArtifactError> for Failed {
    fn from(error: ArtifactError) -> Self {
        Failed::of(&error.into())
    }
}

impl From<ChangeFailed> for Failed {
    fn from(failed: ChangeFailed) -> Self {
        let ChangeFailed { message, hint, log, .. } = failed;
        Failed { message, hint, log }
    }
}

impl Run<'_> {
    pub(super) async fn run(self) -> ProjectApplied {
        let _gate = self.progress.enter(&self.project.name).await;
        self.applier.changer.settled(&self.project.name).await;
        let mut applied = ProjectApplied { project: self.project.name.to_string(), ..ProjectApplied::default() };
        match self.steps(&mut applied).await {
            Ok(()) => {
                applied.ok = true;
                let told = if applied.services.is_empty() { "nothing to do" } else { "done" };
                self.say(Phase::Done, told);
            }
            Err(Failed { message, hint, log }) => {
                self.say(Phase::Failed, message.clone());
                applied.error = message;
                applied.hint = hint;
                applied.log = log;
            }
        }
        applied
    }

    fn say(&self, phase: Phase, detail: impl Into<String>) {
        self.progress.say(Event::of_project(self.project.name.clone(), phase, detail));
    }

    async fn steps(&self, applied: &mut ProjectApplied) -> Result<(), Failed> {
        let stacks = plan::stacks(self.db, &self.found.artifacts, self.pins);
        let Some(stack) = stacks.get(&self.project.name).filter(|stack| !stack.is_empty()) else { return Ok(()) };
        let folder = ProjectFolder::new(&self.applier.root, &self.project.name);
        let text = stack.text();
        let on_disk = self.found.artifacts.of(&self.project.name).and_then(|folder| folder.compose.as_deref());
        let staged = on_disk != Some(&*text);
        let path = if staged { folder.next() } else { folder.compose() };
        let file = StackFile::new(folder.path(), &path, &stack.compose_name)
            .map_err(|error| Failed::new(format!("{}: {error}", path.display())))?;
        folder.make_folders(stack)?;
        if staged {
            folder.stage(stack)?;
        }
        let done = self.with_file(stack, &file, staged, applied).await;
        match (&done, staged) {
            (Ok(()), true) => folder.commit()?,
            // What failed is not left for a later `up` to act on.
            (Err(_), true) => folder.discard()?,
            (_, false) => {}
        }
        done
    }

    async fn with_file(
        &self,
        stack: &Stack,
        file: &StackFile,
        staged: bool,
        applied: &mut ProjectApplied,
    ) -> Result<(), Failed> {
        if staged {
            applied.warnings.extend(self.compose.check(file).await?);
        }
        let engine = &self.applier.engine;
        images::keep(engine, stack, &self.found.observed).await?;
        self.say(Phase::Pulling, "images");
        let failures = images::pull(self.compose, file, stack, self.progress).await;
        let asked = stack.services.iter().map(|service| service.image.clone());
        let images = Images(engine.image_ids(asked.collect::<BTreeSet<_>>()).await?);
        let missing = images::missing(stack, &images, &failures);
        if !missing.is_empty() {
            let hint = Some("look at the image's name, and at `docker login`".to_owned());
            return Err(Failed { hint, ..Failed::new(missing.join("; ")) });
        }
        for (service, why) in failures {
            let warning = format!("{service}: the pull failed, so the image that is here is used: {why}");
            self.say(Phase::Warning, warning.clone());
            applied.warnings.push(warning);
        }
        // Others may have changed it while this run waited for its turn.
        let observed = super::observe(&self.applier.root, engine).await?;
        let found = Found { observed, images, artifacts: self.found.artifacts.clone(), network: true };
        let only = Request { project: Some(self.project.name.clone()), ..self.request.clone() };
        let plan = plan_for(self.db, &found, self.pins, &only, None);
        let Some(plan) = plan.projects.into_iter().next() else { return Ok(()) };
        self.change(stack, file, &plan, &found.observed, applied).await
    }

    /// Changes what the plan says, dependencies first.
    async fn change(
        &self,
        stack: &Stack,
        file: &StackFile,
        plan: &ProjectPlan,
        observed: &Observed,
        applied: &mut ProjectApplied,
    ) -> Result<(), Failed> {
        let migrated = self.migrated(stack);
        let asked = |one: &ServicePlan| {
            self.request.services.is_empty() || self.request.services.contains(one.service.as_str())
        };
        for one in plan.services.iter().filter(|one| one.acts() && one.step != Step::Remove && asked(one)) {
            if self.cancel.is_cancelled() {
                return Err(Failed::new("cancelled"));
            }
            let Some(target) = stack.service(&one.service) else { continue };
            if migrated == Some(&*one.service) {
                self.before(file, target).await?;
            }
            let done = match one.step {
                Step::Start => self.start(stack, file, target, one, observed).await,
                _ => self.change_over(file, target, one).await,
            };
            let (summary, receipt) =
                done.map_err(|failed| Failed { message: format!("{}: {}", one.service, failed.message), ..failed })?;
            applied.services.push(ServiceApplied { service: one.service.clone(), step: one.step, summary, receipt });
        }
        Ok(())
    }

    /// The service whose image has the `before` commands: the entrypoint, else the first that traffic leads to, else the first.
    fn migrated<'s>(&'s self, stack: &'s Stack) -> Option<&'s str> {
        if self.project.before.is_empty() {
            return None;
        }
        let entrypoint = self.project.entrypoint.as_deref().filter(|name| stack.service(name).is_some());
        let routed = stack.services.iter().find(|service| service.routed).or(stack.services.first());
        entrypoint.or(routed.map(|service| &*service.name))
    }

    async fn before(&self, file: &StackFile, target: &StackService) -> Result<(), Failed> {
        for command in &self.project.before {
            let told =
                Event::of_service(self.project.name.clone(), target.name.clone(), Phase::Before, command.clone());
            self.progress.say(told);
            let Some(words) = shlex::split(command).filter(|words| !words.is_empty()) else {
                return Err(Failed::new(format!("before: `{command}` has a quote that does not end")));
            };
            let mut lines: Vec<String> = Vec::new();
            let mut arguments = vec!["run", "--rm", "--no-deps", "-T", &target.compose_service];
            arguments.extend(words.iter().map(String::as_str));
            let ran = self.compose.run(file, arguments, |line| {
                if lines.len() == 20 {
                    lines.remove(0);
                }
                lines.push(line.to_owned());
            });
            if let Err(error) = ran.await {
                let message = format!("before: `{command}` failed, so nothing was changed over ({error})");
                return Err(Failed { log: lines, ..Failed::new(message) });
            }
        }
        Ok(())
    }

    async fn change_over(
        &self,
        file: &StackFile,
        target: &StackService,
        plan: &ServicePlan,
    ) -> Result<(String, Option<String>), Failed> {
        let Some(service) = self.project.service(&target.name) else {
            return Err(Failed::new("it is no longer in db.yml"));
        };
        let change = ServiceChange {
            project: self.project,
            service,
            target,
            file,
            compose: self.compose,
            rolling: plan.step == Step::RollOver,
            reasons: &plan.reasons,
        };
        // Before the new ones take the names' place, as what ran is what a rollback goes back to.
        let engine = &self.applier.engine;
        let before = engine.observe(NETWORK).await?;
        let previous: BTreeSet<String> = before
            .service(&self.project.compose_name, &target.compose_service)
            .map(|container| container.image_id.clone())
            .collect();
        let changed = self.applier.changer.change(&change, self.progress, self.cancel).await?;
        let wanted = self.db.projects.iter().flat_map(|project| &project.services);
        let wanted: BTreeSet<String> = wanted.filter_map(|service| service.image.clone()).collect();
        if let Err(error) = images::clean(engine, target, &previous, &wanted).await {
            self.say(Phase::Warning, format!("old images of {} are not removed: {error}", target.name));
        }
        Ok((changed.summary, changed.receipt))
    }

    /// Brings up what does not run, and waits until it is ready.
    async fn start(
        &self,
        stack: &Stack,
        file: &StackFile,
        target: &StackService,
        plan: &ServicePlan,
        observed: &Observed,
    ) -> Result<(String, Option<String>), Failed> {
        let say =
            |phase, detail: String| Event::of_service(self.project.name.clone(), target.name.clone(), phase, detail);
        self.progress.say(say(Phase::Starting, format!("{} of it", target.replicas)));
        let before: BTreeSet<ContainerId> =
            observed.service(&stack.compose_name, &target.compose_service).map(|c| c.id.clone()).collect();
        let scale = format!("{}={}", target.compose_service, target.replicas);
        let recreate = if plan.replaces { "--force-recreate" } else { "--no-recreate" };
        let up = ["up", "-d", "--no-deps", recreate, "--scale", &scale, &target.compose_service];
        let started = async {
            self.compose.run(file, up, |_| {}).await?;
            self.ready(stack, target).await
        };
        match started.await {
            Ok(()) => {
                self.progress
                    .say(say(Phase::Ready, String::new()).count(target.replicas.into(), target.replicas.into()));
                Ok((format!("{} started", target.replicas), None))
            }
            Err(mut failed) => {
                if failed.log.is_empty() {
                    failed.log = self.last_lines(file, target).await;
                }
                self.take_back(stack, target, &before).await;
                Err(failed)
            }
        }
    }

    /// Waits until as many run as are asked for, and are well.
    async fn ready(&self, stack: &Stack, target: &StackService) -> Result<(), Failed> {
        let limit = self.project.service(&target.name).and_then(|service| service.rollout.timeout).unwrap_or(READY);
        let waits_for_the_end = self.is_waited_for(stack, target);
        let port = self.project.service(&target.name).map_or(0, |service| service.port);
        let began = Instant::now();
        let mut well_since: Option<Instant> = None;
        loop {
            let observed = self.applier.engine.observe(NETWORK).await?;
            let there: Vec<&Container> = observed.service(&stack.compose_name, &target.compose_service).collect();
            let ended = |one: &Container| !one.running && !one.restarting;
            if let Some(one) = there.iter().find(|one| {
                one.restarting || one.restart_count > 0 || (ended(one) && one.exit_code.is_some_and(|code| code != 0))
            }) {
                let code = one.exit_code.map(|code| format!(" with {code}")).unwrap_or_default();
                return Err(Failed::new(format!("its container {} ended{code}", one.name)));
            }
            let done = there.iter().filter(|one| ended(one) && one.exit_code == Some(0)).count();
            let well = |one: &&&Container| one.running && matches!(one.health, Health::None | Health::Healthy);
            let well = there.iter().filter(well).count();
            let checked = there.iter().any(|one| one.health != Health::None);
            let wanted = target.replicas as usize;
            let answer = !target.routed || answers(&there, port).await;
            if waits_for_the_end || well + done < wanted || !answer {
                well_since = None;
            } else {
                well_since.get_or_insert_with(Instant::now);
            }
            let settled = well_since.is_some_and(|since| checked || since.elapsed() >= SETTLED);
            if done >= wanted || settled {
                return Ok(());
            }
            if began.elapsed() > limit {
                let silent = if answer { "" } else { ", and not all of them answer on their port" };
                let message = format!("{} of {wanted} ready after {} s{silent}", well + done, limit.as_secs());
                let hint = Some("the service's `rollout: {timeout}` is how long it may take".to_owned());
                return Err(Failed { hint, ..Failed::new(message) });
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Whether somebody waits for this service to have run and ended.
    fn is_waited_for(&self, stack: &Stack, target: &StackService) -> bool {
        let needs = stack.services.iter().flat_map(|service| &service.depends_on);
        needs.into_iter().any(|needed| needed.service == target.name && needed.condition == Condition::Completed)
    }

    async fn last_lines(&self, file: &StackFile, target: &StackService) -> Vec<String> {
        let mut lines = Vec::new();
        let arguments = ["logs", "--no-color", "--no-log-prefix", "--tail", LOG_LINES, &target.compose_service];
        // Without a log there is nothing to show; the failure itself is told anyway.
        let _ = self.compose.run(file, arguments, |line| lines.push(line.to_owned())).await;
        lines
    }

    /// Removes what was started in vain, so that the next run does not take it for what was asked for.
    async fn take_back(&self, stack: &Stack, target: &StackService, before: &BTreeSet<ContainerId>) {
        let engine = &self.applier.engine;
        let Ok(observed) = engine.observe(NETWORK).await else { return };
        for container in observed.service(&stack.compose_name, &target.compose_service) {
            if !before.contains(&container.id)
                && let Err(error) = discard(engine, &container.id).await
            {
                self.say(Phase::Warning, format!("{} is not removed: {error}", container.name));
            }
        }
    }
}

/// Whether all that run can be connected to.
async fn answers(containers: &[&Container], port: u16) -> bool {
    for container in containers.iter().filter(|one| one.running) {
        let Some(address) = container.address else { return false };
        let connect = TcpStream::connect((address, container.port.unwrap_or(port)));
        if !timeout(CONNECT, connect).await.is_ok_and(|connected| connected.is_ok()) {
            return false;
        }
    }
    true
}

/// Stops a container as it wants to be stopped, and removes it.
async fn discard(engine: &EngineClient, id: &ContainerId) -> Result<(), EngineError> {
    engine.stop(id).await?;
    engine.remove(id).await
}

/// Removes the containers of services that are not to run.
pub(super) async fn remove_services(
    applier: &Applier,
    found: &Found,
    plan: &Plan,
    applied: &mut ProjectApplied,
    progress: &Progress,
) {
    let Some(project) = plan.projects.iter().find(|one| one.project == applied.project) else { return };
    let _gate = progress.enter(&project.project).await;
    for one in project.services.iter().filter(|one| one.step == Step::Remove && one.acts()) {
        let name: Arc<str> = project.project.as_str().into();
        progress.say(Event::of_service(name, one.service.as_str(), Phase::Stopping, "no longer to run"));
        let of_service = found.observed.containers.values().filter(|container| {
            container.compose_service.as_deref() == Some(&one.compose_service)
                && *container.compose_project == *crate::db::compose_name(&project.project)
        });
        let containers: Vec<&Container> = of_service.collect();
        let ids = containers.iter().map(|container| container.id.to_string()).collect();
        let _held = applier.changer.emptied(ids).await;
        let mut count = 0;
        for container in containers {
            match discard(&applier.engine, &container.id).await {
                Ok(()) => count += 1,
                Err(error) => {
                    applied.ok = false;
                    applied.error = format!("{} is not removed: {error}", container.name);
                }
            }
        }
        let summary = format!("{count} removed");
        applied.services.push(ServiceApplied { service: one.service.clone(), step: one.step, summary, receipt: None });
    }
    if project.change == Change::Remove && applied.ok {
        progress.say(Event::of_project(project.project.as_str(), Phase::Done, "out of service"));
    }
}
