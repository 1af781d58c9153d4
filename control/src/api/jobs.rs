//! Changes and their jobs: ask for one, see how it is, listen to it.

use std::convert::Infallible;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event as Sse, KeepAlive};
use axum::response::{IntoResponse, Response, Sse as SseResponse};
use futures_util::stream;
use serde::{Deserialize, Serialize};

use super::{Api, Problem};
use crate::jobs::{Follow, Job, JobId, JobReport, Note, Origin, Seen, Work};

/// A change that was accepted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Accepted {
    #[serde(flatten)]
    pub job: JobReport,
    /// Whether an equal one was waiting already, which this is now part of.
    pub merged: bool,
}

/// What `POST /apply` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ApplyRequest {
    #[serde(default)]
    project: Option<String>,
    #[serde(default)]
    prune: bool,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    unpin: bool,
}

/// What `POST /rollout` and `POST /rollback` take.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceRequest {
    project: String,
    #[serde(default)]
    service: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct CancelQuery {
    #[serde(default)]
    force: bool,
}

pub(super) async fn apply(State(api): State<Api>, Json(request): Json<ApplyRequest>) -> Result<Response, Problem> {
    let ApplyRequest { project, prune, force, unpin } = request;
    submit(&api, Work::Apply { project: project.map(Into::into), prune, force, unpin }, Origin::Cli).await
}

pub(super) async fn rollout(State(api): State<Api>, Json(request): Json<ServiceRequest>) -> Result<Response, Problem> {
    let ServiceRequest { project, service } = request;
    submit(&api, Work::Rollout { project: project.into(), service: service.map(Into::into) }, Origin::Cli).await
}

pub(super) async fn rollback(State(api): State<Api>, Json(request): Json<ServiceRequest>) -> Result<Response, Problem> {
    let ServiceRequest { project, service } = request;
    submit(&api, Work::Rollback { project: project.into(), service: service.map(Into::into) }, Origin::Cli).await
}

/// Queues a change and answers 202 with its job.
pub(super) async fn submit(api: &Api, work: Work, origin: Origin) -> Result<Response, Problem> {
    let Job { report, merged, .. } = api.jobs.submit(work, origin)?;
    let place = format!("/jobs/{}", report.id);
    let accepted = Json(Accepted { job: report, merged });
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, place)], accepted).into_response())
}

pub(super) async fn list(State(api): State<Api>) -> Json<Vec<JobReport>> {
    Json(api.jobs.list())
}

pub(super) async fn get(State(api): State<Api>, Path(id): Path<u64>) -> Result<Json<JobReport>, Problem> {
    api.jobs.get(JobId(id)).map(Json).ok_or_else(|| unknown(id))
}

pub(super) async fn cancel(
    State(api): State<Api>,
    Path(id): Path<u64>,
    Query(query): Query<CancelQuery>,
) -> Result<Json<JobReport>, Problem> {
    Ok(Json(api.jobs.cancel(JobId(id), query.force)?))
}

pub(super) async fn events_of_one(
    State(api): State<Api>,
    Path(id): Path<u64>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let follow = api.jobs.follow(JobId(id), last_event_id(&headers).unwrap_or(0)).ok_or_else(|| unknown(id))?;
    Ok(server_sent(follow))
}

pub(super) async fn events_of_all(State(api): State<Api>, headers: HeaderMap) -> Response {
    server_sent(api.jobs.follow_all(last_event_id(&headers)))
}

fn unknown(id: u64) -> Problem {
    crate::jobs::JobError::Unknown(JobId(id)).into()
}

/// What a client that lost its connection has heard last.
fn last_event_id(headers: &HeaderMap) -> Option<u64> {
    headers.get("last-event-id")?.to_str().ok()?.parse().ok()
}

fn server_sent(follow: Follow) -> Response {
    let events = stream::unfold(follow, |mut follow| async move {
        let Seen { number, note } = follow.next().await?;
        let (name, data) = match &*note {
            Note::Progress(event) => ("progress", serde_json::to_string(event)),
            Note::State(report) => ("state", serde_json::to_string(report)),
        };
        // Strings and numbers alone: they can always be written.
        let data = data.unwrap_or_default();
        Some((Ok::<_, Infallible>(Sse::default().event(name).id(number.to_string()).data(data)), follow))
    });
    SseResponse::new(events).keep_alive(KeepAlive::default()).into_response()
}
