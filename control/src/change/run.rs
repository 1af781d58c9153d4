//! A change of one service, carried out: events are gathered, the pure rollout is asked, and its commands are done in
//! order. In place it is the same rollout, with nobody to go back to: requests wait while it has no containers.

mod commands;
mod make;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use itsup_proxy::{Address, Draining, Held, Hold};
use tokio::sync::watch;

use super::receipt::{self, Receipt, Side, seconds};
use super::retire::{self, Parting};
use super::{ChangeError, Order, Rollouts, Teller, fault, short, traffic};
use crate::jobs::{CancelToken, Phase};
use crate::journal::{Change, Kind};
use crate::observed::{Container, ContainerId, NETWORK, Observed};
use crate::rollout::{Ended, Event, Ids, PROBE_EVERY, Rollout, Stage};
use make::make;

/// How often it is looked at what the endpoints have answered.
const TALLY_EVERY: Duration = Duration::from_millis(500);

/// How the new ones come to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Beside the old ones, which can be gone back to.
    Beside,
    /// In place of the old ones, which are gone by then; requests are held.
    InPlace,
}

impl Mode {
    fn kind(self, stage: Stage) -> Kind {
        match self {
            Mode::Beside => Kind::Rolling(stage),
            Mode::InPlace => Kind::InPlace,
        }
    }
}

/// Changes a service over, from the beginning.
pub(super) async fn change(
    rollouts: &Rollouts,
    order: &Order,
    mode: Mode,
    teller: &Teller,
    cancel: &CancelToken,
) -> Result<Receipt, ChangeError> {
    let began = Instant::now();
    let (project, service) = (&order.compose_project, &order.compose_service);
    let engine = &rollouts.inner.engine;
    let there = rollouts.persist("looking", || engine.service(project, service, NETWORK)).await;
    let there = there.map_err(|error| ChangeError::NotBegun(error.to_string()))?;
    let leaving = rollouts.leaving(&order.project, &order.service);
    let (live, dead): (Vec<_>, Vec<_>) =
        there.into_iter().filter(|c| !leaving.contains(&c.id)).partition(|c| c.running || c.restarting || c.paused);
    let ids = |containers: &[Container]| containers.iter().map(|c| c.id.clone()).collect::<Ids>();
    let (old, dead) = (ids(&live), ids(&dead));
    let mut receipt = Receipt::begin(order, &receipt::name(order));
    receipt.old = live.iter().map(Side::of).collect();
    let change = Change {
        id: receipt.id.clone(),
        service: order.service.to_string(),
        compose_project: project.to_string(),
        compose_service: service.clone(),
        file: order.file.file.display().to_string(),
        terms: order.terms.clone(),
        kind: mode.kind(Stage::Starting),
        old: old.clone(),
        new: Ids::new(),
    };
    // What goes first may still be seen for a moment; it is not new.
    let mut ignored: Ids = leaving.union(&dead).cloned().collect();
    let rollout = match mode {
        Mode::Beside => Rollout::new(order.terms.clone(), old, ignored.clone()),
        Mode::InPlace => {
            ignored.extend(old);
            Rollout::new(order.terms.clone(), Ids::new(), ignored.clone())
        }
    };
    let away_first = if mode == Mode::Beside { dead } else { leaving };
    let run = Run::new(rollouts, order, mode, teller, cancel.clone(), rollout, change, ignored, receipt, began);
    run.run(away_first).await
}

/// Goes on with one that a crash has interrupted.
pub(super) async fn resume(
    rollouts: &Rollouts,
    order: &Order,
    teller: &Teller,
    change: Change,
) -> Result<Receipt, ChangeError> {
    let Kind::Rolling(stage) = change.kind else { return Err(ChangeError::NotBegun("not a rolling change".into())) };
    let began = Instant::now();
    let leaving = rollouts.leaving(&order.project, &order.service);
    let receipt = Receipt::begin(order, &change.id);
    let rollout = Rollout::resume(stage, change.terms.clone(), change.old.clone(), change.new.clone(), leaving.clone());
    let cancel = CancelToken::new();
    let run = Run::new(rollouts, order, Mode::Beside, teller, cancel, rollout, change, leaving, receipt, began);
    run.run(Ids::new()).await
}

