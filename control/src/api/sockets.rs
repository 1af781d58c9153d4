//! The API's Unix sockets: bound so that a crash's leftovers are replaced, and a living itsUP is not.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::unistd::Group;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::files;
use crate::settings::Root;

/// Members of this group, where it exists, may use the control socket.
const GROUP: &str = "itsup";

/// Why the root's state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// It is in use.
    #[error("another itsup runs on {}", .0.display())]
    Running(PathBuf),
    /// The path does not fit a socket address.
    #[error("{} is too long for a socket: {} bytes, and 107 are the most", .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    /// Anything else.
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// The sole right to a root folder's state; it ends with the process, however that ends.
///
/// It can be handed to another process, as a file descriptor: then it ends when both have closed it.
#[derive(Debug)]
pub struct Claim {
    /// Closed and never unlocked: unlocking would take it from the other process, too.
    lock: File,
    group: Option<u32>,
}

impl Claim {
    /// Makes the state folder and claims it.
    ///
    /// The folder is its owner's alone, or can be passed through by the group `itsup` where there is one.
    pub fn take(root: &Root) -> Result<Claim, SocketError> {
        let data = root.data();
        files::make_private_folder(&data).map_err(at(&data))?;
        let path = data.join("itsup.lock");
        let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        Claim::lock(root, open.map_err(at(&path))?)
    }

    /// Takes over the claim of an older process, which still has it, too.
    pub fn inherit(root: &Root, lock: File) -> Result<Claim, SocketError> {
        Claim::lock(root, lock)
    }

    fn lock(root: &Root, lock: File) -> Result<Claim, SocketError> {
        let data = root.data();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            Errno::WOULDBLOCK => SocketError::Running(root.path().to_owned()),
            errno => at(&data.join("itsup.lock"))(errno.into()),
        })?;
        let group = Group::from_name(GROUP).ok().flatten().map(|group| group.gid.as_raw());
        let group = group.filter(|group| open_to_group(&data, *group, 0o710));
        Ok(Claim { lock, group })
    }

    /// Binds the control socket, for its owner and the group `itsup`.
    pub fn bind_control(&self, root: &Root) -> Result<UnixListener, SocketError> {
        let path = root.socket();
        let listener = bind(&path)?;
        if let Some(group) = self.group {
            open_to_group(&path, group, 0o660);
        }
        Ok(listener)
    }

    /// Binds the socket on which the proxy reaches the API in-process.
    pub fn bind_api(&self, root: &Root) -> Result<UnixListener, SocketError> {
        bind(&root.api_socket())
    }
}

impl AsFd for Claim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

/// Whoever holds the claim may replace what is there: nobody can be listening on it.
fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    // sun_path has 108 bytes, one of them for the end.
    if path.as_os_str().len() > 107 {
        return Err(SocketError::TooLong(path.to_owned()));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(path)(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(at(path))?;
    listener.set_nonblocking(true).map_err(at(path))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(at(path))?;
    Ok(listener)
}

/// Gives a file to the group. Who may not do that keeps it for himself.
fn open_to_group(path: &Path, group: u32, mode: u32) -> bool {
    let opened =
        chown(path, None, Some(group)).and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(mode)));
    if let Err(error) = &opened {
        tracing::warn!("{}: cannot be opened to the group {GROUP}: {error}", path.display());
    }
    opened.is_ok()
}

fn at(path: &Path) -> impl Fn(io::Error) -> SocketError {
    let path = path.to_owned();
    move |error| SocketError::Io { path: path.clone(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_goes_over_without_a_moment_between() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let older = Claim::take(&root).unwrap();
        let newer = Claim::inherit(&root, older.as_fd().try_clone_to_owned().unwrap().into()).unwrap();
        drop(older);
        assert!(matches!(Claim::take(&root), Err(SocketError::Running(_))), "the newer one has it");
        drop(newer);
        Claim::take(&root).unwrap();
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_itsup_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let claim = Claim::take(&root).unwrap();
        let listener = claim.bind_control(&root).unwrap();
        let mode = std::fs::metadata(root.socket()).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if claim.group.is_some() { 0o660 } else { 0o600 });
        assert!(matches!(Claim::take(&root), Err(SocketError::Running(_))));
        // What a crash leaves: the file, and nobody behind it.
        drop((listener, claim));
        assert!(root.socket().exists());
        let claim = Claim::take(&root).unwrap();
        let _listener = claim.bind_control(&root).unwrap();
        tokio::net::UnixStream::connect(root.socket()).await.unwrap();
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_is_said_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path().join("a".repeat(100)));
        let claim = Claim::take(&root).unwrap();
        let error = claim.bind_control(&root).unwrap_err().to_string();
        assert!(error.contains("too long for a socket"), "{error}");
    }
}
