//! Compose, as far as a change of one service needs it.
//!
//! A compose that runs holds a lock, and goes on holding it where itsUP is killed: whoever finishes or undoes the change
//! waits until nothing is being made behind his back.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::FlockArg;

use crate::files;
use crate::settings::Root;

/// How often a lock is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// How long an earlier compose may still be at it.
const EARLIER: Duration = Duration::from_secs(300);

/// How a service is brought up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// What is there stays as it is, and new ones are made up to so many in all.
    Beside(usize),
    /// What is there is made anew, so many in all.
    Anew(usize),
    /// What is missing or does not match is made.
    AsNeeded(usize),
}

impl How {
    /// Compose's arguments for one service and nothing else.
    pub(super) fn arguments(self, service: &str) -> Vec<String> {
        let (scale, recreate) = match self {
            How::Beside(scale) => (scale, Some("--no-recreate")),
            How::Anew(scale) => (scale, Some("--force-recreate")),
            How::AsNeeded(scale) => (scale, None),
        };
        let scale = format!("{service}={scale}");
        // What is pulled and built has been already; an image that is not here is an error.
        let words = ["up", "--detach", "--no-deps", "--no-build", "--pull", "never"].into_iter().chain(recreate);
        words.chain(["--scale", &scale, service]).map(str::to_owned).collect()
    }
}

/// The lock of a project's compose.
pub(super) struct Lock(File);

impl Lock {
    /// Waits until no compose of this project is at it, of this process or of one that was killed.
    pub(super) async fn take(root: &Root, project: &str) -> io::Result<Lock> {
        let folder = root.data().join("journal");
        files::make_private_folder(&folder)?;
        let path = folder.join(format!("{project}.lock"));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        let last = tokio::time::Instant::now() + EARLIER;
        loop {
            match try_lock(&file) {
                Ok(()) => return Ok(Lock(file)),
                Err(Errno::EWOULDBLOCK) if tokio::time::Instant::now() < last => {}
                Err(Errno::EWOULDBLOCK) => {
                    let why = format!("another docker compose of {project} has not ended within {EARLIER:?}");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
                Err(errno) => return Err(errno.into()),
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    /// The lock as a child's standard input: an empty file, and a share in the lock for as long as it or its children live.
    pub(super) fn input(&self) -> io::Result<Stdio> {
        Ok(Stdio::from(self.0.try_clone()?))
    }
}

/// Locks by the plain system call: `Flock` would unlock when it is dropped, for a child that still shares the lock too.
#[allow(deprecated, reason = "the lock must end with the last that holds the file, and not before")]
fn try_lock(file: &File) -> nix::Result<()> {
    nix::fcntl::flock(file.as_raw_fd(), FlockArg::LockExclusiveNonblock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_service_and_nothing_else_is_brought_up() {
        let line = How::Beside(4).arguments("Shop-web").join(" ");
        assert_eq!(line, "up --detach --no-deps --no-build --pull never --no-recreate --scale Shop-web=4 Shop-web");
        assert!(How::Anew(1).arguments("w").contains(&"--force-recreate".to_owned()));
        assert!(!How::AsNeeded(1).arguments("w").iter().any(|argument| argument.contains("recreate")));
    }

    #[tokio::test]
    async fn a_lock_is_held_as_long_as_a_child_lives_that_was_given_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let lock = Lock::take(&root, "shop").await.unwrap();
        let mut child = tokio::process::Command::new("sleep").arg("60").stdin(lock.input().unwrap()).spawn().unwrap();
        // As if this process had been killed: its own share is gone.
        drop(lock);
        let again = tokio::time::timeout(Duration::from_millis(300), Lock::take(&root, "shop")).await;
        assert!(again.is_err(), "the child still holds it");
        child.kill().await.unwrap();
        Lock::take(&root, "shop").await.unwrap();
    }
}
