//! Writes pairs that a CA has issued: whole or not at all.
//!
//! Two files cannot be replaced at once, so the pair goes into one file in `data/acme/pairs/` first: whatever breaks
//! off after that, the pair is there, and [`Store`](super::store::Store) reads it where the two are torn.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::owner::{MARKER, Marker};
use crate::files;
use crate::settings::Root;

/// A pair to be written, checked to be one.
pub(super) struct Pair {
    /// The folder's name in `certs/`.
    pub(super) folder: String,
    /// The chain, leaf first, PEM.
    pub(super) chain: String,
    /// The key, PEM.
    pub(super) key: String,
    /// What is written beside it.
    pub(super) marker: Marker,
}

/// The file that has the whole pair of this folder.
pub(super) fn copy_path(root: &Root, folder: &str) -> PathBuf {
    root.acme().join("pairs").join(format!("{folder}.pem"))
}

/// Makes sure that a pair could be written now: an order whose certificate cannot be kept is not placed.
pub(super) fn can_write(root: &Root, folder: &str) -> Result<(), String> {
    let copy = copy_path(root, folder);
    let target = root.certs().join(folder);
    // About what a chain and a key of the longest kind take.
    let probe = [b'#'; 16 * 1024];
    make_folders(root, &target).and_then(|()| probe_at(&copy, &probe)).map_err(|error| fault(&copy, &error))?;
    probe_at(&target.join("fullchain.pem"), &probe).map_err(|error| fault(&target, &error))
}

/// Writes a pair; the first step that succeeds is the one that counts, the others follow from it.
pub(super) fn write(root: &Root, pair: &Pair) -> Result<(), String> {
    let target = root.certs().join(&pair.folder);
    let copy = copy_path(root, &pair.folder);
    make_folders(root, &target).map_err(|error| fault(&target, &error))?;
    let whole = format!("{}\n{}", pair.chain.trim_end(), pair.key);
    let marker = serde_json::to_vec_pretty(&pair.marker).map_err(|error| error.to_string())?;
    let steps: [(PathBuf, &[u8], u32); 4] = [
        (copy, whole.as_bytes(), 0o600),
        (target.join(MARKER), &marker, 0o644),
        (target.join("privkey.pem"), pair.key.as_bytes(), 0o600),
        (target.join("fullchain.pem"), pair.chain.as_bytes(), 0o644),
    ];
    for (path, bytes, mode) in steps {
        files::write_atomically(&path, bytes, mode).map_err(|error| fault(&path, &error))?;
    }
    Ok(())
}

fn make_folders(root: &Root, target: &Path) -> io::Result<()> {
    files::make_private_folder(&root.data())?;
    files::make_private_folder(&root.acme().join("pairs"))?;
    files::make_folder(target, 0o755)
}

fn probe_at(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let probe = path.with_file_name(format!(".{name}.probe"));
    let written = files::write_atomically(&probe, bytes, 0o600);
    match fs::remove_file(&probe) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => written,
    }
}

fn fault(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be written: {error}", path.display())
}