/// The probes that are under way, and what is due next.
struct Probes<'a> {
    running: FuturesUnordered<BoxFuture<'a, (ContainerId, bool)>>,
    busy: BTreeSet<ContainerId>,
    ticks: tokio::time::Interval,
}

struct Run<'a> {
    rollouts: &'a Rollouts,
    order: &'a Order,
    mode: Mode,
    teller: &'a Teller,
    cancel: CancelToken,
    cancelled: bool,
    rollout: Rollout,
    change: Change,
    /// Containers of the service that are neither old nor new.
    ignored: Ids,
    observed: watch::Receiver<Arc<Observed>>,
    starting: Option<BoxFuture<'a, Result<(), String>>>,
    probes: Probes<'a>,
    budgets: FuturesUnordered<BoxFuture<'a, Option<Duration>>>,
    tally_ticks: tokio::time::Interval,
    /// What the last publish has retired.
    draining: Draining,
    /// While it is there, requests wait.
    hold: Option<Hold>,
    held: Held,
    /// What the old ones had answered when they were switched off.
    old_tally: itsup_proxy::Tally,
    before: itsup_proxy::Tally,
    log: Vec<String>,
    receipt: Receipt,
    began: Instant,
    marks: Marks,
}

/// When what happened.
#[derive(Default)]
struct Marks {
    made: Option<Instant>,
    ready: Option<Instant>,
    switched: Option<Instant>,
}

