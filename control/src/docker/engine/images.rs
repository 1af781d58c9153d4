//! Images and networks, and one look at everything.

use std::collections::{BTreeMap, HashMap};

use bollard::errors::Error as BollardError;
use bollard::models::NetworkCreateRequest;
use bollard::query_parameters::{InspectNetworkOptions, ListImagesOptionsBuilder};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{EngineClient, EngineError, Image};
use crate::observed::{Engine, Observed};

/// Questions asked at a time.
const AT_A_TIME: usize = 8;

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
        let reads = stream::iter(references).map(|reference| async move {
            let image = self.image(&reference).await?;
            Ok::<_, EngineError>(image.map(|image| (reference, image.id)))
        });
        let ids: Vec<_> = reads.buffer_unordered(AT_A_TIME).try_collect().await?;
        Ok(ids.into_iter().flatten().collect())
    }

    /// Lists the images of a repository, each with all of its names.
    pub async fn images_of(&self, repository: &str) -> Result<Vec<Image>, EngineError> {
        let docker = self.connect()?;
        let filters = HashMap::from([("reference", vec![repository])]);
        let options = ListImagesOptionsBuilder::new().filters(&filters).build();
        let listed = self.within(docker.list_images(Some(options))).await?;
        let mut images = Vec::new();
        for image in listed {
            // The list has only those names that the filter lets through.
            images.extend(self.image(&image.id).await?);
        }
        Ok(images)
    }

    /// Whether there is a network of this name.
    pub async fn has_network(&self, name: &str) -> Result<bool, EngineError> {
        let docker = self.connect()?;
        let asked = async {
            match docker.inspect_network(name, None::<InspectNetworkOptions>).await {
                Err(BollardError::DockerResponseServerError { status_code: 404, .. }) => Ok(false),
                other => other.map(|_| true),
            }
        };
        self.within(asked).await
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
}
