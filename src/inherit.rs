//! What a process is born with: sockets from systemd, or everything from an older process of ours.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use itsup_control::handover::{Channel, PROTOCOL, SocketName, Word};
use itsup_proxy::Listeners;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

/// Set where stdin is the channel to an older process.
pub(crate) const HANDOVER: &str = "ITSUP_HANDOVER";
/// The older one sends at once what it has to give.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where systemd's file descriptors begin (sd_listen_fds(3)).
const LISTEN_FDS_START: RawFd = 3;

/// Sockets and the claim, as far as there are any.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    pub(crate) listeners: Listeners,
    /// Streams that listen on TCP, whose purpose their addresses tell.
    pub(crate) api: Vec<TcpListener>,
    pub(crate) control: Option<UnixListener>,
    pub(crate) proxy: Option<UnixListener>,
    pub(crate) claim: Option<File>,
    pub(crate) elders: Vec<Channel>,
    /// The process that is to be succeeded.
    pub(crate) older: Option<Channel>,
}

impl Inherited {
    /// Finds what there is. Call it once, before anything else opens files.
    pub(crate) fn find() -> anyhow::Result<Inherited> {
        if std::env::var_os(HANDOVER).is_some() { from_older() } else { from_systemd() }
    }
}

fn from_older() -> anyhow::Result<Inherited> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("stdin cannot be taken")?;
    let channel = Channel::from_fd(stdin).with_context(|| format!("{HANDOVER} is set, but not by an itsup"))?;
    // Nobody who is started from here may speak on it.
    let nothing = File::open("/dev/null").context("/dev/null cannot be opened")?;
    rustix::stdio::dup2_stdin(&nothing).context("stdin cannot be replaced")?;
    let mut inherited = Inherited::default();
    loop {
        let (word, fds) = channel.receive(Some(PATIENCE)).context("the older process hands nothing over")?;
        let Word::Take { protocol, sockets, more } = word else { bail!("the older process says something unexpected") };
        if protocol != PROTOCOL {
            bail!(
                "the older process hands over in another way ({protocol}, not {PROTOCOL}); stop it and start this one"
            );
        }
        if sockets.len() != fds.len() {
            bail!("{} sockets were announced and {} came", sockets.len(), fds.len());
        }
        for (name, fd) in sockets.into_iter().zip(fds) {
            inherited.take(name, fd)?;
        }
        if !more {
            break;
        }
    }
    inherited.older = Some(channel);
    Ok(inherited)
}

impl Inherited {
    fn take(&mut self, name: SocketName, fd: OwnedFd) -> anyhow::Result<()> {
        match name {
            SocketName::Http => self.listeners.http.push(fd.into()),
            SocketName::Https => self.listeners.https.push(fd.into()),
            SocketName::Api => self.api.push(fd.into()),
            SocketName::Control => self.control = Some(fd.into()),
            SocketName::Proxy => self.proxy = Some(fd.into()),
            SocketName::Claim => self.claim = Some(fd.into()),
            SocketName::Elder => self.elders.push(Channel::from_fd(fd).context("a channel is none")?),
        }
        Ok(())
    }
}

/// Sockets that systemd opened: what each is for, its address says when it is looked for.
fn from_systemd() -> anyhow::Result<Inherited> {
    let mut inherited = Inherited::default();
    for number in 0..passed(|name| std::env::var(name).ok(), std::process::id()) {
        // SAFETY: systemd opened these for this very process (LISTEN_PID), nothing has been opened before, and each number is
        // taken once.
        let fd = unsafe { OwnedFd::from_raw_fd(LISTEN_FDS_START + number) };
        fcntl_setfd(&fd, FdFlags::CLOEXEC).context("a socket that LISTEN_FDS counts is not there")?;
        if !is_tcp_listener(fd.as_fd()) {
            tracing::warn!(
                "file descriptor {} of LISTEN_FDS is no TCP listener: left alone",
                LISTEN_FDS_START + number
            );
            continue;
        }
        let socket = TcpListener::from(fd);
        inherited.listeners.http.push(socket.try_clone().context("a socket cannot be duplicated")?);
        inherited.listeners.https.push(socket.try_clone().context("a socket cannot be duplicated")?);
        inherited.api.push(socket);
    }
    Ok(inherited)
}

/// How many file descriptors were passed to the process with this id.
fn passed(variable: impl Fn(&str) -> Option<String>, pid: u32) -> RawFd {
    let ours = variable("LISTEN_PID").and_then(|text| text.parse().ok()) == Some(pid);
    let count = variable("LISTEN_FDS").and_then(|text| text.parse::<RawFd>().ok());
    count.filter(|count| ours && (0..1024).contains(count)).unwrap_or(0)
}

fn is_tcp_listener(fd: BorrowedFd<'_>) -> bool {
    let internet = matches!(socket_domain(fd), Ok(AddressFamily::INET | AddressFamily::INET6));
    internet && socket_type(fd) == Ok(SocketType::STREAM) && socket_acceptconn(fd) == Ok(true)
}

/// Whether a Unix listener is what is to be found at a path.
pub(crate) fn is_at(listener: &UnixListener, path: &Path) -> bool {
    let address = listener.local_addr();
    address.is_ok_and(|address| address.as_pathname().is_some_and(|bound| bound == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_descriptors_of_another_process_are_not_ours() {
        let variables = |pid: &'static str, fds: &'static str| {
            move |name: &str| match name {
                "LISTEN_PID" => Some(pid.to_owned()),
                "LISTEN_FDS" => Some(fds.to_owned()),
                _ => None,
            }
        };
        assert_eq!(passed(variables("7", "2"), 7), 2);
        assert_eq!(passed(variables("8", "2"), 7), 0);
        for odd in ["", "-1", "many", "99999"] {
            assert_eq!(passed(variables("7", odd), 7), 0, "{odd}");
        }
        assert_eq!(passed(|_| None, 7), 0);
    }
}
