//! Changes services over where no proxy runs: nobody can be promised anything, so compose recreates them in place.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{ChangeFailed, Changed, Changer, Later, ServiceChange};
use crate::jobs::{CancelToken, Event, Phase, Progress};

/// A [`Changer`] without traffic.
pub struct ByCompose;

impl Changer for ByCompose {
    fn change<'a>(
        &'a self,
        change: &'a ServiceChange<'a>,
        progress: &'a Progress,
        _cancel: &'a CancelToken,
    ) -> Later<'a, Result<Changed, ChangeFailed>> {
        Box::pin(async move {
            let (project, service) = (change.project.name.clone(), change.service.name.clone());
            progress.say(Event::of_service(project, service, Phase::Starting, "recreated in place"));
            let target = change.target;
            let scale = format!("{}={}", target.compose_service, target.replicas);
            let arguments = ["up", "-d", "--no-deps", "--force-recreate", "--scale", &scale, &target.compose_service];
            change.compose.run(change.file, arguments, |_| {}).await.map_err(|error| ChangeFailed {
                message: error.to_string(),
                hint: error.hint().map(str::to_owned),
                ..ChangeFailed::default()
            })?;
            Ok(Changed { summary: "recreated in place".to_owned(), receipt: None })
        })
    }

    fn publish<'a>(&'a self, _failed: &'a BTreeSet<Arc<str>>) -> Later<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}
