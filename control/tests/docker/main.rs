//! The Docker room against the real engine: what is observed stays true, whatever happens to containers, to the
//! connection and to the engine.

mod cable;
mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use itsup_control::docker::{EngineClient, Event, EventKind, watch};
use itsup_control::observed::{Container, ContainerId, Engine, Health, Observed};
use tokio::sync::{mpsc, watch as channel};

use cable::Cable;
use world::World;

/// What is promised is 100 ms; a loaded machine is given more before the test fails.
const GENEROUS: Duration = Duration::from_secs(1);
/// How long anything at all may take.
const LIMIT: Duration = Duration::from_secs(60);

struct Watching {
    seen: channel::Receiver<Arc<Observed>>,
}

impl Watching {
    fn start(engine: EngineClient, network: &str) -> Self {
        let (out, seen) = channel::channel(Arc::default());
        let network = network.to_owned();
        tokio::spawn(async move { watch(engine, &network, out).await });
        Self { seen }
    }

    async fn until(&mut self, what: &str, holds: impl FnMut(&Arc<Observed>) -> bool) -> Arc<Observed> {
        let found = tokio::time::timeout(LIMIT, self.seen.wait_for(holds)).await;
        found.unwrap_or_else(|_| panic!("never seen: {what}")).unwrap().clone()
    }

    async fn up(&mut self) {
        self.until("the engine up", |o| matches!(o.engine, Engine::Up { .. })).await;
    }

    async fn container(&mut self, what: &str, id: &ContainerId, holds: impl Fn(&Container) -> bool) -> Container {
        let found = self.until(what, |o| o.containers.get(id).is_some_and(&holds)).await;
        found.containers[id].clone()
    }
}

/// An event stream of the test's own, to know when an event arrived on this machine.
struct Arrivals(mpsc::UnboundedReceiver<(Instant, Event)>);

impl Arrivals {
    async fn start(engine: &EngineClient, network: &str) -> Self {
        let since = engine.info().await.unwrap().now;
        let mut events = engine.events(network, since).unwrap();
        let (tell, told) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(event)) = events.next().await {
                let _ = tell.send((Instant::now(), event));
            }
        });
        Self(told)
    }

    /// Waits for the last event of this kind that has come for a container since the last call.
    async fn last(&mut self, id: &ContainerId, kind: EventKind) -> Instant {
        let mut last = None;
        while last.is_none() || !self.0.is_empty() {
            let told = tokio::time::timeout(LIMIT, self.0.recv()).await;
            let (at, event) = told.expect("an event").expect("the stream stands");
            if event.container == *id && event.kind == kind {
                last = Some(at);
            }
        }
        last.unwrap()
    }
}

