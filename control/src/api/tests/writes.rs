//! Changes of db.yml through the API.

use futures_util::future::join_all;
use serde_json::json;

use super::*;

const TEXT: &str = "# my file\nprojects:\n  # about hello\n  - name: hello # first\n    domain: 'hello.localhost'\n  \
                    - name: shop\n    domain: shop.localhost # of the shop\n    services:\n      - name: 127.0.0.1 # here\n        \
                    port: 9000\n# the end\n";

impl World {
    async fn write_api(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> (u16, Value) {
        let stream = UnixStream::connect(self.root.socket()).await.unwrap();
        let (status, text) = send(stream, method, path, headers, &body.to_string()).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    fn db(&self) -> String {
        std::fs::read_to_string(self.root.db()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_keeps_the_file_and_is_live_and_is_a_job() {
    let world = World::start(TEXT.as_bytes()).await;
    let new = json!({"name": "new", "domain": "new.localhost", "services": [{"name": "127.0.0.1", "port": 9001}]});
    let (status, job) = world.write_api("POST", "/projects", &[], &new).await;
    assert_eq!(
        (status, &job["work"]),
        (202, &json!({"kind": "apply", "project": "new", "prune": false, "force": false, "unpin": false})),
        "{job}"
    );
    let added =
        "  - name: new\n    domain: new.localhost\n    services:\n      - name: 127.0.0.1\n        port: 9001\n";
    assert_eq!(world.db(), TEXT.replace("# the end\n", &format!("{added}# the end\n")));
    assert!(world.hosts().contains(&"new.localhost".to_owned()));

    let patch = json!({"domain": "shop2.localhost", "description": "a: b"});
    assert_eq!(world.write_api("PATCH", "/projects/shop", &[], &patch).await.0, 202);
    assert!(world.db().contains("    domain: shop2.localhost # of the shop\n"), "{}", world.db());
    let env = json!({"A": "1", "B": true});
    assert_eq!(world.write_api("PATCH", "/projects/shop/services/127.0.0.1", &[], &json!({"image": "x"})).await.0, 422);
    assert_eq!(world.write_api("POST", "/projects/shop/services/127.0.0.1/env", &[], &env).await.0, 202);
    let (_, held) = world.control("GET", "/projects/shop/services/127.0.0.1/env").await;
    assert_eq!(held, env);
    assert_eq!(world.write_api("POST", "/services?project=new", &[], &json!({"name": "127.0.0.2"})).await.0, 202);
    assert_eq!(world.write_api("DELETE", "/projects/new/services/127.0.0.2", &[], &json!({})).await.0, 202);
    assert_eq!(world.write_api("DELETE", "/projects/new", &[], &json!({})).await.0, 202);
    assert!(!world.hosts().contains(&"new.localhost".to_owned()));
    for comment in [
        "# my file\n",
        "# about hello\n",
        "# first\n",
        "'hello.localhost'",
        "# of the shop\n",
        "# here\n",
        "# the end\n",
    ] {
        assert!(world.db().contains(comment), "{comment}{}", world.db());
    }
    let (_, services) = world.control("GET", "/services").await;
    assert_eq!((&services[0]["project"], &services[0]["port"]), (&"shop".into(), &9000.into()), "{services}");
    for (method, path) in
        [("DELETE", "/projects/none"), ("PATCH", "/projects/none"), ("POST", "/services?project=none")]
    {
        assert_eq!(world.write_api(method, path, &[], &json!({"name": "x"})).await.0, 404, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_change_changes_nothing_and_every_fault_is_told() {
    let world = World::start(TEXT.as_bytes()).await;
    let bad = json!({"name": "bad", "domain": "hello.localhost", "servces": []});
    let (status, problem) = world.write_api("POST", "/projects", &[], &bad).await;
    assert_eq!(status, 422, "{problem}");
    let messages: Vec<&str> =
        problem["diagnostics"].as_array().unwrap().iter().map(|fault| fault["message"].as_str().unwrap()).collect();
    assert!(messages.iter().any(|message| message.contains("servces")), "{messages:?}");
    assert!(messages.len() >= 2, "{messages:?}");
    assert_eq!(world.db(), TEXT);
    assert_eq!(world.control("GET", "/jobs").await.1, json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_seen_another_file_is_refused() {
    let world = World::start(TEXT.as_bytes()).await;
    let db = DbFile::new(world.root.clone());
    let seen = format!("\"{}\"", db.read().unwrap().tag);
    let by_hand = TEXT.replace("9000", "9009 # by hand");
    world.write("db.yml", &by_hand);
    let patch = json!({"description": "x"});
    for tag in [seen.as_str(), "W/\"x\"", "nonsense"] {
        let (status, problem) = world.write_api("PATCH", "/projects/shop", &[("if-match", tag)], &patch).await;
        assert_eq!(status, 412, "{problem}");
    }
    assert_eq!(world.db(), by_hand);
    let seen = format!("\"{}\"", db.read().unwrap().tag);
    assert_eq!(world.write_api("PATCH", "/projects/shop", &[("if-match", &seen)], &patch).await.0, 202);
    // Without a tag the change is made over what a hand has written.
    assert!(world.db().contains("9009 # by hand") && world.db().contains("description: x"));
    assert_eq!(
        world.write_api("PATCH", "/projects/shop", &[("if-match", "*")], &json!({"description": null})).await.0,
        202
    );
    assert_eq!(world.db(), by_hand);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_on_the_host_needs_the_control_socket_or_the_setting() {
    let world = super::endpoints::world_with_keys().await;
    let key = [("authorization", "Bearer 0123456789abcdef-full")];
    let patch = json!({"compose": {"privileged": true}}).to_string();
    let path = "/projects/shop/services/web";
    let tcp = || async { send(TcpStream::connect(world.tcp).await.unwrap(), "PATCH", path, &key, &patch).await };
    let (status, problem) = tcp().await;
    assert!(status == 403 && problem.contains("ITSUP_API_COMPOSE"), "{problem}");
    let env = std::fs::read_to_string(world.root.env()).unwrap();
    world.write(".env", &format!("{env}ITSUP_API_COMPOSE=on\n"));
    assert_eq!(world.reload().await.0, 200);
    assert_eq!(tcp().await.0, 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_writes_at_once_lose_none_and_keep_comments() {
    let world = World::start(TEXT.as_bytes()).await;
    // Each adds a variable: a new project each would need a certificate each.
    let path = "/projects/shop/services/127.0.0.1/env";
    let answers = join_all((0..1_000).map(|n| {
        let world = &world;
        async move {
            let name = format!("V{n}");
            world.write_api("POST", path, &[], &json!({name: n.to_string()})).await.0
        }
    }))
    .await;
    assert!(answers.iter().all(|status| *status == 202), "{answers:?}");
    let (_, env) = world.control("GET", path).await;
    assert_eq!(env.as_object().unwrap().len(), 1_000);
    let text = world.db();
    let (head, _) = TEXT.split_once("# the end").unwrap();
    assert!(text.starts_with(head) && text.ends_with("# the end\n"), "{text}");
    let db = DbFile::new(world.root.clone());
    let history = db.history().unwrap();
    assert_eq!(db.show(&history[history.len() - 1].name).unwrap(), TEXT);
}
