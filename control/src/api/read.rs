//! What only looks: status, certificates, receipts; and the reload.

use std::path::Path as FilePath;

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::answers::{Changing, Keyed};
use super::auth::Caller;
use super::{Api, Problem};
use crate::change::receipt_names;
use crate::status::{CertificateReport, ChangeReport, ReloadReport, StatusReport};
use crate::versions;

/// The most receipts that are listed.
const RECEIPTS: usize = 200;

/// Say that itsUP is alive.
#[utoipa::path(
    get, path = "/healthz", operation_id = "healthz", tag = "status", security(()),
    responses((status = 200, description = "It is", body = String, content_type = "text/plain"))
)]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Show the whole of itsUP at this moment: generation, hosts, upstreams and endpoints with what is in flight, changes that run or wait, pins,
/// certificates, faults and warnings.
#[utoipa::path(
    get, path = "/status", operation_id = "getStatus", tag = "status",
    responses((status = 200, description = "The status", body = Object),
        Keyed)
)]
pub(super) async fn status(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<StatusReport>, Problem> {
    // With 100,000 hosts this is work; it belongs to no runtime's worker.
    let status = tokio::task::spawn_blocking(move || {
        let mut status = api.control.status();
        status.changes = api.jobs.list().iter().rev().filter_map(ChangeReport::of).collect();
        status.pins = versions::pins(&api.root).unwrap_or_default().keys().map(ToString::to_string).collect();
        status
    });
    let mut status = status.await.map_err(|_| Problem::internal("the status could not be made"))?;
    if !caller.sees_secrets() {
        // Lines of db.yml may hold secrets.
        status.diagnostics.iter_mut().for_each(|diagnostic| diagnostic.source.clear());
    }
    Ok(Json(status))
}

/// Have db.yml, `.env` and the certificates read again: routes alone, no container is touched.
#[utoipa::path(
    post, path = "/reload", operation_id = "reload", tag = "status",
    responses((status = 200, description = "What was added, changed and removed", body = Object),
        Keyed, Changing,
        (status = 422, description = "There are faults, which are listed; nothing was changed", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn reload(State(api): State<Api>) -> Result<Json<ReloadReport>, Problem> {
    Ok(Json(api.control.reload().await?))
}

/// Metrics as Prometheus reads them.
#[utoipa::path(
    get, path = "/metrics", operation_id = "getMetrics", tag = "status",
    responses((status = 200, description = "The metrics", body = String, content_type = "text/plain"),
        (status = 401, description = "No key, or a wrong one, and not a direct connection from this host", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn metrics(State(api): State<Api>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], api.control.metrics()).into_response()
}

/// List certificates: host, source, and days left.
#[utoipa::path(
    get, path = "/certs", operation_id = "listCertificates", tag = "status",
    responses((status = 200, description = "The certificates", body = [Object]),
        Keyed)
)]
pub(super) async fn certs(State(api): State<Api>) -> Result<Json<Vec<CertificateReport>>, Problem> {
    // With 100,000 hosts this is work; it belongs to no runtime's worker.
    let certificates = tokio::task::spawn_blocking(move || api.control.certificates()).await;
    certificates.map(Json).map_err(|_| Problem::internal("the list could not be made"))
}

/// List the newest receipts: what each change did, and what it cost.
#[utoipa::path(
    get, path = "/receipts", operation_id = "listReceipts", tag = "changes",
    responses((status = 200, description = "The receipts, the newest first, each with its `name`", body = [Object]),
        Keyed)
)]
pub(super) async fn receipts(State(api): State<Api>) -> Result<Json<Vec<Value>>, Problem> {
    let folder = api.root.receipts();
    let read = tokio::task::spawn_blocking(move || {
        let names = receipt_names(&api.root);
        let found = names.iter().take(RECEIPTS).filter_map(|name| receipt(&folder, name));
        found.collect::<Vec<Value>>()
    });
    read.await.map(Json).map_err(|_| Problem::internal("the receipts could not be read"))
}

/// Show one receipt.
#[utoipa::path(
    get, path = "/receipts/{name}", operation_id = "getReceipt", tag = "changes",
    params(("name" = String, Path, description = "The receipt's name")),
    responses((status = 200, description = "The receipt", body = Object),
        Keyed,
        (status = 404, description = "There is no such receipt", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn one_receipt(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    let folder = api.root.receipts();
    let wanted = name.clone();
    // Only what the folder lists: no name leads out of it.
    let read = tokio::task::spawn_blocking(move || {
        receipt_names(&api.root).contains(&wanted).then(|| receipt(&folder, &wanted))?
    });
    let found = read.await.map_err(|_| Problem::internal("the receipt could not be read"))?;
    found.map(Json).ok_or_else(|| Problem::not_found(format!("there is no receipt {name:?}")))
}

fn receipt(folder: &FilePath, name: &str) -> Option<Value> {
    let bytes = std::fs::read(folder.join(format!("{name}.json"))).ok()?;
    let mut receipt: Value = serde_json::from_slice(&bytes).ok()?;
    if let Some(receipt) = receipt.as_object_mut() {
        receipt.insert("name".into(), name.into());
    }
    Some(receipt)
}
