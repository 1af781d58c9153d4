//! Images and networks, one look at everything, and the end of a container.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bollard::errors::Error as BollardError;
use bollard::models::NetworkCreateRequest;
use bollard::query_parameters::{
    InspectNetworkOptions, ListImagesOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptions,
    StopContainerOptions, TagImageOptionsBuilder,
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{EngineClient, EngineError};
use crate::observed::{ContainerId, Engine, Observed};

/// Questions asked at a time.
const AT_A_TIME: usize = 8;
/// How long stopping a container may take.
const STOP_LIMIT: Duration = Duration::from_secs(15 * 60);

/// An image as it lies here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalImage {
    pub id: String,
    /// Every reference that names it.
    pub references: Vec<String>,
}

impl EngineClient {
    /// Reads all there is once, with the addresses on `network`.
    pub async fn observe(&self, network: &str) -> Result<Observed, EngineError> {
        let (info, ids) = tokio::try_join!(self.info(), self.list())?;
        let reads = stream::iter(ids).map(|id| async move { self.inspect(&id, network).await });
        let containers: Vec<_> = reads.buffer_unordered(AT_A_TIME).try_collect().await?;
        Ok(Observed {
            engine: Engine::Up { version: info.version },
            containers: containers.into_iter().flatten().map(|container| (container.id.clone(), container)).collect(),
        })
    }

    /// Returns the ids of those of these references that are here.
    pub async fn image_ids(
        &self,
        references: impl IntoIterator<Item = String>,
    ) -> Result<BTreeMap<String, String>, EngineError> {
        let docker = self.connect()?;
        let reads = stream::iter(references).map(|reference| {
            let docker = docker.clone();
            async move {
                match self.within_or_none(docker.inspect_image(&reference)).await? {
                    Some(image) => Ok(image.id.map(|id| (reference, id))),
                    None => Ok(None),
                }
            }
        });
        let ids: Vec<_> = reads.buffer_unordered(AT_A_TIME).try_collect().await?;
        Ok(ids.into_iter().flatten().collect())
    }

    /// Gives an image another name.
    pub async fn tag_image(&self, image: &str, repository: &str, tag: &str) -> Result<(), EngineError> {
        let options = TagImageOptionsBuilder::new().repo(repository).tag(tag).build();
        self.within(self.connect()?.tag_image(image, Some(options))).await
    }

    /// Takes a name from an image, and removes it where that was the last; false where it is in use, or not here.
    pub async fn remove_image(&self, reference: &str) -> Result<bool, EngineError> {
        let docker = self.connect()?;
        match self.within_or_none(docker.remove_image(reference, None::<RemoveImageOptions>, None)).await {
            Ok(removed) => Ok(removed.is_some()),
            Err(EngineError::Refused(why)) if why.ends_with("(409)") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lists the images of a repository, each with all of its names.
    pub async fn images_of(&self, repository: &str) -> Result<Vec<LocalImage>, EngineError> {
        let docker = self.connect()?;
        let filters = HashMap::from([("reference", vec![repository])]);
        let options = ListImagesOptionsBuilder::new().filters(&filters).build();
        let listed = self.within(docker.list_images(Some(options))).await?;
        let mut images = Vec::new();
        for image in listed {
            // The list has only those names that the filter lets through.
            if let Some(whole) = self.within_or_none(docker.inspect_image(&image.id)).await? {
                images.push(LocalImage { id: image.id, references: whole.repo_tags.unwrap_or_default() });
            }
        }
        Ok(images)
    }

    /// Stops a container, and removes it; its volumes stay.
    pub async fn discard(&self, container: &ContainerId) -> Result<(), EngineError> {
        // The engine waits as long as the container's own grace; nobody else knows how long that is.
        let docker = self.connect()?.with_timeout(STOP_LIMIT);
        let stopped = docker.stop_container(container.as_str(), None::<StopContainerOptions>).await;
        match stopped {
            Ok(()) | Err(BollardError::DockerResponseServerError { status_code: 304 | 404, .. }) => {}
            Err(error) => return Err(self.error(error)),
        }
        let options = RemoveContainerOptionsBuilder::new().force(true).build();
        self.within_or_none(docker.remove_container(container.as_str(), Some(options))).await.map(drop)
    }

    /// Whether there is a network of this name.
    pub async fn has_network(&self, name: &str) -> Result<bool, EngineError> {
        let docker = self.connect()?;
        let found = self.within_or_none(docker.inspect_network(name, None::<InspectNetworkOptions>)).await?;
        Ok(found.is_some())
    }

    /// Makes a plain bridge of this name, unless there is a network of that name, of whatever kind.
    pub async fn make_network(&self, name: &str) -> Result<bool, EngineError> {
        if self.has_network(name).await? {
            return Ok(false);
        }
        let request =
            NetworkCreateRequest { name: name.to_owned(), driver: Some("bridge".to_owned()), ..Default::default() };
        match self.within(self.connect()?.create_network(request)).await {
            Ok(_) => Ok(true),
            // Somebody else was faster.
            Err(EngineError::Refused(_)) if self.has_network(name).await? => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Like `within`; what is not there is `None`.
    async fn within_or_none<T>(
        &self,
        answer: impl Future<Output = Result<T, BollardError>>,
    ) -> Result<Option<T>, EngineError> {
        let found = async {
            match answer.await {
                Err(BollardError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
                other => other.map(Some),
            }
        };
        self.within(found).await
    }
}
