//! From the bytes of db.yml to [`Db`] and every fault in it.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::diagnostic::{Diagnostic, Severity};
use super::fault::Fault;
use super::model::Db;
use super::read::Read;
use super::schema::schema;
use super::spans::{Kind, Place, Tree};
use super::{build, check, structure};

/// The largest file that is read.
const MAX_BYTES: usize = 64 << 20;

/// The most diagnostics that are listed; a last one says how many more there are.
const MAX_LISTED: usize = 1_000;

/// The longest source line that is kept with a diagnostic, in characters.
const MAX_LINE: usize = 1_000;

/// What became of a db.yml.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// The projects without an error; `None` where the file cannot be made sense of at all.
    pub db: Option<Db>,
    /// In the order of the file.
    pub diagnostics: Vec<Diagnostic>,
}

impl Parsed {
    /// Reports whether there is no error; warnings do not count.
    pub fn is_valid(&self) -> bool {
        self.db.is_some() && !self.diagnostics.iter().any(Diagnostic::is_error)
    }

    /// The errors alone.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().filter(|diagnostic| diagnostic.is_error())
    }
}

/// Parses and checks a db.yml. Any bytes will do; `file_name` is only for the diagnostics.
pub fn parse(file_name: &str, bytes: &[u8]) -> Parsed {
    let fatal = |text: &str, fault: Fault| {
        let mut report = Report::new(file_name, text);
        report.add(None, fault);
        Parsed { db: None, diagnostics: report.finish(&[]) }
    };
    if bytes.len() > MAX_BYTES {
        let message = format!("the file is larger than {} MB", MAX_BYTES >> 20);
        return fatal("", Fault::error(Place { line: 1, column: 1 }, message));
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let place = end_of(&good);
            let fault = Fault::error(place, "not UTF-8").hint("save the file as UTF-8");
            return fatal(&String::from_utf8_lossy(bytes), fault);
        }
    };
    match tree(text) {
        Ok(tree) => projects(file_name, text, &tree),
        Err(fault) => fatal(text, fault),
    }
}

/// Reads the text with both parsers, and sees to it that they agree.
fn tree(text: &str) -> Result<Tree, Fault> {
    for document in serde_yaml::Deserializer::from_str(text) {
        IgnoredAny::deserialize(document).map_err(|error| syntax(text, &error))?;
    }
    let tree = Tree::parse(text)?;
    let read: Read = serde_yaml::from_str(text).map_err(|error| syntax(text, &error))?;
    match tree.disagreement(&read) {
        None => Ok(tree),
        Some(place) => Err(Fault::error(place, "this can be read in two ways")
            .hint("put it in quotes, write it more plainly, and use the name of an anchor only once")),
    }
}

fn projects(file_name: &str, text: &str, tree: &Tree) -> Parsed {
    let mut report = Report::new(file_name, text);
    let mut faults = Vec::new();
    let root = tree.root();
    structure::check_root(tree, root, schema(), &mut faults);
    let list = tree.field(root, "projects").filter(|list| matches!(tree.node(*list).kind, Kind::Sequence(_)));
    faults.into_iter().for_each(|fault| report.add(None, fault));
    let Some(list) = list else { return Parsed { db: None, diagnostics: report.finish(&[]) } };

    let nodes = tree.elements(list);
    let schema = &schema()["properties"]["projects"]["items"];
    for (index, node) in nodes.iter().enumerate() {
        let mut faults = Vec::new();
        structure::check(tree, *node, schema, "a project", &mut faults);
        check::project(tree, *node, &mut faults);
        faults.into_iter().for_each(|fault| report.add(Some(index), fault));
    }
    check::together(tree, nodes, |index, fault| report.add(Some(index), fault));

    let mut db = Db::default();
    for (index, node) in nodes.iter().enumerate() {
        if report.faulty.contains(&index) {
            continue;
        }
        match build::project(tree, *node) {
            Ok(project) => db.projects.push(project),
            Err(cause) => {
                report.add(Some(index), Fault::error(tree.place(*node), format!("cannot be built: {cause}")));
            }
        }
    }
    let names: Vec<Option<&str>> = nodes.iter().map(|node| tree.str(tree.field(*node, "name")?)).collect();
    Parsed { db: Some(db), diagnostics: report.finish(&names) }
}

