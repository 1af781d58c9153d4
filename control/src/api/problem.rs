//! Errors as RFC 9457 problem documents, with the diagnostics that `itsup validate` gives.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::apply::ApplyError;
use crate::control::{Refused, ReloadError, ShuttingDown};
use crate::db::Diagnostic;
use crate::db_file::WriteError;
use crate::jobs::JobError;

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `about:blank`: the status says what kind of problem it is.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    pub kind: Box<str>,
    /// The status in words.
    #[schema(value_type = String)]
    pub title: Box<str>,
    pub status: u16,
    /// What is wrong, in one line.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Every fault in db.yml or `.env`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Problem {
        Problem {
            kind: "about:blank".into(),
            title: status.canonical_reason().unwrap_or("Error").into(),
            status: status.as_u16(),
            detail: detail.into(),
            hint: None,
            diagnostics: Vec::new(),
        }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Problem {
        Problem { hint: Some(hint.into()), ..self }
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, detail)
    }

    /// A fault of ours; the log says more than the answer.
    pub(crate) fn internal(detail: impl Into<String>) -> Problem {
        let detail = detail.into();
        tracing::error!("the API cannot answer: {detail}");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(self)).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Problem {
        Problem { diagnostics: refused.diagnostics, ..Problem::new(StatusCode::UNPROCESSABLE_ENTITY, refused.message) }
    }
}

impl From<ReloadError> for Problem {
    fn from(error: ReloadError) -> Problem {
        let detail = error.to_string();
        match error {
            ReloadError::Refused(refused) => Problem { detail, ..refused.into() },
            ReloadError::ShuttingDown(ShuttingDown) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail),
        }
    }
}

impl From<JobError> for Problem {
    fn from(error: JobError) -> Problem {
        let status = match error {
            JobError::Full(_) | JobError::Closed => StatusCode::SERVICE_UNAVAILABLE,
            JobError::Unknown(_) => StatusCode::NOT_FOUND,
            JobError::Ended(_) | JobError::Shared(_) => StatusCode::CONFLICT,
        };
        let problem = Problem::new(status, error.to_string());
        if let JobError::Shared(_) = error { problem.hint("cancel it with force=true all the same") } else { problem }
    }
}

impl From<ApplyError> for Problem {
    fn from(error: ApplyError) -> Problem {
        let status = match error {
            ApplyError::Engine(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Problem { hint: error.hint().map(str::to_owned), ..Problem::new(status, error.to_string()) }
    }
}

impl From<WriteError> for Problem {
    fn from(error: WriteError) -> Problem {
        let detail = error.to_string();
        match error {
            WriteError::Stale => Problem::new(StatusCode::PRECONDITION_FAILED, detail)
                .hint("read it again, and send the change with the new ETag"),
            WriteError::Busy => Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail),
            WriteError::Faulty(refused) => refused.into(),
            WriteError::Edit(_) => Problem::new(StatusCode::CONFLICT, detail).hint("change it in db.yml itself"),
            WriteError::Unknown(_) => Problem::not_found(detail),
            WriteError::Io { .. } => Problem::internal(detail),
        }
    }
}
