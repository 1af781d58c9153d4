//! Webhooks, with deliveries in their senders' own format.

use aws_lc_rs::hmac;

use super::*;

const SECRET: &str = "the hook's own secret";
const RUN: &str = include_str!("../testdata/workflow_run.json");
const JOB: &str = include_str!("../testdata/workflow_job.json");
const PACKAGE: &str = include_str!("../testdata/package.json");
const PING: &str = include_str!("../testdata/ping.json");
const PIPELINE: &str = include_str!("../testdata/gitlab_pipeline.json");
const GITEA: &str = include_str!("../testdata/gitea_package.json");

async fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let env = "ITSUP_DOCKER=off\nAPI_KEY=0123456789abcdef-full\nWEBHOOK_SECRET=a shared secret here\n";
    std::fs::write(folder.path().join(".env"), env).unwrap();
    let db = format!(
        "projects:\n  - name: shop\n    domain: shop.localhost\n    entrypoint: web\n    webhook: {{ secret: \"{SECRET}\", repository: acme/shop, branch: main }}\n    \
         services:\n      - {{ name: web, image: a }}\n      - {{ name: api, image: b }}\n  - name: itsUP\n    domain: up.localhost\n"
    );
    World::start_in(folder, db.as_bytes()).await.unwrap()
}

fn sign(secret: &str, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    data_encoding::HEXLOWER.encode(hmac::sign(&key, body.as_bytes()).as_ref())
}

async fn github(
    world: &World,
    path: &str,
    event: &str,
    delivery: &str,
    secret: Option<&str>,
    body: &str,
) -> (u16, Value) {
    let signature = secret.map(|secret| format!("sha256={}", sign(secret, body)));
    let mut headers =
        vec![("x-github-event", event), ("x-github-delivery", delivery), ("content-type", "application/json")];
    headers.extend(signature.as_deref().map(|signature| ("x-hub-signature-256", signature)));
    deliver(world, path, &headers, body).await
}

