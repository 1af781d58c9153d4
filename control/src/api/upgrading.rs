//! Upgrades and self-updates, over the control socket alone.

use axum::Router;
use axum::extract::{Json, State};
use axum::http::StatusCode;
use axum::routing::post;

use super::{Api, Problem};
use crate::self_update::{SelfUpdateError, SelfUpdated};
use crate::status::ErrorReport;
use crate::upgrade::{UpgradeReport, UpgradeRequest};

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/upgrade", post(upgrade)).route("/self-update", post(self_update))
}

async fn upgrade(State(api): State<Api>, Json(request): Json<UpgradeRequest>) -> Result<Json<UpgradeReport>, Problem> {
    api.control.upgrades().upgrade(request).await.map(Json).map_err(not_done)
}

async fn self_update(State(api): State<Api>) -> Result<Json<SelfUpdated>, Problem> {
    let say = |doing: &str| tracing::info!("self-update: {doing}");
    // Spawned, so that a client that hangs up does not leave half of it undone.
    let updating = tokio::spawn(async move { crate::self_update::self_update(&api.control, &say).await });
    match updating.await {
        Ok(updated) => updated.map(Json).map_err(|error| match error {
            SelfUpdateError::Upgrade(report) => not_done(report),
            refused => Problem::new(StatusCode::CONFLICT, refused.to_string()),
        }),
        Err(_) => Err(Problem::internal("the update broke off")),
    }
}

fn not_done(ErrorReport { error, hint, diagnostics }: ErrorReport) -> Problem {
    Problem { hint, diagnostics, ..Problem::new(StatusCode::CONFLICT, error) }
}
