//! Against an engine that does what no real one can be made to do on demand.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, watch as channel};

use super::*;
use crate::observed::{LABEL_PROJECT, LABEL_SERVICE};

const NETWORK: &str = "testnet";
const STARTED: &str = "2026-11-22T21:00:01Z";
const LIMIT: Duration = Duration::from_secs(20);

/// How the engine answers when asked for a container.
#[derive(Clone)]
enum Answering {
    At(Value),
    /// Not before it answers otherwise: then with what it was when it was asked.
    Hanging(Value),
    Error,
}

/// An engine of the tests' own.
struct Fake {
    folder: TempDir,
    containers: channel::Sender<BTreeMap<String, Answering>>,
    events: broadcast::Sender<String>,
    /// Containers in the order in which they were asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn start() -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("docker.sock")).unwrap();
        let (containers, events) = (channel::Sender::default(), broadcast::channel(64).0);
        let fake = Arc::new(Self { folder, containers, events, asked: Arc::default() });
        let serving = fake.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let fake = serving.clone();
                tokio::spawn(async move { fake.serve(stream).await });
            }
        });
        fake
    }

    fn watched(&self, pace: Pace) -> channel::Receiver<Arc<Observed>> {
        let engine = EngineClient::new(Some(&format!("unix://{}/docker.sock", self.folder.path().display()))).unwrap();
        let (out, seen) = channel::channel(Arc::default());
        tokio::spawn(async move { watch_at(pace, engine, NETWORK, out).await });
        seen
    }

    fn put(&self, id: &str, answering: Answering) {
        self.containers.send_modify(|all| drop(all.insert(id.to_owned(), answering)));
    }

    /// Tells of an event so many seconds after 21:00:00, once somebody listens.
    async fn tell(&self, id: &str, action: &str, seconds: i128) {
        while self.events.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        let at = unix_nanos("2026-11-22T21:00:00Z").unwrap() + seconds * 1_000_000_000;
        let actor = json!({ "ID": id, "Attributes": { LABEL_PROJECT: "shop" } });
        let event = json!({ "Type": "container", "Action": action, "Actor": actor, "timeNano": at as i64 });
        self.events.send(format!("{event}\n")).unwrap();
    }

    /// Waits until a container has been asked for so often.
    async fn asked(&self, id: &str, times: usize) {
        let often = || self.asked.lock().unwrap().iter().filter(|asked| *asked == id).count() >= times;
        let wait = async {
            while !often() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("asked");
    }

    async fn serve(&self, mut stream: UnixStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
        }
        let head = String::from_utf8(head).unwrap();
        let target = head.split(' ').nth(1).unwrap();
        let path = target.split('?').next().unwrap();
        let (status, body) = match path {
            "/events" => return self.stream_events(stream).await,
            "/info" => (200, json!({ "ServerVersion": "99", "SystemTime": "2026-11-22T22:00:00.5Z" })),
            "/containers/json" => {
                let ids: Vec<Value> = self.containers.borrow().keys().map(|id| json!({ "Id": id })).collect();
                (200, ids.into())
            }
            path => self.container(path.trim_start_matches("/containers/").trim_end_matches("/json")).await,
        };
        let body = body.to_string();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
    }

    async fn container(&self, id: &str) -> (u16, Value) {
        self.asked.lock().unwrap().push(id.to_owned());
        let mut containers = self.containers.subscribe();
        let now = containers.borrow_and_update().get(id).cloned();
        match now {
            Some(Answering::At(value)) => (200, value),
            Some(Answering::Hanging(value)) => {
                let moved = containers.wait_for(|all| !matches!(all.get(id), Some(Answering::Hanging(_)))).await;
                drop(moved);
                (200, value)
            }
            Some(Answering::Error) => (500, json!({ "message": "on purpose" })),
            None => (404, json!({ "message": "no such container" })),
        }
    }

    async fn stream_events(&self, mut stream: UnixStream) {
        let mut events = self.events.subscribe();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        while let Ok(event) = events.recv().await {
            if event.is_empty() {
                let _ = stream.write_all(b"0\r\n\r\n").await;
                return;
            }
            let _ = stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await;
        }
    }
}

fn body(id: &str, running: bool, started: &str) -> Value {
    json!({
        "Id": id, "Name": format!("/{id}"),
        "State": { "Running": running, "StartedAt": started },
        "Config": { "Labels": { LABEL_PROJECT: "shop", LABEL_SERVICE: "shop-web" } },
        "NetworkSettings": { "Networks": { NETWORK: { "IPAddress": "172.18.0.2" } } },
    })
}

fn running(id: &str) -> Answering {
    Answering::At(body(id, true, STARTED))
}

async fn until(
    seen: &mut channel::Receiver<Arc<Observed>>,
    what: &str,
    holds: impl FnMut(&Arc<Observed>) -> bool,
) -> Arc<Observed> {
    let found = tokio::time::timeout(LIMIT, seen.wait_for(holds)).await;
    found.unwrap_or_else(|_| panic!("never seen: {what}")).unwrap().clone()
}

