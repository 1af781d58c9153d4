//! Projects: read, add or replace, change in part, remove.
//!
//! What is answered and taken is db.yml's own shape, with the defaults that the old tool filled in. The edits themselves are
//! in `edits`, pure.

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use utoipa::ToSchema;

use super::answers::{Keyed, Written};
use super::auth::Caller;
use super::edits::{self, EditFault};
use super::jobs;
use super::{Api, Body, Problem};
use crate::db_file::WriteError;
use crate::jobs::Work;

/// A project, as db.yml writes it.
#[derive(ToSchema)]
#[schema(as = Project)]
#[allow(dead_code, reason = "its schema is db.yml's own")]
pub(super) struct ProjectDoc {}

/// List all projects.
///
/// With everything that db.yml says of them, and the defaults of what it does not say. With a read-only key,
/// values of `env`, secrets and passwords are `***`.
#[utoipa::path(
    get, path = "/projects", operation_id = "listProjects", tag = "projects",
    responses((status = 200, description = "All projects, in db.yml's order; ETag is that of db.yml", body = [ProjectDoc]),
        Keyed)
)]
pub(super) async fn list(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Result<Response, Problem> {
    let held = api.read_db().await?;
    let projects = edits::projects(&held.value).iter().map(edits::with_defaults).collect::<Vec<_>>();
    Ok(tagged(&held.tag, edits::shown(Value::Array(projects), caller.sees_secrets())))
}

/// Show one project.
#[utoipa::path(
    get, path = "/projects/{project}", operation_id = "getProject", tag = "projects",
    params(("project" = String, Path, description = "The project's name, as db.yml writes it")),
    responses((status = 200, description = "The project; ETag is that of db.yml", body = ProjectDoc),
        Keyed,
        (status = 404, description = "There is no such project", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn get(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let held = api.read_db().await?;
    let project = edits::with_defaults(edits::project(&held.value, &name)?);
    Ok(tagged(&held.tag, edits::shown(project, caller.sees_secrets())))
}

/// Add a project, or replace the one of its name.
///
/// db.yml keeps its comments, order and quoting. The whole of it must be without a fault afterwards, else nothing changes. The job
/// then applies the project. With `If-Match: "TAG"` it is refused when db.yml has changed since it was read.
#[utoipa::path(
    post, path = "/projects", operation_id = "putProject", tag = "projects", request_body = ProjectDoc,
    params(("If-Match" = Option<String>, Header, description = "The ETag of db.yml as it was read")),
    responses(Written, Keyed,
        (status = 400, description = "The body cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Not for this key, or not through the API", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn put(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Body(project): Body<Value>,
) -> Result<Response, Problem> {
    let name = edits::name(&project)?;
    change(&api, &caller, &headers, name, move |value| edits::put_project(value, project.clone())).await
}

/// Change a project in part.
///
/// A JSON merge patch (RFC 7396): what is null is removed, objects are merged, anything else is replaced as a whole.
#[utoipa::path(
    patch, path = "/projects/{project}", operation_id = "patchProject", tag = "projects",
    request_body(content = Object, description = "A JSON merge patch of the project"),
    params(("project" = String, Path, description = "The project's name, as db.yml writes it"),
        ("If-Match" = Option<String>, Header, description = "The ETag of db.yml as it was read")),
    responses(Written, Keyed,
        (status = 400, description = "The body cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Not for this key, or not through the API", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such project", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn patch(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(patch): Body<Value>,
) -> Result<Response, Problem> {
    let project = name.clone();
    change(&api, &caller, &headers, name, move |value| edits::patch_project(value, &project, &patch)).await
}

/// Remove a project.
///
/// From db.yml, and from the proxy's routes. Its containers go with the next `apply` that prunes; volumes stay.
#[utoipa::path(
    delete, path = "/projects/{project}", operation_id = "deleteProject", tag = "projects",
    params(("project" = String, Path, description = "The project's name, as db.yml writes it"),
        ("If-Match" = Option<String>, Header, description = "The ETag of db.yml as it was read")),
    responses(Written, Keyed,
        (status = 403, description = "Not for this key", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such project", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn delete(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let project = name.clone();
    change(&api, &caller, &headers, name, move |value| edits::delete_project(value, &project)).await
}

/// Changes db.yml, has its routes taken up, and queues an apply of the project.
pub(super) async fn change(
    api: &Api,
    caller: &Caller,
    headers: &HeaderMap,
    project: String,
    edit: impl Fn(&mut Value) -> Result<(), EditFault> + Send + 'static,
) -> Result<Response, Problem> {
    let seen = if_match(headers)?;
    let trusted = caller.is_local() || api.control.settings().is_some_and(|settings| settings.api_rules.compose);
    let checked = move |value: &mut Value| {
        let before = value.clone();
        edit(value)?;
        if trusted { Ok(()) } else { edits::no_new_power(&before, value) }
    };
    let tag = api.write_db(seen, checked).await?;
    // Routes at once; containers by the job.
    api.reload_soon().await?;
    let work = Work::Apply { project: Some(project.into()), prune: false, force: false, unpin: false };
    let accepted = jobs::submit(api, work, caller.origin())?;
    Ok(([(header::ETAG, format!("\"{tag}\""))], accepted).into_response())
}

/// The tag that db.yml must have; `*` is any.
fn if_match(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    // A weak tag, or a list, never matches.
    let tag = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).filter(|tag| !tag.contains('"'));
    tag.map(|tag| Some(tag.to_owned())).ok_or_else(|| WriteError::Stale.into())
}

pub(super) fn tagged(tag: &str, value: Value) -> Response {
    let mut response = Json(value).into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{tag}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}
