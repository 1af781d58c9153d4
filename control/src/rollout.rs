//! One service's change-over: new containers beside the old ones, one switch, a watch, and the way back.
//!
//! Pure: what has happened goes in with the time, and what is to be done comes out. It must not know how containers
//! are made, how traffic is moved, nor where the journal is kept. What is journaled ([`Stage`]) is written before what
//! it announces is done, so that after a crash the stage alone says which way to finish: [`Rollout::resume`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::observed::{Container, ContainerId, Health};

pub use failure::Failure;
pub use tally::{Tally, clearly_worse};

mod failure;
mod tally;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

/// A set of containers.
pub type Ids = BTreeSet<ContainerId>;

/// How often a new container is probed.
pub const PROBE_EVERY: Duration = Duration::from_millis(100);
/// What compose may take to make the containers, beyond the time they have to be ready.
const TO_MAKE: Duration = Duration::from_secs(60);

/// What a rollout is held to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Containers to run.
    pub replicas: usize,
    /// How long the new ones may take to be ready.
    pub timeout: Duration,
    /// How long they are watched after the switch.
    pub watch: Duration,
}

/// How far it has come, as the journal has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// New containers are made and tested; the old ones serve. A crash here is undone.
    Starting,
    /// The new ones are ready, and serve or are about to; the old ones are kept. A crash here is finished.
    Switched,
    /// The old ones serve or are about to, and the new ones go. A crash here is undone to the end.
    Undoing,
}

/// What has happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// It may begin.
    Begin,
    /// What there is of the service, all of it; the engine is up.
    Seen(Vec<Container>),
    /// The engine cannot be heard.
    EngineAway,
    /// What [`Command::Start`] asked for is done, or cannot be.
    Started(Result<(), String>),
    /// The image's own health check may take this long to say well.
    HealthBudget(Duration),
    /// A container was probed from the proxy's side.
    Probed { container: ContainerId, answered: bool },
    /// The last [`Command::Publish`] is live, or cannot be.
    Published(Result<(), String>),
    /// What the endpoints have answered: the old ones before the switch, the new ones since.
    Tallied { old: Tally, new: Tally },
    /// What [`Command::RemoveNew`] asked for is done.
    Removed,
    /// Nobody wants it any more.
    Cancelled,
    /// Time has passed.
    Tick,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Write the stage down, with the new containers, before anything further.
    Journal(Stage),
    /// Make the new containers beside the old ones.
    Start,
    /// Remove these new ones: there are more than were asked for.
    Trim(Ids),
    /// Route these containers and no others.
    Publish(Ids),
    /// Start these old containers again, as none of them runs.
    Revive(Ids),
    /// Remove every new container, once it has no traffic.
    RemoveNew,
    /// There is no way back: strike the change from the journal, and have the old ones end what they have and go.
    Commit,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The new ones serve.
    Done,
    /// The old ones serve, as before.
    Undone(Failure),
}

/// A rollout under way.
#[derive(Clone, Debug)]
pub struct Rollout {
    terms: Terms,
    old: Ids,
    /// Containers of earlier rollouts that are still draining: neither old nor new.
    leaving: Ids,
    state: State,
    new: BTreeMap<ContainerId, New>,
    old_runs: bool,
    /// Since when the engine has been away.
    away: Option<Duration>,
}

#[derive(Clone, Debug)]
enum State {
    Waiting,
    Resuming(Stage),
    Starting { began: Duration, made: bool, deadline: Duration, after: Duration },
    Switching,
    Watching { until: Duration },
    Undoing(Failure),
    Ended(Ended),
}

/// What is known of a new container.
#[derive(Clone, Debug, Default)]
struct New {
    /// Its first start; another one means that it crashed.
    started_at: Option<String>,
    /// As often as it may have been restarted; `None` where what came before does not count.
    restarts: Option<i64>,
    running: bool,
    health: Health,
    answered: bool,
}

impl Rollout {
    /// A rollout that has not begun. Every container of the service that is neither old nor leaving will be new.
    pub fn new(terms: Terms, old: Ids, leaving: Ids) -> Rollout {
        Rollout { terms, old, leaving, state: State::Waiting, new: BTreeMap::new(), old_runs: true, away: None }
    }

    /// A rollout that a crash has interrupted, at the stage that the journal has.
    pub fn resume(stage: Stage, terms: Terms, old: Ids, new: Ids, leaving: Ids) -> Rollout {
        let new = new.into_iter().map(|id| (id, New::default())).collect();
        Rollout { state: State::Resuming(stage), new, ..Rollout::new(terms, old, leaving) }
    }

