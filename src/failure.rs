//! Why a command failed, with what to do about it.

use itsup_control::control::Refused;
use itsup_control::db::Diagnostic;
use itsup_control::status::ErrorReport;

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) report: ErrorReport,
}

impl Failure {
    /// An error with a hint.
    pub(crate) fn with_hint(error: impl Into<String>, hint: impl Into<String>) -> Failure {
        Failure { report: ErrorReport { error: error.into(), hint: Some(hint.into()), diagnostics: Vec::new() } }
    }

    /// Faults in the user's files.
    pub(crate) fn faults(error: impl Into<String>, diagnostics: Vec<Diagnostic>) -> Failure {
        Failure { report: ErrorReport { error: error.into(), hint: None, diagnostics } }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::faults(format!("{error:#}"), Vec::new())
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Failure::faults(refused.message, refused.diagnostics)
    }
}

impl From<ErrorReport> for Failure {
    fn from(report: ErrorReport) -> Self {
        Failure { report }
    }
}
