//! What itsUP writes for compose: `upstream/<project>/docker-compose.yml`, and the folders of volumes.
//!
//! New content stands in `docker-compose.next.yml` until it has proved itself, so that no later `up` acts on a file that failed.
//! Everything is written, synced and renamed. It must not know what is in the files, nor who runs them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::compose::{self, ProjectFiles, Stack};
use crate::db::{Db, Project};
use crate::files;
use crate::settings::Root;

#[cfg(test)]
mod tests;

/// The compose file that holds.
pub const COMPOSE: &str = "docker-compose.yml";
/// The one that is being tried.
pub const NEXT: &str = "docker-compose.next.yml";
/// What compose fills variables in from.
const ENV: &str = ".env";

/// The project folders below `upstream/`, as they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Artifacts {
    pub folders: BTreeMap<String, Folder>,
}

/// One project's folder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Folder {
    /// The compose file that holds.
    pub compose: Option<String>,
    /// One that was tried and has not taken the place of the other.
    pub next: Option<String>,
    /// What its containers are made from besides.
    pub files: ProjectFiles,
}

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
pub struct ArtifactError {
    pub path: PathBuf,
    pub error: io::Error,
}

impl Artifacts {
    /// Reads the folders, and the files that the projects' services name.
    pub fn read(root: &Root, db: &Db) -> Result<Artifacts, ArtifactError> {
        let upstream = root.upstream();
        let mut folders = BTreeMap::new();
        let entries = match fs::read_dir(&upstream) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Artifacts::default()),
            Err(error) => return Err(ArtifactError { path: upstream, error }),
        };
        for entry in entries {
            let entry = entry.map_err(at(&upstream))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = entry.path();
            if path.is_dir() {
                let folder = Folder::read(&path, db.project(&name))?;
                folders.insert(name, folder);
            }
        }
        Ok(Artifacts { folders })
    }

    /// A project's folder, by the project's name as written.
    pub fn of(&self, project: &str) -> Option<&Folder> {
        self.folders.get(project)
    }
}

impl Folder {
    fn read(path: &Path, project: Option<&Project>) -> Result<Folder, ArtifactError> {
        let mut folder = Folder {
            compose: optional(&path.join(COMPOSE))?,
            next: optional(&path.join(NEXT))?,
            files: ProjectFiles { env: optional(&path.join(ENV))?, env_files: BTreeMap::new() },
        };
        for service in project.into_iter().flat_map(|project| &project.services) {
            let of_block = service.compose.as_ref().and_then(|block| block.get("env_file"));
            let of_block = of_block.map(compose::env_file_names).unwrap_or_default();
            for name in service.env_file.iter().map(String::as_str).chain(of_block) {
                if let Some(text) = optional(&path.join(name))? {
                    folder.files.env_files.insert(name.to_owned(), text);
                }
            }
        }
        Ok(folder)
    }
}

/// Where a project's compose files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectFolder(PathBuf);

impl ProjectFolder {
    pub fn new(root: &Root, project: &str) -> ProjectFolder {
        ProjectFolder(root.upstream().join(project))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The compose file that holds.
    pub fn compose(&self) -> PathBuf {
        self.0.join(COMPOSE)
    }

    /// The one that is being tried.
    pub fn next(&self) -> PathBuf {
        self.0.join(NEXT)
    }

    /// Makes the folder and those of the volumes, and writes the stack as the file that is being tried.
    pub fn stage(&self, stack: &Stack) -> Result<(), ArtifactError> {
        self.make_folders(stack)?;
        // Its values are nobody else's business.
        files::write_atomically(&self.next(), stack.text().as_bytes(), 0o600).map_err(at(&self.next()))
    }

    /// Makes the folder and those of the volumes.
    pub fn make_folders(&self, stack: &Stack) -> Result<(), ArtifactError> {
        files::make_folder(&self.0, 0o755).map_err(at(&self.0))?;
        for folder in stack.services.iter().flat_map(|service| &service.folders) {
            let path = self.0.join(folder);
            // What is there, be it a file, is the user's.
            if fs::symlink_metadata(&path).is_err() {
                files::make_folder(&path, 0o755).map_err(at(&path))?;
            }
        }
        Ok(())
    }

    /// What was tried holds from now on.
    pub fn commit(&self) -> Result<(), ArtifactError> {
        files::rename(&self.next(), &self.compose()).map_err(at(&self.compose()))
    }

    /// What was tried is forgotten.
    pub fn discard(&self) -> Result<(), ArtifactError> {
        remove(&self.next())
    }

    /// Removes what itsUP has written. The folder goes with it where nothing else is in it; volumes and `.env` stay.
    pub fn remove(&self) -> Result<(), ArtifactError> {
        remove(&self.next())?;
        remove(&self.compose())?;
        match fs::remove_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed.map_err(at(&self.0)),
        }
    }
}

fn remove(path: &Path) -> Result<(), ArtifactError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(at(path)),
    }
}

/// Reads a file that may not be there.
fn optional(path: &Path) -> Result<Option<String>, ArtifactError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(ArtifactError { path: path.to_owned(), error }),
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> ArtifactError {
    let path = path.to_owned();
    move |error| ArtifactError { path: path.clone(), error }
}
