//! Reading what the user wrote: `.env` and db.yml, with every fault of both at once.
//!
//! Changes nothing but `data/db.last-good.yml`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use crate::db::{self, Db, Diagnostic, Severity};
use crate::files;
use crate::settings::{Fault, Root, Settings, Source, Sources};

/// The user's files, read and without a fault.
pub(super) struct Loaded {
    /// What db.yml says.
    pub db: Db,
    /// What `.env`, the environment and the flags say.
    pub settings: Settings,
    /// What may not mean what was meant.
    pub warnings: Vec<Diagnostic>,
    bytes: Vec<u8>,
}

/// What serves at start, however faulty db.yml is.
pub(super) struct AtStart {
    /// What serves: db.yml without its faulty projects, or the last good one.
    pub db: Db,
    /// What is wrong with db.yml; errors name projects that are left out.
    pub diagnostics: Vec<Diagnostic>,
    /// Whether the last good db.yml serves in place of the real one.
    pub last_good: bool,
}

/// Why nothing can be taken from the user's files.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// What is wrong, in one line.
    pub message: String,
    /// Every fault.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads `.env` and db.yml; any error in either refuses both.
pub(super) fn load(root: &Root, sources: &mut Sources, cores: NonZeroUsize) -> Result<Loaded, Refused> {
    let settings = read_settings(root, sources, cores);
    let bytes = match read_db(&root.db()) {
        Ok(bytes) => bytes,
        Err(message) => return Err(Refused { message, diagnostics: settings.err().unwrap_or_default() }),
    };
    let parsed = db::parse(&name(root), &bytes);
    let valid = parsed.is_valid();
    let mut diagnostics = parsed.diagnostics;
    match (parsed.db, settings) {
        (Some(db), Ok(settings)) if valid => Ok(Loaded { db, settings, warnings: diagnostics, bytes }),
        (_, settings) => {
            diagnostics.extend(settings.err().unwrap_or_default());
            Err(Refused::new(diagnostics))
        }
    }
}

/// Reads db.yml alone; any error refuses it.
pub fn read_projects(root: &Root) -> Result<(Db, Vec<Diagnostic>), Refused> {
    let bytes = read_db(&root.db()).map_err(|message| Refused { message, diagnostics: Vec::new() })?;
    let parsed = db::parse(&name(root), &bytes);
    let valid = parsed.is_valid();
    match parsed.db {
        Some(db) if valid => Ok((db, parsed.diagnostics)),
        _ => Err(Refused::new(parsed.diagnostics)),
    }
}

/// Reads the db.yml that was last taken up; `None` where there is none.
pub fn read_last_good(root: &Root) -> Option<Db> {
    read_db(&root.last_good_db()).ok().and_then(|bytes| db::parse(&name(root), &bytes).db)
}

/// Reads what serves at start. Only where nothing at all can serve is that an error.
pub(super) fn load_at_start(root: &Root) -> Result<AtStart, Refused> {
    let path = root.db();
    let faults = match read_db(&path) {
        Ok(bytes) => {
            let parsed = db::parse(&name(root), &bytes);
            let valid = parsed.is_valid();
            if let Some(db) = parsed.db {
                if valid {
                    keep_last_good(root, &bytes);
                }
                return Ok(AtStart { db, diagnostics: parsed.diagnostics, last_good: false });
            }
            Refused::new(parsed.diagnostics)
        }
        Err(message) => Refused { message, diagnostics: Vec::new() },
    };
    match read_last_good(root) {
        Some(db) => {
            let mut diagnostics = faults.diagnostics;
            if diagnostics.is_empty() {
                diagnostics.push(diagnostic(&path, 1, Severity::Error, faults.message, None));
            }
            Ok(AtStart { db, diagnostics, last_good: true })
        }
        None => Err(faults),
    }
}

/// Reads `.env` and makes settings of it.
pub fn read_settings(root: &Root, sources: &mut Sources, cores: NonZeroUsize) -> Result<Settings, Vec<Diagnostic>> {
    let settings = sources.read(root).and_then(|()| Settings::resolve(root.clone(), sources, cores));
    settings.map_err(|faults| faults.into_iter().map(Diagnostic::from).collect())
}

impl Loaded {
    /// Keeps this db.yml for a start that finds a broken one.
    pub(super) fn keep(&self, root: &Root) {
        keep_last_good(root, &self.bytes);
    }
}

/// The name that diagnostics give db.yml.
fn name(root: &Root) -> String {
    let path = root.db();
    path.strip_prefix(".").unwrap_or(&path).display().to_string()
}

fn keep_last_good(root: &Root, bytes: &[u8]) {
    let path = root.last_good_db();
    if std::fs::read(&path).is_ok_and(|kept| kept == bytes) {
        return;
    }
    // It may hold secrets (env), as db.yml itself may.
    if let Err(error) = files::write_atomically(&path, bytes, 0o600) {
        tracing::warn!("{}: {error}; the last good db.yml is not kept", path.display());
    }
}

fn read_db(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("there is no {}", path.display()),
        _ => format!("{} cannot be read: {error}", path.display()),
    })
}

impl Refused {
    fn new(diagnostics: Vec<Diagnostic>) -> Refused {
        let errors: Vec<&Diagnostic> = diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).collect();
        let mut files: Vec<&str> = errors.iter().map(|diagnostic| diagnostic.file.as_str()).collect();
        files.sort_unstable();
        files.dedup();
        let faults = if errors.len() == 1 { "1 fault".to_owned() } else { format!("{} faults", errors.len()) };
        let message = format!("{faults} in {}", files.join(" and "));
        Refused { message, diagnostics }
    }
}

impl From<Fault> for Diagnostic {
    /// The source line is left out: a `.env` holds secrets.
    fn from(fault: Fault) -> Diagnostic {
        let (path, line) = match &fault.source_of_value {
            Source::File { path, line } => (path.clone(), *line),
            other => (PathBuf::from(other.to_string()), 1),
        };
        let message = match fault.variable {
            Some(variable) => format!("{variable}: {}", fault.message),
            None => fault.message,
        };
        diagnostic(&path, line, Severity::Error, message, fault.hint)
    }
}

fn diagnostic(path: &Path, line: usize, severity: Severity, message: String, hint: Option<String>) -> Diagnostic {
    let file = path.display().to_string();
    Diagnostic { severity, file, line, column: 1, source: String::new(), message, hint, project: None }
}
