//! itsUP updates itself from its git repository, and db.yml from its own, where it has one.
//!
//! Nothing that is in use is touched before it has been proved: the new version is built and tried in a checkout of its own. Only then
//! do the repository and the installed binary move on, and if the new version cannot take over, they move back.

mod git;
mod install;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::control::{Control, ReloadError};
use crate::files;
use crate::settings::{Root, UpdateSettings};
use crate::status::ErrorReport;
use crate::upgrade::{PATIENCE, UpgradeReport, UpgradeRequest};
use git::{GitError, Repository};
use install::Installed;

/// The longest that a build may take.
const BUILD: Duration = Duration::from_secs(60 * 60);
/// The longest that the new version may take to check the files.
const TRIAL: Duration = Duration::from_secs(60);
/// What is shown of a failed program's last words.
const LAST_WORDS: usize = 2_000;

/// Why nothing was updated. Everything is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SelfUpdateError {
    /// This is not where updates are wanted.
    #[error("updates itself only with ITSUP_ENV=production")]
    NotProduction,
    /// The repository is not in a state to be updated.
    #[error(transparent)]
    Git(#[from] GitError),
    /// The new version cannot be built.
    #[error("the build of {to} failed: {why}")]
    Build { to: String, why: String },
    /// The new version does not work here.
    #[error("the new version {to} does not accept what is here: {why}")]
    Trial { to: String, why: String },
    /// The new version could not take over.
    #[error("the new version could not take over: {}", .0.error)]
    Upgrade(ErrorReport),
    /// The new db.yml has faults.
    #[error("the new db.yml was taken back: {0}")]
    Db(ReloadError),
    /// Anything else.
    #[error("{what}: {error}")]
    Io { what: String, error: std::io::Error },
}

/// What was updated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfUpdated {
    /// The commits of itsUP before and after, where they differ.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub itsup: Option<Step>,
    /// The commits of db.yml's own repository before and after, where they differ.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub db: Option<Step>,
    /// The process that has taken over; where there is one, it applies db.yml.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub upgraded: Option<UpgradeReport>,
}

/// From one commit to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub from: String,
    pub to: String,
}

/// Updates db.yml and itsUP, as far as there is anything new; `say` is told what is being done.
///
/// Where a new version takes over, it applies db.yml itself ([`take_promise`]); else that is up to the caller. Do not hold the
/// pen: an upgrade waits until nobody does.
pub async fn self_update(
    control: &Control,
    say: &(dyn Fn(&str) + Send + Sync),
) -> Result<SelfUpdated, SelfUpdateError> {
    let Some(settings) = control.settings() else { return Err(SelfUpdateError::NotProduction) };
    if !settings.update.production {
        return Err(SelfUpdateError::NotProduction);
    }
    let mut updated = SelfUpdated { db: update_db(control, &settings.root, say).await?, ..SelfUpdated::default() };
    let update = Update { root: &settings.root, settings: &settings.update, control, say };
    if let Some((step, report)) = update.run().await? {
        updated.itsup = Some(step);
        updated.upgraded = Some(report);
    }
    Ok(updated)
}

struct Update<'a> {
    root: &'a Root,
    settings: &'a UpdateSettings,
    control: &'a Control,
    say: &'a (dyn Fn(&str) + Send + Sync),
}

