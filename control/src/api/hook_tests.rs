use axum::http::HeaderValue;
use serde_json::json;

use super::*;

fn project(webhook: &str) -> Project {
    let text = format!(
        "projects:\n  - name: shop\n    domain: shop.example.com\n    entrypoint: web\n{webhook}    services:\n      - {{ name: web, image: a }}\n      - {{ name: api, image: b }}\n"
    );
    crate::db::parse("db.yml", text.as_bytes()).db.unwrap().projects.remove(0)
}

fn query(service: Option<&str>, job: Option<&str>) -> HookQuery {
    HookQuery { project: "shop".into(), service: service.map(Into::into), job: job.map(Into::into) }
}

fn job_done(name: &str, conclusion: &str) -> Value {
    json!({"action": "completed", "workflow_job": {"name": name, "conclusion": conclusion, "head_branch": "main"},
           "repository": {"full_name": "me/shop"}})
}

fn run_done(fork: &str, branch: &str) -> Value {
    json!({"action": "completed", "repository": {"full_name": "me/shop"}, "workflow_run":
           {"name": "CI", "conclusion": "success", "head_branch": branch, "head_repository": {"full_name": fork}}})
}

fn said(decision: Decision) -> String {
    match decision {
        Decision::Pong => "pong".into(),
        Decision::Ignore(reason) => format!("ignored: {reason}"),
        Decision::Roll { service: None } => "all".into(),
        Decision::Roll { service: Some(service) } => service,
    }
}

#[test]
fn what_deploys_what() {
    let shop = project("");
    let any = query(None, None);
    let package = json!({"action": "published", "package": {"name": "x"}, "repository": {"full_name": "me/shop"}});
    let pipeline =
        |status: &str, source: &str| json!({"object_attributes": {"status": status, "ref": "main", "source": source}});
    let job = |status: &str| json!({"build_status": status, "build_name": "web", "ref": "main"});
    for (event, payload, query, want) in [
        ("ping", json!({"zen": "x"}), &any, "pong"),
        ("workflow_job", job_done("web", "success"), &any, "web"),
        ("workflow_job", job_done("web", "success"), &query(Some("api"), None), "api"),
        ("workflow_job", job_done("deploy", "success"), &query(None, Some("deploy")), "all"),
        ("workflow_job", job_done("deploy", "success"), &query(Some("api"), Some("deploy")), "api"),
        (
            "workflow_job",
            job_done("web", "success"),
            &query(None, Some("deploy")),
            "ignored: workflow_job is of web, not of the job deploy",
        ),
        (
            "workflow_job",
            job_done("lint", "success"),
            &any,
            "ignored: project shop has no service like the job \"lint\"",
        ),
        (
            "workflow_job",
            job_done("web", "failure"),
            &any,
            "ignored: workflow_job has not completed with success (failure)",
        ),
        (
            "workflow_job",
            json!({"action": "queued", "workflow_job": {"name": "web"}}),
            &any,
            "ignored: workflow_job has not completed with success (queued)",
        ),
        ("workflow_run", run_done("me/shop", "main"), &any, "all"),
        ("workflow_run", run_done("me/shop", "main"), &query(Some("api"), None), "api"),
        ("workflow_run", run_done("evil/shop", "main"), &any, "ignored: the run is of the fork evil/shop"),
        (
            "workflow_run",
            run_done("me/shop", "main"),
            &query(None, Some("deploy")),
            "ignored: workflow_run is of no job, not of the job deploy",
        ),
        ("package", package.clone(), &any, "all"),
        ("registry_package", package, &query(Some("web"), None), "web"),
        ("package", json!({"action": "deleted"}), &any, "ignored: package is not published (deleted)"),
        ("push", json!({"ref": "refs/heads/main"}), &any, "ignored: push (-) is nothing that deploys"),
        ("pipeline_hook", pipeline("success", "push"), &any, "all"),
        (
            "pipeline_hook",
            pipeline("success", "merge_request_event"),
            &any,
            "ignored: the pipeline is of a merge request",
        ),
        ("pipeline_hook", pipeline("running", "push"), &any, "ignored: the pipeline is not a success (running)"),
        ("job_hook", job("success"), &any, "web"),
        ("job_hook", job("failed"), &any, "ignored: the job is not a success (failed)"),
        ("workflow_run", json!([]), &any, "ignored: workflow_run has not completed with success (-)"),
    ] {
        assert_eq!(said(decide(event, &payload, &shop, query)), want, "{event} {payload}");
    }
}

#[test]
fn one_projects_deliveries_never_deploy_another() {
    let shop = project("    webhook: { repository: me/shop, branch: main }\n");
    let any = query(None, None);
    assert_eq!(said(decide("workflow_run", &run_done("me/shop", "main"), &shop, &any)), "all");
    let other = run_done("me/shop", "dev");
    assert_eq!(said(decide("workflow_run", &other, &shop, &any)), "ignored: it is of the branch dev, not main");
    let mut other = job_done("web", "success");
    other["repository"]["full_name"] = json!("me/blog");
    let want = "ignored: it is of the repository me/blog, not me/shop";
    assert_eq!(said(decide("workflow_job", &other, &shop, &any)), want);
    let nothing = json!({"action": "published"});
    let want = "ignored: it is of the repository of no name, not me/shop";
    assert_eq!(said(decide("package", &nothing, &shop, &any)), want);
}

#[test]
fn signatures_of_every_sender() {
    let body = b"{\"action\":\"completed\"}";
    let sign = |secret: &str| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        data_encoding::HEXLOWER.encode(hmac::sign(&key, body).as_ref())
    };
    let with = |name: &'static str, value: String| {
        HeaderMap::from_iter([(header::HeaderName::from_static(name), HeaderValue::from_str(&value).unwrap())])
    };
    let rules = ApiRules { webhook_secret: Some(Secret::new("shared")), ..ApiRules::default() };
    let own = Webhook { secret: Some("own".into()), ..Webhook::default() };
    for (webhook, right, wrong) in [(Some(&own), "own", "shared"), (None, "shared", "own")] {
        for (name, prefix) in
            [("x-hub-signature-256", "sha256="), ("x-gitea-signature", ""), ("x-forgejo-signature", "")]
        {
            let signed = |secret| is_signed(&with(name, format!("{prefix}{}", sign(secret))), body, webhook, &rules);
            assert!(signed(right) && !signed(wrong), "{name}");
        }
        assert!(is_signed(&with("x-gitlab-token", right.into()), body, webhook, &rules));
        assert!(!is_signed(&with("x-gitlab-token", wrong.into()), body, webhook, &rules));
    }
    for bad in ["", "sha256=", "sha256=zz", "sha1=aa", &sign("shared")] {
        assert!(!is_signed(&with("x-hub-signature-256", bad.into()), body, None, &rules), "{bad}");
    }
    assert!(!is_signed(&HeaderMap::new(), body, None, &rules));
    // Without a secret and without a key nothing is right, not even an empty one.
    let none = ApiRules::default();
    assert!(!is_signed(&with("x-gitlab-token", String::new()), body, None, &none));
}
