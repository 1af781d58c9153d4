//! What an apply would do, told beforehand.

use axum::Json;
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use utoipa::IntoParams;

use super::answers::Keyed;
use super::auth::Caller;
use super::{Api, Problem};
use crate::apply::{self, ApplyError, Request};
use crate::change;
use crate::control::{read_last_good, read_projects};
use crate::docker::EngineClient;
use crate::plan::Live;
use crate::versions;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PlanQuery {
    /// Of one project alone.
    project: Option<String>,
    /// As if stacks that are no longer in db.yml were removed.
    #[serde(default)]
    prune: bool,
    /// As if what has not changed were replaced as well.
    #[serde(default)]
    force: bool,
}

/// Show what an apply would do, and what becomes of the traffic of now. Nothing is changed.
///
/// For each service its step (`start`, `roll_over`, `recreate_in_place`, `no_change`, `remove`) and the keys that have changed;
/// images to pull; hosts added or dropped. `changes` says whether there is anything to do.
#[utoipa::path(
    get, path = "/plan", operation_id = "getPlan", tag = "changes", params(PlanQuery),
    responses((status = 200, description = "The plan", body = Object),
        Keyed,
        (status = 400, description = "The query cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such project", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Containers are switched off", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "db.yml has faults, which are listed", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Docker does not answer", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn plan(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(PlanQuery { project, prune, force }): Query<PlanQuery>,
) -> Result<Json<Value>, Problem> {
    let (control, root) = (api.control.clone(), api.root.clone());
    let read = tokio::task::spawn_blocking(move || {
        let live = Live::of(&control.status(), change::restarts(&root));
        let pins = versions::pins(&root).unwrap_or_default();
        (read_projects(&root), read_last_good(&root), live, pins)
    });
    let (read, serving, live, pins) = read.await.map_err(|_| Problem::internal("db.yml could not be read"))?;
    let (db, _) = read?;
    if let Some(name) = project.as_deref().filter(|name| db.project(name).is_none()) {
        return Err(Problem::not_found(format!("there is no project {name:?}")));
    }
    let settings = api.control.settings().filter(|settings| settings.docker);
    let Some(settings) = settings else {
        return Err(Problem::new(StatusCode::CONFLICT, "containers are switched off").hint("set ITSUP_DOCKER to on"));
    };
    let engine = EngineClient::new(settings.docker_host.as_deref()).map_err(ApplyError::from)?;
    let request = Request { project: project.map(Into::into), prune, force, ..Request::default() };
    let found = apply::look(&api.root, &engine, &db, &pins).await?;
    let mut plan = apply::plan_for(&db, &found, &pins, &request, serving.as_ref());
    plan.judge(&db, &live);
    if !caller.sees_secrets() {
        plan.mask();
    }
    Ok(Json(plan.shown()))
}
