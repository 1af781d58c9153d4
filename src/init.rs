//! `itsup init`: a new root folder, with everything that has to be there and nothing overwritten.

use std::io::Read as _;
use std::path::Path;

use anyhow::Context as _;
use itsup_control::files;
use itsup_control::settings::Root;
use serde::Serialize;

use crate::failure::Failure;

const DB: &str = include_str!("../db.yml.sample");
const ENV: &str = include_str!("../.env.sample");

/// Folders, with who may look into them and what they are for.
const FOLDERS: [(&str, u32, &str); 4] = [
    ("certs", 0o700, "your own certificates: NAME.pem with NAME.key, or NAME/fullchain.pem with NAME/privkey.pem"),
    ("upstream", 0o755, "the stacks' compose files and volumes, written by `itsup write` and `itsup apply`"),
    ("data", 0o700, "itsUP's own state: nobody else's business"),
    ("logs", 0o755, "the access log"),
];

/// What was made, and what was there already.
#[derive(Debug, Serialize)]
pub(crate) struct Made {
    pub(crate) root: String,
    pub(crate) entries: Vec<Entry>,
}

/// A file or a folder.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) new: bool,
    pub(crate) what: &'static str,
}

/// Makes what is missing.
pub(crate) fn init(root: &Root) -> Result<Made, Failure> {
    let folder = root.path();
    files::make_folder(folder, 0o755).with_context(|| format!("{} cannot be made", folder.display()))?;
    let mut entries = vec![
        file(
            folder,
            "db.yml",
            0o600,
            "what is served: projects, their hosts and their services; read its comments first",
            || Ok(DB.to_owned()),
        )?,
        file(
            folder,
            ".env",
            0o600,
            "settings, each with its explanation; API_KEY in it is fresh and yours alone",
            || Ok(with_key(ENV, &new_key()?)),
        )?,
    ];
    for (name, mode, what) in FOLDERS {
        let path = folder.join(name);
        let new = !path.exists();
        files::make_folder(&path, mode).with_context(|| format!("{} cannot be made", path.display()))?;
        entries.push(Entry { name, new, what });
    }
    Ok(Made { root: folder.display().to_string(), entries })
}

fn file(
    folder: &Path,
    name: &'static str,
    mode: u32,
    what: &'static str,
    text: impl FnOnce() -> anyhow::Result<String>,
) -> Result<Entry, Failure> {
    let path = folder.join(name);
    // A link that leads nowhere is somebody's, too.
    let new = path.symlink_metadata().is_err();
    if new {
        let written = text().and_then(|text| Ok(files::write_atomically(&path, text.as_bytes(), mode)?));
        written.with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(Entry { name, new, what })
}

/// 256 unpredictable bits.
fn new_key() -> anyhow::Result<String> {
    let mut bits = [0; 32];
    std::fs::File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bits)).context("/dev/urandom")?;
    Ok(bits.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Puts the key where the sample speaks of one, else at the end.
fn with_key(sample: &str, key: &str) -> String {
    let line = format!("API_KEY={key}");
    let mut found = false;
    let mut lines: Vec<String> = Vec::new();
    for text in sample.lines() {
        if !found && text.trim_start_matches('#').trim_start().starts_with("API_KEY=") {
            found = true;
            lines.push(line.clone());
        } else {
            lines.push(text.to_owned());
        }
    }
    if !found {
        lines.push(String::new());
        lines
            .push("# Who sends this as `Authorization: Bearer` may use the API on TCP. Without it, nobody may.".into());
        lines.push(line);
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_put_where_the_sample_speaks_of_it() {
        assert_eq!(with_key("A=1\n#API_KEY=x\nB=2\n", "k"), "A=1\nAPI_KEY=k\nB=2\n");
        let at_the_end = with_key("A=1\n", "k");
        assert!(at_the_end.starts_with("A=1\n") && at_the_end.ends_with("\nAPI_KEY=k\n"));
        let real = with_key(ENV, "k");
        assert_eq!(real.lines().filter(|line| line.starts_with("API_KEY=")).count(), 1);
    }

    #[test]
    fn what_is_there_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("db.yml"), "projects: []\n").unwrap();
        let root = Root::new(folder.path());
        let made = init(&root).unwrap();
        let new: Vec<&str> = made.entries.iter().filter(|entry| entry.new).map(|entry| entry.name).collect();
        assert_eq!(new, [".env", "certs", "upstream", "data", "logs"]);
        assert_eq!(std::fs::read_to_string(root.db()).unwrap(), "projects: []\n");
        let key = |root: &Root| std::fs::read_to_string(root.env()).unwrap();
        let before = key(&root);
        assert!(init(&root).unwrap().entries.iter().all(|entry| !entry.new));
        assert_eq!(key(&root), before);
        let other = tempfile::tempdir().unwrap();
        init(&Root::new(other.path())).unwrap();
        assert_ne!(key(&Root::new(other.path())), before, "every root has a key of its own");
    }
}
