//! A change of one service, carried out: events are gathered, the pure rollout is asked, and its commands are done in
//! order. In place it is the same rollout, with nobody to go back to: requests wait while it has no containers.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use itsup_proxy::{Address, Class, Draining, Held, Hold, HoldLimits};
use tokio::sync::watch;

use super::compose::{How, Lock};
use super::receipt::{self, Receipt, Side, seconds};
use super::retire::{self, Parting};
use super::{ChangeError, LOG_LINES, Order, Rollouts, Teller, fault, short, traffic};
use crate::docker::{ComposeError, EngineError};
use crate::jobs::{CancelToken, Phase};
use crate::journal::{Change, Kind};
use crate::observed::{Container, ContainerId, NETWORK, Observed};
use crate::rollout::{Command, Ended, Event, Failure, Ids, PROBE_EVERY, Rollout, Stage};

/// How often it is looked at what the endpoints have answered.
const TALLY_EVERY: Duration = Duration::from_millis(500);
/// How long compose is waited for that has been told to stop.
const AFTER_CANCEL: Duration = Duration::from_secs(30);
/// How long requests may take to end while others wait for the restart.
const HELD_DRAIN: Duration = Duration::from_secs(10);

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

    async fn execute(&mut self, command: Command, dead: &Ids) -> Result<Done, ChangeError> {
        match command {
            Command::Journal(stage) => self.journal(stage).await,
            Command::Start => {
                if self.mode == Mode::InPlace {
                    self.make_room().await?;
                }
                self.start(dead);
                Ok(Done::With(self.look()))
            }
            Command::Trim(surplus) => {
                self.ignored.extend(surplus.iter().cloned());
                self.removed(&surplus).await;
                Ok(Done::Quietly)
            }
            // In place there is nothing to go back to: what runs is routed by events again.
            Command::Publish(_) if self.mode == Mode::InPlace && self.rollout.failure().is_some() => Ok(Done::Quietly),
            Command::Publish(set) => self.publish(set).await,
            Command::Revive(old) => {
                for id in &old {
                    let start = || self.rollouts.inner.engine.start(id);
                    if let Err(error) = self.rollouts.persist("starting", start).await {
                        tracing::warn!("the old container {}: {error}", id.short());
                    }
                }
                Ok(Done::Quietly)
            }
            Command::RemoveNew if self.mode == Mode::InPlace => self.leave().await,
            Command::RemoveNew => self.remove_new().await,
            Command::Commit => self.commit().await,
        }
    }

    async fn journal(&mut self, stage: Stage) -> Result<Done, ChangeError> {
        if stage == Stage::Switched {
            self.marks.ready = Some(Instant::now());
            self.teller.say(Phase::Ready, format!("ready: {}", short(&self.rollout.new_ids())));
            fault::point("ready");
        }
        let mut new = self.rollout.new_ids();
        new.extend(self.change.new.iter().cloned());
        self.change = Change { kind: self.mode.kind(stage), new, ..self.change.clone() };
        let change = self.change.clone();
        let written = self.rollouts.inner.journals.update(&self.order.project, |journal| journal.change = Some(change));
        match (written, stage) {
            (Ok(()), Stage::Starting) => fault::point("journaled"),
            (Ok(()), Stage::Switched) => fault::point("switched"),
            (Ok(()), Stage::Undoing) => fault::point("undoing"),
            (Err(error), Stage::Starting) => {
                self.rollouts.thaw(self.order, Ids::new()).await?;
                return Err(ChangeError::NotBegun(format!("the journal cannot be written: {error}")));
            }
            (Err(error), Stage::Switched) => {
                return Ok(Done::Instead(Event::Published(Err(format!("the journal cannot be written: {error}")))));
            }
            // Not being able to say so is no reason not to go back.
            (Err(error), Stage::Undoing) => tracing::error!("the journal cannot be written: {error}"),
        }
        if let Some(failure) = self.rollout.failure() {
            self.teller.say(Phase::Failed, format!("going back: {failure}"));
        }
        Ok(Done::Quietly)
    }

    /// Has compose make the new ones; what runs is counted while nothing else goes.
    fn start(&mut self, dead: &Ids) {
        self.teller.say(Phase::Starting, format!("starting {}", self.order.terms.replicas));
        let (rollouts, order, mode, dead) = (self.rollouts.clone(), self.order.clone(), self.mode, dead.clone());
        self.starting =
            Some(Box::pin(
                async move { make(&rollouts, &order, mode, &dead).await.map_err(|error| error.to_string()) },
            ));
    }

    /// Has new requests wait and those under way end, so that the service can go.
    async fn make_room(&mut self) -> Result<(), ChangeError> {
        self.hold = self.rollouts.hold(self.order, HoldLimits::default());
        fault::point("held");
        self.teller.say(Phase::Held, "requests wait while it restarts");
        if let Ok(draining) = self.rollouts.publish(self.order, Ids::new(), Vec::new()).await? {
            self.old_tally = draining.tally();
            let at_first = draining.in_flight().total();
            // Those that wait have a limit of their own, so nobody else may take long.
            let drained = draining.wait_requests(self.order.drain.min(HELD_DRAIN)).await;
            let mut left = drained.left.total();
            if left > 0 {
                left = draining.end(&Class::LONG, Duration::ZERO).await.left.total();
            }
            self.receipt.requests.drained = u64::from(at_first.saturating_sub(drained.left.total()));
            self.receipt.requests.cut = u64::from(drained.left.total().max(left));
        }
        fault::point("emptied");
        Ok(())
    }

    /// Lets those go on that wait.
    async fn release(&mut self) {
        if let Some(hold) = self.hold.take() {
            self.held = hold.release().await;
            fault::point("released");
        }
    }

    /// In place there is no way back: what there is stays, for a person to look at, and is routed as far as it runs.
    async fn leave(&mut self) -> Result<Done, ChangeError> {
        self.stop_making().await;
        let new = self.rollout.new_ids();
        self.read_log(&new).await;
        self.end_in_place().await?;
        Ok(Done::With(Event::Removed))
    }

    async fn end_in_place(&mut self) -> Result<(), ChangeError> {
        let struck = self.rollouts.inner.journals.update(&self.order.project, |journal| journal.change = None);
        if let Err(error) = struck {
            tracing::error!("the journal cannot be written: {error}; the next start asks compose once more");
        }
        self.rollouts.thaw(self.order, Ids::new()).await?;
        self.release().await;
        Ok(())
    }

    async fn publish(&mut self, set: Ids) -> Result<Done, ChangeError> {
        let going_back = self.rollout.failure().is_some();
        let published = self.routed(&set, going_back).await?;
        let draining = match published {
            Ok(draining) => draining,
            // The old ones are routed still, or as well as they can be.
            Err(why) if going_back => {
                tracing::warn!("{}/{}: {why}", self.order.project, self.order.service);
                Draining::default()
            }
            Err(why) => return Ok(Done::With(Event::Published(Err(why)))),
        };
        if !going_back && self.mode == Mode::InPlace {
            self.marks.switched = Some(Instant::now());
            self.release().await;
            self.teller.say(Phase::Switched, format!("back; {} requests have waited", self.held.waited));
        } else if !going_back {
            self.marks.switched = Some(Instant::now());
            self.old_tally = draining.tally();
            let under_way = draining.in_flight().total();
            self.teller.say(Phase::Switched, format!("switched; {under_way} under way on the old ones"));
        }
        self.draining = draining;
        fault::point(if going_back { "reverted" } else { "published" });
        Ok(Done::With(Event::Published(Ok(()))))
    }

    /// Reads every container once more, so that no address is routed that is not its own, and routes them.
    async fn routed(&mut self, set: &Ids, going_back: bool) -> Result<Result<Draining, String>, ChangeError> {
        let mut reachable = Vec::new();
        for id in set {
            let engine = &self.rollouts.inner.engine;
            let found = self.rollouts.persist("looking", || engine.inspect(id, NETWORK)).await;
            match found {
                Ok(Some(container)) if container.running && container.address.is_some() => reachable.push(container),
                _ if going_back => {}
                Ok(Some(container)) if container.running => {
                    return Ok(Err(format!("the new container {} is not on {NETWORK}", id.short())));
                }
                Ok(_) => return Ok(Err(format!("the new container {} does not run", id.short()))),
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
        self.rollouts.publish(self.order, set.clone(), reachable).await
    }

    async fn remove_new(&mut self) -> Result<Done, ChangeError> {
        self.stop_making().await;
        let engine = &self.rollouts.inner.engine;
        let (project, service) = (&self.order.compose_project, &self.order.compose_service);
        let there = self.rollouts.persist("looking", || engine.service(project, service, NETWORK)).await;
        let new: Vec<Container> = match there {
            Ok(there) => there
                .into_iter()
                .filter(|c| !self.change.old.contains(&c.id) && !self.ignored.contains(&c.id))
                .collect(),
            Err(error) => {
                tracing::error!("what was made cannot be listed: {error}");
                Vec::new()
            }
        };
        self.receipt.new = new.iter().map(Side::of).collect();
        let ids: Ids = new.iter().map(|c| c.id.clone()).collect();
        self.read_log(&ids).await;
        let drained = self.draining.wait_requests(self.order.drain).await;
        self.receipt.requests.drained += u64::from(drained.finished.total());
        self.teller.say(Phase::Stopping, format!("removing the new ones: {}", short(&ids)));
        let gone = self.removed(&ids).await;
        let (change, service) = (self.change.id.clone(), self.order.service.clone());
        let struck = self.rollouts.inner.journals.update(&self.order.project, |journal| {
            journal.change = None;
            if !gone {
                // The next start tries once more.
                journal.retiring.push(retire::entry(&change, &service, &ids, Duration::ZERO));
            }
        });
        if let Err(error) = struck {
            tracing::error!("the journal cannot be written: {error}; the next start looks again");
        }
        self.rollouts.thaw(self.order, ids).await?;
        fault::point("undone");
        Ok(Done::With(Event::Removed))
    }

    /// Ends a compose that is still at it, so that nothing is made any more.
    async fn stop_making(&mut self) {
        let Some(starting) = self.starting.take() else { return };
        // Dropping it kills compose; the lock is free when it and all its children are gone.
        drop(starting);
        let lock = Lock::take(&self.rollouts.inner.root, &self.order.project);
        match tokio::time::timeout(AFTER_CANCEL, lock).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!("docker compose: {error}"),
            Err(_) => tracing::warn!("docker compose does not end; what it still makes is left over"),
        }
    }

    async fn read_log(&mut self, ids: &Ids) {
        let culprit = self.rollout.failure().and_then(Failure::culprit);
        let Some(id) = culprit.filter(|id| ids.contains(*id)).or_else(|| ids.first()) else { return };
        match self.rollouts.inner.engine.logs(id, LOG_LINES).await {
            Ok(lines) => self.log = lines,
            Err(error) => self.log = vec![format!("the log of {} cannot be read: {error}", id.short())],
        }
    }

    /// Removes containers; false where the engine refuses for good.
    async fn removed(&mut self, ids: &Ids) -> bool {
        match self.rollouts.remove(ids).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!("{}: {error}", short(ids));
                false
            }
        }
    }

    async fn commit(&mut self) -> Result<Done, ChangeError> {
        fault::point("watched");
        if self.mode == Mode::InPlace {
            self.end_in_place().await?;
            return Ok(Done::Quietly);
        }
        let change = &self.change;
        let entry = retire::entry(&change.id, &self.order.service, &change.old, self.order.stream_drain);
        let written = self.rollouts.inner.journals.update(&self.order.project, |journal| {
            journal.change = None;
            if !entry.containers.is_empty() {
                journal.retiring.push(entry);
            }
        });
        if let Err(error) = written {
            tracing::error!("the journal cannot be written: {error}; after a crash this rollout is watched once more");
        }
        fault::point("committed");
        self.rollouts.thaw(self.order, change.old.clone()).await?;
        Ok(Done::Quietly)
    }

    async fn end(mut self, ended: Ended) -> Result<Receipt, ChangeError> {
        let since = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => seconds(to.saturating_duration_since(from)),
            _ => 0.0,
        };
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

