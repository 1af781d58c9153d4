//! Every endpoint, with the right key, a wrong one and none, by every door; and the description.

use std::collections::BTreeSet;

use futures_util::future::join_all;

use super::*;

const KEY: &str = "0123456789abcdef-full";
const LOOK: &str = "0123456789abcdef-look";

const SHOP: &str = "projects:\n  - name: hello\n    domain: hello.localhost\n  - name: shop\n    domain: shop.localhost\n    \
                    entrypoint: web\n    webhook: { secret: hushhushhush }\n    services:\n      - name: web\n        \
                    image: nginx:1.27\n        env: { TOKEN: verysecret }\n";

pub(super) async fn world_with_keys() -> World {
    let folder = tempfile::tempdir().unwrap();
    let env = format!("ITSUP_DOCKER=off\nAPI_KEY=full={KEY},look:ro={LOOK}\n");
    std::fs::write(folder.path().join(".env"), env).unwrap();
    World::start_in(folder, SHOP.as_bytes()).await.unwrap()
}

fn authorization(key: &str) -> [(&'static str, String); 2] {
    [("authorization", format!("Bearer {key}")), ("content-type", "application/json".into())]
}

async fn request(world: &World, method: &str, path: &str, key: Option<&str>, body: &str) -> (u16, String) {
    let stream = TcpStream::connect(world.tcp).await.unwrap();
    let headers = key.map(authorization).into_iter().flatten().collect::<Vec<_>>();
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    send(stream, method, path, &headers, body).await
}

/// Every operation of the description, with a path that leads somewhere.
fn operations() -> Vec<(String, String, bool)> {
    let openapi = openapi();
    let mut all = Vec::new();
    for (path, methods) in openapi["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let public = operation["security"][0].as_object().is_some_and(serde_json::Map::is_empty);
            let path = path.replace("{project}", "shop").replace("{service}", "web").replace("{id}", "1");
            let path = match path.as_str() {
                "/services" if method == "post" => "/services?project=shop".into(),
                "/update-upstream" => "/update-upstream?project=shop".into(),
                "/hook" => "/hook?project=shop".into(),
                path => path.replace("{name}", "none"),
            };
            all.push((method.to_uppercase(), path, public));
        }
    }
    assert!(all.len() > 25, "{all:?}");
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_endpoint_with_the_right_key_a_wrong_one_and_none() {
    let world = world_with_keys().await;
    let wrong = join_all(
        operations()
            .iter()
            .flat_map(|operation| [None, Some("0123456789abcdef-fulL"), Some("")].map(|key| (operation.clone(), key)))
            .map(|((method, path, public), key)| {
                let world = &world;
                async move {
                    // A stream of events without an end says all there is to say in its status.
                    let (status, body) = request(world, &method, &path, key, "{}").await;
                    (method, path, public, key, status, body)
                }
            }),
    )
    .await;
    for (method, path, public, key, status, body) in wrong {
        match (public, path.as_str()) {
            // It has a secret of its own.
            (_, "/hook?project=shop") => assert_eq!(status, 401, "{body}"),
            (true, _) | (_, "/metrics") => assert_eq!(status, 200, "{method} {path} {key:?}"),
            (false, _) => {
                assert!(matches!(status, 401 | 429), "{method} {path} {key:?}: {status} {body}");
                let problem: Value = serde_json::from_str(&body).unwrap();
                assert_eq!(problem["status"], status);
            }
        }
    }
    for (method, path, public) in operations() {
        let stream = path == "/events" || path.ends_with("/1/events");
        if stream {
            continue;
        }
        let (status, body) = request(&world, &method, &path, Some(LOOK), "{}").await;
        let changes = method != "GET" || path.starts_with("/update-upstream");
        match public && path != "/hook?project=shop" {
            true => assert_eq!(status, 200, "{method} {path}"),
            false if changes => assert_eq!(status, 403, "{method} {path}: {body}"),
            // There is no engine here to make a plan with.
            false if path == "/plan" => assert_eq!(status, 409, "{body}"),
            false => assert!(matches!(status, 200 | 404), "{method} {path}: {status} {body}"),
        }
        assert!(!body.contains("verysecret") && !body.contains("hushhush"), "{method} {path}: {body}");
    }
    for (method, path, _) in operations().into_iter().filter(|(method, ..)| method != "DELETE") {
        if path == "/events" {
            continue;
        }
        let (status, body) = request(&world, &method, &path, Some(KEY), "{}").await;
        assert!(!matches!(status, 401 | 403 | 405) && status < 500, "{method} {path}: {status} {body}");
    }
    let (status, body) = request(&world, "GET", "/projects/shop", Some(KEY), "").await;
    assert!(status == 200 && body.contains("verysecret"), "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_keys_the_doors_from_outside_are_closed() {
    let world = World::start(SHOP.as_bytes()).await;
    for (method, path, _) in operations() {
        if matches!(path.as_str(), "/healthz" | "/metrics") {
            continue;
        }
        assert_eq!(request(&world, &method, &path, Some(KEY), "{}").await.0, 404, "{method} {path}");
        assert_eq!(ask(UnixStream::connect(world.root.api_socket()).await.unwrap(), &method, &path, &[]).await.0, 404);
    }
    // Keys are taken up by a reload.
    world.write(".env", &format!("ITSUP_DOCKER=off\nAPI_KEY={KEY}\n"));
    assert_eq!(world.reload().await.0, 200);
    assert_eq!(request(&world, "GET", "/status", Some(KEY), "").await.0, 200);
    world.write(".env", "ITSUP_DOCKER=off\nAPI_KEY=tooshort\n");
    let (status, refused) = world.reload().await;
    assert!(status == 422 && !refused.to_string().contains("tooshort"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_the_proxy_a_key_is_needed_and_metrics_are_not_shown() {
    let world = world_with_keys().await;
    let ask_proxy = async |path: &str, headers: &[(&str, &str)]| {
        ask(UnixStream::connect(world.root.api_socket()).await.unwrap(), "GET", path, headers).await.0
    };
    let authorization = format!("Bearer {KEY}");
    let key = [("authorization", authorization.as_str()), ("x-forwarded-for", "127.0.0.1")];
    assert_eq!(ask_proxy("/status", &[]).await, 401);
    assert_eq!(ask_proxy("/status", &key).await, 200);
    assert_eq!(ask_proxy("/metrics", &key).await, 404);
    assert_eq!(ask_proxy("/docs", &[]).await, 200);
}

#[test]
fn the_description_is_of_exactly_what_is_served() {
    let openapi = openapi();
    let described: BTreeSet<&str> = openapi["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    let served: BTreeSet<&str> = routes().iter().map(|(path, _)| *path).collect();
    assert_eq!(described, served);
    let mut ids = BTreeSet::new();
    for (path, methods) in openapi["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{id} stands twice");
            assert!(operation["summary"].as_str().is_some_and(|text| text.len() > 10), "{method} {path}");
        }
    }
    assert!(openapi["openapi"].as_str().unwrap().starts_with("3.1"));
    // Every reference leads somewhere.
    let text = openapi.to_string();
    for name in text.split("\"#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(!openapi["components"]["schemas"][name].is_null(), "{name}");
    }
}

#[test]
fn the_description_in_the_repository_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../openapi.yaml");
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, openapi_yaml()).unwrap();
    }
    let held = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(held == openapi_yaml(), "make it anew: itsup openapi --out openapi.yaml");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_loads_nothing_from_elsewhere() {
    let world = world_with_keys().await;
    let (status, page) = request(&world, "GET", "/docs", None, "").await;
    assert_eq!(status, 200);
    for part in ["src=", "<script", "@import", "url(", "<link", "http://", "https://"] {
        assert!(!page.contains(part), "{part}");
    }
    for path in openapi()["paths"].as_object().unwrap().keys() {
        assert!(page.contains(&format!("</span>{path}</h3>")), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_or_no_json_is_refused_with_a_problem() {
    let world = world_with_keys().await;
    let large = format!("{{\"name\":\"{}\"}}", "x".repeat(2 << 20));
    for (body, want) in [(large.as_str(), 413), ("{", 400), ("[]", 422), ("{\"name\":\"\"}", 422)] {
        let (status, answer) = request(&world, "POST", "/projects", Some(KEY), body).await;
        assert_eq!(status, want, "{answer}");
        assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["status"], want);
    }
    for path in ["/jobs/none", "/update-upstream"] {
        let (status, answer) = request(&world, "GET", path, Some(KEY), "").await;
        assert_eq!((status, &serde_json::from_str::<Value>(&answer).unwrap()["status"]), (400, &400.into()));
    }
}
