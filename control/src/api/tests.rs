use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use itsup_proxy::{AccessLogTarget, Config, Limits, Proxy};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::*;
use crate::control::{Start, read_settings};
use crate::jobs::{CancelToken, Event, Outcome, Phase, Progress, Running, Work, Worker};
use crate::settings::{Root, Sources};
use crate::upgrade::Upgrades;

mod endpoints;
mod hooks;
mod writes;

const GOOD: &str = "projects:\n  - name: hello\n    domain: hello.localhost\n";
const TWO: &str =
    "projects:\n  - name: hello\n    domain: hello.localhost\n  - name: more\n    domain: more.localhost\n";

/// Says what it was asked to do, and has done it.
struct Echo;

impl Worker for Echo {
    fn run<'a>(&'a self, work: &'a Work, progress: &'a Progress, _cancel: &'a CancelToken) -> Running<'a> {
        Box::pin(async move {
            progress.say(Event::of_all(Phase::Planning, work.to_string()));
            Outcome::done(work.to_string())
        })
    }
}

/// Control with all of its doors, on a root of its own.
struct World {
    folder: tempfile::TempDir,
    root: Root,
    proxy: Proxy,
    tcp: SocketAddr,
    _claim: Claim,
    _close: watch::Sender<bool>,
}

impl World {
    async fn start(db: &[u8]) -> World {
        let folder = tempfile::tempdir().unwrap();
        World::start_in(folder, db).await.unwrap()
    }

