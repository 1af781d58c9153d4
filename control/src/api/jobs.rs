//! Changes and their jobs: ask for one, see how it is, listen to it.

use std::convert::Infallible;

use axum::Json;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event as Sse, KeepAlive};
use axum::response::{IntoResponse, Response, Sse as SseResponse};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::answers::{Changing, Keyed, Queued};
use super::auth::Caller;
use super::edits;
use super::{Api, Body, Problem};
use crate::jobs::{Follow, Job, JobError, JobId, JobReport, Note, Origin, Seen, Work};

/// A change that was accepted: its job, as it stands.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Accepted {
    #[serde(flatten)]
    pub job: JobReport,
    /// Whether an equal one was waiting already, which this is now part of.
    pub merged: bool,
}

/// What is applied; nothing said is everything.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ApplyRequest {
    /// One project alone.
    project: Option<String>,
    /// Remove stacks that are no longer in db.yml.
    prune: bool,
    /// Also where nothing has changed.
    force: bool,
    /// Let go of what a rollback has pinned.
    unpin: bool,
}

/// What is rolled.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceRequest {
    /// The project's name, as db.yml writes it.
    project: String,
    /// One service alone.
    #[serde(default)]
    service: Option<String>,
}

#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ServiceQuery {
    /// The project's name, as db.yml writes it.
    project: String,
    /// One service alone.
    #[serde(default)]
    service: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct CancelQuery {
    /// Also where others have asked for the same.
    #[serde(default)]
    force: bool,
}

