//! A service's images: kept for a rollback before the pull, pulled, and removed when nothing needs them any more.

use std::collections::{BTreeMap, BTreeSet};

use crate::compose::{Stack, StackService};
use crate::docker::{ComposeCli, ComposeError, EngineClient, EngineError, StackFile};
use crate::jobs::{Event, Phase, Progress};
use crate::observed::Observed;
use crate::plan::Images;

/// The repository under which the images that a service has run are kept, tagged by their ids.
pub fn rollback_repository(compose_service: &str) -> String {
    // A repository's name is lower case, and each of its parts begins and ends with a letter or a digit.
    let name: String = compose_service.to_lowercase();
    let parts: Vec<&str> = name.split(['.', '_', '-']).filter(|part| !part.is_empty()).collect();
    format!("itsup-rollback/{}", if parts.is_empty() { "_".to_owned() } else { parts.join("-") })
}

/// The tag by which an image is kept.
fn rollback_tag(id: &str) -> &str {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..12).unwrap_or(id)
}

/// Gives the images that run names of their own, so that what is pulled does not make them nameless.
pub(super) async fn keep(engine: &EngineClient, stack: &Stack, observed: &Observed) -> Result<(), EngineError> {
    for service in &stack.services {
        let containers = observed.service(&stack.compose_name, &service.compose_service);
        let ids: BTreeSet<&str> = containers.map(|container| container.image_id.as_str()).collect();
        for id in ids.into_iter().filter(|id| !id.is_empty()) {
            match engine.tag(id, &rollback_repository(&service.compose_service), rollback_tag(id)).await {
                // A container may outlive its image: then there is nothing to keep.
                Ok(()) | Err(EngineError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Pulls what the services ask for. What fails is told by service; whether that matters depends on what is here.
pub(super) async fn pull(
    compose: &ComposeCli,
    file: &StackFile,
    stack: &Stack,
    progress: &Progress,
) -> BTreeMap<String, String> {
    // What is named by its digest cannot have moved; what a rollback holds is here.
    let pulled: Vec<&StackService> =
        stack.services.iter().filter(|one| !one.built && !one.pinned && !one.image.contains("@sha256:")).collect();
    let mut failures = BTreeMap::new();
    if pulled.is_empty() {
        return failures;
    }
    let mut arguments = vec!["pull", "--ignore-pull-failures"];
    arguments.extend(pulled.iter().map(|service| &*service.compose_service));
    let mut layers: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let done = compose
        .run(file, arguments, |line| {
            if let Some((service, why)) = failure(line) {
                failures.insert(service.to_owned(), why.to_owned());
            }
            if let Some((layer, done, total)) = layer(line) {
                layers.insert(layer.to_owned(), (done, total));
                let sum = layers.values().fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1));
                progress.say(Event::of_project(stack.project.clone(), Phase::Pulling, "bytes").count(sum.0, sum.1));
            }
        })
        .await;
    if let Err(error) = done {
        let why = match &error {
            ComposeError::Failed { lines, .. } => lines.last().cloned().unwrap_or_else(|| error.to_string()),
            other => other.to_string(),
        };
        for service in pulled {
            failures.entry(service.compose_service.to_string()).or_insert_with(|| why.clone());
        }
    }
    failures
}

/// ` web Error pull access denied`.
fn failure(line: &str) -> Option<(&str, &str)> {
    let (service, rest) = line.trim_start().split_once(' ')?;
    let why = rest.trim_start();
    let why = why.strip_prefix("Error ").or_else(|| why.strip_prefix("Warning "))?;
    Some((service, why.trim()))
}

/// ` 0123456789ab Downloading [==>   ] 1.5MB/3MB`.
fn layer(line: &str) -> Option<(&str, u64, u64)> {
    let (layer, rest) = line.trim_start().split_once(' ')?;
    let progress = rest.trim_start().strip_prefix("Downloading ")?.rsplit(' ').next()?;
    let (done, total) = progress.split_once('/')?;
    Some((layer, bytes(done)?, bytes(total)?))
}

fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    // A size below 2^53; the cast saturates in any case.
    Some((number * factor) as u64)
}

/// What is asked for is here, or why it is not.
pub(super) fn missing(stack: &Stack, images: &Images, failures: &BTreeMap<String, String>) -> Vec<String> {
    let gone = stack.services.iter().filter(|service| !service.built && images.id(&service.image).is_none());
    gone.map(|service| {
        let why = failures.get(&*service.compose_service).map(|why| format!(": {why}")).unwrap_or_default();
        format!("the image {} is not here and cannot be pulled{why}", service.image)
    })
    .collect()
}

/// Removes the images that a service has run before, all but the one that it ran last and the one that it runs.
pub(super) async fn clean(
    engine: &EngineClient,
    service: &StackService,
    previous: &BTreeSet<String>,
    wanted: &BTreeSet<String>,
) -> Result<(), EngineError> {
    let repository = rollback_repository(&service.compose_service);
    let current = engine.image_ids([service.image.clone()]).await?;
    let of_service = repository_of(&service.image);
    for image in engine.images_of(&repository).await? {
        if previous.contains(&image.id) || current.values().any(|id| *id == image.id) {
            continue;
        }
        for reference in &image.tags {
            // Its other names go as well where they are of the same repository and nobody asks for them.
            let own = repository_of(reference) == repository;
            if own || (repository_of(reference) == of_service && !wanted.contains(reference)) {
                engine.remove_image(reference).await?;
            }
        }
    }
    Ok(())
}

/// The part before the tag.
fn repository_of(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or(reference);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_names_that_docker_takes() {
        for (service, repository) in [
            ("Shop-web", "itsup-rollback/shop-web"),
            ("a..b__c", "itsup-rollback/a-b-c"),
            ("-x-", "itsup-rollback/x"),
            ("..", "itsup-rollback/_"),
        ] {
            assert_eq!(rollback_repository(service), repository);
        }
        assert_eq!(rollback_tag("sha256:0123456789abcdef"), "0123456789ab");
    }

    #[test]
    fn what_compose_says_of_a_pull_is_read() {
        assert_eq!(failure(" a Error Get \"x\": refused "), Some(("a", "Get \"x\": refused")));
        assert_eq!(failure(" c Skipped - Image is already being pulled by b "), None);
        assert_eq!(layer(" 0a1 Downloading [==>  ]  1.5MB/3MB"), Some(("0a1", 1_500_000, 3_000_000)));
        assert_eq!(layer(" 0a1 Downloading [==>  ]  512B/2.5kB"), Some(("0a1", 512, 2_500)));
        for line in [" 0a1 Pull complete ", " a Pulling ", "", " 0a1 Downloading ", " x Downloading [>] 1/2"] {
            assert_eq!(layer(line), None, "{line}");
        }
    }

    #[test]
    fn the_tag_is_no_part_of_the_repository() {
        for (reference, repository) in [
            ("nginx", "nginx"),
            ("nginx:1", "nginx"),
            ("127.0.0.1:1/x", "127.0.0.1:1/x"),
            ("127.0.0.1:1/x:tag", "127.0.0.1:1/x"),
            ("a/b@sha256:00", "a/b"),
        ] {
            assert_eq!(repository_of(reference), repository);
        }
    }
}
