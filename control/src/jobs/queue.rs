//! The queue itself: who waits, who runs, who has ended. Pure.
//!
//! A lane is a project, or all of them; one job of a lane runs at a time. History is bounded.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::log::Log;
use super::model::{JobId, JobReport, JobState, Origin, Outcome, Work};
use super::{CancelToken, JobError};
use crate::status::rfc3339;

/// The most jobs that wait, of all lanes together.
const WAITING: usize = 2_000;
/// The most ended jobs that are remembered.
const ENDED: usize = 200;
/// Of these, the newest that are remembered with all they said.
const ENDED_WITH_NOTES: usize = 50;
/// The most deliveries that are remembered.
const DELIVERIES: usize = 2_000;
/// The most origins that a job lists.
const ORIGINS: usize = 100;
/// How often a webhook's job is begun in all, where the process ended in the middle of it.
const ATTEMPTS: u32 = 2;

/// A project, or `None` for all of them.
pub(super) type LaneName = Option<Arc<str>>;

#[derive(Default)]
pub(super) struct Queue {
    last: u64,
    jobs: BTreeMap<JobId, Entry>,
    lanes: HashMap<LaneName, Lane>,
    /// Those that wait, by what they ask for.
    waiting: HashMap<Work, JobId>,
    ended: VecDeque<JobId>,
    /// Deliveries whose job waits, runs or went well, the oldest first.
    deliveries: VecDeque<(String, JobId)>,
}

struct Entry {
    report: JobReport,
    attempts: u32,
    log: Log,
    cancel: CancelToken,
}

/// Here while somebody runs it.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<JobId>,
    running: bool,
}

/// What became of a command.
pub(super) enum Added {
    /// A job of its own; its lane is to be started where it is idle.
    New { start: Option<LaneName> },
    /// Part of an equal one that waits.
    Merged,
    /// The same delivery has been accepted before.
    Duplicate,
}

/// What became of a cancelled job.
pub(super) enum Removed {
    /// It has been told.
    Told,
    /// It had not begun.
    Ended,
}

/// A job that begins.
pub(super) struct Taken {
    pub(super) report: JobReport,
    pub(super) log: Log,
    pub(super) cancel: CancelToken,
}

/// What outlives the process.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Kept {
    last: u64,
    jobs: Vec<KeptJob>,
    deliveries: Vec<(String, JobId)>,
}

#[derive(Serialize, Deserialize)]
struct KeptJob {
    #[serde(flatten)]
    report: JobReport,
    #[serde(default)]
    attempts: u32,
}

impl Queue {
    /// Adds a command; `Err` says how many wait where that is too many.
    pub(super) fn add(&mut self, work: Work, origin: Origin, now: SystemTime) -> Result<(Added, JobId), usize> {
        if let Some(id) = origin.delivery().and_then(|delivery| self.delivered(delivery)) {
            return Ok((Added::Duplicate, id));
        }
        let lane = work.project().cloned();
        let equal = self.waiting.get(&work).copied();
        let all = self.waiting.len();
        let id = match equal {
            Some(id) => id,
            None if all >= WAITING => return Err(all),
            None => {
                self.last += 1;
                JobId(self.last)
            }
        };
        if let Some(delivery) = origin.delivery() {
            self.deliveries.push_back((delivery.to_owned(), id));
            if self.deliveries.len() > DELIVERIES {
                self.deliveries.pop_front();
            }
        }
        if let Some(entry) = equal.and_then(|id| self.jobs.get_mut(&id)) {
            if entry.report.origins.len() < ORIGINS {
                entry.report.origins.push(origin);
            }
            return Ok((Added::Merged, id));
        }
        self.waiting.insert(work.clone(), id);
        let report = JobReport {
            id,
            work,
            state: JobState::Queued,
            origins: vec![origin],
            created: rfc3339(now),
            started: None,
            ended: None,
            outcome: None,
        };
        self.jobs.insert(id, Entry { report, attempts: 0, log: Log::default(), cancel: CancelToken::new() });
        let held = self.lanes.entry(lane.clone()).or_default();
        held.waiting.push_back(id);
        let start = !std::mem::replace(&mut held.running, true);
        Ok((Added::New { start: start.then_some(lane) }, id))
    }

    /// Begins the next one of a lane; with none, the lane is idle from now on.
    pub(super) fn take(&mut self, lane: &LaneName, now: SystemTime) -> Option<Taken> {
        let id = self.lanes.get_mut(lane).and_then(|lane| lane.waiting.pop_front());
        let Some(entry) = id.and_then(|id| self.jobs.get_mut(&id)) else {
            self.lanes.remove(lane);
            return None;
        };
        self.waiting.remove(&entry.report.work);
        entry.report.state = JobState::Running;
        entry.report.started = Some(rfc3339(now));
        entry.attempts += 1;
        Some(Taken { report: entry.report.clone(), log: entry.log.clone(), cancel: entry.cancel.clone() })
    }