/// Make what runs what db.yml says.
///
/// Of one project, or of all: new services start, changed ones roll over or are recreated, unchanged ones are not touched.
#[utoipa::path(
    post, path = "/apply", operation_id = "apply", tag = "changes", request_body = ApplyRequest,
    responses(Queued, Keyed, Changing,
        (status = 400, description = "The body cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such project", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The body is not what it should be", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn apply(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<ApplyRequest>,
) -> Result<Response, Problem> {
    let ApplyRequest { project, prune, force, unpin } = request;
    if let (Some(project), false) = (&project, prune) {
        known(&api, project, None).await?;
    }
    submit(&api, Work::Apply { project: project.map(Into::into), prune, force, unpin }, caller.origin())
}

/// Roll a project or one service over to its image and config of now, without losing a request.
#[utoipa::path(
    post, path = "/rollout", operation_id = "rollout", tag = "changes", request_body = ServiceRequest,
    responses(Queued, Keyed, Changing,
        (status = 400, description = "The body cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such project or service", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The body is not what it should be", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn rollout(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<ServiceRequest>,
) -> Result<Response, Problem> {
    roll(&api, &caller, request.project, request.service).await
}

/// Go back to the previous image and config, and stay there until db.yml changes or `unpin`.
#[utoipa::path(
    post, path = "/rollback", operation_id = "rollback", tag = "changes", request_body = ServiceRequest,
    responses(Queued, Keyed, Changing,
        (status = 400, description = "The body cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such project or service", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The body is not what it should be", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn rollback(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<ServiceRequest>,
) -> Result<Response, Problem> {
    let ServiceRequest { project, service } = request;
    known(&api, &project, service.as_deref()).await?;
    let work = Work::Rollback { project: project.into(), service: service.map(Into::into) };
    submit(&api, work, caller.origin())
}

/// Roll a project or one service over (the old tool's way to ask).
#[utoipa::path(
    get, path = "/update-upstream", operation_id = "updateUpstream", tag = "changes", params(ServiceQuery),
    responses(Queued, Keyed, Changing,
        (status = 400, description = "The query cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such project or service", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn update_by_query(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<ServiceQuery>,
) -> Result<Response, Problem> {
    roll(&api, &caller, query.project, query.service).await
}

/// Roll a project over (the old tool's way to ask).
#[utoipa::path(
    get, path = "/update-upstream/{project}", operation_id = "updateUpstreamProject", tag = "changes",
    params(("project" = String, Path, description = "The project's name, as db.yml writes it")),
    responses(Queued, Keyed, Changing,
        (status = 404, description = "There is no such project", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn update_project(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(project): Path<String>,
) -> Result<Response, Problem> {
    roll(&api, &caller, project, None).await
}

/// Roll one service over (the old tool's way to ask).
#[utoipa::path(
    get, path = "/update-upstream/{project}/{service}", operation_id = "updateUpstreamService", tag = "changes",
    params(("project" = String, Path, description = "The project's name, as db.yml writes it"),
        ("service" = String, Path, description = "The service's name")),
    responses(Queued, Keyed, Changing,
        (status = 404, description = "There is no such project or service", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn update_service(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path((project, service)): Path<(String, String)>,
) -> Result<Response, Problem> {
    roll(&api, &caller, project, Some(service)).await
}

async fn roll(api: &Api, caller: &Caller, project: String, service: Option<String>) -> Result<Response, Problem> {
    known(api, &project, service.as_deref()).await?;
    let work = Work::Rollout { project: project.into(), service: service.map(Into::into) };
    submit(api, work, caller.origin())
}

/// Refuses what is not in db.yml. One that cannot be read is the job's to tell of.
async fn known(api: &Api, project: &str, service: Option<&str>) -> Result<(), Problem> {
    let Ok(held) = api.read_db().await else { return Ok(()) };
    match service {
        Some(service) => edits::service(&held.value, project, service)?,
        None => edits::project(&held.value, project)?,
    };
    Ok(())
}

/// Queues a change and answers 202 with its job.
pub(super) fn submit(api: &Api, work: Work, origin: Origin) -> Result<Response, Problem> {
    let Job { report, merged, .. } = api.jobs.submit(work, origin)?;
    let place = format!("/jobs/{}", report.id);
    let accepted = Json(Accepted { job: report, merged });
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, place)], accepted).into_response())
}

/// List jobs, the newest first: those that wait or run, and the last 200 that have ended.
#[utoipa::path(
    get, path = "/jobs", operation_id = "listJobs", tag = "jobs",
    responses((status = 200, description = "The jobs", body = [JobReport]),
        Keyed)
)]
pub(super) async fn list(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Json<Vec<JobReport>> {
    Json(api.jobs.list().into_iter().map(|report| shown(report, &caller)).collect())
}

/// Show one job.
#[utoipa::path(
    get, path = "/jobs/{id}", operation_id = "getJob", tag = "jobs",
    params(("id" = u64, Path, description = "The job's number")),
    responses((status = 200, description = "The job as it stands", body = JobReport),
        Keyed,
        (status = 400, description = "The number is none", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such job, or it is forgotten", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn get(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<u64>,
) -> Result<Json<JobReport>, Problem> {
    let report = api.jobs.get(JobId(id)).ok_or(JobError::Unknown(JobId(id)))?;
    Ok(Json(shown(report, &caller)))
}

/// Cancel a job: a waiting one at once, a running one as long as it has not switched.
#[utoipa::path(
    post, path = "/jobs/{id}/cancel", operation_id = "cancelJob", tag = "jobs",
    params(("id" = u64, Path, description = "The job's number"), CancelQuery),
    responses((status = 200, description = "The job; one that runs ends when it can", body = JobReport),
        Keyed, Changing,
        (status = 400, description = "The number is none", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such job", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It has ended, or others have asked for the same", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn cancel(
    State(api): State<Api>,
    Path(id): Path<u64>,
    Query(query): Query<CancelQuery>,
) -> Result<Json<JobReport>, Problem> {
    Ok(Json(api.jobs.cancel(JobId(id), query.force)?))
}

/// Listen to one job.
///
/// Server-sent events: all that it has said, then what it says until it ends. `state` events carry the job,
/// `progress` events how far it is. After a lost connection `Last-Event-ID` goes on from there.
#[utoipa::path(
    get, path = "/jobs/{id}/events", operation_id = "followJob", tag = "jobs",
    params(("id" = u64, Path, description = "The job's number")),
    responses((status = 200, description = "Events until the job has ended", body = String, content_type = "text/event-stream"),
        Keyed,
        (status = 400, description = "The number is none", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such job", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn events_of_one(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<u64>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let follow = api.jobs.follow(JobId(id), last_event_id(&headers).unwrap_or(0));
    Ok(server_sent(follow.ok_or(JobError::Unknown(JobId(id)))?, caller))
}

/// Listen to all jobs, from now on, or after `Last-Event-ID`.
#[utoipa::path(
    get, path = "/events", operation_id = "followJobs", tag = "jobs",
    responses((status = 200, description = "Events without an end", body = String, content_type = "text/event-stream"),
        Keyed)
)]
pub(super) async fn events_of_all(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Response {
    server_sent(api.jobs.follow_all(last_event_id(&headers)), caller)
}

/// What a client that lost its connection has heard last.
fn last_event_id(headers: &HeaderMap) -> Option<u64> {
    headers.get("last-event-id")?.to_str().ok()?.parse().ok()
}

/// Lines of db.yml may hold secrets.
fn shown(mut report: JobReport, caller: &Caller) -> JobReport {
    if let (Some(outcome), false) = (&mut report.outcome, caller.sees_secrets()) {
        outcome.diagnostics.iter_mut().for_each(|diagnostic| diagnostic.source.clear());
    }
    report
}

fn server_sent(follow: Follow, caller: Caller) -> Response {
    let events = stream::unfold((follow, caller), |(mut follow, caller)| async move {
        let Seen { number, note } = follow.next().await?;
        let (name, data) = match &*note {
            Note::Progress(event) => ("progress", serde_json::to_string(event)),
            Note::State(report) => ("state", serde_json::to_string(&shown((**report).clone(), &caller))),
        };
        // Strings and numbers alone: they can always be written.
        let data = data.unwrap_or_default();
        Some((Ok::<_, Infallible>(Sse::default().event(name).id(number.to_string()).data(data)), (follow, caller)))
    });
    SseResponse::new(events).keep_alive(KeepAlive::default()).into_response()
}
