//! Completions for shells: the shell asks this very program what may come next.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::CompleteEnv;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};
use itsup_control::control::{read_last_good, read_projects};
use itsup_control::db::{Db, Project};
use itsup_control::settings::Root;

use crate::cli::{Cli, Shell};
use crate::failure::Failure;
use crate::render::Output;

/// The variable by which a shell asks.
const ASKED: &str = "COMPLETE";
/// What docker compose can be told to do.
const VERBS: [&str; 29] = [
    "attach", "build", "config", "cp", "create", "down", "events", "exec", "images", "kill", "logs", "ls", "pause",
    "port", "ps", "pull", "push", "restart", "rm", "run", "scale", "start", "stats", "stop", "top", "unpause", "up",
    "version", "wait",
];

/// Answers a shell that asks, and ends the process then.
pub(crate) fn answer() {
    CompleteEnv::with_factory(Cli::command).var(ASKED).complete();
}

/// Prints what a shell has to be told once.
pub(crate) fn print(shell: Shell, output: &Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    let shell: &dyn EnvCompleter = match shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    shell.write_registration(ASKED, "itsup", "itsup", "itsup", &mut script).context("the script cannot be made")?;
    output.line(String::from_utf8_lossy(&script).trim_end())
}

/// The projects that begin so.
pub(crate) fn projects(begun: &OsStr) -> Vec<CompletionCandidate> {
    let words = words();
    let projects = db(&words).projects.into_iter().map(|project| {
        let help = project.description.clone().map(Into::into);
        CompletionCandidate::new(project.name.as_ref()).help(help)
    });
    starting(projects, begun)
}

/// Compose's verbs, then the project's services by their compose names.
pub(crate) fn compose(begun: &OsStr) -> Vec<CompletionCandidate> {
    let words = words();
    let after = |name: &str| words.iter().position(|word| word == name).map(|at| &words[at + 1..]);
    // The word that is being written is the last one.
    let (of, done): (Option<&OsString>, &[OsString]) = match (after("stack"), after("all")) {
        (Some([project, rest @ ..]), _) => (Some(project), rest),
        (_, Some(rest)) => (None, rest),
        _ => return Vec::new(),
    };
    if done.len() <= 1 {
        return starting(VERBS.into_iter().map(CompletionCandidate::new), begun);
    }
    let db = db(&words);
    let chosen = db.projects.iter().filter(|project| of.is_none_or(|name| name == &*project.name));
    starting(chosen.flat_map(services).map(CompletionCandidate::new), begun)
}

fn services(project: &Project) -> impl Iterator<Item = String> {
    project.services.iter().filter(|s| !s.is_static()).map(|service| project.container_service_name(service))
}

fn starting(candidates: impl Iterator<Item = CompletionCandidate>, begun: &OsStr) -> Vec<CompletionCandidate> {
    let begun = begun.to_string_lossy().into_owned();
    candidates.filter(|one| one.get_value().to_string_lossy().starts_with(&begun)).collect()
}

/// The words of the line that is being completed, after the program's own name.
fn words() -> Vec<OsString> {
    let mut words = std::env::args_os().skip_while(|word| word != "--").skip(2);
    std::iter::from_fn(|| words.next()).collect()
}

/// What db.yml has; with faults in it, what it last had. A completion is no place to complain.
fn db(words: &[OsString]) -> Db {
    let flag = words.iter().position(|word| word == "--root").and_then(|at| words.get(at + 1));
    let root = flag.cloned().or_else(|| std::env::var_os("ITSUP_ROOT")).filter(|root| !root.is_empty());
    let root = Root::new(root.map_or_else(|| PathBuf::from("."), PathBuf::from));
    read_projects(&root).map(|(db, _)| db).ok().or_else(|| read_last_good(&root)).unwrap_or_default()
}
