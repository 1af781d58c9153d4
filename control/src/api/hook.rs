//! Webhooks: who may deploy what, and what a delivery asks for.
//!
//! `decide` is pure. A delivery is checked, queued and answered at once; the job does the rest.

use aws_lc_rs::hmac;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Form, FromRequest as _, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::auth::{self, Caller};
use super::{Api, Problem};
use crate::db::{Project, Webhook};
use crate::jobs::{JobId, Origin, Work};
use crate::settings::{ApiRules, Secret};

/// How long an answer waits for the queue to be on disk: it must be there within 100 ms.
const SAVED_WITHIN: std::time::Duration = std::time::Duration::from_millis(50);

#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct HookQuery {
    /// The project that is deployed.
    project: String,
    /// The service of it; without one, the whole project, or the service that a job is named after.
    #[serde(default)]
    service: Option<String>,
    /// The name of the CI job whose success deploys the whole project.
    #[serde(default)]
    job: Option<String>,
}

/// What became of a delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum HookAnswer {
    /// A `ping` was heard.
    Pong,
    /// Nothing is done, and why.
    Ignored { reason: String },
    /// The same delivery has been accepted already, as this job.
    Duplicate { job: JobId },
    /// It is queued, as this job; `merged` with one that was waiting for the same.
    Queued { job: JobId, merged: bool },
}

/// Deploy by a webhook of GitHub, GitLab, Gitea or Forgejo, or by hand.
///
/// A delivery is signed with the project's `webhook.secret`, else with `WEBHOOK_SECRET`, else with the API key
/// (`X-Hub-Signature-256`, `X-Gitea-Signature`, `X-Forgejo-Signature`; GitLab sends the secret itself in `X-Gitlab-Token`).
/// `ping` is answered `pong`; a successful `workflow_job`, `workflow_run`, pipeline or job and a published package deploy; everything
/// else is ignored, and the answer says why. With `Authorization: Bearer API_KEY` and no event it deploys at once.
/// A redelivery of what waits, runs or went well does nothing; one of what failed tries again.
#[utoipa::path(
    post, path = "/hook", operation_id = "deliverWebhook", tag = "webhooks", params(HookQuery),
    request_body(content = Object, description = "The payload as the sender signs it; may be empty when sent by hand"),
    responses(
        (status = 200, description = "A ping was heard", body = HookAnswer),
        (status = 202, description = "Queued, a duplicate, or ignored", body = HookAnswer),
        (status = 400, description = "The payload cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "The signature is missing or wrong", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The key may only look", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such project or service", body = Problem, content_type = "application/problem+json"),
    ),
    security(())
)]
pub(super) async fn deliver(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<HookQuery>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let db = api.control.db();
    let project = db
        .project(&query.project)
        .ok_or_else(|| Problem::not_found(format!("there is no project {:?}", query.project)))?;
    if let Some(service) = query.service.as_deref().filter(|service| project.service(service).is_none()) {
        return Err(Problem::not_found(format!("project {} has no service {service:?}", project.name)));
    }
    let rules = api.control.settings().map(|settings| settings.api_rules).unwrap_or_default();
    let by_hand = caller == Caller::Local
        || match auth::bearer(&headers).and_then(|key| auth::find(&rules.keys, key)) {
            Some(key) if key.read_only => return Err(Problem::new(StatusCode::FORBIDDEN, "this key may only look")),
            key => key.is_some(),
        };
    let event = event(&headers);
    if !by_hand && !is_signed(&headers, &body, project.webhook.as_ref(), &rules) {
        let address = match caller {
            Caller::Nobody(address) => address,
            _ => None,
        };
        let what = format!("a webhook for {} with a wrong signature or none", project.name);
        return Ok(*api.throttle.refuse(address, &what).await);
    }
    let decision = match &event {
        None if by_hand => Decision::Roll { service: query.service.clone() },
        None => Decision::Ignore("it does not say which event it is".into()),
        Some(event) => {
            let payload = payload(&headers, body).await?;
            decide(event, &payload, project, &query)
        }
    };
    let service = match decision {
        Decision::Pong => return Ok(Json(HookAnswer::Pong).into_response()),
        Decision::Ignore(reason) => {
            tracing::info!(project = %project.name, "webhook ignored: {reason}");
            return Ok((StatusCode::ACCEPTED, Json(HookAnswer::Ignored { reason })).into_response());
        }
        Decision::Roll { service } => service,
    };
    let work = match &service {
        // What it always did for itsUP itself.
        None if &*project.compose_name == "itsup" => Work::SelfUpdate { project: project.name.clone() },
        service => Work::Rollout { project: project.name.clone(), service: service.as_deref().map(Into::into) },
    };
    let origin = match &event {
        None => caller.origin(),
        Some(event) => {
            // One event may go to several addresses with the same number.
            let number = delivery(&headers).map(|number| {
                let HookQuery { project, service, job } = &query;
                let [service, job] = [service, job].map(|part| part.as_deref().unwrap_or_default());
                format!("{project}/{service}/{job}/{number}")
            });
            Origin::Webhook { event: event.clone(), delivery: number }
        }
    };
    let job = api.jobs.submit(work, origin)?;
    let _ = tokio::time::timeout(SAVED_WITHIN, api.jobs.saved()).await;
    let answer = if job.duplicate {
        HookAnswer::Duplicate { job: job.id }
    } else {
        HookAnswer::Queued { job: job.id, merged: job.merged }
    };
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, format!("/jobs/{}", job.id))], Json(answer)).into_response())
}

