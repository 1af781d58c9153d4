//! Jobs: commands that were accepted, run one at a time for each project, with what they have to say.
//!
//! Knows the queue and nothing of what a command does: a [`Worker`] does it. Waiting commands that are equal
//! become one. What is queued, and which deliveries of webhooks are done, outlives the process.

mod gates;
mod log;
mod model;
mod queue;
mod store;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;
pub use tokio_util::sync::CancellationToken as CancelToken;

pub use gates::{Gate, Gates};
pub use log::{Follow, Seen};
pub use model::{Event, JobId, JobReport, JobState, Note, Origin, Outcome, Phase, Work};

use log::Log;
use queue::{Added, Queue, Removed};
use store::Store;

/// What runs commands.
pub trait Worker: Send + Sync + 'static {
    /// Runs one. A command of one project has that project's gate already; one of all projects passes each gate by
    /// [`Progress::enter`]. A cancelled token is obeyed as long as nothing has been switched.
    fn run<'a>(&'a self, work: &'a Work, progress: &'a Progress, cancel: &'a CancelToken) -> Running<'a>;
}

/// A command under way.
pub type Running<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// Why a command was not accepted, or not cancelled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// Too many wait.
    #[error("too many commands wait already ({0})")]
    Full(usize),
    /// The process ends.
    #[error("itsup is shutting down")]
    Closed,
    /// There is none of this number, or it is forgotten.
    #[error("there is no job {0}")]
    Unknown(JobId),
    /// It has ended.
    #[error("job {0} has ended already")]
    Ended(JobId),
    /// Others have asked for the same.
    #[error("others have asked for what job {0} does too, so it goes on")]
    Shared(JobId),
}

/// The queue of commands. Cheap to clone.
#[derive(Clone)]
pub struct Jobs {
    inner: Arc<Inner>,
}

struct Inner {
    queue: Mutex<Queue>,
    gates: Gates,
    worker: Arc<dyn Worker>,
    all: Log,
    store: Store,
    closed: AtomicBool,
    /// Accepts and does not begin.
    paused: AtomicBool,
    /// How many run right now that an upgrade has to wait for.
    running: watch::Sender<usize>,
}

/// A command that was accepted.
#[derive(Clone)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// How it stood when it was accepted.
    pub report: JobReport,
    /// Whether an equal one was waiting, which this is now part of.
    pub merged: bool,
    /// Whether this very delivery of a webhook was accepted before, as this job.
    pub duplicate: bool,
    log: Log,
}

impl Job {
    /// Everything that it has said and will say.
    pub fn follow(&self) -> Follow {
        self.log.follow(0)
    }

    /// Waits until it has ended.
    pub async fn ended(&self) -> JobReport {
        let mut follow = self.follow();
        let mut last = self.report.clone();
        while let Some(Seen { note, .. }) = follow.next().await {
            if let Note::State(report) = &*note {
                last = (**report).clone();
            }
        }
        last
    }
}

impl Jobs {
    /// Opens the queue and goes on with what the last process left waiting. Inside a tokio runtime.
    ///
    /// What cannot be read is forgotten, loudly: a queue is no reason not to serve.
    pub fn start(path: PathBuf, worker: Arc<dyn Worker>) -> Jobs {
        let mut queue = Queue::default();
        match store::load(&path) {
            Ok(kept) => queue.restore(kept, SystemTime::now()),
            Err(error) => tracing::error!("{}: {error}; earlier jobs are forgotten", path.display()),
        }
        let lanes = queue.idle_lanes_with_work();
        let store = Store::new(path);
        let changed = store.changes();
        let inner = Arc::new(Inner {
            queue: Mutex::new(queue),
            gates: Gates::default(),
            worker,
            all: Log::default(),
            store,
            closed: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            running: watch::Sender::new(0),
        });
        tokio::spawn(store::run(Arc::downgrade(&inner), changed));
        inner.store.touch();
        for lane in lanes {
            tokio::spawn(run_lane(inner.clone(), lane));
        }
        Jobs { inner }
    }