impl Update<'_> {
    async fn run(&self) -> Result<Option<(Step, UpgradeReport)>, SelfUpdateError> {
        (self.say)("fetching itsUP");
        let repository = Repository::of_branch(&self.settings.source, &self.settings.branch).await?;
        let Some(step) = repository.fetch().await? else { return Ok(None) };
        let built = self.build(&repository, &step).await?;
        self.try_out(&built, &step).await?;
        (self.say)(&format!("changing over to {}", step.to));
        let installed = Installed::of_this_process().map_err(io("this process's binary"))?;
        repository.forward(&step).await?;
        let changed = self.change_over(&installed, &built).await;
        match changed {
            Ok(report) => Ok(Some((step, report))),
            Err(error) => {
                repository.back(&step).await?;
                Err(error)
            }
        }
    }

    /// Builds the new version in a checkout of its own; what is built is kept, so that the next build is a short one.
    async fn build(&self, repository: &Repository, step: &Step) -> Result<PathBuf, SelfUpdateError> {
        let workshop = self.root.data().join("self-update");
        files::make_private_folder(&workshop).map_err(io(&workshop.display().to_string()))?;
        let workshop = workshop.canonicalize().map_err(io(&workshop.display().to_string()))?;
        let (checkout, target) = (workshop.join("checkout"), workshop.join("target"));
        repository.check_out(&step.to, &checkout).await?;
        (self.say)(&format!("building {}", step.to));
        let mut command = Command::new("sh");
        command.arg("-c").arg(&self.settings.build).current_dir(&checkout).env("CARGO_TARGET_DIR", &target);
        let built = run(command, BUILD).await;
        // Removed before anything is decided: it is in nobody's way then.
        let removed = repository.remove_checkout(&checkout).await;
        built.map_err(|why| SelfUpdateError::Build { to: step.to.clone(), why })?;
        removed?;
        let binary = target.join("release/itsup");
        if !binary.is_file() {
            let why = format!("there is no {} after it", binary.display());
            return Err(SelfUpdateError::Build { to: step.to.clone(), why });
        }
        Ok(binary)
    }

    /// Has the new version check what is here.
    async fn try_out(&self, binary: &Path, step: &Step) -> Result<(), SelfUpdateError> {
        (self.say)("trying it out");
        let mut command = Command::new(binary);
        command.arg("--root").arg(self.root.path()).arg("validate");
        run(command, TRIAL).await.map_err(|why| SelfUpdateError::Trial { to: step.to.clone(), why })
    }

    async fn change_over(&self, installed: &Installed, built: &Path) -> Result<UpgradeReport, SelfUpdateError> {
        let swapped = installed.swap(built).map_err(io(&installed.path().display().to_string()))?;
        promise(self.root).map_err(io("data/"))?;
        let request = UpgradeRequest { to: installed.path().to_owned(), patience_seconds: PATIENCE.as_secs() };
        match self.control.upgrades().upgrade(request).await {
            Ok(report) => Ok(report),
            Err(report) => {
                take_promise(self.root);
                swapped.back().map_err(io(&installed.path().display().to_string()))?;
                Err(SelfUpdateError::Upgrade(report))
            }
        }
    }
}

/// Updates the repository that db.yml is tracked in, where that is not itsUP's own, and has it read.
async fn update_db(
    control: &Control,
    root: &Root,
    say: &(dyn Fn(&str) + Send + Sync),
) -> Result<Option<Step>, SelfUpdateError> {
    let Some(repository) = Repository::that_tracks(&root.db()).await else { return Ok(None) };
    say("fetching db.yml");
    let Some(step) = repository.fetch().await? else { return Ok(None) };
    let _pen = control.pen().hold().await;
    repository.forward(&step).await?;
    match control.reload().await {
        Ok(_) => Ok(Some(step)),
        Err(error) => {
            repository.back(&step).await?;
            Err(SelfUpdateError::Db(error))
        }
    }
}

/// Runs a program to its end; an error is its last words.
async fn run(mut command: Command, limit: Duration) -> Result<(), String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let ended = tokio::time::timeout(limit, command.output()).await;
    let output = ended.map_err(|_| format!("it took longer than {limit:?}"))?.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let last = said.char_indices().rev().nth(LAST_WORDS).map_or(0, |(at, _)| at);
    Err(format!("{}\n{}", output.status, said[last..].trim()))
}

fn io(what: &str) -> impl Fn(std::io::Error) -> SelfUpdateError {
    let what = what.to_owned();
    move |error| SelfUpdateError::Io { what: what.clone(), error }
}

fn promise_path(root: &Root) -> PathBuf {
    root.data().join("apply-after-upgrade")
}

/// Leaves word that db.yml is to be applied once the new version runs.
fn promise(root: &Root) -> std::io::Result<()> {
    files::write_atomically(&promise_path(root), b"", 0o600)
}

/// Whether an older process has left word that db.yml is to be applied; taken back by asking.
pub fn take_promise(root: &Root) -> bool {
    std::fs::remove_file(promise_path(root)).is_ok()
}
