//! How each command of the pure rollout is done.

use std::time::{Duration, Instant};

use itsup_proxy::{Class, Draining, HoldLimits};

use super::{Done, Mode, Run, make};
use crate::change::compose::Lock;
use crate::change::receipt::Side;
use crate::change::{ChangeError, LOG_LINES, fault, retire, short};
use crate::jobs::Phase;
use crate::journal::Change;
use crate::observed::{Container, NETWORK};
use crate::rollout::{Command, Event, Failure, Ids, Stage};

/// How long compose is waited for that has been told to stop.
const AFTER_CANCEL: Duration = Duration::from_secs(30);
/// How long requests may take to end while others wait for the restart.
const HELD_DRAIN: Duration = Duration::from_secs(10);

impl Run<'_> {
    pub(super) async fn execute(&mut self, command: Command, dead: &Ids) -> Result<Done, ChangeError> {
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
}