/// Why compose has made nothing, or not enough.
#[derive(Debug, thiserror::Error)]
enum MakeError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Compose(#[from] ComposeError),
    #[error("docker compose cannot be locked: {0}")]
    Lock(#[from] std::io::Error),
}

/// Has compose make the new ones. Those in the way go first: the dead ones, which compose would count and start again, and
/// in place also those that have only just been replaced.
async fn make(rollouts: &Rollouts, order: &Order, mode: Mode, in_the_way: &Ids) -> Result<(), MakeError> {
    let _counting = rollouts.inner.counting.enter(&order.project).await;
    let lock = Lock::take(&rollouts.inner.root, &order.project).await?;
    let engine = &rollouts.inner.engine;
    rollouts.remove(in_the_way).await?;
    let count = || engine.service(&order.compose_project, &order.compose_service, NETWORK);
    let there = rollouts.persist("counting", count).await?;
    let replicas = order.terms.replicas;
    let how = match mode {
        Mode::Beside => How::Beside(there.len() + replicas),
        Mode::InPlace => How::Anew(replicas),
    };
    // Asked again, after an engine that went in between, it makes what is still missing.
    loop {
        let Err(error) = rollouts.up(order, how, &lock).await else { return Ok(()) };
        match engine.info().await {
            Ok(_) => return Err(error.into()),
            Err(away @ (EngineError::Unreachable { .. } | EngineError::Silent { .. })) => {
                tracing::warn!("docker compose: {error}, as {away}; waiting for it");
                rollouts.persist("waiting", || engine.info()).await?;
            }
            Err(refused) => return Err(refused.into()),
        }
    }
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