    /// Accepts a command: a new job, or the waiting one that is equal to it.
    pub fn submit(&self, work: Work, origin: Origin) -> Result<Job, JobError> {
        let (added, id, report, log) = {
            let mut queue = self.inner.queue();
            if self.inner.closed.load(Ordering::Acquire) {
                return Err(JobError::Closed);
            }
            let (added, id) = queue.add(work, origin, SystemTime::now()).map_err(JobError::Full)?;
            // Of a job that went well long ago, only its deliveries are remembered.
            let (report, log) = queue.get(id).ok_or(JobError::Ended(id))?;
            if !matches!(added, Added::Duplicate) {
                self.inner.say_state(&log, &report);
            }
            (added, id, report, log)
        };
        self.inner.store.touch();
        if let Added::New { start: Some(lane) } = &added {
            tokio::spawn(run_lane(self.inner.clone(), lane.clone()));
        }
        let (merged, duplicate) = (matches!(added, Added::Merged), matches!(added, Added::Duplicate));
        Ok(Job { id, report, merged, duplicate, log })
    }

    /// Waits until everything that has been accepted is on disk.
    pub async fn saved(&self) {
        self.inner.store.saved().await;
    }

    /// All that are known, the newest first.
    pub fn list(&self) -> Vec<JobReport> {
        self.inner.queue().list()
    }

    /// One of them.
    pub fn get(&self, id: JobId) -> Option<JobReport> {
        self.inner.queue().get(id).map(|(report, _)| report)
    }

    /// What one of them says, after this number of its stream; 0 is everything.
    pub fn follow(&self, id: JobId, after: u64) -> Option<Follow> {
        self.inner.queue().get(id).map(|(_, log)| log.follow(after))
    }

    /// What all of them say from now on, or after this number.
    pub fn follow_all(&self, after: Option<u64>) -> Follow {
        match after {
            Some(after) => self.inner.all.follow(after),
            None => self.inner.all.follow_new(),
        }
    }

    /// The job that this delivery of a webhook has led to, unless that failed: then it may be tried again.
    pub fn delivered(&self, delivery: &str) -> Option<JobId> {
        self.inner.queue().delivered(delivery)
    }

    /// Cancels one: a waiting one ends at once, a running one before it switches. Where others have asked for the
    /// same, that needs `force`.
    pub fn cancel(&self, id: JobId, force: bool) -> Result<JobReport, JobError> {
        let report = {
            let mut queue = self.inner.queue();
            let removed = queue.cancel(id, force, SystemTime::now())?;
            let (report, log) = queue.get(id).ok_or(JobError::Unknown(id))?;
            if let Removed::Ended = removed {
                self.inner.say_state(&log, &report);
                log.end();
            }
            report
        };
        self.inner.store.touch();
        Ok(report)
    }

    /// The gates of all projects: one change at a time passes each.
    pub fn gates(&self) -> &Gates {
        &self.inner.gates
    }

    /// Begins nothing more, and waits until what runs has ended, but for what asks for this itself. What is accepted
    /// meanwhile waits.
    pub async fn pause(&self) {
        {
            let _queue = self.inner.queue();
            self.inner.paused.store(true, Ordering::Release);
        }
        let mut running = self.inner.running.subscribe();
        // The sender is in `inner`, which we hold.
        let _ = running.wait_for(|running| *running == 0).await;
    }

    /// Goes on after [`Jobs::pause`], and [`Jobs::close`].
    pub fn resume(&self) {
        let lanes = {
            let mut queue = self.inner.queue();
            self.inner.closed.store(false, Ordering::Release);
            self.inner.store.take_back();
            self.inner.paused.store(false, Ordering::Release);
            queue.idle_lanes_with_work()
        };
        for lane in lanes {
            tokio::spawn(run_lane(self.inner.clone(), lane));
        }
    }

