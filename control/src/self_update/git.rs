//! A git repository that is only ever moved forward, and back to where it was.
//!
//! git itself does the work: it has the user's credentials and settings.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::Step;

/// The longest that one git command may take.
const LIMIT: Duration = Duration::from_secs(5 * 60);

/// Why a repository was left as it is.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// Somebody has changed files and not committed them.
    #[error("{}: there are changes that are not committed; nothing was updated", .0.display())]
    Dirty(PathBuf),
    /// Another branch is checked out.
    #[error("{}: {found} is checked out, not {wanted}; nothing was updated", folder.display())]
    Branch { folder: PathBuf, found: String, wanted: String },
    /// There are commits here that the remote does not have.
    #[error("{}: has commits that {remote} does not have; nothing was updated", folder.display())]
    Diverged { folder: PathBuf, remote: String },
    /// git says no.
    #[error("{}: git {command}: {said}", folder.display())]
    Git { folder: PathBuf, command: String, said: String },
}

/// A working tree on a branch that follows a remote's.
#[derive(Debug)]
pub(super) struct Repository {
    folder: PathBuf,
    remote: String,
    branch: String,
    local: String,
}

impl Repository {
    /// The working tree in this folder, which must have this branch checked out; it follows `origin`.
    pub(super) async fn of_branch(folder: &Path, branch: &str) -> Result<Repository, GitError> {
        let folder = folder.to_owned();
        Ok(Repository { folder, remote: "origin".into(), branch: branch.into(), local: branch.into() })
    }

    /// The working tree that tracks this file and follows a remote; itsUP's own repository, which ignores it, is none.
    pub(super) async fn that_tracks(file: &Path) -> Option<Repository> {
        let file = file.canonicalize().ok()?;
        let at = Repository {
            folder: file.parent()?.to_owned(),
            remote: String::new(),
            branch: String::new(),
            local: String::new(),
        };
        at.git(&["ls-files", "--error-unmatch", "--", file.file_name()?.to_str()?]).await.ok()?;
        let folder = PathBuf::from(at.git(&["rev-parse", "--show-toplevel"]).await.ok()?);
        let local = at.git(&["symbolic-ref", "--short", "HEAD"]).await.ok()?;
        let remote = at.git(&["config", &format!("branch.{local}.remote")]).await.ok()?;
        let merge = at.git(&["config", &format!("branch.{local}.merge")]).await.ok()?;
        let branch = merge.strip_prefix("refs/heads/")?.to_owned();
        Some(Repository { folder, remote, branch, local })
    }

    /// Fetches; the way from here to there, where there is one, else nothing. Only ever forward, and only over a clean tree.
    pub(super) async fn fetch(&self) -> Result<Option<Step>, GitError> {
        let found =
            self.git(&["symbolic-ref", "--short", "--quiet", "HEAD"]).await.unwrap_or_else(|_| "no branch".into());
        if found != self.local {
            return Err(GitError::Branch { folder: self.folder.clone(), found, wanted: self.local.clone() });
        }
        self.git(&["fetch", "--quiet", &self.remote, &self.branch]).await?;
        let from = self.git(&["rev-parse", "HEAD"]).await?;
        let to = self.git(&["rev-parse", "FETCH_HEAD^{commit}"]).await?;
        if from == to {
            return Ok(None);
        }
        if !self.git(&["status", "--porcelain", "--untracked-files=no"]).await?.is_empty() {
            return Err(GitError::Dirty(self.folder.clone()));
        }
        if self.git(&["merge-base", "--is-ancestor", &from, &to]).await.is_err() {
            let remote = format!("{}/{}", self.remote, self.branch);
            return Err(GitError::Diverged { folder: self.folder.clone(), remote });
        }
        Ok(Some(Step { from, to }))
    }

    /// Moves on.
    pub(super) async fn forward(&self, step: &Step) -> Result<(), GitError> {
        // Once more: a build may have taken long.
        if !self.git(&["status", "--porcelain", "--untracked-files=no"]).await?.is_empty() {
            return Err(GitError::Dirty(self.folder.clone()));
        }
        self.git(&["merge", "--quiet", "--ff-only", &step.to]).await.map(drop)
    }

    /// Moves back: the tree was clean, so this loses nothing.
    pub(super) async fn back(&self, step: &Step) -> Result<(), GitError> {
        self.git(&["reset", "--quiet", "--keep", &step.from]).await.map(drop)
    }

    /// Checks a commit out elsewhere, in place of what is there.
    pub(super) async fn check_out(&self, commit: &str, to: &Path) -> Result<(), GitError> {
        // Left by an earlier one that was interrupted; usually there is none.
        let _ = self.remove_checkout(to).await;
        self.git(&["worktree", "add", "--quiet", "--force", "--detach", &to.display().to_string(), commit])
            .await
            .map(drop)
    }

    pub(super) async fn remove_checkout(&self, at: &Path) -> Result<(), GitError> {
        self.git(&["worktree", "remove", "--force", &at.display().to_string()]).await.map(drop)
    }

    async fn git(&self, arguments: &[&str]) -> Result<String, GitError> {
        let fail = |said: String| GitError::Git { folder: self.folder.clone(), command: arguments.join(" "), said };
        let mut command = Command::new("git");
        // It must not wait for a password that nobody will type.
        command.env("GIT_TERMINAL_PROMPT", "0").env("GIT_OPTIONAL_LOCKS", "0").stdin(Stdio::null()).kill_on_drop(true);
        command.arg("-C").arg(&self.folder).args(arguments);
        let ended = tokio::time::timeout(LIMIT, command.output()).await;
        let output =
            ended.map_err(|_| fail(format!("took longer than {LIMIT:?}")))?.map_err(|e| fail(e.to_string()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(fail(if said.is_empty() { output.status.to_string() } else { said }));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}
