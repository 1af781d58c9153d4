//! `itsup stack` and `itsup all`: docker compose on what itsup has written.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Context as _;
use itsup_control::artifacts::ProjectFolder;
use itsup_control::control::read_projects;
use itsup_control::db::Project;
use itsup_control::docker::{ComposeCli, StackFile};
use itsup_control::settings::Root;

use crate::changes::{compose, settings};
use crate::client;
use crate::failure::Failure;

/// Runs docker compose on one project's stack, in the place of this process.
pub(crate) fn stack(root: &Root, name: &str, arguments: &[OsString]) -> Result<(), Failure> {
    let (db, _) = read_projects(root)?;
    let project = db.project(name).ok_or_else(|| {
        Failure::with_hint(format!("db.yml has no project `{name}`"), "`itsup plan` names those that have containers")
    })?;
    let file = file(root, project)?;
    let compose = find(root)?;
    if let Some(before) = pulls_first(arguments) {
        // What cannot be pulled may be here; `up` says so where it is not.
        run(compose.interactive(&file).args(before))?;
    }
    let error = compose.interactive(&file).args(with_detach(arguments)).exec();
    Err(anyhow::Error::from(error).context("docker compose cannot be run").into())
}

/// Runs docker compose on every stack that has been written, one after another. One that fails never stops the others.
pub(crate) fn all(root: &Root, arguments: &[OsString]) -> Result<(), Failure> {
    let (db, _) = read_projects(root)?;
    let projects = db.projects.iter().filter(|project| project.enabled);
    let stacks: Vec<(&Project, StackFile)> =
        projects.filter_map(|project| Some((project, file(root, project).ok()?))).collect();
    if stacks.is_empty() {
        return Err(no_file("any project"));
    }
    let compose = find(root)?;
    let mut failed = Vec::new();
    for (project, file) in &stacks {
        eprintln!("# {}", project.name);
        if let Some(before) = pulls_first(arguments) {
            run(compose.interactive(file).args(before))?;
        }
        if !run(compose.interactive(file).args(with_detach(arguments)))? {
            failed.push(&*project.name);
        }
    }
    match failed.as_slice() {
        [] => Ok(()),
        failed => Err(Failure::faults(format!("docker compose failed for {}", failed.join(", ")), Vec::new())),
    }
}

fn find(root: &Root) -> Result<ComposeCli, Failure> {
    let settings = settings(root)?;
    client::runtime()?.block_on(compose(&settings))
}

fn file(root: &Root, project: &Project) -> Result<StackFile, Failure> {
    let folder = ProjectFolder::new(root, &project.name);
    let path = folder.compose();
    if !path.is_file() {
        return Err(no_file(&project.name));
    }
    Ok(StackFile::new(folder.path(), &path, &project.compose_name).context("the current folder cannot be read")?)
}

fn no_file(of: &str) -> Failure {
    Failure::with_hint(format!("no compose file has been written for {of}"), "`itsup apply` or `itsup write` makes it")
}

/// Whether it went well.
fn run(command: &mut Command) -> Result<bool, Failure> {
    Ok(command.status().context("docker compose cannot be run")?.success())
}

/// `up` pulls first.
fn pulls_first(arguments: &[OsString]) -> Option<Vec<OsString>> {
    is_up(arguments).then(|| {
        let services = arguments[1..].iter().filter(|argument| !argument.to_string_lossy().starts_with('-'));
        // With options that take values, it cannot be told which words are services.
        let plain = arguments[1..].iter().all(|argument| {
            let text = argument.to_string_lossy();
            !text.starts_with('-')
                || matches!(&*text, "-d" | "--detach" | "--no-deps" | "--force-recreate" | "--no-recreate")
        });
        let mut pull: Vec<OsString> = ["pull", "--ignore-pull-failures"].map(OsString::from).to_vec();
        if plain {
            pull.extend(services.cloned());
        }
        pull
    })
}

/// `up` implies `-d`.
fn with_detach(arguments: &[OsString]) -> Vec<OsString> {
    let mut arguments = arguments.to_vec();
    if is_up(&arguments) && !arguments.iter().any(|argument| argument == "-d" || argument == "--detach") {
        arguments.insert(1, "-d".into());
    }
    arguments
}

fn is_up(arguments: &[OsString]) -> bool {
    arguments.first().is_some_and(|verb| verb == "up")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn up_detaches_and_pulls_first_and_nothing_else_does() {
        for (line, before, run) in [
            ("up", Some("pull --ignore-pull-failures"), "up -d"),
            ("up -d web", Some("pull --ignore-pull-failures web"), "up -d web"),
            ("up web --force-recreate", Some("pull --ignore-pull-failures web"), "up -d web --force-recreate"),
            ("up --scale web=2 web", Some("pull --ignore-pull-failures"), "up -d --scale web=2 web"),
            ("logs -f up", None, "logs -f up"),
            ("ps", None, "ps"),
        ] {
            assert_eq!(pulls_first(&words(line)), before.map(words), "{line}");
            assert_eq!(with_detach(&words(line)), words(run), "{line}");
        }
    }
}
