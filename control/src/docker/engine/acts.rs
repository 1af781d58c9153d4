//! What changes containers and images, and what is read of them only then.
//!
//! Part of the one file that knows bollard. Doing what is done already is no error: a crash may have come in between.

use std::collections::HashMap;
use std::time::Duration;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error as BollardError;
use bollard::models::{ContainerInspectResponse, HealthConfig};
use bollard::query_parameters::{
    InspectContainerOptions, KillContainerOptions, ListContainersOptionsBuilder, LogsOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveImageOptions, StartContainerOptions, StopContainerOptions,
    TagImageOptionsBuilder,
};
use futures_util::StreamExt as _;
use tokio::time::timeout;

use super::{EngineClient, EngineError, LIMIT};
use crate::observed::{Container, ContainerId, LABEL_PROJECT, LABEL_SERVICE};

/// What a container is given to end after SIGTERM, where nobody says otherwise.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Docker's defaults for a health check.
const HEALTH_INTERVAL: Duration = Duration::from_secs(30);
const HEALTH_TIMEOUT: Duration = Duration::from_secs(30);
const HEALTH_RETRIES: u32 = 3;
/// How long a removal is waited for.
const REMOVAL: Duration = Duration::from_secs(30);

/// An image on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub id: String,
    /// `repository:tag`.
    pub tags: Vec<String>,
    /// `repository@sha256:...`, as registries know it.
    pub digests: Vec<String>,
}

impl EngineClient {
    /// Reads the containers of a compose service, running or not, one-off ones left out.
    pub async fn service(&self, project: &str, service: &str, network: &str) -> Result<Vec<Container>, EngineError> {
        let docker = self.connect()?;
        let labels = vec![format!("{LABEL_PROJECT}={project}"), format!("{LABEL_SERVICE}={service}")];
        let filters = HashMap::from([("label", labels)]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let listed = self.within(docker.list_containers(Some(options))).await?;
        let mut containers = Vec::new();
        for id in listed.into_iter().filter_map(|container| container.id) {
            // One that went in between is not there.
            containers.extend(self.inspect(&ContainerId::from(id.as_str()), network).await?);
        }
        containers.retain(|container| !container.oneoff);
        Ok(containers)
    }

    /// Starts a container; one that runs stays as it is.
    pub async fn start(&self, id: &ContainerId) -> Result<(), EngineError> {
        let docker = self.connect()?;
        self.within(docker.start_container(id.as_str(), None::<StartContainerOptions>)).await
    }

    /// Sends SIGTERM (or the image's own signal) and waits for the end; after its own grace period it is killed.
    pub async fn stop(&self, id: &ContainerId) -> Result<(), EngineError> {
        let Some(found) = self.read(id).await? else { return Ok(()) };
        let own = found.config.and_then(|config| config.stop_timeout).and_then(|seconds| u64::try_from(seconds).ok());
        let limit = own.map_or(STOP_GRACE, Duration::from_secs) + LIMIT;
        let docker = self.connect_for(limit)?;
        match timeout(limit, docker.stop_container(id.as_str(), None::<StopContainerOptions>)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if is_gone(&error) => Ok(()),
            Ok(Err(BollardError::RequestTimeoutError)) | Err(_) => self.kill(id).await,
            Ok(Err(error)) => Err(self.error(error)),
        }
    }

    async fn kill(&self, id: &ContainerId) -> Result<(), EngineError> {
        let docker = self.connect()?;
        match self.once(docker.kill_container(id.as_str(), None::<KillContainerOptions>)).await? {
            Err(error) if is_gone(&error) || status(&error) == Some(409) => Ok(()),
            other => other.map_err(|error| self.error(error)),
        }
    }

    /// Removes a container, with the anonymous volumes that nobody else uses, and waits until it is gone.
    pub async fn remove(&self, id: &ContainerId) -> Result<(), EngineError> {
        let docker = self.connect_for(REMOVAL)?;
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let asked = timeout(REMOVAL, docker.remove_container(id.as_str(), Some(options))).await;
        match asked {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if is_gone(&error) => Ok(()),
            // Somebody else is at it.
            Ok(Err(error)) if status(&error) == Some(409) => self.until_gone(id).await,
            Ok(Err(error)) => Err(self.error(error)),
            Err(_) => Err(EngineError::Silent { host: self.host().to_owned() }),
        }
    }

    async fn until_gone(&self, id: &ContainerId) -> Result<(), EngineError> {
        let gone = async {
            while self.read(id).await?.is_some() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        };
        match timeout(REMOVAL, gone).await {
            Ok(result) => result,
            Err(_) => Err(EngineError::Refused(format!("{} is not removed", id.short()))),
        }
    }

    /// Returns the last lines of a container's log.
    pub async fn logs(&self, id: &ContainerId, lines: usize) -> Result<Vec<String>, EngineError> {
        let docker = self.connect()?;
        let tail = lines.to_string();
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail(&tail).build();
        let pieces = docker.logs(id.as_str(), Some(options)).collect::<Vec<Result<LogOutput, BollardError>>>();
        let Ok(pieces) = timeout(LIMIT, pieces).await else {
            return Err(EngineError::Silent { host: self.host().to_owned() });
        };
        let mut text = String::new();
        for piece in pieces {
            text.push_str(&piece.map_err(|error| self.error(error))?.to_string());
        }
        let all: Vec<String> = text.lines().map(|line| line.trim_end().to_owned()).collect();
        Ok(all[all.len().saturating_sub(lines)..].to_vec())
    }

    /// How long a container's health check may take to say well: its start period and its retries; `None` where it has
    /// no health check.
    pub async fn health_budget(&self, id: &ContainerId) -> Result<Option<Duration>, EngineError> {
        let config = self.read(id).await?.and_then(|found| found.config).and_then(|config| config.healthcheck);
        Ok(config.and_then(|config| health_budget(&config)))
    }

    /// Reads an image; `None` where it is not on this machine.
    pub async fn image(&self, reference: &str) -> Result<Option<Image>, EngineError> {
        let docker = self.connect()?;
        match self.once(docker.inspect_image(reference)).await? {
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(self.error(error)),
            Ok(found) => Ok(Some(Image {
                id: found.id.unwrap_or_default(),
                tags: found.repo_tags.unwrap_or_default(),
                digests: found.repo_digests.unwrap_or_default(),
            })),
        }
    }

    /// Gives an image a further name.
    pub async fn tag(&self, image: &str, repository: &str, tag: &str) -> Result<(), EngineError> {
        let docker = self.connect()?;
        let options = TagImageOptionsBuilder::new().repo(repository).tag(tag).build();
        self.within(docker.tag_image(image, Some(options))).await
    }

    /// Takes a name from an image, and removes what has none left; false where containers still use it.
    pub async fn remove_image(&self, reference: &str) -> Result<bool, EngineError> {
        let docker = self.connect_for(REMOVAL)?;
        let asked = docker.remove_image(reference, None::<RemoveImageOptions>, None);
        match timeout(REMOVAL, asked).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(error)) if is_gone(&error) => Ok(true),
            Ok(Err(error)) if status(&error) == Some(409) => Ok(false),
            Ok(Err(error)) => Err(self.error(error)),
            Err(_) => Err(EngineError::Silent { host: self.host().to_owned() }),
        }
    }

    async fn read(&self, id: &ContainerId) -> Result<Option<ContainerInspectResponse>, EngineError> {
        let docker = self.connect()?;
        match self.once(docker.inspect_container(id.as_str(), None::<InspectContainerOptions>)).await? {
            Err(error) if is_gone(&error) => Ok(None),
            other => other.map(Some).map_err(|error| self.error(error)),
        }
    }

    /// Waits for an answer, of which the caller knows what errors mean.
    async fn once<T>(
        &self,
        answer: impl Future<Output = Result<T, BollardError>>,
    ) -> Result<Result<T, BollardError>, EngineError> {
        timeout(LIMIT, answer).await.map_err(|_| EngineError::Silent { host: self.host().to_owned() })
    }

    /// Makes a client for what may take longer than usual.
    fn connect_for(&self, limit: Duration) -> Result<Docker, EngineError> {
        Ok(self.connect()?.with_timeout(limit))
    }
}

