//! A cable between itsUP and the engine's socket, to be pulled and mended at will.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinSet};

/// A Unix socket whose connections are carried to the engine's.
pub(crate) struct Cable {
    folder: TempDir,
    carrying: Mutex<Option<AbortHandle>>,
}

impl Cable {
    pub(crate) fn plug() -> Self {
        let cable = Self { folder: tempfile::tempdir().unwrap(), carrying: Mutex::new(None) };
        cable.mend();
        cable
    }

    /// Returns the near end, as `DOCKER_HOST` has it.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.near().display())
    }

    /// Cuts every connection and lets no new one in.
    pub(crate) fn pull(&self) {
        if let Some(carrying) = self.carrying.lock().unwrap().take() {
            carrying.abort();
        }
        std::fs::remove_file(self.near()).unwrap();
    }

    pub(crate) fn mend(&self) {
        let listener = UnixListener::bind(self.near()).unwrap();
        let task = tokio::spawn(carry(listener, Arc::from(far())));
        *self.carrying.lock().unwrap() = Some(task.abort_handle());
    }

    fn near(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }
}

fn far() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    host.strip_prefix("unix://").unwrap_or("/var/run/docker.sock").into()
}

/// Carries bytes both ways; aborting it drops every connection with it.
async fn carry(listener: UnixListener, far: Arc<std::path::Path>) {
    let mut connections = JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        let far = far.clone();
        connections.spawn(async move {
            let Ok(mut far) = UnixStream::connect(&far).await else { return };
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
    }
}