    /// Takes what has happened, and says what is to be done.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Command> {
        match event {
            Event::Begin => self.begin(now),
            Event::Seen(containers) => {
                self.back(now);
                self.seen(&containers, now)
            }
            Event::EngineAway => {
                self.away.get_or_insert(now);
                Vec::new()
            }
            Event::Started(result) => self.started(result, now),
            Event::HealthBudget(budget) => {
                if let State::Starting { began, deadline, after, .. } = &mut self.state {
                    *after = (*after).max(budget);
                    *deadline = (*deadline).max(*began + *after);
                }
                Vec::new()
            }
            Event::Probed { container, answered } => {
                if let Some(new) = self.new.get_mut(&container) {
                    new.answered = answered;
                }
                self.switch_when_ready()
            }
            Event::Published(result) => self.published(result, now),
            Event::Tallied { old, new } => match self.state {
                State::Watching { .. } if clearly_worse(old, new) => self.undo(Failure::Worse { old, new }),
                _ => Vec::new(),
            },
            Event::Removed => {
                if let State::Undoing(failure) = &self.state {
                    self.state = State::Ended(Ended::Undone(failure.clone()));
                }
                Vec::new()
            }
            Event::Cancelled => match self.state {
                State::Waiting | State::Starting { .. } => self.undo(Failure::Cancelled),
                _ => Vec::new(),
            },
            Event::Tick => self.tick(now),
        }
    }

    /// When [`Event::Tick`] is wanted next; never while the engine is away.
    pub fn wake_at(&self) -> Option<Duration> {
        match self.state {
            State::Starting { deadline, .. } if self.away.is_none() => Some(deadline),
            State::Watching { until } if self.away.is_none() => Some(until),
            _ => None,
        }
    }

    /// The new containers that are to be probed now.
    pub fn to_probe(&self) -> impl Iterator<Item = &ContainerId> {
        let starting = matches!(self.state, State::Starting { .. });
        self.new.iter().filter(move |(_, new)| starting && new.running).map(|(id, _)| id)
    }

    /// The new containers that are known.
    pub fn new_ids(&self) -> Ids {
        self.new.keys().cloned().collect()
    }

    /// How many new containers are ready, of how many.
    pub fn ready(&self) -> (usize, usize) {
        (self.new.values().filter(|new| new.is_ready()).count(), self.terms.replicas)
    }

    /// Whether the new ones serve and are watched.
    pub fn is_watching(&self) -> bool {
        matches!(self.state, State::Watching { .. })
    }

    /// Whether it goes back, and why.
    pub fn failure(&self) -> Option<&Failure> {
        match &self.state {
            State::Undoing(failure) | State::Ended(Ended::Undone(failure)) => Some(failure),
            _ => None,
        }
    }

    /// How it ended, once it has.
    pub fn ended(&self) -> Option<&Ended> {
        match &self.state {
            State::Ended(ended) => Some(ended),
            _ => None,
        }
    }

    fn begin(&mut self, now: Duration) -> Vec<Command> {
        if !matches!(self.state, State::Waiting) {
            return Vec::new();
        }
        let after = self.terms.timeout;
        self.state = State::Starting { began: now, made: false, deadline: now + after + TO_MAKE, after };
        vec![Command::Journal(Stage::Starting), Command::Start]
    }

    /// Takes the engine's return: what was away did not use up anybody's time, and what it has started again has not
    /// crashed.
    fn back(&mut self, now: Duration) {
        let Some(since) = self.away.take() else { return };
        let lost = now.saturating_sub(since);
        match &mut self.state {
            State::Starting { began, deadline, .. } => {
                *began += lost;
                *deadline += lost;
            }
            State::Watching { until } => *until += lost,
            _ => {}
        }
        for new in self.new.values_mut() {
            (new.started_at, new.restarts) = (None, None);
        }
    }

    fn seen(&mut self, containers: &[Container], now: Duration) -> Vec<Command> {
        let there: BTreeMap<&ContainerId, &Container> = containers.iter().map(|c| (&c.id, c)).collect();
        self.old_runs = self.old.iter().any(|id| there.get(id).is_some_and(|c| c.running));
        if let State::Resuming(stage) = self.state {
            return self.resumed(stage, &there);
        }
        let mut crashed = None;
        if matches!(self.state, State::Starting { .. }) {
            for (id, container) in &there {
                if !self.old.contains(id) && !self.leaving.contains(id) && !container.oneoff {
                    self.new.entry((*id).clone()).or_insert_with(New::fresh);
                }
            }
        }
        for (id, new) in &mut self.new {
            let alive = match there.get(id) {
                Some(container) => new.look(container),
                None => false,
            };
            if !alive && crashed.is_none() {
                let exit_code = there.get(id).and_then(|container| container.exit_code);
                crashed = Some((id.clone(), exit_code));
            }
        }
        let serving = matches!(self.state, State::Switching | State::Watching { .. });
        match crashed {
            Some((container, exit_code)) if serving || matches!(self.state, State::Starting { .. }) => {
                self.undo(Failure::Crashed { container, exit_code, serving })
            }
            _ => {
                let mut commands = self.count_made();
                if commands.is_empty() {
                    commands = self.switch_when_ready();
                }
                if commands.is_empty() { self.tick(now) } else { commands }
            }
        }
    }

    fn resumed(&mut self, stage: Stage, there: &BTreeMap<&ContainerId, &Container>) -> Vec<Command> {
        let all_run = !self.new.is_empty() && self.new.keys().all(|id| there.get(id).is_some_and(|c| c.running));
        if stage != Stage::Switched || !all_run {
            return self.undo(Failure::Interrupted);
        }
        for (id, new) in &mut self.new {
            if let Some(container) = there.get(id) {
                new.look(container);
            }
        }
        self.state = State::Switching;
        vec![Command::Publish(self.new_ids())]
    }

    fn started(&mut self, result: Result<(), String>, now: Duration) -> Vec<Command> {
        let State::Starting { began, made, deadline, after } = &mut self.state else { return Vec::new() };
        match result {
            Ok(()) => {
                (*began, *made, *deadline) = (now, true, now + *after);
                Vec::new()
            }
            Err(why) => self.undo(Failure::NotStarted(why)),
        }
    }

    /// Once compose is done, there are as many as were asked for. More come of a container that went while compose
    /// counted.
    fn count_made(&mut self) -> Vec<Command> {
        if !matches!(self.state, State::Starting { made: true, .. }) || self.new.len() <= self.terms.replicas {
            return Vec::new();
        }
        let surplus: Ids = self.new.keys().skip(self.terms.replicas).cloned().collect();
        self.new.retain(|id, _| !surplus.contains(id));
        self.leaving.extend(surplus.iter().cloned());
        vec![Command::Trim(surplus)]
    }

    fn switch_when_ready(&mut self) -> Vec<Command> {
        let made = matches!(self.state, State::Starting { made: true, .. });
        let ready = self.new.len() == self.terms.replicas && self.new.values().all(New::is_ready);
        if !made || !ready || self.away.is_some() {
            return Vec::new();
        }
        self.state = State::Switching;
        vec![Command::Journal(Stage::Switched), Command::Publish(self.new_ids())]
    }

    fn published(&mut self, result: Result<(), String>, now: Duration) -> Vec<Command> {
        match (&self.state, result) {
            (State::Switching, Ok(())) => {
                self.state = State::Watching { until: now + self.terms.watch };
                Vec::new()
            }
            (State::Switching, Err(why)) => self.undo(Failure::NotPublished(why)),
            // Going back, there is nothing better than to go on.
            _ => Vec::new(),
        }
    }

    fn tick(&mut self, now: Duration) -> Vec<Command> {
        if self.away.is_some() {
            return Vec::new();
        }
        match self.state {
            State::Starting { deadline, after, made, .. } if now >= deadline => {
                let (made_so_far, wanted) = (self.new.len(), self.terms.replicas);
                if made && made_so_far < wanted {
                    return self.undo(Failure::TooFew { made: made_so_far, wanted });
                }
                let (container, missing) = self.missing(made);
                self.undo(Failure::NotReady { container, missing, after })
            }
            State::Watching { until } if now >= until => {
                self.state = State::Ended(Ended::Done);
                vec![Command::Commit]
            }
            _ => Vec::new(),
        }
    }

    /// Says what the first container that is not ready still lacks.
    fn missing(&self, made: bool) -> (Option<ContainerId>, String) {
        let late = self.new.iter().find(|(_, new)| !new.is_ready());
        match late {
            Some((id, new)) => (Some(id.clone()), new.missing().to_owned()),
            None if made => (None, "the containers were not seen".to_owned()),
            None => (None, "compose did not come to an end".to_owned()),
        }
    }

    fn undo(&mut self, failure: Failure) -> Vec<Command> {
        let begun = !matches!(self.state, State::Waiting);
        self.state = State::Undoing(failure);
        if !begun {
            self.step(Event::Removed, Duration::ZERO);
            return Vec::new();
        }
        let mut commands = vec![Command::Journal(Stage::Undoing)];
        if !self.old_runs && !self.old.is_empty() {
            commands.push(Command::Revive(self.old.clone()));
        }
        commands.extend([Command::Publish(self.old.clone()), Command::RemoveNew]);
        commands
    }
}