fn status(error: &BollardError) -> Option<u16> {
    match error {
        BollardError::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

fn is_gone(error: &BollardError) -> bool {
    status(error) == Some(404)
}

fn health_budget(config: &HealthConfig) -> Option<Duration> {
    let test = config.test.as_ref().filter(|test| !test.is_empty())?;
    if test.first().is_some_and(|kind| kind == "NONE") {
        return None;
    }
    let or = |nanos: Option<i64>, default: Duration| {
        nanos.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0).map_or(default, Duration::from_nanos)
    };
    let retries = config.retries.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(HEALTH_RETRIES);
    let round = or(config.interval, HEALTH_INTERVAL).saturating_add(or(config.timeout, HEALTH_TIMEOUT));
    Some(or(config.start_period, Duration::ZERO).saturating_add(round.saturating_mul(retries)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_check_has_its_start_period_and_its_retries() {
        let config = |test: &[&str], start: i64, interval: i64, limit: i64, retries: i64| HealthConfig {
            test: Some(test.iter().map(|word| (*word).to_owned()).collect()),
            start_period: Some(start * 1_000_000_000),
            interval: Some(interval * 1_000_000_000),
            timeout: Some(limit * 1_000_000_000),
            retries: Some(retries),
            ..HealthConfig::default()
        };
        for (config, seconds) in [
            (config(&["CMD", "x"], 20, 5, 1, 4), Some(44)),
            (config(&["CMD", "x"], 0, 0, 0, 0), Some(180)),
            (config(&["NONE"], 20, 5, 1, 4), None),
            (config(&[], 20, 5, 1, 4), None),
            (HealthConfig::default(), None),
        ] {
            assert_eq!(health_budget(&config), seconds.map(Duration::from_secs), "{config:?}");
        }
    }
}
