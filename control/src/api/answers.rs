//! Answers that many operations have in common, for the description alone.

use utoipa::IntoResponses;

use super::{Accepted, Problem};

/// Of what becomes a job.
#[derive(IntoResponses)]
#[response(status = 202, description = "Queued; Location is the job")]
#[allow(dead_code, reason = "described, never made")]
pub(super) struct Queued(Accepted);

/// Of what needs a key.
#[derive(IntoResponses)]
#[response(status = 401, description = "No key, or a wrong one", content_type = "application/problem+json")]
#[allow(dead_code, reason = "described, never made")]
pub(super) struct Keyed(Problem);

/// Of what a key that may only look may not do.
#[derive(IntoResponses)]
#[response(status = 403, description = "The key may only look", content_type = "application/problem+json")]
#[allow(dead_code, reason = "described, never made")]
pub(super) struct Changing(Problem);

/// Of what writes db.yml.
#[derive(IntoResponses)]
#[allow(dead_code, clippy::large_enum_variant, reason = "described, never made")]
pub(super) enum Written {
    #[response(status = 202, description = "db.yml is written, and a job applies it")]
    Accepted(Accepted),
    #[response(status = 409, description = "db.yml cannot be edited safely", content_type = "application/problem+json")]
    NotSafe(Problem),
    #[response(status = 412, description = "db.yml has changed since", content_type = "application/problem+json")]
    Stale(Problem),
    #[response(
        status = 422,
        description = "db.yml would have faults, which are listed",
        content_type = "application/problem+json"
    )]
    Faulty(Problem),
}
