//! Services of projects, and their environment.

use axum::extract::{Extension, Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::answers::{Keyed, Written};
use super::auth::Caller;
use super::edits;
use super::projects::{change, tagged};
use super::{Api, Body, Problem};

/// A service, as db.yml writes it.
#[derive(ToSchema)]
#[schema(as = Service)]
#[allow(dead_code, reason = "its schema is db.yml's own")]
pub(super) struct ServiceDoc {}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct OfProject {
    /// The project's name, as db.yml writes it.
    project: String,
}

/// List the services of all projects, each with its `project`.
#[utoipa::path(
    get, path = "/services", operation_id = "listAllServices", tag = "services",
    responses((status = 200, description = "All services; ETag is that of db.yml", body = [ServiceDoc]),
        Keyed)
)]
pub(super) async fn list_all(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Problem> {
    let held = api.read_db().await?;
    let services: Vec<Value> = edits::projects(&held.value).iter().flat_map(edits::services_of).collect();
    Ok(tagged(&held.tag, edits::shown(Value::Array(services), caller.sees_secrets())))
}

/// List the services of one project.
#[utoipa::path(
    get, path = "/projects/{project}/services", operation_id = "listServices", tag = "services",
    params(("project" = String, Path, description = "The project's name, as db.yml writes it")),
    responses((status = 200, description = "Its services; ETag is that of db.yml", body = [ServiceDoc]),
        Keyed,
        (status = 404, description = "There is no such project", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(project): Path<String>,
) -> Result<Response, Problem> {
    let held = api.read_db().await?;
    let services = edits::services_of(edits::project(&held.value, &project)?);
    Ok(tagged(&held.tag, edits::shown(Value::Array(services), caller.sees_secrets())))
}

/// Show one service.
#[utoipa::path(
    get, path = "/projects/{project}/services/{service}", operation_id = "getService", tag = "services",
    params(("project" = String, Path, description = "The project's name, as db.yml writes it"),
        ("service" = String, Path, description = "The service's name")),
    responses((status = 200, description = "The service; ETag is that of db.yml", body = ServiceDoc),
        Keyed,
        (status = 404, description = "There is no such project or service", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn get(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path((project, service)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let held = api.read_db().await?;
    let services = edits::services_of(edits::project(&held.value, &project)?);
    let found = services.into_iter().find(|found| found["name"] == *service);
    let found = found.ok_or_else(|| Problem::from(edits::EditFault::no_service(&project, &service)))?;
    Ok(tagged(&held.tag, edits::shown(found, caller.sees_secrets())))
}

/// Add a service to a project, or replace the one of its name.
///
/// db.yml keeps its comments, order and quoting, and must be without a fault afterwards, else nothing changes.
#[utoipa::path(
    post, path = "/services", operation_id = "putService", tag = "services", request_body = ServiceDoc,
    params(OfProject, ("If-Match" = Option<String>, Header, description = "The ETag of db.yml as it was read")),
    responses(Written, Keyed,
        (status = 400, description = "The body or the query cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Not for this key, or not through the API", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such project", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn put(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(OfProject { project }): Query<OfProject>,
    headers: HeaderMap,
    Body(service): Body<Value>,
) -> Result<Response, Problem> {
    edits::name(&service)?;
    let of = project.clone();
    change(&api, &caller, &headers, project, move |value| edits::put_service(value, &of, service.clone())).await
}

/// Change a service in part, by a JSON merge patch (RFC 7396).
#[utoipa::path(
    patch, path = "/projects/{project}/services/{service}", operation_id = "patchService", tag = "services",
    request_body(content = Object, description = "A JSON merge patch of the service"),
    params(("project" = String, Path, description = "The project's name, as db.yml writes it"),
        ("service" = String, Path, description = "The service's name"),
        ("If-Match" = Option<String>, Header, description = "The ETag of db.yml as it was read")),
    responses(Written, Keyed,
        (status = 400, description = "The body cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Not for this key, or not through the API", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such project or service", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn patch(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path((project, service)): Path<(String, String)>,
    headers: HeaderMap,
    Body(patch): Body<Value>,
) -> Result<Response, Problem> {
    let of = project.clone();
    change(&api, &caller, &headers, project, move |value| edits::patch_service(value, &of, &service, &patch)).await
}

/// Remove a service.
#[utoipa::path(
    delete, path = "/projects/{project}/services/{service}", operation_id = "deleteService", tag = "services",
    params(("project" = String, Path, description = "The project's name, as db.yml writes it"),
        ("service" = String, Path, description = "The service's name"),
        ("If-Match" = Option<String>, Header, description = "The ETag of db.yml as it was read")),
    responses(Written, Keyed,
        (status = 403, description = "Not for this key", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such project or service", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn delete(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path((project, service)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let of = project.clone();
    change(&api, &caller, &headers, project, move |value| edits::delete_service(value, &of, &service)).await
}

/// Show a service's environment.
///
/// With a read-only key all values are `***`.
#[utoipa::path(
    get, path = "/projects/{project}/services/{service}/env", operation_id = "getEnv", tag = "services",
    params(("project" = String, Path, description = "The project's name, as db.yml writes it"),
        ("service" = String, Path, description = "The service's name")),
    responses((status = 200, description = "Names and values; ETag is that of db.yml", body = Object),
        Keyed,
        (status = 404, description = "There is no such project or service", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn get_env(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path((project, service)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let held = api.read_db().await?;
    let mut env = edits::env(edits::service(&held.value, &project, &service)?);
    if !caller.sees_secrets() {
        env.values_mut().for_each(|value| *value = edits::MASK.into());
    }
    Ok(tagged(&held.tag, Value::Object(env)))
}

/// Set environment variables of a service.
///
/// Those that are named; a null removes one, and all others stay.
#[utoipa::path(
    post, path = "/projects/{project}/services/{service}/env", operation_id = "setEnv", tag = "services",
    request_body(content = Object, description = "Names and values"),
    params(("project" = String, Path, description = "The project's name, as db.yml writes it"),
        ("service" = String, Path, description = "The service's name"),
        ("If-Match" = Option<String>, Header, description = "The ETag of db.yml as it was read")),
    responses(Written, Keyed,
        (status = 400, description = "The body cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Not for this key", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such project or service", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn set_env(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path((project, service)): Path<(String, String)>,
    headers: HeaderMap,
    Body(env): Body<Map<String, Value>>,
) -> Result<Response, Problem> {
    let of = project.clone();
    change(&api, &caller, &headers, project, move |value| edits::set_env(value, &of, &service, &env)).await
}