async fn up(seen: &mut channel::Receiver<Arc<Observed>>) -> Arc<Observed> {
    until(seen, "up", |o| matches!(o.engine, Engine::Up { .. })).await
}

fn runs(observed: &Observed, id: &str) -> Option<bool> {
    observed.containers.get(&ContainerId::from(id)).map(|c| c.running)
}

#[tokio::test]
async fn a_death_is_shown_before_the_engine_answers() {
    let fake = Fake::start();
    fake.put("a", running("a"));
    let mut seen = fake.watched(PACE);
    up(&mut seen).await;
    fake.put("a", Answering::Hanging(body("a", false, STARTED)));
    fake.tell("a", "die", 2).await;
    let dead = until(&mut seen, "death", |o| runs(o, "a") == Some(false)).await;
    assert_eq!(dead.containers[&"a".into()].address, None);
}

#[tokio::test]
async fn the_news_of_an_earlier_death_harms_nobody() {
    let fake = Fake::start();
    fake.put("a", running("a"));
    let mut seen = fake.watched(PACE);
    up(&mut seen).await;
    fake.tell("a", "die", 0).await;
    fake.asked("a", 2).await;
    fake.put("b", running("b"));
    fake.tell("b", "start", 3).await;
    until(&mut seen, "b", |o| {
        assert_eq!(runs(o, "a"), Some(true));
        runs(o, "b") == Some(true)
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_an_event_overtook_does_not_count() {
    let fake = Fake::start();
    fake.put("a", running("a"));
    let mut seen = fake.watched(PACE);
    up(&mut seen).await;
    // Asked while it ran; dead by the time the answer comes.
    fake.put("a", Answering::Hanging(body("a", true, STARTED)));
    fake.tell("a", "update", 2).await;
    fake.asked("a", 2).await;
    fake.tell("a", "die", 3).await;
    until(&mut seen, "death", |o| runs(o, "a") == Some(false)).await;
    fake.put("a", Answering::At(body("a", false, STARTED)));
    fake.asked("a", 3).await;
    fake.put("b", running("b"));
    fake.tell("b", "start", 4).await;
    until(&mut seen, "b", |o| {
        assert_eq!(runs(o, "a"), Some(false));
        runs(o, "b") == Some(true)
    })
    .await;
}

#[tokio::test]
async fn a_container_that_hangs_or_fails_takes_nobody_along() {
    let fake = Fake::start();
    fake.put("a", running("a"));
    fake.put("fails", Answering::Error);
    fake.put("hangs", Answering::Hanging(body("hangs", true, STARTED)));
    let mut seen = fake.watched(Pace { read_again: Duration::from_millis(50), ..PACE });
    let first = up(&mut seen).await;
    assert_eq!((runs(&first, "a"), runs(&first, "fails"), runs(&first, "hangs")), (Some(true), None, None));
    fake.put("fails", running("fails"));
    until(&mut seen, "mended", |o| runs(o, "fails") == Some(true)).await;
    fake.put("hangs", running("hangs"));
    until(&mut seen, "freed", |o| runs(o, "hangs") == Some(true)).await;

    // One that is known stays as it was.
    fake.put("a", Answering::Error);
    fake.tell("a", "update", 5).await;
    fake.asked("a", 3).await;
    assert_eq!(runs(&seen.borrow(), "a"), Some(true));
    assert!(matches!(seen.borrow().engine, Engine::Up { .. }));
}

#[tokio::test]
async fn a_full_read_finds_what_no_event_told() {
    let fake = Fake::start();
    fake.put("a", running("a"));
    fake.put("b", running("b"));
    let mut seen = fake.watched(Pace { full_read: Duration::from_millis(50), ..PACE });
    up(&mut seen).await;
    fake.put("a", Answering::At(body("a", true, "2026-11-22T21:00:09Z")));
    fake.put("c", running("c"));
    fake.containers.send_modify(|all| drop(all.remove("b")));
    let found = until(&mut seen, "all", |o| runs(o, "c").is_some() && runs(o, "b").is_none()).await;
    until(&mut seen, "a", |o| o.containers[&"a".into()].started_at == "2026-11-22T21:00:09Z").await;
    assert!(matches!(found.engine, Engine::Up { .. }));
}

#[tokio::test]
async fn an_event_stream_that_ends_is_begun_anew_and_nothing_is_lost_meanwhile() {
    let fake = Fake::start();
    fake.put("a", running("a"));
    let mut seen = fake.watched(PACE);
    up(&mut seen).await;
    fake.tell("a", "update", 2).await;
    fake.asked("a", 2).await;
    fake.put("a", Answering::At(body("a", false, STARTED)));
    fake.put("b", running("b"));
    fake.events.send(String::new()).unwrap();
    let away = until(&mut seen, "away", |o| matches!(o.engine, Engine::Away { .. })).await;
    let Engine::Away { since, why } = &away.engine else { unreachable!() };
    assert!(*since > UNIX_EPOCH && why.contains("event stream"), "{why}");
    assert_eq!((runs(&away, "a"), runs(&away, "b")), (Some(true), None));
    let back = up(&mut seen).await;
    assert_eq!((runs(&back, "a"), runs(&back, "b")), (Some(false), Some(true)), "in one step");
}