    /// Accepts and starts nothing more, and waits until what runs has ended and the queue is on disk. What waits is
    /// the next process's.
    pub async fn close(&self) {
        {
            // With the queue locked: whoever begins a job has looked at this first.
            let _queue = self.inner.queue();
            self.inner.closed.store(true, Ordering::Release);
        }
        let mut running = self.inner.running.subscribe();
        // The sender is in `inner`, which we hold.
        let _ = running.wait_for(|running| *running == 0).await;
        self.inner.store.touch();
        self.saved().await;
        // The file is the next process's from here on.
        self.inner.store.give_away();
    }
}

impl Inner {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Every change of the queue is whole before anything in it can panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Said with the queue locked, so that notes come in the order of what happened.
    fn say_state(&self, log: &Log, report: &JobReport) {
        let note = Arc::new(Note::State(Box::new(report.clone())));
        log.push(note.clone());
        self.all.push(note);
    }
}

/// Runs the commands of one lane until none waits.
async fn run_lane(inner: Arc<Inner>, lane: queue::LaneName) {
    loop {
        // First the gate, then the job: what waits at the gate can still be merged and cancelled.
        let gate = match &lane {
            Some(project) => Some(inner.gates.enter(project).await),
            None => None,
        };
        let (taken, counted) = {
            let mut queue = inner.queue();
            if inner.closed.load(Ordering::Acquire) || inner.paused.load(Ordering::Acquire) {
                queue.leave(&lane);
                return;
            }
            let Some(taken) = queue.take(&lane, SystemTime::now()) else { return };
            let counted = !taken.report.work.replaces_the_process();
            if counted {
                inner.running.send_modify(|running| *running += 1);
            }
            inner.say_state(&taken.log, &taken.report);
            (taken, counted)
        };
        inner.store.touch();
        let id = taken.report.id;
        let log = taken.log.clone();
        // A task of its own: a panic in it is that job's failure alone.
        let run = tokio::spawn({
            let inner = inner.clone();
            let held = lane.clone();
            async move {
                let all = inner.all.clone();
                let log = taken.log;
                let say = move |event: Event| {
                    let note = Arc::new(Note::Progress(event));
                    log.push(note.clone());
                    all.push(note);
                };
                let progress = Progress { job: id, held, gates: inner.gates.clone(), say: Arc::new(say) };
                inner.worker.run(&taken.report.work, &progress, &taken.cancel).await
            }
        });
        let outcome = run.await.unwrap_or_else(|error| {
            tracing::error!(%id, "a job broke: {error}");
            Outcome::failed("itsUP itself broke down in this job; its log says where")
        });
        drop(gate);
        {
            let mut queue = inner.queue();
            if let Some(report) = queue.finish(id, outcome, SystemTime::now()) {
                inner.say_state(&log, &report);
            }
            log.end();
        }
        inner.store.touch();
        if counted {
            inner.running.send_modify(|running| *running -= 1);
        }
    }
}

/// By what a command tells how far it is. Cheap to clone.
#[derive(Clone)]
pub struct Progress {
    job: JobId,
    held: queue::LaneName,
    gates: Gates,
    say: Arc<dyn Fn(Event) + Send + Sync>,
}

impl Progress {
    /// Progress without a queue: where no itsUP runs, and in tests.
    pub fn alone(say: impl Fn(Event) + Send + Sync + 'static) -> Progress {
        Progress { job: JobId(0), held: None, gates: Gates::default(), say: Arc::new(say) }
    }

    /// The job that this is.
    pub fn job(&self) -> JobId {
        self.job
    }

    /// Tells how far it is.
    pub fn say(&self, event: Event) {
        let event = Event { job: self.job, time: crate::status::rfc3339(SystemTime::now()), ..event };
        (self.say)(event);
    }

    /// Waits for its turn with a project, which lasts until the gate is dropped.
    pub async fn enter(&self, project: &str) -> Gate {
        if self.held.as_deref() == Some(project) { Gate::held() } else { self.gates.enter(project).await }
    }
}
