//! The queue on disk: one file, written whole, soon after each change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::Inner;
use super::queue::Kept;
use crate::files;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
}

/// Which change is on disk.
pub(super) struct Store {
    path: PathBuf,
    changed: watch::Sender<u64>,
    saved: watch::Sender<u64>,
    /// Whether the file is another process's.
    given_away: AtomicBool,
}

impl Store {
    pub(super) fn new(path: PathBuf) -> Store {
        Store { path, changed: watch::Sender::new(0), saved: watch::Sender::new(0), given_away: AtomicBool::new(false) }
    }

    /// Writes nothing more until [`Store::take_back`].
    pub(super) fn give_away(&self) {
        self.given_away.store(true, Ordering::Release);
    }

    pub(super) fn take_back(&self) {
        self.given_away.store(false, Ordering::Release);
        self.touch();
    }

    /// Tells of changes from now on.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Something has changed.
    pub(super) fn touch(&self) {
        self.changed.send_modify(|change| *change += 1);
    }

    /// Waits until what has changed by now is on disk, or could not be written.
    pub(super) async fn saved(&self) {
        let wanted = *self.changed.borrow();
        let mut saved = self.saved.subscribe();
        // The sender is ours.
        let _ = saved.wait_for(|saved| *saved >= wanted).await;
    }
}

pub(super) fn load(path: &Path) -> Result<Kept, LoadError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kept::default()),
        Err(error) => Err(error.into()),
    }
}

/// Writes the file after each change; changes that come during a write share the next one.
pub(super) async fn run(inner: Weak<Inner>, mut changed: watch::Receiver<u64>) {
    while changed.changed().await.is_ok() {
        let change = *changed.borrow_and_update();
        let Some(inner) = inner.upgrade() else { return };
        let write = tokio::task::spawn_blocking(move || {
            if inner.store.given_away.load(Ordering::Acquire) {
                inner.store.saved.send_replace(change);
                return;
            }
            let kept = inner.queue().kept();
            let bytes = serde_json::to_vec(&kept).map_err(io::Error::other);
            let written = bytes.and_then(|bytes| files::write_atomically(&inner.store.path, &bytes, 0o600));
            if let Err(error) = written {
                tracing::error!("{}: {error}; a crash now would forget waiting jobs", inner.store.path.display());
            }
            inner.store.saved.send_replace(change);
        });
        if write.await.is_err() {
            return;
        }
    }
}
