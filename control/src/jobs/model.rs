//! What jobs are made of: plain data, the same in the queue, on disk and on the wire.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::db::Diagnostic;

/// A job's number; they rise, also across restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Work {
    /// Make what runs what db.yml says: of one project, or of all.
    Apply {
        #[serde(default, skip_serializing_if = "Option::is_none", with = "maybe_name")]
        #[schema(value_type = Option<String>)]
        project: Option<Arc<str>>,
        /// Remove stacks that are no longer in db.yml.
        #[serde(default)]
        prune: bool,
        /// Also where nothing has changed.
        #[serde(default)]
        force: bool,
        /// Let go of what a rollback has pinned.
        #[serde(default)]
        unpin: bool,
    },
    /// Roll services over to their image and config of now.
    Rollout {
        #[serde(with = "name")]
        #[schema(value_type = String)]
        project: Arc<str>,
        #[serde(default, skip_serializing_if = "Option::is_none", with = "maybe_name")]
        #[schema(value_type = Option<String>)]
        service: Option<Arc<str>>,
    },
    /// Go back to the previous image and config, and stay there.
    Rollback {
        #[serde(with = "name")]
        #[schema(value_type = String)]
        project: Arc<str>,
        #[serde(default, skip_serializing_if = "Option::is_none", with = "maybe_name")]
        #[schema(value_type = Option<String>)]
        service: Option<Arc<str>>,
    },
    /// Fetch itsUP's own source, build it, upgrade to it, and apply.
    SelfUpdate {
        #[serde(with = "name")]
        #[schema(value_type = String)]
        project: Arc<str>,
    },
}

impl Work {
    /// The project that it changes; `None` where that is all of them.
    pub fn project(&self) -> Option<&Arc<str>> {
        match self {
            Work::Apply { project, .. } => project.as_ref(),
            Work::Rollout { project, .. } | Work::Rollback { project, .. } | Work::SelfUpdate { project } => {
                Some(project)
            }
        }
    }

    /// Reports whether it ends with another process in this one's place: that one waits for whatever else runs.
    pub(super) fn replaces_the_process(&self) -> bool {
        matches!(self, Work::SelfUpdate { .. })
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, project, service) = match self {
            Work::Apply { project, .. } => ("apply", project.as_deref(), None),
            Work::Rollout { project, service } => ("rollout", Some(&**project), service.as_deref()),
            Work::Rollback { project, service } => ("rollback", Some(&**project), service.as_deref()),
            Work::SelfUpdate { project } => ("self-update", Some(&**project), None),
        };
        f.write_str(verb)?;
        [project, service].into_iter().flatten().try_for_each(|name| write!(f, " {name}"))
    }
}

/// Who asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "via", rename_all = "snake_case")]
pub enum Origin {
    /// The command line, by the control socket.
    Cli,
    /// The API, with a key of this name.
    Api {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
    /// A webhook.
    Webhook {
        event: String,
        /// What deliveries are told apart by, where the sender numbers them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        delivery: Option<String>,
    },
    /// `ITSUP_RECONCILE`.
    Timer,
}

impl Origin {
    pub(super) fn delivery(&self) -> Option<&str> {
        match self {
            Origin::Webhook { delivery, .. } => delivery.as_deref(),
            _ => None,
        }
    }
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    Queued,
    Running,
    Done,
    Failed,
    Cancelled,
}

impl JobState {
    /// Reports whether nothing more will come.
    pub fn is_ended(self) -> bool {
        matches!(self, JobState::Done | JobState::Failed | JobState::Cancelled)
    }
}

/// A job as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobReport {
    pub id: JobId,
    pub work: Work,
    pub state: JobState,
    /// Who asked; more than one where equal ones were merged. The first ones, of very many.
    pub origins: Vec<Origin>,
    /// RFC 3339.
    pub created: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

/// What came of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Outcome {
    pub success: bool,
    /// In one line.
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
    /// The receipts it has left, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receipts: Vec<String>,
    /// What the command prints: its own shape for each kind of work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub detail: Option<serde_json::Value>,
}

impl Outcome {
    /// It went well.
    pub fn done(message: impl Into<String>) -> Outcome {
        Outcome { success: true, message: message.into(), ..Outcome::default() }
    }

    /// It did not.
    pub fn failed(message: impl Into<String>) -> Outcome {
        Outcome { message: message.into(), ..Outcome::default() }
    }

    /// With what to do about it.
    pub fn hint(self, hint: impl Into<String>) -> Outcome {
        Outcome { hint: Some(hint.into()), ..self }
    }
}

/// How far a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waiting for another change of the same project.
    Waiting,
    Planning,
    Pulling,
    /// The one-off command before a rollout.
    Before,
    Starting,
    Ready,
    Switched,
    Draining,
    Watching,
    Stopping,
    /// Requests wait while a service restarts.
    Held,
    /// Something worth knowing that stops nothing.
    Warning,
    Done,
    Failed,
}

/// One thing that a running job says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    pub job: JobId,
    /// RFC 3339.
    pub time: String,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "maybe_name")]
    #[schema(value_type = Option<String>)]
    pub project: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "maybe_name")]
    #[schema(value_type = Option<String>)]
    pub service: Option<Arc<str>>,
    pub phase: Phase,
    pub detail: String,
    /// So many of so many; newer counts replace older ones of the same service and phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<u64>>)]
    pub count: Option<(u64, u64)>,
}

impl Event {
    /// About a project as a whole.
    pub fn of_project(project: impl Into<Arc<str>>, phase: Phase, detail: impl Into<String>) -> Event {
        Event { project: Some(project.into()), ..Event::of_all(phase, detail) }
    }

    /// About one service.
    pub fn of_service(
        project: impl Into<Arc<str>>,
        service: impl Into<Arc<str>>,
        phase: Phase,
        detail: impl Into<String>,
    ) -> Event {
        Event { service: Some(service.into()), ..Event::of_project(project, phase, detail) }
    }

    /// About the job as a whole.
    pub fn of_all(phase: Phase, detail: impl Into<String>) -> Event {
        // Number and time are filled in by `Progress`.
        Event {
            job: JobId(0),
            time: String::new(),
            project: None,
            service: None,
            phase,
            detail: detail.into(),
            count: None,
        }
    }

    /// With a count.
    pub fn count(self, done: u64, total: u64) -> Event {
        Event { count: Some((done, total)), ..self }
    }
}

/// What listeners are told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Note {
    /// A running job says something.
    Progress(Event),
    /// A job has been queued or merged, has begun, or has ended.
    State(Box<JobReport>),
}

impl Note {
    /// Reports whether the earlier note need not be heard any more: an older count of the same.
    pub(super) fn replaces(&self, earlier: &Note) -> bool {
        let (Note::Progress(new), Note::Progress(old)) = (self, earlier) else { return false };
        new.count.is_some()
            && old.count.is_some()
            && (new.job, new.phase) == (old.job, old.phase)
            && (&new.project, &new.service) == (&old.project, &old.service)
    }
}

/// Shared names as plain strings; serde's own feature for that would be everybody's.
mod name {
    use super::*;

    pub(super) fn serialize<S: serde::Serializer>(name: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(name)
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
        String::deserialize(deserializer).map(Arc::from)
    }
}

/// The same where there may be none.
mod maybe_name {
    use super::*;

    pub(super) fn serialize<S: serde::Serializer>(name: &Option<Arc<str>>, serializer: S) -> Result<S::Ok, S::Error> {
        name.as_deref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Arc<str>>, D::Error> {
        Option::<String>::deserialize(deserializer).map(|name| name.map(Arc::from))
    }
}