/// What a delivery leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision {
    Pong,
    Ignore(String),
    Roll { service: Option<String> },
}

fn event(headers: &HeaderMap) -> Option<String> {
    let names = ["x-github-event", "x-forgejo-event", "x-gitea-event", "x-gitlab-event"];
    let value = names.iter().find_map(|name| headers.get(*name))?.to_str().ok()?;
    // GitLab's are words: `Pipeline Hook`.
    Some(value.to_ascii_lowercase().replace(' ', "_"))
}

fn delivery(headers: &HeaderMap) -> Option<&str> {
    let names =
        ["x-github-delivery", "x-forgejo-delivery", "x-gitea-delivery", "x-gitlab-event-uuid", "idempotency-key"];
    let value = names.iter().find_map(|name| headers.get(*name))?.to_str().ok()?;
    (!value.is_empty() && value.len() <= 200).then_some(value)
}

/// Whether a delivery carries the right secret, in one of the ways that the senders have.
fn is_signed(headers: &HeaderMap, body: &[u8], webhook: Option<&Webhook>, rules: &ApiRules) -> bool {
    let own = webhook.and_then(|webhook| webhook.secret.as_deref()).map(Secret::new);
    let secrets: Vec<&Secret> = match own.as_ref().or(rules.webhook_secret.as_ref()) {
        Some(secret) => vec![secret],
        None => rules.keys.iter().filter(|key| !key.read_only).map(|key| &key.secret).collect(),
    };
    if let Some(token) = headers.get("x-gitlab-token") {
        return secrets.iter().any(|secret| secret.is(token.as_bytes()));
    }
    let hub =
        headers.get("x-hub-signature-256").map(|value| value.as_bytes().strip_prefix(b"sha256=").unwrap_or_default());
    let plain = || {
        ["x-forgejo-signature", "x-gitea-signature"]
            .iter()
            .find_map(|name| headers.get(*name))
            .map(|value| value.as_bytes())
    };
    let Some(signature) = hub.or_else(plain) else { return false };
    let Ok(signature) = data_encoding::HEXLOWER_PERMISSIVE.decode(signature) else { return false };
    secrets.iter().any(|secret| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.bytes());
        // Compares in constant time.
        hmac::verify(&key, body, &signature).is_ok()
    })
}

/// The payload: JSON, or a form with JSON in the field `payload`.
async fn payload(headers: &HeaderMap, body: Bytes) -> Result<Value, Problem> {
    #[derive(Deserialize)]
    struct Payload {
        payload: String,
    }
    let bad = |error: String| Problem::new(StatusCode::BAD_REQUEST, format!("the payload cannot be read: {error}"));
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("application/x-www-form-urlencoded") {
        return serde_json::from_slice(&body).map_err(|error| bad(error.to_string()));
    }
    let request =
        Request::builder().method(Method::POST).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    let request = request.body(Body::from(body)).map_err(|error| bad(error.to_string()))?;
    let Form(Payload { payload }) = Form::from_request(request, &()).await.map_err(|error| bad(error.to_string()))?;
    serde_json::from_str(&payload).map_err(|error| bad(error.to_string()))
}