    async fn start_in(folder: tempfile::TempDir, db: &[u8]) -> Result<World, crate::control::Refused> {
        let root = Root::new(folder.path());
        std::fs::write(root.db(), db).unwrap();
        if !root.env().exists() {
            std::fs::write(root.env(), "ITSUP_DOCKER=off\n").unwrap();
        }
        let claim = Claim::take(&root).unwrap();
        let cores = NonZeroUsize::MIN;
        let mut sources = Sources::default();
        let settings = read_settings(&root, &mut sources, cores).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let access_log = AccessLogTarget::Off;
        let proxy =
            Proxy::bind(Config { http: any, https: any, threads: cores, access_log, limits: Limits::default() });
        let proxy = proxy.unwrap();
        let listener = TcpListener::bind(any).await.unwrap();
        let tcp = listener.local_addr().unwrap();
        let (pen, elders) = Default::default();
        let (upgrades, _) = Upgrades::channel();
        let start = Start { proxy: proxy.clone(), settings, sources, cores, api: Some(tcp), pen, elders, upgrades };
        let control = Control::start(start).await?;
        let api = Api::new(control, Jobs::start(root.jobs(), Arc::new(Echo)));
        let close = watch::Sender::new(false);
        let socket = |listener| UnixListener::from_std(listener).unwrap();
        tokio::spawn(serve_control(socket(claim.bind_control(&root).unwrap()), api.clone(), close.subscribe()));
        tokio::spawn(serve_proxy(socket(claim.bind_api(&root).unwrap()), api.clone(), close.subscribe()));
        tokio::spawn(serve_tcp(listener, api, close.subscribe()));
        Ok(World { folder, root, proxy, tcp, _claim: claim, _close: close })
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    async fn control(&self, method: &str, path: &str) -> (u16, Value) {
        let stream = UnixStream::connect(self.root.socket()).await.unwrap();
        let (status, body) = ask(stream, method, path, &[]).await;
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    async fn post_control(&self, path: &str, body: &str) -> (u16, Value) {
        let stream = UnixStream::connect(self.root.socket()).await.unwrap();
        let json = [("content-type", "application/json")];
        let (status, body) = send(stream, "POST", path, &json, body).await;
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    async fn reload(&self) -> (u16, Value) {
        self.control("POST", "/reload").await
    }

    async fn get_tcp(&self, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        ask(TcpStream::connect(self.tcp).await.unwrap(), "GET", path, headers).await
    }

    async fn get_proxy(&self, path: &str) -> (u16, String) {
        ask(UnixStream::connect(self.root.api_socket()).await.unwrap(), "GET", path, &[]).await
    }

    fn hosts(&self) -> Vec<String> {
        self.proxy.table().hosts.keys().map(ToString::to_string).collect()
    }
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (u16, String) {
    send(stream, method, path, headers, "").await
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String) {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = axum::http::Request::builder().method(method).uri(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = sender.send_request(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_says_what_it_did_and_an_equal_one_does_nothing() {
    let world = World::start(GOOD.as_bytes()).await;
    let before = world.proxy.generation();
    assert_eq!(world.hosts(), ["hello.localhost"]);
    assert!(world.proxy.certs().find("hello.localhost").unwrap().covers("hello.localhost"));
    let hello = world.proxy.certs().find("hello.localhost").unwrap();

    let (status, report) = world.reload().await;
    assert_eq!((status, &report["changed"], &report["generation"]), (200, &false.into(), &before.into()), "{report}");

    world.write("db.yml", TWO);
    let (status, report) = world.reload().await;
    assert_eq!((status, &report["changed"], &report["generation"]), (200, &true.into(), &(before + 1).into()));
    assert_eq!(strings(&report["added"]), ["more.localhost"]);
    assert!(world.proxy.certs().find("more.localhost").is_some());
    let again = world.proxy.certs().find("hello.localhost").unwrap();
    assert!(std::sync::Arc::ptr_eq(&hello, &again), "a reload makes only what is new");

    world.write("db.yml", GOOD);
    let (_, report) = world.reload().await;
    assert_eq!(strings(&report["removed"]), ["more.localhost"]);
    assert!(world.proxy.certs().find("more.localhost").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_changes_nothing_and_all_faults_are_told() {
    let world = World::start(GOOD.as_bytes()).await;
    let table = world.proxy.table();
    world.write("db.yml", "projects:\n  - name: hello\n    domian: hello.localhost\n");
    world.write(".env", "ITSUP_DOCKER=off\nITSUP_GRACE=soon\n");
    let (status, report) = world.reload().await;
    assert_eq!(status, 422);
    let files: Vec<_> = report["diagnostics"].as_array().unwrap().iter().map(|d| d["file"].as_str().unwrap()).collect();
    assert!(
        files.iter().any(|file| file.ends_with("db.yml")) && files.iter().any(|file| file.ends_with(".env")),
        "{report}"
    );
    assert!(report["detail"].as_str().unwrap().contains("nothing was changed"), "{report}");
    assert_eq!(*world.proxy.table(), *table);
    let (_, status) = world.control("GET", "/status").await;
    assert_eq!(status["reloads"]["refused"], 1);

    // The next good one is taken, and what needs a restart is said.
    world.write("db.yml", GOOD);
    world.write(".env", "ITSUP_DOCKER=off\nITSUP_HTTP=127.0.0.1:1\nITSUP_PUBLIC_HTTPS_PORT=8443\n");
    let (status, report) = world.reload().await;
    assert_eq!(status, 200, "{report}");
    assert_eq!(strings(&report["warnings"]), ["ITSUP_HTTP has changed, which needs a restart"]);
    assert_eq!(world.proxy.table().edge.public_https_port, 8443);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_start_a_faulty_project_is_left_out_and_the_others_serve() {
    let world =
        World::start(format!("{GOOD}  - name: bad\n    domain: bad.localhost\n    nonsense: 1\n").as_bytes()).await;
    assert_eq!(world.hosts(), ["hello.localhost"]);
    let (_, status) = world.control("GET", "/status").await;
    assert_eq!(status["diagnostics"][0]["project"], "bad", "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_start_the_last_good_file_stands_in_for_one_that_cannot_be_read() {
    let world = World::start(GOOD.as_bytes()).await;
    world.write("db.yml", TWO);
    assert_eq!(world.reload().await.0, 200);
    let World { folder, .. } = world;
    let again = tempfile::tempdir().unwrap();
    std::fs::create_dir(again.path().join("data")).unwrap();
    let kept = "data/db.last-good.yml";
    std::fs::copy(folder.path().join(kept), again.path().join(kept)).unwrap();
    let world = World::start_in(again, b"projects: [\xff").await.unwrap();
    assert_eq!(world.hosts(), ["hello.localhost", "more.localhost"]);
    let (_, status) = world.control("GET", "/status").await;
    assert_eq!(status["last_good"], true);

    let nothing = World::start_in(tempfile::tempdir().unwrap(), b"projects: [\xff").await;
    assert!(nothing.is_err(), "without a last good file there is nothing to serve");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_change_are_picked_up() {
    let world = World::start(GOOD.as_bytes()).await;
    let internal = world.proxy.certs().find("hello.localhost").unwrap();
    let folder = world.folder.path().join("certs/hello.localhost");
    std::fs::create_dir_all(&folder).unwrap();
    let write = |path: &Path, text: String| std::fs::write(path, text).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(["hello.localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    write(&folder.join("fullchain.pem"), cert.pem());
    write(&folder.join("privkey.pem"), key.serialize_pem());
    assert_eq!(world.reload().await.0, 200);
    let own = world.proxy.certs().find("hello.localhost").unwrap();
    assert!(!std::sync::Arc::ptr_eq(&internal, &own));
    let (_, status) = world.control("GET", "/status").await;
    assert_eq!(status["certificates"][0]["source"], "file");

    write(&folder.join("privkey.pem"), "torn".into());
    let (_, report) = world.reload().await;
    assert!(strings(&report["warnings"])[0].contains("the last good one stays"), "{report}");
    assert!(std::sync::Arc::ptr_eq(&own, &world.proxy.certs().find("hello.localhost").unwrap()));

    std::fs::remove_dir_all(&folder).unwrap();
    world.reload().await;
    assert!(!std::sync::Arc::ptr_eq(&own, &world.proxy.certs().find("hello.localhost").unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_door_has_its_own_rules() {
    let world = World::start(GOOD.as_bytes()).await;
    assert_eq!(world.get_tcp("/healthz", &[]).await, (200, "ok\n".into()));
    assert_eq!(world.get_proxy("/healthz").await, (200, "ok\n".into()));
    let (status, text) = world.get_tcp("/metrics", &[]).await;
    assert_eq!(status, 200);
    assert!(text.contains("itsup_reloads_total{result=\"done\"} 0"), "{text}");
    for name in ["Forwarded", "X-Forwarded-For", "Via", "X-Real-IP"] {
        assert_eq!(world.get_tcp("/metrics", &[(name, "127.0.0.1")]).await.0, 403, "{name}");
    }
    assert_eq!(world.get_proxy("/metrics").await.0, 404);
    for path in ["/status", "/reload"] {
        assert_eq!(world.get_tcp(path, &[]).await.0, 404, "{path}");
        assert_eq!(world.get_proxy(path).await.0, 404, "{path}");
    }
    assert_eq!(world.control("GET", "/reload").await.0, 405);
    assert_eq!(world.control("GET", "/nothing").await.0, 404);
    assert_eq!(world.control("GET", "/status").await.1["generation"], world.proxy.generation());
}

#[test]
fn loopback_is_told_in_both_families() {
    let none = axum::http::HeaderMap::new();
    for (peer, direct) in [
        ("127.0.0.1:1", true),
        ("127.9.9.9:1", true),
        ("[::1]:1", true),
        ("[::ffff:127.0.0.1]:1", true),
        ("10.0.0.1:1", false),
    ] {
        assert_eq!(auth::is_direct_loopback(peer.parse().unwrap(), &none), direct, "{peer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_reloads_at_once_are_taken_one_at_a_time() {
    let world = World::start(GOOD.as_bytes()).await;
    let all = futures_util::future::join_all((0..50).map(|_| world.reload()));
    let answers = tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
    assert!(answers.iter().all(|(status, report)| *status == 200 && report["changed"] == false));
    assert_eq!(world.control("GET", "/status").await.1["reloads"]["done"], 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_a_job_that_can_be_listened_to() {
    let world = World::start(GOOD.as_bytes()).await;
    let (status, accepted) = world.post_control("/rollout", r#"{"project":"hello"}"#).await;
    assert_eq!((status, &accepted["state"]), (202, &"queued".into()), "{accepted}");
    assert_eq!(accepted["work"], serde_json::json!({"kind": "rollout", "project": "hello"}));
    let (status, events) = world.control("GET", &format!("/jobs/{}/events", accepted["id"])).await;
    assert_eq!(status, 200);
    let names: Vec<_> = events.as_str().unwrap().lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(names, ["state", "state", "progress", "state"]);
    let (_, job) = world.control("GET", &format!("/jobs/{}", accepted["id"])).await;
    assert_eq!((&job["state"], &job["outcome"]["message"]), (&"done".into(), &"rollout hello".into()), "{job}");
    assert_eq!(world.control("GET", "/jobs").await.1.as_array().unwrap().len(), 1);
    assert_eq!(world.control("POST", &format!("/jobs/{}/cancel", accepted["id"])).await.0, 409);
    assert_eq!(world.control("GET", "/jobs/99").await.0, 404);
    assert_eq!(world.control("GET", "/jobs/99/events").await.0, 404);
    assert_eq!(world.post_control("/apply", r#"{"wrong":1}"#).await.0, 422);
}
