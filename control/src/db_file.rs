//! Who writes db.yml: one change at a time, over what stands in it at that moment.
//!
//! A change is made of the file as it is, checked as a whole, written beside it, and exchanged with it in one step. What
//! was there goes to `data/history/`. Where somebody has written the file in between, that is what comes out of the
//! exchange: it is put back, and the change is made again on top of it. Knows nothing of what a change is about.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use nix::fcntl::{Flock, FlockArg, RenameFlags, renameat2};
use serde::Serialize;
use serde_json::Value;

use crate::control::Refused;
use crate::db::edit::{EditError, Source};
use crate::db::{self, Diagnostic};
use crate::files;
use crate::settings::Root;
use crate::status::rfc3339;

/// How many former files are kept.
const KEPT: usize = 1_000;
/// How often a change is made anew where somebody else writes the file all the time.
const TRIES: usize = 20;

/// db.yml of one root.
#[derive(Clone, Debug)]
pub struct DbFile {
    root: Root,
}

/// What the file says, and the tag that this has.
#[derive(Clone, Debug)]
pub struct Held {
    /// Every key, as written.
    pub value: Value,
    /// Another one for every other content.
    pub tag: String,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file is not the one that the caller has seen.
    #[error("db.yml has been changed in the meantime")]
    Stale,
    /// Somebody else wrote it, again and again.
    #[error("db.yml is being changed by somebody else all the time")]
    Busy,
    /// It has faults, or would have.
    #[error("{}", .0.message)]
    Faulty(Refused),
    /// Its way of writing is in the way.
    #[error("db.yml: {0}")]
    Edit(#[from] EditError),
    /// There is nothing of that name.
    #[error("there is no former db.yml of the name {0}")]
    Unknown(String),
    /// The disk.
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// A former db.yml.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Former {
    /// Its name, which sorts by time.
    pub name: String,
    /// When it was replaced, RFC 3339.
    pub until: String,
    pub bytes: u64,
}

impl DbFile {
    /// The db.yml of this root.
    pub fn new(root: Root) -> DbFile {
        DbFile { root }
    }

    /// What the file says now.
    pub fn read(&self) -> Result<Held, WriteError> {
        let bytes = self.bytes()?;
        let text = text(&bytes)?;
        Ok(Held { value: Source::parse(text)?.value().clone(), tag: tag(&bytes) })
    }

    /// Changes the file, and returns what the change returned and the new tag. Blocks.
    ///
    /// The change is made of the file's value, maybe more than once; what it refuses changes nothing. With
    /// `seen`, the file must still have that tag.
    pub fn change<T, E: From<WriteError>>(
        &self,
        seen: Option<&str>,
        mut change: impl FnMut(&mut Value) -> Result<T, E>,
    ) -> Result<(T, String), E> {
        let _turn = self.turn()?;
        for _ in 0..TRIES {
            let bytes = self.bytes()?;
            if seen.is_some_and(|seen| seen != tag(&bytes)) {
                return Err(WriteError::Stale.into());
            }
            let old = text(&bytes)?;
            let source = Source::parse(old).map_err(WriteError::from)?;
            let mut value = source.value().clone();
            let result = change(&mut value)?;
            let new = source.rewrite(&value).map_err(WriteError::from)?;
            if new == old {
                return Ok((result, tag(&bytes)));
            }
            check(&self.root, new.as_bytes())?;
            if self.exchange(&bytes, new.as_bytes())? {
                return Ok((result, tag(new.as_bytes())));
            }
        }
        Err(WriteError::Busy.into())
    }

    /// Writes a former file in the place of this one, which becomes a former one itself. Blocks.
    pub fn restore(&self, name: &str) -> Result<String, WriteError> {
        let path = self.former(name)?;
        let new = fs::read(&path).map_err(at(&path))?;
        check(&self.root, &new)?;
        let _turn = self.turn()?;
        for _ in 0..TRIES {
            if self.exchange(&self.bytes()?, &new)? {
                return Ok(tag(&new));
            }
        }
        Err(WriteError::Busy)
    }

