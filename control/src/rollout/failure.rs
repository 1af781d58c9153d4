//! Why a rollout was undone, in words that say which container and after how long.

use std::fmt;
use std::time::Duration;

use super::Tally;
use crate::observed::ContainerId;

/// Why a rollout was undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Compose could not make the containers.
    NotStarted(String),
    /// It made fewer than it was asked for.
    TooFew { made: usize, wanted: usize },
    /// A new container ended, or was restarted.
    Crashed { container: ContainerId, exit_code: Option<i64>, serving: bool },
    /// They were not ready in time.
    NotReady { container: Option<ContainerId>, missing: String, after: Duration },
    /// They could not be routed.
    NotPublished(String),
    /// They failed where the old ones did not.
    Worse { old: Tally, new: Tally },
    /// It was cancelled.
    Cancelled,
    /// itsUP ended in the middle of it.
    Interrupted,
}

impl Failure {
    /// The container whose log tells more.
    pub fn culprit(&self) -> Option<&ContainerId> {
        match self {
            Failure::Crashed { container, .. } => Some(container),
            Failure::NotReady { container, .. } => container.as_ref(),
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NotStarted(why) => write!(f, "the new containers could not be started: {why}"),
            Failure::TooFew { made, wanted } => write!(f, "compose made {made} of {wanted} containers"),
            Failure::Crashed { container, exit_code, serving } => {
                write!(f, "the new container {} ended", container.short())?;
                if let Some(code) = exit_code {
                    write!(f, " with exit code {code}")?;
                }
                f.write_str(if *serving { " while it was watched" } else { " before it was ready" })
            }
            Failure::NotReady { container: Some(container), missing, after } => {
                write!(f, "the new container {} was not ready within {after:?}: {missing}", container.short())
            }
            Failure::NotReady { container: None, missing, after } => {
                write!(f, "not ready within {after:?}: {missing}")
            }
            Failure::NotPublished(why) => write!(f, "the new containers could not be routed: {why}"),
            Failure::Worse { old, new } => write!(
                f,
                "the new containers failed {} of {} requests, where the old ones had failed {} of {}",
                new.failed, new.served, old.failed, old.served
            ),
            Failure::Cancelled => f.write_str("it was cancelled"),
            Failure::Interrupted => f.write_str("itsup ended in the middle of it"),
        }
    }
}