async fn deliver(world: &World, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
    let (status, text) = send(TcpStream::connect(world.tcp).await.unwrap(), "POST", path, headers, body).await;
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

async fn ended(world: &World, answer: &Value) -> Value {
    let id = answer["job"].as_u64().unwrap();
    // The stream ends with the job.
    world.control("GET", &format!("/jobs/{id}/events")).await;
    world.control("GET", &format!("/jobs/{id}")).await.1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_deliveries_with_good_bad_and_missing_signatures() {
    let world = world().await;
    let path = "/hook?project=shop";
    for (event, body) in [("workflow_run", RUN), ("workflow_job", JOB), ("package", PACKAGE), ("ping", PING)] {
        assert_eq!(github(&world, path, event, "x", None, body).await.0, 401, "{event}");
        assert_eq!(github(&world, path, event, "x", Some("a shared secret here"), body).await.0, 401, "{event}");
    }
    let changed = RUN.replace("\"success\"", "\"failure\"");
    let signature = format!("sha256={}", sign(SECRET, RUN));
    let headers = [("x-github-event", "workflow_run"), ("x-hub-signature-256", signature.as_str())];
    assert_eq!(deliver(&world, path, &headers, &changed).await.0, 401, "the signature is of other bytes");
    assert_eq!(world.control("GET", "/jobs").await.1, serde_json::json!([]));

    let (status, answer) = github(&world, path, "ping", "p", Some(SECRET), PING).await;
    assert_eq!((status, answer), (200, serde_json::json!({"result": "pong"})));
    let (status, answer) = github(&world, path, "workflow_run", "r", Some(SECRET), RUN).await;
    assert_eq!((status, &answer["result"]), (202, &"queued".into()), "{answer}");
    let job = ended(&world, &answer).await;
    assert_eq!(job["work"], serde_json::json!({"kind": "rollout", "project": "shop"}));
    assert_eq!(job["origins"][0]["via"], "webhook");
    let (_, answer) = github(&world, path, "workflow_job", "j", Some(SECRET), JOB).await;
    assert_eq!(ended(&world, &answer).await["work"]["service"], "web", "the service that the job is named after");
    let (_, answer) = github(&world, "/hook?project=shop&service=api", "package", "k", Some(SECRET), PACKAGE).await;
    assert_eq!(answer["result"], "ignored", "a branch is asked for, and packages have none: {answer}");
    let (status, answer) = github(&world, path, "push", "q", Some(SECRET), "{\"ref\":\"refs/heads/main\"}").await;
    assert_eq!((status, &answer["result"]), (202, &"ignored".into()));
    let other = RUN.replace("acme/shop", "acme/blog");
    assert_eq!(github(&world, path, "workflow_run", "o", Some(SECRET), &other).await.1["result"], "ignored");
    assert_eq!(github(&world, path, "workflow_run", "b", Some(SECRET), "no json").await.0, 400);
    assert_eq!(github(&world, "/hook?project=none", "ping", "n", Some(SECRET), PING).await.0, 404);
    assert_eq!(github(&world, "/hook?project=shop&service=none", "ping", "n", Some(SECRET), PING).await.0, 404);
    // As a form, which GitHub can send too.
    let form = "payload=%7B%22zen%22%3A%22x%22%7D";
    let signature = format!("sha256={}", sign(SECRET, form));
    let headers = [
        ("x-github-event", "workflow_run"),
        ("content-type", "application/x-www-form-urlencoded"),
        ("x-hub-signature-256", signature.as_str()),
    ];
    assert_eq!(deliver(&world, path, &headers, form).await.1["result"], "ignored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redeliveries_do_nothing_and_many_become_one() {
    let world = world().await;
    let path = "/hook?project=shop";
    let (_, first) = github(&world, path, "workflow_run", "one", Some(SECRET), RUN).await;
    ended(&world, &first).await;
    let (status, again) = github(&world, path, "workflow_run", "one", Some(SECRET), RUN).await;
    assert_eq!((status, &again["result"], &again["job"]), (202, &"duplicate".into(), &first["job"]));
    // The fastest of some: on a busy machine, others wait for the machine and not for us.
    let mut fastest = Duration::MAX;
    for n in 0..20 {
        let start = std::time::Instant::now();
        github(&world, path, "workflow_run", &format!("t{n}"), Some(SECRET), RUN).await;
        fastest = fastest.min(start.elapsed());
    }
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
    // Out of order, and each in its own time.
    let answers = futures_util::future::join_all((0..40).map(|n| {
        let world = &world;
        async move { github(world, path, "workflow_run", &format!("d{}", n % 20), Some(SECRET), RUN).await }
    }))
    .await;
    assert!(answers.iter().all(|(status, _)| *status == 202));
    let jobs = world.control("GET", "/jobs").await.1;
    let deliveries: usize = jobs.as_array().unwrap().iter().map(|job| job["origins"].as_array().unwrap().len()).sum();
    assert_eq!(deliveries, 41, "each delivery once: {jobs}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_senders_and_by_hand() {
    let world = world().await;
    let path = "/hook?project=shop";
    let gitlab = |token: &'static str| {
        [("x-gitlab-event", "Pipeline Hook"), ("x-gitlab-token", token), ("x-gitlab-event-uuid", "u")]
    };
    assert_eq!(deliver(&world, path, &gitlab("wrong"), PIPELINE).await.0, 401);
    let (status, answer) = deliver(&world, path, &gitlab(SECRET), PIPELINE).await;
    assert_eq!((status, &answer["result"]), (202, &"queued".into()), "{answer}");
    for name in ["gitea", "forgejo"] {
        let (event, signature) = (format!("x-{name}-event"), format!("x-{name}-signature"));
        let right = sign("a shared secret here", GITEA);
        let headers = [(event.as_str(), "package"), (signature.as_str(), right.as_str())];
        let (status, answer) = deliver(&world, "/hook?project=itsUP", &headers, GITEA).await;
        assert_eq!((status, &answer["result"]), (202, &"queued".into()), "{answer}");
        assert_eq!(ended(&world, &answer).await["work"]["kind"], "self_update");
    }
    assert_eq!(deliver(&world, path, &[], "").await.0, 401);
    let key = [("authorization", "Bearer 0123456789abcdef-full")];
    let (status, answer) = deliver(&world, "/hook?project=shop&service=api", &key, "").await;
    assert_eq!((status, &answer["result"]), (202, &"queued".into()), "{answer}");
    assert_eq!(ended(&world, &answer).await["work"]["service"], "api");
    let wrong = [("authorization", "Bearer 0123456789abcdef-none")];
    assert_eq!(deliver(&world, path, &wrong, "").await.0, 401);
}
