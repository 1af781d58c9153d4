//! Whose the pair in a folder of `certs/` is: ours, the old tool's, or the user's, whose is never written.
//!
//! A pair is ours only while it is the one that we wrote: where a user has put another into our folder, it is his.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The file beside a pair that says that we manage it.
pub const MARKER: &str = "itsup.json";
/// What the marker's `managed_by` says.
const US: &str = "itsup";

/// Whose a pair is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// The user's: served and watched, never written.
    #[default]
    User,
    /// Ours, from the CA with this directory.
    Itsup { directory: String },
    /// certbot's, which we take over; from this directory, where its renewal file says.
    OldTool { directory: Option<String> },
}

/// What the marker says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// `itsup`.
    pub managed_by: String,
    /// The directory of the CA that issued it.
    pub directory: String,
    /// The hosts that it was ordered for.
    pub names: Vec<String>,
    /// The SHA-256 of the certificates that are ours: this one, and the one before it, as the files are not
    /// replaced all at once.
    pub sha256: Vec<String>,
}

impl Marker {
    /// A marker for a certificate with this SHA-256, replacing the one with `before`.
    pub fn new(directory: &str, names: Vec<String>, sha256: String, before: Option<String>) -> Marker {
        let sha256 = std::iter::once(sha256).chain(before).collect();
        Marker { managed_by: US.into(), directory: directory.into(), names, sha256 }
    }

    /// Reads the marker of a folder; `None` where there is none of ours.
    pub fn read(folder: &Path) -> Option<Marker> {
        let bytes = fs::read(folder.join(MARKER)).ok()?;
        serde_json::from_slice::<Marker>(&bytes).ok().filter(|marker| marker.managed_by == US)
    }
}

/// Whose the pair in this folder is; `sha256` is of its certificate, where it can be read.
pub fn owner(folder: &Path, sha256: Option<&str>, old_renewals: &Path) -> Owner {
    if let Some(marker) = Marker::read(folder) {
        let ours = sha256.is_none_or(|sha256| marker.sha256.iter().any(|known| known == sha256));
        return if ours { Owner::Itsup { directory: marker.directory } } else { Owner::User };
    }
    let Some(name) = folder.file_name().and_then(|name| name.to_str()) else { return Owner::User };
    // What cannot be read is not there for us either, and the pair stays the user's.
    match fs::read_to_string(old_renewals.join(format!("{name}.conf"))) {
        Ok(renewal) => Owner::OldTool { directory: old_directory(&renewal) },
        Err(_) => Owner::User,
    }
}

/// The `server = ` of certbot's renewal file.
fn old_directory(renewal: &str) -> Option<String> {
    let lines = renewal.lines().filter_map(|line| line.split_once('='));
    let mut servers = lines.filter(|(name, _)| name.trim() == "server").map(|(_, value)| value.trim());
    servers.next().filter(|server| !server.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_wrote_is_ours_and_what_another_put_there_is_not() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a.example.com");
        fs::create_dir(&folder).unwrap();
        assert_eq!(owner(&folder, Some("1"), root.path()), Owner::User);
        let marker = Marker::new("https://ca/dir", vec!["a.example.com".into()], "2".into(), Some("1".into()));
        fs::write(folder.join(MARKER), serde_json::to_vec(&marker).unwrap()).unwrap();
        let ours = Owner::Itsup { directory: "https://ca/dir".into() };
        for sha256 in [Some("1"), Some("2"), None] {
            assert_eq!(owner(&folder, sha256, root.path()), ours, "{sha256:?}");
        }
        assert_eq!(owner(&folder, Some("3"), root.path()), Owner::User);
        fs::write(folder.join(MARKER), "{\"managed_by\":\"certd\"}").unwrap();
        assert_eq!(owner(&folder, Some("1"), root.path()), Owner::User);
    }

    #[test]
    fn the_old_tools_pairs_are_taken_over() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a.example.com");
        let renewal = "version = 2.1\n[renewalparams]\naccount = x\nserver = https://acme-v02.api/dir\n";
        fs::write(root.path().join("a.example.com.conf"), renewal).unwrap();
        let old = Owner::OldTool { directory: Some("https://acme-v02.api/dir".into()) };
        assert_eq!(owner(&folder, Some("1"), root.path()), old);
        assert_eq!(owner(&root.path().join("b.example.com"), Some("1"), root.path()), Owner::User);
    }
}
