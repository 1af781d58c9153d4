use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::*;

/// A worker whose jobs wait until they are let go, and that tells what it ran.
#[derive(Default)]
struct Slow {
    ran: Mutex<Vec<Work>>,
    now: Mutex<HashMap<Arc<str>, usize>>,
    go: Arc<Gos>,
}

struct Gos(Semaphore);

impl Default for Gos {
    fn default() -> Self {
        Gos(Semaphore::new(0))
    }
}

impl Worker for Slow {
    fn run<'a>(&'a self, work: &'a Work, progress: &'a Progress, cancel: &'a CancelToken) -> Running<'a> {
        Box::pin(async move {
            self.ran.lock().unwrap().push(work.clone());
            let names: Vec<Arc<str>> = match work.project() {
                Some(project) => vec![project.clone()],
                None => vec!["a".into(), "b".into()],
            };
            for name in names {
                let _gate = progress.enter(&name).await;
                assert_eq!(std::mem::replace(&mut *self.now.lock().unwrap().entry(name.clone()).or_default(), 1), 0);
                progress.say(Event::of_project(name.clone(), Phase::Planning, "looking"));
                let cancelled = tokio::select! {
                    permit = self.go.0.acquire() => { permit.unwrap().forget(); false }
                    () = cancel.cancelled() => true,
                };
                self.now.lock().unwrap().insert(name.clone(), 0);
                match &*name {
                    _ if cancelled => return Outcome::failed("cancelled"),
                    "broken" => panic!("broken on purpose"),
                    "failing" => return Outcome::failed("no"),
                    _ => {}
                }
            }
            Outcome::done("well")
        })
    }
}

struct World {
    folder: tempfile::TempDir,
    worker: Arc<Slow>,
    jobs: Jobs,
}

impl World {
    fn start() -> World {
        World::start_in(tempfile::tempdir().unwrap())
    }

    fn start_in(folder: tempfile::TempDir) -> World {
        let worker = Arc::new(Slow::default());
        let jobs = Jobs::start(folder.path().join("jobs.json"), worker.clone());
        World { folder, worker, jobs }
    }

    fn submit(&self, work: Work) -> Job {
        self.jobs.submit(work, Origin::Cli).unwrap()
    }

    fn deliver(&self, work: Work, delivery: &str) -> Job {
        let origin = Origin::Webhook { event: "package".into(), delivery: Some(delivery.into()) };
        self.jobs.submit(work, origin).unwrap()
    }

    fn go(&self, times: usize) {
        self.worker.go.0.add_permits(times);
    }

