//! The API's description: OpenAPI 3.1, made of the handlers themselves, and a page of it for people.

use axum::Json;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{hook, jobs, page, plan, problem, projects, read, services};
use crate::db;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "itsUP",
        description = "A reverse proxy and the stacks behind it, driven by db.yml.\n\n\
            Projects and services are read and changed as db.yml writes them; db.yml keeps its comments, order and quoting. A change \
            is answered 202 with a job at once; listen to the job's events to see it through. Errors are RFC 9457 problem \
            documents; faults in db.yml come with file, line, column and a hint.",
        license(name = "MIT", identifier = "MIT")
    ),
    servers((url = "/")),
    tags(
        (name = "projects", description = "Projects of db.yml"),
        (name = "services", description = "Services of projects, and their environment"),
        (name = "changes", description = "Apply, roll out, roll back, and what came of it"),
        (name = "jobs", description = "Changes that wait, run or have ended"),
        (name = "status", description = "How itsUP is"),
        (name = "webhooks", description = "Deploying by a delivery from GitHub, GitLab, Gitea or Forgejo"),
        (name = "docs", description = "This description"),
    ),
    paths(
        projects::list, projects::put, projects::get, projects::patch, projects::delete,
        services::list_all, services::put, services::list, services::get, services::patch, services::delete,
        services::get_env, services::set_env,
        plan::plan, jobs::apply, jobs::rollout, jobs::rollback, jobs::update_by_query, jobs::update_project, jobs::update_service,
        read::receipts, read::one_receipt,
        jobs::list, jobs::get, jobs::cancel, jobs::events_of_one, jobs::events_of_all,
        read::status, read::certs, read::reload, read::healthz, read::metrics,
        hook::deliver,
        openapi_json, docs,
    ),
    components(schemas(jobs::Accepted, projects::ProjectDoc, services::ServiceDoc, problem::Problem, crate::jobs::Event)),
    modifiers(&Key),
    security(("key" = []))
)]
struct Description;

struct Key;

impl Modify for Key {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        openapi.components.get_or_insert_default().add_security_scheme("key", scheme);
    }
}

/// The description as a value: what `/openapi.json` and `itsup openapi` give.
pub fn openapi() -> Value {
    let mut value = serde_json::to_value(Description::openapi()).unwrap_or_default();
    value["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    // A project's schema is db.yml's own, which is written in the same JSON Schema.
    let mut schema = db::schema().clone();
    let mut definitions = schema.get_mut("$defs").map(Value::take).unwrap_or_else(|| json!({}));
    let mut project = schema["properties"]["projects"]["items"].take();
    if let Some(name) = project.get("$ref").and_then(Value::as_str).and_then(|name| name.rsplit('/').next()) {
        project = definitions[name].clone();
    }
    let mut service = definitions["Service"].clone();
    if service.is_null() {
        service = project["properties"]["services"]["items"].clone();
    }
    for part in [&mut project, &mut service, &mut definitions] {
        rename_references(part);
    }
    if let (Some(all), Some(definitions)) = (value["components"]["schemas"].as_object_mut(), definitions.as_object()) {
        for (name, definition) in definitions {
            all.insert(format!("Db{name}"), definition.clone());
        }
        if let Some(properties) = service.get_mut("properties").and_then(Value::as_object_mut) {
            let listed = json!({"type": "string", "description": "The project it is listed with; no key of db.yml."});
            properties.insert("project".into(), listed);
        }
        all.insert("Project".into(), project);
        all.insert("Service".into(), service);
    }
    value
}

/// The description as YAML: `openapi.yaml`.
pub fn openapi_yaml() -> String {
    serde_yaml::to_string(&openapi()).unwrap_or_default()
}

fn rename_references(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(rename_references),
        Value::Object(object) => {
            for (key, value) in object {
                match value {
                    Value::String(text) if key == "$ref" => {
                        if let Some(name) = text.strip_prefix("#/$defs/") {
                            *text = format!("#/components/schemas/Db{name}");
                        }
                    }
                    value => rename_references(value),
                }
            }
        }
        _ => {}
    }
}

/// This description, as OpenAPI 3.1.
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "getOpenApi", tag = "docs", security(()),
    responses((status = 200, description = "The description", body = Object))
)]
pub(super) async fn openapi_json() -> Json<Value> {
    Json(openapi())
}

/// This description, as a page.
#[utoipa::path(
    get, path = "/docs", operation_id = "getDocs", tag = "docs", security(()),
    responses((status = 200, description = "The page", body = String, content_type = "text/html"))
)]
pub(super) async fn docs() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        // Nothing from elsewhere, and no script at all.
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ];
    (headers, page::html(&openapi())).into_response()
}
