//! What gives root on the host, and so is not for everybody to write.

use axum::http::StatusCode;
use serde_json::Value;

use super::{EditFault, projects};
use crate::api::Problem;

/// Refuses what gives root on the host and was not there before: `compose` blocks, and folders of the host as volumes.
pub(in crate::api) fn no_new_power(before: &Value, after: &Value) -> Result<(), EditFault> {
    let refused = |what: String| {
        let problem = Problem::new(StatusCode::FORBIDDEN, format!("{what} gives root on this host"));
        EditFault::Refused(problem.hint("write it into db.yml by hand, or set ITSUP_API_COMPOSE=on"))
    };
    for project in projects(after) {
        for service in project.get("services").and_then(Value::as_array).into_iter().flatten() {
            let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
            let was = super::service(before, &name(project), &name(service)).ok();
            for key in ["compose", "additional_properties"] {
                let old = was.and_then(|was| was.get(key));
                if service.get(key).is_some_and(|new| !new.is_null() && Some(new) != old) {
                    return Err(refused(format!("`{key}` of {}", name(service))));
                }
            }
            let old = was.and_then(|was| was.get("volumes")).and_then(Value::as_array);
            for volume in service.get("volumes").and_then(Value::as_array).into_iter().flatten() {
                let known = old.is_some_and(|old| old.contains(volume));
                if !known && volume.as_str().is_none_or(is_of_the_host) {
                    return Err(refused(format!("the volume {volume} of {}", name(service))));
                }
            }
        }
    }
    Ok(())
}

/// `/path` alone and `name:/path` stay within the project; anything else with a source is the host's.
fn is_of_the_host(volume: &str) -> bool {
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    volume.contains("..")
        || volume.split_once(':').is_some_and(|(source, _)| !source.chars().all(named) || source.starts_with('.'))
}