    /// The former files, the newest first.
    pub fn history(&self) -> Result<Vec<Former>, WriteError> {
        let folder = self.root.history();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(at(&folder)(error)),
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry.map_err(at(&folder))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.ends_with(".yml") {
                continue;
            }
            let held = entry.metadata().map_err(at(&entry.path()))?;
            let until =
                held.ctime().try_into().map(|seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds));
            all.push(Former { name, until: until.map(rfc3339).unwrap_or_default(), bytes: held.len() });
        }
        all.sort_by(|a, b| b.name.cmp(&a.name));
        Ok(all)
    }

    /// The text of a former file.
    pub fn show(&self, name: &str) -> Result<String, WriteError> {
        let path = self.former(name)?;
        let bytes = fs::read(&path).map_err(at(&path))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn former(&self, name: &str) -> Result<PathBuf, WriteError> {
        let known =
            self.history()?.into_iter().find(|former| former.name == name || former.name == format!("{name}.yml"));
        let known = known.ok_or_else(|| WriteError::Unknown(name.to_owned()))?;
        Ok(self.root.history().join(known.name))
    }

    /// Waits for its turn, also with other processes; dropped, it is the next one's.
    fn turn(&self) -> Result<Flock<File>, WriteError> {
        let data = self.root.data();
        files::make_private_folder(&data).map_err(at(&data))?;
        let path = data.join("db.lock");
        let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let turn = Flock::lock(open.map_err(at(&path))?, FlockArg::LockExclusive);
        let turn = turn.map_err(|(_, errno)| at(&path)(errno.into()))?;
        self.keep_leftovers()?;
        Ok(turn)
    }

    /// What a crash has left beside db.yml goes to the history: it may be what somebody wrote by hand.
    fn keep_leftovers(&self) -> Result<(), WriteError> {
        let path = fs::canonicalize(self.root.db()).map_err(at(&self.root.db()))?;
        let Some(folder) = path.parent() else { return Ok(()) };
        for entry in fs::read_dir(folder).map_err(at(folder))? {
            let entry = entry.map_err(at(folder))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(".db.yml.") && name.ends_with(".tmp") {
                let bytes = fs::read(entry.path()).map_err(at(&entry.path()))?;
                self.keep(&entry.path(), &bytes)?;
            }
        }
        Ok(())
    }

    fn bytes(&self) -> Result<Vec<u8>, WriteError> {
        let path = self.root.db();
        fs::read(&path).map_err(at(&path))
    }

    /// Puts new bytes in the place of the old ones; false, and nothing done, where others stand there now.
    fn exchange(&self, old: &[u8], new: &[u8]) -> Result<bool, WriteError> {
        // Where db.yml is a link into a repository, the file there is what changes.
        let path = fs::canonicalize(self.root.db()).map_err(at(&self.root.db()))?;
        let held = fs::metadata(&path).map_err(at(&path))?;
        let beside = path.with_file_name(format!(".db.yml.{}.tmp", std::process::id()));
        let written = files::write_and_sync(&beside, new, 0o600).and_then(|()| {
            // Who may not give files away writes his own.
            let _ = chown(&beside, Some(held.uid()), Some(held.gid()));
            fs::set_permissions(&beside, Permissions::from_mode(held.mode() & 0o777))
        });
        if let Err(error) = written {
            // The first error is the one to report.
            let _ = fs::remove_file(&beside);
            return Err(at(&beside)(error));
        }
        swap(&beside, &path).map_err(at(&path))?;
        // What was there is beside it now, and can no longer be written by its name.
        let was = fs::read(&beside).map_err(at(&beside))?;
        if was != old {
            swap(&beside, &path).map_err(at(&path))?;
            let _ = fs::remove_file(&beside);
            return Ok(false);
        }
        files::sync_folder(&path).map_err(at(&path))?;
        self.keep(&beside, old)?;
        Ok(true)
    }

    /// Moves what db.yml was to the history.
    fn keep(&self, beside: &Path, old: &[u8]) -> Result<(), WriteError> {
        let folder = self.root.history();
        files::make_private_folder(&folder).map_err(at(&folder))?;
        let mut name = format!("{}.yml", stamp(SystemTime::now()));
        let mut count = 1;
        while folder.join(&name).exists() {
            count += 1;
            name = format!("{}-{count}.yml", stamp(SystemTime::now()));
        }
        let path = folder.join(name);
        // It may hold secrets (env), as db.yml itself may. On another file system it is copied.
        let moved = fs::set_permissions(beside, Permissions::from_mode(0o600)).and_then(|()| fs::rename(beside, &path));
        if moved.is_err() {
            files::write_atomically(&path, old, 0o600).map_err(at(&path))?;
            let _ = fs::remove_file(beside);
        }
        let mut names: Vec<_> =
            fs::read_dir(&folder).map_err(at(&folder))?.flatten().map(|entry| entry.file_name()).collect();
        if names.len() > KEPT {
            names.sort_unstable_by(|a, b| b.cmp(a));
            for old in &names[KEPT..] {
                // The next change tries again.
                let _ = fs::remove_file(folder.join(old));
            }
        }
        Ok(())
    }
}

/// Every fault that this text has as db.yml.
fn check(root: &Root, bytes: &[u8]) -> Result<(), WriteError> {
    let parsed = db::parse(&file_name(root), bytes);
    if parsed.is_valid() {
        return Ok(());
    }
    let diagnostics: Vec<Diagnostic> = parsed.diagnostics;
    let errors = diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).count();
    let faults = if errors == 1 { "1 fault".to_owned() } else { format!("{errors} faults") };
    let message = format!("{faults} in {} as it would be; nothing was changed", file_name(root));
    Err(WriteError::Faulty(Refused { message, diagnostics }))
}

fn file_name(root: &Root) -> String {
    let path = root.db();
    path.strip_prefix(".").unwrap_or(&path).display().to_string()
}