    async fn running(&self, id: JobId) {
        let mut follow = self.jobs.follow(id, 0).unwrap();
        while let Some(Seen { note, .. }) = within(follow.next()).await {
            if matches!(&*note, Note::Progress(_)) {
                return;
            }
        }
        panic!("job {id} ended");
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("within a minute")
}

fn rollout(project: &str, service: Option<&str>) -> Work {
    Work::Rollout { project: project.into(), service: service.map(Into::into) }
}

fn apply_all() -> Work {
    Work::Apply { project: None, prune: false, force: false, unpin: false }
}

#[tokio::test]
async fn one_at_a_time_for_each_project_and_equal_waiting_ones_merge() {
    let world = World::start();
    let first = world.submit(rollout("a", None));
    world.running(first.id).await;
    // What runs is not merged with: what it has read may be old.
    let second = world.submit(rollout("a", None));
    assert_ne!(first.id, second.id);
    for _ in 0..9 {
        let again = world.submit(rollout("a", None));
        assert!(again.merged);
        assert_eq!(again.id, second.id);
    }
    let other = world.submit(rollout("a", Some("web")));
    let elsewhere = world.submit(rollout("b", None));
    world.running(elsewhere.id).await;
    assert_eq!(world.jobs.get(second.id).unwrap().state, JobState::Queued);
    world.go(4);
    for job in [&first, &second, &other, &elsewhere] {
        let report = within(job.ended()).await;
        assert_eq!(report.state, JobState::Done, "{report:?}");
    }
    let ran = world.worker.ran.lock().unwrap().clone();
    assert_eq!(ran.iter().filter(|work| **work == rollout("a", None)).count(), 2);
    assert_eq!(ran.len(), 4);
    assert_eq!(world.jobs.get(second.id).unwrap().origins.len(), 10);
}

#[tokio::test]
async fn an_apply_of_all_passes_each_projects_gate_and_blocks_no_other() {
    let world = World::start();
    let a = world.submit(rollout("a", None));
    world.running(a.id).await;
    let all = world.submit(apply_all());
    let b = world.submit(rollout("b", None));
    world.running(b.id).await;
    // The worker itself asserts that nobody else is in a project with it.
    world.go(4);
    for job in [a, all, b] {
        assert_eq!(within(job.ended()).await.state, JobState::Done);
    }
}

#[tokio::test]
async fn late_listeners_hear_it_all() {
    let world = World::start();
    let job = world.submit(rollout("a", None));
    world.running(job.id).await;
    world.go(1);
    within(job.ended()).await;
    let mut follow = world.jobs.follow(job.id, 0).unwrap();
    let mut heard = Vec::new();
    let mut numbers = Vec::new();
    while let Some(Seen { number, note }) = within(follow.next()).await {
        numbers.push(number);
        heard.push(match &*note {
            Note::State(report) => format!("{:?}", report.state),
            Note::Progress(event) => format!("{:?} {}", event.phase, event.job),
        });
    }
    assert_eq!(heard, ["Queued", "Running", "Planning 1", "Done"]);
    let mut rest = world.jobs.follow(job.id, numbers[1]).unwrap();
    assert_eq!(within(rest.next()).await.unwrap().number, numbers[2]);
    // A number that this process never gave: all of it.
    let mut all = world.jobs.follow(job.id, 1_000).unwrap();
    assert_eq!(within(all.next()).await.unwrap().number, numbers[0]);
}

#[tokio::test]
async fn newer_counts_replace_older_ones_for_who_comes_late() {
    let log = Log::default();
    let mut early = log.follow(0);
    let say = |done| {
        let event = Event::of_service("a", "web", Phase::Pulling, "").count(done, 9);
        log.push(Arc::new(Note::Progress(event)));
    };
    let heard = |seen: Option<Seen>| match &*seen.unwrap().note {
        Note::Progress(event) => event.count.unwrap().0,
        Note::State(_) => panic!("no state"),
    };
    say(1);
    assert_eq!(heard(early.next().await), 1);
    (2..=5).for_each(say);
    log.end();
    assert_eq!(heard(early.next().await), 5);
    assert!(early.next().await.is_none());
}

#[tokio::test]
async fn waiting_ones_are_cancelled_at_once_and_running_ones_are_told() {
    let world = World::start();
    let running = world.submit(rollout("a", None));
    world.running(running.id).await;
    let waiting = world.submit(rollout("a", Some("web")));
    assert_eq!(world.jobs.cancel(waiting.id, false).unwrap().state, JobState::Cancelled);
    assert_eq!(within(waiting.ended()).await.state, JobState::Cancelled);
    assert_eq!(world.jobs.cancel(waiting.id, false), Err(JobError::Ended(waiting.id)));
    world.jobs.cancel(running.id, false).unwrap();
    assert_eq!(within(running.ended()).await.state, JobState::Cancelled);
    assert_eq!(world.jobs.cancel(JobId(99), false), Err(JobError::Unknown(JobId(99))));

    let blocker = world.submit(rollout("a", None));
    world.running(blocker.id).await;
    let shared = world.submit(rollout("a", Some("web")));
    world.deliver(rollout("a", Some("web")), "d");
    assert_eq!(world.jobs.cancel(shared.id, false), Err(JobError::Shared(shared.id)));
    assert_eq!(world.jobs.cancel(shared.id, true).unwrap().state, JobState::Cancelled);
    assert_eq!(world.jobs.delivered("d"), None);
}

#[tokio::test]
async fn a_panic_is_that_jobs_failure_alone() {
    let world = World::start();
    world.go(2);
    let broken = world.submit(rollout("broken", None));
    assert_eq!(within(broken.ended()).await.state, JobState::Failed);
    let next = world.submit(rollout("broken", Some("x")));
    assert_eq!(within(next.ended()).await.state, JobState::Failed, "the gate is free again");
}

#[tokio::test]
async fn deliveries_are_known_across_restarts_unless_they_failed() {
    let world = World::start();
    world.go(2);
    within(world.deliver(rollout("a", None), "good").ended()).await;
    within(world.deliver(rollout("failing", None), "bad").ended()).await;
    let running = world.deliver(rollout("b", None), "running");
    world.running(running.id).await;
    let waiting = world.deliver(rollout("b", Some("web")), "waiting");
    let cli = world.submit(rollout("c", None));
    world.running(cli.id).await;
    within(world.jobs.saved()).await;
    assert!(world.deliver(rollout("b", Some("web")), "waiting").duplicate);
    assert!(world.deliver(rollout("a", None), "good").duplicate);
    let known = |world: &World| ["good", "bad", "running", "waiting"].map(|id| world.jobs.delivered(id).is_some());
    assert_eq!(known(&world), [true, false, true, true]);

    // As after kill -9: a copy of what is on disk.
    let again = tempfile::tempdir().unwrap();
    std::fs::copy(world.folder.path().join("jobs.json"), again.path().join("jobs.json")).unwrap();
    let world = World::start_in(again);
    assert_eq!(known(&world), [true, false, true, true]);
    assert_eq!(world.jobs.get(cli.id).unwrap().state, JobState::Failed);
    world.go(2);
    for id in [running.id, waiting.id] {
        let mut follow = world.jobs.follow(id, 0).unwrap();
        while within(follow.next()).await.is_some() {}
        assert_eq!(world.jobs.get(id).unwrap().state, JobState::Done);
    }
    let next = world.submit(rollout("a", None));
    assert!(next.id > cli.id, "numbers go on");
}

#[tokio::test]
async fn closing_leaves_what_waits_to_the_next_process() {
    let world = World::start();
    let running = world.submit(rollout("a", None));
    world.running(running.id).await;
    let waiting = world.submit(rollout("a", Some("web")));
    let closing = tokio::spawn({
        let jobs = world.jobs.clone();
        async move { jobs.close().await }
    });
    world.go(1);
    within(closing).await.unwrap();
    assert_eq!(world.jobs.get(running.id).unwrap().state, JobState::Done);
    assert!(matches!(world.jobs.submit(apply_all(), Origin::Cli), Err(JobError::Closed)));
    let world = World::start_in(world.folder);
    world.running(waiting.id).await;
}

#[tokio::test]
async fn history_and_queue_are_bounded() {
    let world = World::start();
    world.go(300);
    for n in 0..300 {
        within(world.submit(rollout("a", Some(&n.to_string()))).ended()).await;
    }
    assert_eq!(world.jobs.list().len(), 200);
    assert!(world.jobs.get(JobId(1)).is_none());
    let blocker = world.submit(rollout("a", None));
    world.running(blocker.id).await;
    for n in 0..2_000 {
        world.submit(rollout("a", Some(&n.to_string())));
    }
    let one_more = world.jobs.submit(rollout("b", None), Origin::Cli);
    assert!(matches!(one_more, Err(JobError::Full(2_000))));
}
