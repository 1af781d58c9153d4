//! Certificates over the control socket alone: order them now, revoke it, and the internal root.

use axum::Router;
use axum::extract::{Json, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use itsup_proxy::HostPattern;
use serde::{Deserialize, Serialize};

use super::{Api, Problem};
use crate::acme::issuer::{AskError, UpdateReport};
use crate::status::RootReport;

/// What to order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateRequest {
    /// `None` for all hosts.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host: Option<String>,
    /// Also what is not due.
    #[serde(default)]
    pub force: bool,
}

/// What to revoke.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    pub host: String,
}

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/certs/ca", get(ca)).route("/certs/update", post(update)).route("/certs/revoke", post(revoke))
}

async fn ca(State(api): State<Api>) -> Result<Json<RootReport>, Problem> {
    let root = api.control.root_certificate().map(Json);
    root.ok_or_else(|| Problem::new(StatusCode::CONFLICT, "the internal CA does not work; `itsup status` says why"))
}

async fn update(
    State(api): State<Api>,
    Json(UpdateRequest { host, force }): Json<UpdateRequest>,
) -> Result<Json<UpdateReport>, Problem> {
    let host = host.as_deref().map(parse_host).transpose()?;
    Ok(Json(api.control.update_certificates(host, force).await?))
}

async fn revoke(
    State(api): State<Api>,
    Json(RevokeRequest { host }): Json<RevokeRequest>,
) -> Result<Json<UpdateReport>, Problem> {
    Ok(Json(api.control.revoke_certificate(parse_host(&host)?).await?))
}

fn parse_host(text: &str) -> Result<HostPattern, AskError> {
    HostPattern::parse(text).map_err(|fault| AskError(format!("host: {fault}")))
}

impl From<AskError> for Problem {
    fn from(AskError(why): AskError) -> Problem {
        Problem::new(StatusCode::CONFLICT, why)
    }
}
