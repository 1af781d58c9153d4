//! What changes have begun and not yet ended, and which containers are still to go: `data/journal/<project>.json`.
//!
//! Every step is on disk before it is done, so that after a crash the file says which way to finish. It must not know
//! how that is done.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::active::ServiceKey;
use crate::files;
use crate::observed::{Engine, Observed};
use crate::rollout::{Ids, Stage, Terms};
use crate::settings::Root;

/// A project's journal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Journal {
    /// The change that is under way; there is never more than one for each project.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// Containers that finish what they have, and then go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub retiring: Vec<Retiring>,
}

/// A change of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Names it, in receipts and logs too.
    pub id: String,
    pub service: String,
    /// Compose's names.
    pub compose_project: String,
    pub compose_service: String,
    /// The compose file that the change puts into effect, relative to the project's folder.
    pub file: String,
    pub terms: Terms,
    pub kind: Kind,
    /// The containers that served when it began.
    pub old: Ids,
    /// The new ones, once they are known.
    pub new: Ids,
}

/// How a service is changed over, and how far that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// New containers beside the old ones.
    Rolling(Stage),
    /// One after the other, while requests are held. A crash here is finished: compose is asked once more.
    InPlace,
}

/// Containers that are routed no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retiring {
    /// The change that retired them.
    pub id: String,
    pub service: String,
    pub containers: Ids,
    /// The process whose connections they still serve.
    pub process: u32,
    /// Seconds since 1970: at the latest they are stopped then.
    pub until: u64,
}

impl Change {
    pub fn key(&self, project: &str) -> ServiceKey {
        ServiceKey::new(project, self.service.as_str())
    }

    /// Which containers are to be routed until a crash is dealt with, as far as that can be told.
    ///
    /// After the switch it is the new ones, unless Docker says that they do not run and an old one does.
    pub fn routed(&self, observed: &Observed) -> &Ids {
        let known = matches!(observed.engine, Engine::Up { .. });
        let runs = |id| observed.containers.get(id).is_some_and(|container| container.running);
        match self.kind {
            Kind::Rolling(Stage::Switched) if known && !self.new.iter().all(runs) && self.old.iter().any(runs) => {
                &self.old
            }
            Kind::Rolling(Stage::Switched) => &self.new,
            Kind::Rolling(Stage::Starting | Stage::Undoing) | Kind::InPlace => &self.old,
        }
    }
}

impl Journal {
    fn is_empty(&self) -> bool {
        self.change.is_none() && self.retiring.is_empty()
    }

    /// The containers of a service that are on their way out.
    pub fn leaving(&self, service: &str) -> Ids {
        self.retiring.iter().filter(|r| r.service == service).flat_map(|r| r.containers.iter().cloned()).collect()
    }
}

type ByProject = BTreeMap<Arc<str>, Journal>;

/// All projects' journals. Each write is synced before it returns.
#[derive(Debug)]
pub struct Journals {
    folder: PathBuf,
    held: Mutex<ByProject>,
}

impl Journals {
    /// Reads what a crash has left; what cannot be read is set aside, and told.
    pub fn open(root: &Root) -> io::Result<(Journals, Vec<String>)> {
        let folder = folder(root);
        files::make_private_folder(&folder)?;
        let (held, warnings) = read(&folder)?;
        Ok((Journals { folder, held: Mutex::new(held) }, warnings))
    }

    /// A project's journal as it stands.
    pub fn of(&self, project: &str) -> Journal {
        self.held().get(project).cloned().unwrap_or_default()
    }

    /// Everything that is under way.
    pub fn all(&self) -> BTreeMap<Arc<str>, Journal> {
        self.held().clone()
    }

    /// Changes a project's journal, and returns once that is on disk. What cannot be written is not changed.
    pub fn update<T>(&self, project: &Arc<str>, change: impl FnOnce(&mut Journal) -> T) -> io::Result<T> {
        let mut held = self.held();
        let before = held.get(project).cloned().unwrap_or_default();
        let mut after = before.clone();
        let told = change(&mut after);
        if after == before {
            return Ok(told);
        }
        let path = self.folder.join(format!("{project}.json"));
        if after.is_empty() {
            files::remove(&path)?;
            held.remove(project);
        } else {
            files::write_atomically(&path, &serde_json::to_vec_pretty(&after)?, 0o600)?;
            held.insert(project.clone(), after);
        }
        Ok(told)
    }

