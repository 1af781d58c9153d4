//! What an apply did: plain data, the same on both ends of the socket.

use serde::{Deserialize, Serialize};

use crate::jobs::Outcome;
use crate::plan::Step;

/// What an apply did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Applied {
    pub network_created: bool,
    pub projects: Vec<ProjectApplied>,
    /// Projects that were removed.
    pub removed: Vec<String>,
    /// Folders that db.yml no longer names, and that are still there.
    pub gone: Vec<String>,
    pub warnings: Vec<String>,
    /// Whether the routes could not be published.
    pub unpublished: bool,
    pub seconds: f64,
}

/// What became of one project.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProjectApplied {
    pub project: String,
    pub ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The last lines that the culprit logged.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
    /// Those that were changed.
    pub services: Vec<ServiceApplied>,
    pub warnings: Vec<String>,
}

/// What became of one service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceApplied {
    pub service: String,
    pub step: Step,
    pub summary: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub receipt: Option<String>,
}

impl ProjectApplied {
    pub(super) fn failed(project: &str, error: String, hint: Option<&str>) -> ProjectApplied {
        ProjectApplied { project: project.to_owned(), error, hint: hint.map(str::to_owned), ..Default::default() }
    }
}

impl Applied {
    /// In one line.
    pub fn summary(&self) -> String {
        let changed = self.projects.iter().filter(|one| one.ok && !one.services.is_empty()).count();
        let unchanged = self.projects.iter().filter(|one| one.ok && one.services.is_empty()).count();
        let failed: Vec<&str> = self.projects.iter().filter(|one| !one.ok).map(|one| one.project.as_str()).collect();
        let mut parts = Vec::new();
        if changed > 0 {
            parts.push(format!("{changed} changed"));
        }
        if !self.removed.is_empty() {
            parts.push(format!("{} removed", self.removed.len()));
        }
        if unchanged > 0 {
            parts.push(format!("{unchanged} unchanged"));
        }
        if !failed.is_empty() {
            parts.push(format!("{} failed ({})", failed.len(), failed.join(", ")));
        }
        if parts.is_empty() {
            parts.push("no project has containers".to_owned());
        }
        format!("{}, in {:.1} s", parts.join(", "), self.seconds)
    }

    /// The same, as what came of a job.
    pub fn outcome(&self) -> Outcome {
        let ok = !self.unpublished && self.projects.iter().all(|one| one.ok);
        let first = self.projects.iter().find(|one| !one.ok);
        Outcome {
            success: ok,
            message: self.summary(),
            hint: first.and_then(|one| one.hint.clone()),
            receipts: self
                .projects
                .iter()
                .flat_map(|one| &one.services)
                .filter_map(|one| one.receipt.clone())
                .collect(),
            detail: serde_json::to_value(self).ok(),
            ..Outcome::default()
        }
    }
}
