//! `itsup history` and `itsup openapi`: what needs no running itsup.

use std::path::Path;

use anyhow::Context as _;
use itsup_control::db_file::{DbFile, Former, WriteError};
use itsup_control::settings::Root;

use crate::cli::HistoryCommand;
use crate::failure::Failure;
use crate::render::Output;

/// Lists, shows or restores what db.yml was.
pub(crate) fn history(root: Root, command: Option<HistoryCommand>, output: &Output) -> Result<(), Failure> {
    let db = DbFile::new(root);
    match command {
        None => output.history(&db.history().map_err(failure)?),
        Some(HistoryCommand::Show { name }) => output.text(&db.show(&name).map_err(failure)?),
        Some(HistoryCommand::Restore { name }) => {
            db.restore(&name).map_err(failure)?;
            output.done(&format!("db.yml is {name} again; put it into effect with `itsup apply`"))
        }
    }
}

/// Prints the API's description, or writes it to a file: JSON where the file's name ends so, else YAML.
pub(crate) fn openapi(out: Option<&Path>, output: &Output) -> Result<(), Failure> {
    let Some(path) = out else { return output.text(&itsup_control::api::openapi_yaml()) };
    let text = match path.extension() {
        Some(extension) if extension == "json" => {
            serde_json::to_string_pretty(&itsup_control::api::openapi()).context("the description cannot be written")?
        }
        _ => itsup_control::api::openapi_yaml(),
    };
    itsup_control::files::write_atomically(path, text.as_bytes(), 0o644)
        .with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(())
}

fn failure(error: WriteError) -> Failure {
    let message = error.to_string();
    match error {
        WriteError::Faulty(refused) => refused.into(),
        WriteError::Unknown(_) => Failure::with_hint(message, "`itsup history` lists them"),
        _ => Failure::faults(message, Vec::new()),
    }
}

/// Lines for people: the newest first.
pub(crate) fn lines(formers: &[Former]) -> String {
    let line = |former: &Former| {
        format!("{}  until {}  {} bytes\n", former.name.trim_end_matches(".yml"), former.until, former.bytes)
    };
    if formers.is_empty() {
        "db.yml has not been changed through itsup yet".into()
    } else {
        formers.iter().map(line).collect()
    }
}
