//! A fault at a place, before it is known which file and project it stands in.

use super::diagnostic::Severity;
use super::formats::Misfit;
use super::spans::{Place, YamlFault};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) severity: Severity,
    pub(super) place: Place,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Fault {
    pub(super) fn error(place: Place, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, place, message: message.into(), hint: None }
    }

    pub(super) fn warning(place: Place, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, place, message: message.into(), hint: None }
    }

    pub(super) fn misfit(place: Place, misfit: Misfit) -> Self {
        Self { severity: Severity::Error, place, message: misfit.message, hint: misfit.hint }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        self.maybe_hint(Some(hint.into()))
    }

    pub(super) fn maybe_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }
}

impl From<YamlFault> for Fault {
    fn from(fault: YamlFault) -> Self {
        Self::error(fault.place, fault.message).maybe_hint(fault.hint.map(str::to_owned))
    }
}