    /// Nobody runs this lane any more; what waits in it goes on waiting.
    pub(super) fn leave(&mut self, lane: &LaneName) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.running = false;
        }
    }

    /// Ends a running one.
    pub(super) fn finish(&mut self, id: JobId, outcome: Outcome, now: SystemTime) -> Option<JobReport> {
        let entry = self.jobs.get_mut(&id)?;
        let state = match outcome.success {
            true => JobState::Done,
            false if entry.cancel.is_cancelled() => JobState::Cancelled,
            false => JobState::Failed,
        };
        self.end(id, state, outcome, now)
    }

    /// Cancels one.
    pub(super) fn cancel(&mut self, id: JobId, force: bool, now: SystemTime) -> Result<Removed, JobError> {
        let entry = self.jobs.get(&id).ok_or(JobError::Unknown(id))?;
        if entry.report.state.is_ended() {
            return Err(JobError::Ended(id));
        }
        if entry.report.origins.len() > 1 && !force {
            return Err(JobError::Shared(id));
        }
        entry.cancel.cancel();
        if entry.report.state == JobState::Running {
            return Ok(Removed::Told);
        }
        self.waiting.remove(&entry.report.work);
        let lane = entry.report.work.project().cloned();
        if let Some(lane) = self.lanes.get_mut(&lane) {
            lane.waiting.retain(|waiting| *waiting != id);
        }
        self.end(id, JobState::Cancelled, Outcome::failed("cancelled before it began"), now);
        Ok(Removed::Ended)
    }

    fn end(&mut self, id: JobId, state: JobState, outcome: Outcome, now: SystemTime) -> Option<JobReport> {
        let entry = self.jobs.get_mut(&id)?;
        entry.report.state = state;
        entry.report.ended = Some(rfc3339(now));
        entry.report.outcome = Some(outcome);
        let report = entry.report.clone();
        if state != JobState::Done {
            // Delivered again, they are tried again.
            self.deliveries.retain(|(_, job)| *job != id);
        }
        self.ended.push_back(id);
        if self.ended.len() > ENDED
            && let Some(oldest) = self.ended.pop_front()
        {
            self.jobs.remove(&oldest);
        }
        let quiet = self.ended.len().checked_sub(ENDED_WITH_NOTES + 1).and_then(|index| self.ended.get(index));
        if let Some(entry) = quiet.and_then(|id| self.jobs.get(id)) {
            entry.log.shrink();
        }
        Some(report)
    }

    pub(super) fn get(&self, id: JobId) -> Option<(JobReport, Log)> {
        self.jobs.get(&id).map(|entry| (entry.report.clone(), entry.log.clone()))
    }

    pub(super) fn list(&self) -> Vec<JobReport> {
        self.jobs.values().rev().map(|entry| entry.report.clone()).collect()
    }

    pub(super) fn delivered(&self, delivery: &str) -> Option<JobId> {
        self.deliveries.iter().rev().find(|(known, _)| known == delivery).map(|(_, id)| *id)
    }

    pub(super) fn kept(&self) -> Kept {
        let jobs = self.jobs.values().map(|entry| KeptJob { report: entry.report.clone(), attempts: entry.attempts });
        Kept { last: self.last, jobs: jobs.collect(), deliveries: self.deliveries.iter().cloned().collect() }
    }

    /// Takes over what an earlier process left. What it was in the middle of is begun again where a webhook asked
    /// for it, as nobody else would ask again; otherwise it has failed.
    pub(super) fn restore(&mut self, kept: Kept, now: SystemTime) {
        self.last = kept.last;
        self.deliveries = kept.deliveries.into();
        for KeptJob { mut report, attempts } in kept.jobs {
            let id = report.id;
            self.last = self.last.max(id.0);
            let interrupted = report.state == JobState::Running;
            let webhook = report.origins.iter().any(|origin| matches!(origin, Origin::Webhook { .. }));
            if interrupted && webhook && attempts < ATTEMPTS {
                report.state = JobState::Queued;
                report.started = None;
            }
            let (state, work) = (report.state, report.work.clone());
            let entry = Entry { report, attempts, log: Log::default(), cancel: CancelToken::new() };
            entry.log.push(Arc::new(super::Note::State(Box::new(entry.report.clone()))));
            self.jobs.insert(id, entry);
            match state {
                JobState::Queued => {
                    self.lanes.entry(work.project().cloned()).or_default().waiting.push_back(id);
                    self.waiting.insert(work, id);
                }
                JobState::Running => {
                    let outcome = Outcome::failed("itsUP ended in the middle of this")
                        .hint("what it had begun is finished or undone at the next start; ask again if need be");
                    if let Some(report) = self.end(id, JobState::Failed, outcome, now)
                        && let Some(entry) = self.jobs.get(&id)
                    {
                        entry.log.push(Arc::new(super::Note::State(Box::new(report))));
                        entry.log.end();
                    }
                }
                _ => {
                    self.ended.push_back(id);
                    if let Some(entry) = self.jobs.get(&id) {
                        entry.log.end();
                    }
                }
            }
        }
    }

    /// Lanes in which somebody waits and nobody runs; from now on somebody does.
    pub(super) fn idle_lanes_with_work(&mut self) -> Vec<LaneName> {
        let idle = self.lanes.iter_mut().filter(|(_, lane)| !lane.running && !lane.waiting.is_empty());
        idle.map(|(name, lane)| {
            lane.running = true;
            name.clone()
        })
        .collect()
    }
}