    fn held(&self) -> MutexGuard<'_, ByProject> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the journals without touching them: what the first table needs to know.
pub fn peek(root: &Root) -> BTreeMap<Arc<str>, Journal> {
    let Ok(entries) = fs::read_dir(folder(root)) else { return BTreeMap::new() };
    let journals = entries.flatten().filter_map(|entry| {
        let (project, path) = journal_file(&entry)?;
        Some((project, parse(&path).ok()?))
    });
    journals.collect()
}

fn folder(root: &Root) -> PathBuf {
    root.data().join("journal")
}

fn read(folder: &Path) -> io::Result<(ByProject, Vec<String>)> {
    let (mut held, mut warnings) = (BTreeMap::new(), Vec::new());
    for entry in fs::read_dir(folder)? {
        let Some((project, path)) = journal_file(&entry?) else { continue };
        match parse(&path) {
            Ok(journal) => {
                held.insert(project, journal);
            }
            Err(error) => {
                let aside = path.with_extension("damaged");
                files::rename(&path, &aside)?;
                let (path, aside) = (path.display(), aside.display());
                warnings.push(format!("{path}: {error}; it is kept as {aside}, and `itsup plan` shows what is there"));
            }
        }
    }
    Ok((held, warnings))
}

/// A journal's project and path; `None` for what is not one, such as what a crash in a write leaves.
fn journal_file(entry: &fs::DirEntry) -> Option<(Arc<str>, PathBuf)> {
    let path = entry.path();
    let name = path.file_name()?.to_str()?;
    let project = name.strip_suffix(".json").filter(|project| !project.is_empty() && !project.starts_with('.'))?;
    Some((project.into(), path.clone()))
}

fn parse(path: &Path) -> io::Result<Journal> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{container, observed};

    fn ids(names: &[&str]) -> Ids {
        names.iter().map(|name| (*name).into()).collect()
    }

    fn change(kind: Kind) -> Change {
        Change {
            id: "1".into(),
            service: "web".into(),
            compose_project: "shop".into(),
            compose_service: "shop-web".into(),
            file: "docker-compose.next.yml".into(),
            terms: Terms { replicas: 1, timeout: Duration::from_secs(60), watch: Duration::from_secs(10) },
            kind,
            old: ids(&["a"]),
            new: ids(&["b"]),
        }
    }

    fn retiring() -> Retiring {
        Retiring { id: "1".into(), service: "web".into(), containers: ids(&["a"]), process: 1, until: 5 }
    }

    #[test]
    fn what_was_written_is_read_by_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let shop: Arc<str> = "Shop".into();
        let (journals, _) = Journals::open(&root).unwrap();
        journals.update(&shop, |j| j.change = Some(change(Kind::Rolling(Stage::Switched)))).unwrap();
        let (again, warnings) = Journals::open(&root).unwrap();
        assert_eq!((again.all(), warnings.len()), (journals.all(), 0));
        assert_eq!(peek(&root), journals.all());

        journals
            .update(&shop, |j| {
                j.change = None;
                j.retiring.push(retiring());
            })
            .unwrap();
        assert_eq!(Journals::open(&root).unwrap().0.of("Shop").leaving("web"), ids(&["a"]));
        journals.update(&shop, |j| j.retiring.clear()).unwrap();
        assert_eq!(fs::read_dir(folder.path().join("data/journal")).unwrap().count(), 0, "an empty one is no file");
    }

    #[test]
    fn a_damaged_journal_is_set_aside_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        Journals::open(&root).unwrap();
        let path = folder.path().join("data/journal/shop.json");
        fs::write(&path, "{\"change\":").unwrap();
        fs::write(path.with_file_name(".shop.json.1.0.tmp"), "half").unwrap();
        let (journals, warnings) = Journals::open(&root).unwrap();
        assert!(journals.all().is_empty());
        assert!(warnings[0].contains("shop.damaged"), "{warnings:?}");
        assert!(!path.exists() && path.with_extension("damaged").exists());
    }

    #[test]
    fn what_cannot_be_written_is_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let (journals, _) = Journals::open(&root).unwrap();
        fs::remove_dir(folder.path().join("data/journal")).unwrap();
        journals.update(&"shop".into(), |j| j.retiring.push(retiring())).unwrap_err();
        assert_eq!(journals.of("shop"), Journal::default());
    }

    #[test]
    fn until_a_crash_is_dealt_with_those_are_routed_that_can_serve() {
        let (a, b) = (container("a", "shop", "shop-web"), container("b", "shop", "shop-web"));
        let both = observed([a.clone(), b.clone()]);
        let dead = |mut one: crate::observed::Container| {
            one.running = false;
            one
        };
        let old_alone = observed([a.clone(), dead(b)]);
        for (kind, there, wanted) in [
            (Kind::Rolling(Stage::Starting), &both, "a"),
            (Kind::Rolling(Stage::Undoing), &both, "a"),
            (Kind::InPlace, &both, "a"),
            (Kind::Rolling(Stage::Switched), &both, "b"),
            (Kind::Rolling(Stage::Switched), &old_alone, "a"),
            (Kind::Rolling(Stage::Switched), &observed([dead(a)]), "b"),
            (Kind::Rolling(Stage::Switched), &Observed::default(), "b"),
        ] {
            assert_eq!(change(kind).routed(there), &ids(&[wanted]), "{kind:?}");
        }
    }
}