impl New {
    /// One that has just been made: it may not have been restarted even once.
    fn fresh() -> New {
        New { restarts: Some(0), ..New::default() }
    }

    /// Takes how a container looks; false where it has crashed.
    fn look(&mut self, container: &Container) -> bool {
        self.running = container.running;
        self.health = container.health;
        if never_started(container) {
            return true;
        }
        let restarted = self.restarts.is_some_and(|known| container.restart_count > known);
        match &self.started_at {
            Some(first) => container.running && *first == container.started_at && !restarted,
            None if container.running && !restarted => {
                self.started_at = Some(container.started_at.clone());
                self.restarts = Some(container.restart_count);
                self.answered = false;
                true
            }
            None => false,
        }
    }

    fn is_ready(&self) -> bool {
        self.missing().is_empty()
    }

    fn missing(&self) -> &'static str {
        match (self.running, self.health) {
            (false, _) => "it does not run",
            (true, Health::Unhealthy) => "its health check fails",
            (true, Health::Starting) => "its health check has not passed",
            (true, Health::None | Health::Healthy) if !self.answered => {
                "it does not answer where the proxy would reach it"
            }
            (true, Health::None | Health::Healthy) => "",
        }
    }
}

/// Docker writes the year 1 where a container was made and not started yet.
fn never_started(container: &Container) -> bool {
    container.started_at.is_empty() || container.started_at.starts_with("0001-")
}