/// A syntax error of serde_yaml, with its place.
fn syntax(text: &str, error: &serde_yaml::Error) -> Fault {
    let at = error.location().map(|at| Place { line: at.line(), column: at.column() });
    let mut message = error.to_string();
    if let Some(Place { line, column }) = at {
        // The place is said already.
        message = message.replacen(&format!(" at line {line} column {column}"), "", 1);
    }
    // libyaml counts a line after the last one.
    let place = at.unwrap_or(Place { line: usize::MAX, column: 1 }).min(end_of(text));
    let line = lines(text).nth(place.line.saturating_sub(1)).unwrap_or_default();
    let hint = if line.trim_start_matches(' ').starts_with('\t') {
        Some("YAML is not indented with tabs: use spaces".to_owned())
    } else if message.contains("mapping values are not allowed") {
        Some("put a value with `: ` in it in quotes, and look at the indentation".to_owned())
    } else {
        None
    };
    Fault::error(place, format!("not valid YAML: {message}")).maybe_hint(hint)
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

/// The place just after a text.
fn end_of(text: &str) -> Place {
    let (line, last) = lines(text).enumerate().last().unwrap_or_default();
    Place { line: line + 1, column: last.chars().count() + 1 }
}

/// Collects faults, and turns them into diagnostics.
struct Report<'a> {
    file: &'a str,
    text: &'a str,
    /// Sorted by place; the same fault of the same place once, with the project it was first found in.
    faults: BTreeMap<(Place, Severity, String), Found>,
    /// Projects with an error.
    faulty: HashSet<usize>,
}

/// The project that a fault stands in, by its index, and what to do about it.
type Found = (Option<usize>, Option<String>);

impl<'a> Report<'a> {
    fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, text, faults: BTreeMap::new(), faulty: HashSet::new() }
    }

    fn add(&mut self, project: Option<usize>, fault: Fault) {
        if fault.severity == Severity::Error {
            self.faulty.extend(project);
        }
        self.faults.entry((fault.place, fault.severity, fault.message)).or_insert((project, fault.hint));
    }

    fn finish(self, names: &[Option<&str>]) -> Vec<Diagnostic> {
        // A warning says nothing new where an error stands.
        let errors: HashSet<Place> = self
            .faults
            .keys()
            .filter(|(_, severity, _)| *severity == Severity::Error)
            .map(|(place, ..)| *place)
            .collect();
        let mut faults: Vec<_> = self.faults.into_iter().collect();
        faults.retain(|((place, severity, _), _)| *severity == Severity::Error || !errors.contains(place));
        let more = faults.len().saturating_sub(MAX_LISTED);
        if more > 0 {
            // Errors before warnings, then by place again.
            faults.sort_by_key(|((place, severity, _), _)| (*severity, *place));
            faults.truncate(MAX_LISTED);
            faults.sort_by_key(|((place, severity, _), _)| (*place, *severity));
        }
        let lines: Vec<&str> = lines(self.text).collect();
        let mut diagnostics: Vec<Diagnostic> = faults
            .into_iter()
            .map(|((place, severity, message), (project, hint))| Diagnostic {
                severity,
                file: self.file.to_owned(),
                line: place.line,
                column: place.column,
                source: lines.get(place.line - 1).unwrap_or(&"").chars().take(MAX_LINE).collect(),
                message,
                hint,
                project: project.and_then(|index| names.get(index).copied().flatten()).map(str::to_owned),
            })
            .collect();
        if let (true, Some(last)) = (more > 0, diagnostics.last().cloned()) {
            let message = format!("and {more} more; these are the first");
            diagnostics.push(Diagnostic { message, hint: None, project: None, ..last });
        }
        diagnostics
    }
}