impl<'a> Run<'a> {
    #[expect(clippy::too_many_arguments, reason = "private, and each is one thing")]
    fn new(
        rollouts: &'a Rollouts,
        order: &'a Order,
        mode: Mode,
        teller: &'a Teller,
        cancel: CancelToken,
        rollout: Rollout,
        change: Change,
        ignored: Ids,
        receipt: Receipt,
        began: Instant,
    ) -> Run<'a> {
        let ticks = |every| {
            let mut ticks = tokio::time::interval(every);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            ticks
        };
        let before = rollouts.tally(order);
        Run {
            rollouts,
            order,
            mode,
            teller,
            cancel,
            cancelled: false,
            rollout,
            change,
            ignored,
            observed: rollouts.inner.observed.clone(),
            starting: None,
            probes: Probes { running: FuturesUnordered::new(), busy: BTreeSet::new(), ticks: ticks(PROBE_EVERY) },
            budgets: FuturesUnordered::new(),
            tally_ticks: ticks(TALLY_EVERY),
            draining: Draining::default(),
            hold: None,
            held: Held::default(),
            old_tally: before,
            before,
            log: Vec::new(),
            receipt,
            began,
            marks: Marks::default(),
        }
    }

    async fn run(mut self, dead: Ids) -> Result<Receipt, ChangeError> {
        let _busy = self.rollouts.busy(format!("{} of {}", self.change.id, self.order.project));
        self.rollouts.freeze(self.order).await?;
        // What was seen already is told by no change.
        let first = self.look();
        let mut events = VecDeque::from([Event::Begin, first]);
        loop {
            while let Some(event) = events.pop_front() {
                let commands = self.rollout.step(event, self.began.elapsed());
                for command in commands {
                    match self.execute(command, &dead).await? {
                        Done::Quietly => {}
                        Done::With(event) => events.push_back(event),
                        // What was to follow is for another state.
                        Done::Instead(event) => {
                            events.push_front(event);
                            break;
                        }
                    }
                }
            }
            if let Some(ended) = self.rollout.ended() {
                let ended = ended.clone();
                return self.end(ended).await;
            }
            events.push_back(self.next().await);
        }
    }

    /// Waits for the next thing to happen.
    async fn next(&mut self) -> Event {
        loop {
            let now = self.began.elapsed();
            let wake = self.rollout.wake_at().map(|at| at.saturating_sub(now));
            let probing = self.rollout.to_probe().next().is_some();
            let watching = self.rollout.is_watching() && self.rollouts.inner.control.is_some();
            tokio::select! {
                result = wait_for(&mut self.starting) => {
                    self.starting = None;
                    self.marks.made = Some(Instant::now());
                    fault::point("started");
                    return Event::Started(result);
                }
                Ok(()) = self.observed.changed() => return self.look(),
                Some((container, answered)) = self.probes.running.next() => {
                    self.probes.busy.remove(&container);
                    return Event::Probed { container, answered };
                }
                Some(Some(budget)) = self.budgets.next() => return Event::HealthBudget(budget),
                _ = self.probes.ticks.tick(), if probing => self.probe(),
                _ = self.tally_ticks.tick(), if watching => return self.tallied(),
                () = sleep_for(wake) => return Event::Tick,
                () = self.cancel.cancelled(), if !self.cancelled => {
                    self.cancelled = true;
                    return Event::Cancelled;
                }
            }
        }
    }

    /// Says what there is of the service.
    fn look(&mut self) -> Event {
        let observed = self.observed.borrow_and_update().clone();
        if !observed.engine.is_up() {
            return Event::EngineAway;
        }
        let (project, service) = (&self.order.compose_project, &self.order.compose_service);
        let there: Vec<Container> = observed.service(project, service).cloned().collect();
        let known = self.rollout.new_ids();
        for container in &there {
            let id = &container.id;
            if !known.contains(id) && !self.change.old.contains(id) && !self.ignored.contains(id) {
                let (engine, id) = (self.rollouts.inner.engine.clone(), id.clone());
                self.budgets.push(Box::pin(async move { engine.health_budget(&id).await.ok().flatten() }));
            }
        }
        Event::Seen(there)
    }

    /// Starts the probes that are due, none of them twice.
    fn probe(&mut self) {
        let observed = self.observed.borrow().clone();
        let ids: Vec<ContainerId> = self.rollout.to_probe().cloned().collect();
        for id in ids {
            let Some(container) = observed.containers.get(&id) else { continue };
            let Some(address) = container.address else { continue };
            if !self.probes.busy.insert(id.clone()) {
                continue;
            }
            let address = Address::Tcp(SocketAddr::new(address, container.port.unwrap_or(self.order.port)));
            let path = self.order.health_path.clone();
            let limit = self.order.probe_limit;
            self.probes.running.push(Box::pin(async move {
                let answered = itsup_proxy::answers(&address, path.as_deref(), limit).await;
                (id, answered)
            }));
        }
        let (ready, wanted) = self.rollout.ready();
        self.teller.count(Phase::Starting, format!("ready {ready}/{wanted}"), (ready, wanted));
    }

    fn tallied(&mut self) -> Event {
        let new = self.rollouts.tally(self.order);
        Event::Tallied { old: traffic::compared(self.old_tally), new: traffic::compared(new) }
    }

    async fn end(mut self, ended: Ended) -> Result<Receipt, ChangeError> {
        let since = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => seconds(to.saturating_duration_since(from)),
            _ => 0.0,
        };
        self.receipt.in_place = self.mode == Mode::InPlace;
        let times = &mut self.receipt.seconds;
        times.start = since(Some(self.began), self.marks.made);
        times.ready = since(self.marks.made, self.marks.ready);
        times.switch = since(self.marks.ready, self.marks.switched);
        times.watch = since(self.marks.switched, Some(Instant::now()));
        let new = self.rollouts.tally(self.order);
        let (old, before) = (self.old_tally, self.before);
        let counts = &mut self.receipt.requests;
        counts.served = (old.served + new.served).saturating_sub(before.served);
        counts.retried = (old.retried + new.retried).saturating_sub(before.retried);
        counts.failed = (old.broken + new.broken).saturating_sub(before.broken) + self.held.refused;
        counts.held = self.held.waited;
        counts.longest_wait = seconds(self.held.longest);
        match ended {
            Ended::Undone(failure) => {
                self.receipt.result = match self.mode {
                    Mode::Beside => receipt::Result::Undone,
                    Mode::InPlace => receipt::Result::Failed,
                };
                self.receipt.why = Some(failure.to_string());
                self.receipt.seconds.total = seconds(self.began.elapsed());
                self.receipt.keep(&self.rollouts.inner.root);
                let (log, receipt) = (self.log, Box::new(self.receipt));
                Err(match self.mode {
                    Mode::Beside => ChangeError::Undone { failure, log, receipt },
                    Mode::InPlace => ChangeError::Stuck { why: failure.to_string(), log, receipt },
                })
            }
            Ended::Done => {
                let observed = self.observed.borrow().clone();
                let new = self.rollout.new_ids();
                self.receipt.result = receipt::Result::Done;
                self.receipt.new = new.iter().filter_map(|id| observed.containers.get(id)).map(Side::of).collect();
                if self.mode == Mode::Beside {
                    return Ok(self.part().await);
                }
                self.receipt.seconds.total = seconds(self.began.elapsed());
                self.receipt.keep(&self.rollouts.inner.root);
                Ok(self.receipt)
            }
        }
    }

    /// Sees the old ones off: at once where they have nothing left, else in the background.
    async fn part(mut self) -> Receipt {
        let since_switch = self.marks.switched.map_or(Duration::ZERO, |at| at.elapsed());
        let parting = Parting {
            project: self.order.project.clone(),
            id: self.change.id.clone(),
            containers: self.change.old.clone(),
            draining: self.draining.clone(),
            drain: self.order.drain.saturating_sub(since_switch),
            stream_drain: self.order.stream_drain.saturating_sub(since_switch),
        };
        let mut receipt = Receipt { draining: true, ..self.receipt.clone() };
        receipt.seconds.total = seconds(self.began.elapsed());
        receipt.keep(&self.rollouts.inner.root);
        let idle = self.draining.in_flight().total() == 0;
        let detail = if idle { "stopping the old ones".to_owned() } else { waiting(&self.draining) };
        self.teller.say(if idle { Phase::Stopping } else { Phase::Draining }, detail);
        let (rollouts, began) = (self.rollouts.clone(), self.began);
        let busy = self.rollouts.busy(format!("{} is draining", self.change.id));
        self.receipt = receipt.clone();
        let task = tokio::spawn(async move {
            let parted = retire::part(&rollouts, &parting).await;
            match parted {
                Ok(parted) => {
                    receipt.draining = false;
                    receipt.requests.drained += parted.drained;
                    receipt.requests.cut += parted.cut;
                    receipt.seconds.drain = seconds(since_switch + parted.waited);
                    receipt.seconds.stop = seconds(parted.stopping);
                    receipt.seconds.total = seconds(began.elapsed());
                }
                Err(error) => tracing::error!("{}: {error}; the next start tries again", short(&parting.containers)),
            }
            receipt.keep(&rollouts.inner.root);
            drop(busy);
            receipt
        });
        if idle || self.rollouts.inner.control.is_none() {
            return task.await.unwrap_or(self.receipt);
        }
        self.receipt
    }
}

/// What came of a command.
enum Done {
    Quietly,
    /// This has happened.
    With(Event),
    /// It could not be done; this has happened, and the commands after it are void.
    Instead(Event),
}

/// Says what the old ones still have.
pub(super) fn waiting(draining: &Draining) -> String {
    let under_way = draining.in_flight();
    let classes = [
        (under_way.requests, "requests"),
        (under_way.streams, "streams"),
        (under_way.websockets, "websockets"),
        (under_way.passthrough, "passthrough connections"),
    ];
    let parts: Vec<String> =
        classes.iter().filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")).collect();
    format!("the old ones finish in the background: {}", parts.join(", "))
}

async fn wait_for<T>(future: &mut Option<BoxFuture<'_, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn sleep_for(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}
