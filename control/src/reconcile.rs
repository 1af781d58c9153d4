//! `ITSUP_RECONCILE`: applies everything now and then, as deliveries of webhooks get lost.
//!
//! An apply touches only what has changed: images that have moved, and what db.yml says otherwise.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::control::Control;
use crate::jobs::{Jobs, Origin, Work};

/// How soon a new setting is noticed.
const LOOK: Duration = Duration::from_secs(5);

/// Asks for an apply each time that the interval has passed, as long as it is set.
pub async fn run(control: Control, jobs: Jobs) {
    let every = || control.settings().and_then(|settings| settings.api_rules.reconcile);
    run_every(every, jobs, LOOK).await;
}

async fn run_every(every: impl Fn() -> Option<Duration>, jobs: Jobs, look: Duration) {
    let mut last = Instant::now();
    loop {
        sleep(look).await;
        match every() {
            None => last = Instant::now(),
            Some(every) if last.elapsed() >= every => {
                last = Instant::now();
                let work = Work::Apply { project: None, prune: false, force: false, unpin: false };
                if let Err(error) = jobs.submit(work, Origin::Timer) {
                    tracing::warn!("ITSUP_RECONCILE: {error}");
                }
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::jobs::{CancelToken, JobState, Outcome, Progress, Running, Worker};

    struct Done;

    impl Worker for Done {
        fn run<'a>(&'a self, _work: &'a Work, _progress: &'a Progress, _cancel: &'a CancelToken) -> Running<'a> {
            Box::pin(async { Outcome::done("well") })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn applies_as_often_as_it_is_set() {
        let folder = tempfile::tempdir().unwrap();
        let jobs = Jobs::start(folder.path().join("jobs.json"), Arc::new(Done));
        let mut heard = jobs.follow_all(None);
        let hour = Duration::from_secs(3600);
        let start = Instant::now();
        // Set after two hours.
        let every = move || (start.elapsed() >= 2 * hour).then_some(hour);
        let run = tokio::spawn(run_every(every, jobs.clone(), LOOK));
        let mut done = 0;
        while done < 2 {
            let seen = heard.next().await.unwrap();
            if let crate::jobs::Note::State(report) = &*seen.note {
                assert_eq!(report.origins, [Origin::Timer]);
                done += usize::from(report.state == JobState::Done);
            }
        }
        assert!(start.elapsed() >= 4 * hour - LOOK && start.elapsed() < 5 * hour, "{:?}", start.elapsed());
        run.abort();
    }
}