fn text(bytes: &[u8]) -> Result<&str, WriteError> {
    let text = std::str::from_utf8(bytes).map_err(|_| EditError::Unreadable("it is not UTF-8".into()))?;
    if text.starts_with('\u{feff}') {
        return Err(EditError::Unreadable("it begins with a byte order mark: save it without".into()).into());
    }
    Ok(text)
}

/// What HTTP calls a strong entity tag, without its quotes.
fn tag(bytes: &[u8]) -> String {
    let hash = digest(&SHA256, bytes);
    hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// `20260131T235959.123456Z`: sorts by time.
fn stamp(now: SystemTime) -> String {
    let format = time::macros::format_description!("[year][month][day]T[hour][minute][second].[subsecond digits:6]Z");
    time::OffsetDateTime::from(now).format(format).unwrap_or_default()
}

/// Exchanges two files in one step; where the file system cannot, replaces the second by a copy of what is beside it.
fn swap(beside: &Path, path: &Path) -> io::Result<()> {
    let cwd = nix::fcntl::AT_FDCWD;
    match renameat2(cwd, beside, cwd, path, RenameFlags::RENAME_EXCHANGE) {
        Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOSYS) => {
            let spare = beside.with_extension("old.tmp");
            // Not one step for who looks at the old file; for who reads db.yml it still is.
            let _ = fs::remove_file(&spare);
            fs::hard_link(path, &spare)?;
            fs::rename(beside, path)?;
            fs::rename(&spare, beside)
        }
        done => done.map_err(Into::into),
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> WriteError {
    let path = path.to_owned();
    move |error| WriteError::Io { path: path.clone(), error }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TEXT: &str = "# mine\nprojects:\n  - name: a # first\n    domain: a.example.com\n";

    fn file() -> (tempfile::TempDir, DbFile) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::write(root.db(), TEXT).unwrap();
        fs::set_permissions(root.db(), Permissions::from_mode(0o640)).unwrap();
        (folder, DbFile::new(root))
    }

    fn add(value: &mut Value, name: &str) -> Result<(), WriteError> {
        let projects = value["projects"].as_array_mut().unwrap();
        projects.push(json!({"name": name, "domain": format!("{name}.example.com")}));
        Ok(())
    }

    #[test]
    fn a_change_keeps_comments_rights_and_the_former_file() {
        let (folder, file) = file();
        let before = file.read().unwrap();
        let ((), tag) = file.change(Some(&before.tag), |value| add(value, "b")).unwrap();
        let text = fs::read_to_string(folder.path().join("db.yml")).unwrap();
        assert_eq!(text, format!("{TEXT}  - name: b\n    domain: b.example.com\n"));
        assert_eq!(fs::metadata(folder.path().join("db.yml")).unwrap().mode() & 0o777, 0o640);
        assert_eq!(file.read().unwrap().tag, tag);
        let history = file.history().unwrap();
        assert_eq!(history.len(), 1);
        assert_eq!(file.show(&history[0].name).unwrap(), TEXT);
        let stale = file.change(Some(&before.tag), |value| add(value, "c"));
        assert!(matches!(stale, Err(WriteError::Stale)));

        file.restore(history[0].name.trim_end_matches(".yml")).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("db.yml")).unwrap(), TEXT);
        assert_eq!(file.history().unwrap().len(), 2);
        assert!(matches!(file.restore("../db"), Err(WriteError::Unknown(_))));
        let left = fs::read_dir(folder.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains(".tmp"));
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn a_fault_changes_nothing() {
        let (folder, file) = file();
        let refused = file.change(None, |value| {
            value["projects"][0]["domain"] = json!("not a host");
            Ok::<_, WriteError>(())
        });
        let Err(WriteError::Faulty(refused)) = refused else { panic!("{refused:?}") };
        assert_eq!(refused.diagnostics[0].line, 4);
        assert_eq!(fs::read_to_string(folder.path().join("db.yml")).unwrap(), TEXT);
        assert!(file.history().unwrap().is_empty());
    }

    #[test]
    fn what_a_hand_writes_in_between_is_kept() {
        let (folder, file) = file();
        let path = folder.path().join("db.yml");
        let mut first = true;
        file.change(None, |value| {
            if std::mem::take(&mut first) {
                fs::write(&path, format!("# by hand\n{TEXT}")).unwrap();
            }
            add(value, "b")
        })
        .unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# by hand\n# mine\n") && text.contains("name: b"), "{text}");
    }

    #[test]
    fn many_at_once_lose_none() {
        let (folder, file) = file();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let file = &file;
                scope.spawn(move || {
                    for n in 0..10 {
                        file.change(None, |value| add(value, &format!("p{thread}x{n}"))).unwrap();
                    }
                });
            }
        });
        let value = file.read().unwrap().value;
        assert_eq!(value["projects"].as_array().unwrap().len(), 41);
        let text = fs::read_to_string(folder.path().join("db.yml")).unwrap();
        assert!(text.starts_with(TEXT), "{text}");
    }
}
