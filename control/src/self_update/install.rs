//! The installed binary, and how it is exchanged for another: in one step, and back.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The binary that this process was started from, and that the next start takes.
#[derive(Debug)]
pub(super) struct Installed(PathBuf);

/// The binary was exchanged; the earlier one is kept beside it.
#[derive(Debug)]
pub(super) struct Swapped {
    installed: PathBuf,
    before: PathBuf,
}

impl Installed {
    pub(super) fn of_this_process() -> io::Result<Installed> {
        let path = std::env::current_exe()?;
        // What is exchanged while it runs is shown like this.
        let text = path.to_string_lossy();
        Ok(Installed(text.strip_suffix(" (deleted)").map_or_else(|| path.clone(), PathBuf::from)))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Puts another one in its place.
    pub(super) fn swap(&self, built: &Path) -> io::Result<Swapped> {
        let (new, before) = (self.beside("new"), self.beside("before"));
        fs::copy(built, &new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
        fs::File::open(&new)?.sync_all()?;
        // A link, so that the name is there all the time.
        match fs::remove_file(&before) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        match fs::hard_link(&self.0, &before) {
            // Somebody has removed what this process runs; there is nothing to go back to then but the new one.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        crate::files::rename(&new, &self.0)?;
        Ok(Swapped { installed: self.0.clone(), before })
    }

    fn beside(&self, what: &str) -> PathBuf {
        let name = self.0.file_name().unwrap_or_default().to_string_lossy();
        self.0.with_file_name(format!("{name}.{what}"))
    }
}

impl Swapped {
    /// Puts the earlier one back.
    pub(super) fn back(self) -> io::Result<()> {
        crate::files::rename(&self.before, &self.installed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_is_exchanged_and_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let installed = Installed(folder.path().join("itsup"));
        fs::write(installed.path(), "old").unwrap();
        fs::write(folder.path().join("built"), "new").unwrap();
        for _ in 0..2 {
            let swapped = installed.swap(&folder.path().join("built")).unwrap();
            assert_eq!(fs::read_to_string(installed.path()).unwrap(), "new");
            swapped.back().unwrap();
            assert_eq!(fs::read_to_string(installed.path()).unwrap(), "old");
        }
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}