fn prompt(what: &str, seen: Instant, arrived: Instant) {
    let late = seen.saturating_duration_since(arrived);
    println!("{what}: seen {late:?} after its event");
    assert!(late < GENEROUS, "{what}: {late:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_die_restart_and_a_new_address_are_seen_at_once() {
    let Some(world) = World::new("lifecycle") else { return };
    let engine = EngineClient::from_env().unwrap();
    let mut watching = Watching::start(engine.clone(), &world.network);
    watching.up().await;
    let mut arrivals = Arrivals::start(&engine, &world.network).await;

    let id = world.run("shop", "shop-web", &["--label", "itsup.port=3000"]);
    let first = watching.container("start", &id, |c| c.running && c.address.is_some()).await;
    prompt("start", Instant::now(), arrivals.last(&id, EventKind::Changed).await);
    assert_eq!(first.address, world.address(&id));
    assert_eq!((first.port, first.health), (Some(3000), Health::None));
    assert_eq!((first.compose_project.as_ref(), first.compose_service.as_deref()), ("shop", Some("shop-web")));

    let killed = world.docker_later(&["kill", id.as_str()]);
    let dead = watching.container("die", &id, |c| !c.running).await;
    prompt("die", Instant::now(), arrivals.last(&id, EventKind::Died).await);
    assert_eq!(dead.address, None);
    killed.await.unwrap();

    world.docker(&["start", id.as_str()]);
    let again = watching.container("start again", &id, |c| c.running && c.address.is_some()).await;
    assert_ne!(again.endpoint_id(), first.endpoint_id(), "a restart is a new identity");

    let restarted = world.docker_later(&["restart", "-t", "0", id.as_str()]);
    let third = watching
        .container("restart", &id, |c| c.running && c.address.is_some() && c.started_at != again.started_at)
        .await;
    prompt("restart", Instant::now(), arrivals.last(&id, EventKind::Changed).await);
    assert_eq!(third.address, world.address(&id));
    restarted.await.unwrap();

    world.docker(&["network", "disconnect", &world.network, id.as_str()]);
    watching.container("disconnect", &id, |c| c.running && c.address.is_none()).await;
    let squatter = world.run("shop", "shop-other", &[]);
    watching.container("squatter", &squatter, |c| c.address == third.address).await;
    world.docker(&["network", "connect", &world.network, id.as_str()]);
    let moved = watching.container("a new address", &id, |c| c.address.is_some()).await;
    prompt("a new address", Instant::now(), arrivals.last(&id, EventKind::Changed).await);
    assert_ne!(moved.address, third.address);
    assert_eq!((moved.address, moved.endpoint_id()), (world.address(&id), third.endpoint_id()));

    world.docker(&["rename", id.as_str(), &format!("{}-renamed", world.network)]);
    watching.container("rename", &id, |c| c.name.ends_with("-renamed")).await;
    world.docker(&["pause", id.as_str()]);
    watching.container("pause", &id, |c| c.paused && c.running && c.last_choice()).await;
    world.docker(&["unpause", id.as_str()]);
    watching.container("unpause", &id, |c| !c.paused).await;

    world.docker(&["rm", "-f", id.as_str()]);
    watching.until("destroy", |o| !o.containers.contains_key(&id)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_followed() {
    let Some(world) = World::new("health") else { return };
    let mut watching = Watching::start(EngineClient::from_env().unwrap(), &world.network);
    let health = ["--health-cmd", "/idle healthy", "--health-interval", "1s", "--health-retries", "1"];
    let id = world.run("shop", "shop-web", &health);
    watching.container("starting", &id, |c| c.health == Health::Starting).await;
    watching.container("healthy", &id, |c| c.health == Health::Healthy).await;
    world.docker(&["exec", id.as_str(), "/idle", "spoil"]);
    let ill = watching.container("unhealthy", &id, |c| c.health == Health::Unhealthy).await;
    assert!(ill.running && ill.address.is_some(), "an unhealthy container can still be reached");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_compose_containers_are_there_also_those_that_do_not_run() {
    let Some(world) = World::new("kinds") else { return };
    let stranger = world.run_plain(&[]);
    let (one, oneoff) = (world.run("shop", "shop-web", &[]), world.run("shop", "shop-web", &world::ONEOFF));
    let stopped = world.run("shop", "shop-web", &[]);
    world.docker(&["kill", stopped.as_str()]);
    let mut watching = Watching::start(EngineClient::from_env().unwrap(), &world.network);
    watching.up().await;
    let observed = watching.seen.borrow().clone();
    assert!(!observed.containers.contains_key(&stranger));
    let exited = &observed.containers[&stopped];
    assert_eq!((exited.running, exited.address, exited.exit_code), (false, None, Some(137)));
    assert!(observed.containers[&oneoff].oneoff);
    let mine: BTreeSet<ContainerId> = observed.service("shop", "shop-web").map(|c| c.id.clone()).collect();
    assert!(mine.contains(&one) && mine.contains(&stopped) && !mine.contains(&oneoff));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_event_stream_is_mended_and_what_was_missed_is_read() {
    let Some(world) = World::new("cut") else { return };
    let cable = Cable::plug();
    let mut watching = Watching::start(EngineClient::new(Some(&cable.host())).unwrap(), &world.network);
    let kept = world.run("shop", "shop-web", &[]);
    let lost = world.run("shop", "shop-web", &[]);
    watching.container("start", &kept, |c| c.running).await;
    watching.container("start", &lost, |c| c.running).await;

    cable.pull();
    let away = watching.until("the engine away", |o| matches!(o.engine, Engine::Away { .. })).await;
    assert!(away.containers[&kept].running && away.containers[&lost].running, "what was known stays");
    world.docker(&["rm", "-f", lost.as_str()]);
    let new = world.run("shop", "shop-web", &[]);
    let still = watching.seen.borrow().clone();
    assert!(matches!(still.engine, Engine::Away { .. }), "{:?}", still.engine);
    assert!(still.containers[&lost].running && !still.containers.contains_key(&new));
    assert_eq!(still.containers[&kept], away.containers[&kept]);

    cable.mend();
    // In one step: never the engine up with half of what happened.
    let back = watching.until("the engine up again", |o| matches!(o.engine, Engine::Up { .. })).await;
    assert!(back.containers.contains_key(&kept) && back.containers[&new].running);
    assert!(!back.containers.contains_key(&lost));

    // And it follows events again.
    world.docker(&["kill", new.as_str()]);
    watching.container("die after the mend", &new, |c| !c.running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_is_not_there_is_away_until_it_comes() {
    let Some(world) = World::new("late") else { return };
    let cable = Cable::plug();
    cable.pull();
    let mut watching = Watching::start(EngineClient::new(Some(&cable.host())).unwrap(), &world.network);
    let away = watching.until("the engine away", |o| matches!(o.engine, Engine::Away { .. })).await;
    let Engine::Away { why, .. } = &away.engine else { unreachable!() };
    assert!(why.contains(&cable.host()), "{why}");
    cable.mend();
    watching.up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watch_ends_when_nobody_listens() {
    let Some(world) = World::new("end") else { return };
    let (out, mut seen) = channel::channel(Arc::<Observed>::default());
    let (engine, network) = (EngineClient::from_env().unwrap(), world.network.clone());
    let task = tokio::spawn(async move { watch(engine, &network, out).await });
    seen.wait_for(|o| matches!(o.engine, Engine::Up { .. })).await.unwrap();
    drop(seen);
    tokio::time::timeout(LIMIT, task).await.expect("it ends").unwrap();
}