/// What a delivery asks for.
fn decide(event: &str, payload: &Value, project: &Project, query: &HookQuery) -> Decision {
    let text = |pointer: &str| payload.pointer(pointer).and_then(Value::as_str);
    let ignore = |reason: String| Decision::Ignore(reason);
    if event == "ping" {
        return Decision::Pong;
    }
    let Some(what) = success(event, payload) else {
        let action = text("/action").or_else(|| text("/object_attributes/status")).unwrap_or("-");
        return ignore(format!("{event} ({action}) is nothing that deploys"));
    };
    let what = match what {
        Ok(what) => what,
        Err(reason) => return ignore(reason),
    };
    if let Some(wanted) = project.webhook.as_ref().and_then(|webhook| webhook.repository.as_deref()) {
        let repository = text("/repository/full_name").or_else(|| text("/project/path_with_namespace"));
        if !repository.is_some_and(|repository| repository.eq_ignore_ascii_case(wanted)) {
            return ignore(format!("it is of the repository {}, not {wanted}", repository.unwrap_or("of no name")));
        }
    }
    if let Some(wanted) = project.webhook.as_ref().and_then(|webhook| webhook.branch.as_deref())
        && what.branch.as_deref() != Some(wanted)
    {
        let branch = what.branch.as_deref().unwrap_or("of no name");
        return ignore(format!("it is of the branch {branch}, not {wanted}"));
    }
    let whole = || Decision::Roll { service: query.service.clone() };
    match (&what.job, &query.service, &query.job) {
        (job, _, Some(wanted)) if job.as_deref() != Some(wanted.as_str()) => {
            ignore(format!("{event} is of {}, not of the job {wanted}", job.as_deref().unwrap_or("no job")))
        }
        (Some(_), None, Some(_)) | (_, Some(_), _) | (None, ..) => whole(),
        (Some(job), None, None) if project.service(job).is_some() => Decision::Roll { service: Some(job.clone()) },
        (Some(job), None, None) => ignore(format!("project {} has no service like the job {job:?}", project.name)),
    }
}

/// Something that went well, and may deploy.
struct Success {
    /// The CI job's name, where the event is about one.
    job: Option<String>,
    branch: Option<String>,
}

/// What an event says went well; `None` for an event of another kind, `Err` for one that does not count.
fn success(event: &str, payload: &Value) -> Option<Result<Success, String>> {
    let text = |pointer: &str| payload.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let concluded = |of: &str| {
        text("/action").as_deref() == Some("completed")
            && text(&format!("/{of}/conclusion")).as_deref() == Some("success")
    };
    let not_yet = |of: &str| {
        let state = text(&format!("/{of}/conclusion")).or_else(|| text("/action")).unwrap_or_else(|| "-".into());
        Err(format!("{event} has not completed with success ({state})"))
    };
    Some(match event {
        "workflow_job" if concluded("workflow_job") => {
            Ok(Success { job: text("/workflow_job/name"), branch: text("/workflow_job/head_branch") })
        }
        "workflow_job" => not_yet("workflow_job"),
        "workflow_run" if concluded("workflow_run") => {
            let fork = text("/workflow_run/head_repository/full_name");
            match (fork, text("/repository/full_name")) {
                // A branch of a fork can have any name.
                (Some(fork), Some(own)) if fork != own => Err(format!("the run is of the fork {fork}")),
                _ => Ok(Success { job: None, branch: text("/workflow_run/head_branch") }),
            }
        }
        "workflow_run" => not_yet("workflow_run"),
        "package" | "registry_package" => {
            let action = text("/action").unwrap_or_default();
            // Gitea and Forgejo say `created`.
            if !matches!(action.as_str(), "published" | "created") {
                return Some(Err(format!("{event} is not published ({action})")));
            }
            let branch = ["package", "registry_package"]
                .iter()
                .find_map(|of| text(&format!("/{of}/package_version/target_commitish")));
            Ok(Success { job: None, branch })
        }
        "pipeline_hook" => match text("/object_attributes/status").as_deref() {
            Some("success") if text("/object_attributes/source").as_deref() == Some("merge_request_event") => {
                Err("the pipeline is of a merge request".into())
            }
            Some("success") => Ok(Success { job: None, branch: text("/object_attributes/ref") }),
            status => Err(format!("the pipeline is not a success ({})", status.unwrap_or("-"))),
        },
        "job_hook" => match text("/build_status").as_deref() {
            Some("success") => Ok(Success { job: text("/build_name"), branch: text("/ref") }),
            status => Err(format!("the job is not a success ({})", status.unwrap_or("-"))),
        },
        _ => return None,
    })
}

#[cfg(test)]
#[path = "hook_tests.rs"]
mod tests;
