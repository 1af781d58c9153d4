//! A private channel between two processes: whole messages in order, with file descriptors beside them.
//!
//! It has no name in the file system, so nobody else can speak on it, and either side notices when the other has ended.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_type;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::words::Word;

/// The largest message; the kernel's own limit is about 200 KiB.
const LONGEST: usize = 160 * 1024;
/// File descriptors with one message; the kernel allows 253.
pub(super) const MOST_FDS: usize = 128;

/// Why nothing more can be said or heard.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other process has closed its end, or has ended.
    #[error("the other process has ended")]
    Closed,
    /// It has not said anything in time.
    #[error("the other process did not answer in time")]
    TimedOut,
    /// It says what is not understood.
    #[error("the other process cannot be understood: {0}")]
    Garbled(String),
    /// Anything else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for ChannelError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PIPE | Errno::CONNRESET => ChannelError::Closed,
            errno => ChannelError::Io(errno.into()),
        }
    }
}

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// Makes both ends.
pub fn pair() -> io::Result<(Channel, Channel)> {
    let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((Channel(one), Channel(other)))
}

impl Channel {
    /// Takes a file descriptor for an end, if it is one.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Channel> {
        if socket_type(&fd).ok() != Some(SocketType::SEQPACKET) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a channel of an itsup that hands over"));
        }
        Ok(Channel(fd))
    }

    /// Gives the end away.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// The same end once more.
    pub fn try_clone(&self) -> io::Result<Channel> {
        self.0.try_clone().map(Channel)
    }

    /// Says a word, with file descriptors beside it.
    pub fn send(&self, word: &Word, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let bytes = serde_json::to_vec(word).map_err(|error| ChannelError::Garbled(error.to_string()))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(ChannelError::Garbled("too many file descriptors at once".into()));
        }
        loop {
            match sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                sent => return sent.map(drop).map_err(ChannelError::from),
            }
        }
    }

    /// Waits for a word; without an end to the patience, until there is one or the other process has ended.
    pub fn receive(&self, patience: Option<Duration>) -> Result<(Word, Vec<OwnedFd>), ChannelError> {
        if let Some(patience) = patience {
            self.wait(patience)?;
        }
        let mut bytes = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut beside, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                received => break received?,
            }
        };
        let mut fds = Vec::new();
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Err(ChannelError::Closed);
        }
        let word = serde_json::from_slice(&bytes[..received.bytes]);
        Ok((word.map_err(|error| ChannelError::Garbled(error.to_string()))?, fds))
    }

    fn wait(&self, patience: Duration) -> Result<(), ChannelError> {
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(|_| ChannelError::TimedOut)?;
            match poll(&mut [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)], Some(&left)) {
                Ok(0) => return Err(ChannelError::TimedOut),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::super::words::{PROTOCOL, SocketName};
    use super::*;

    #[test]
    fn sockets_go_over_with_what_waits_in_them() {
        let (one, other) = pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let word = Word::Take { protocol: PROTOCOL, sockets: vec![SocketName::Http], more: false };
        one.send(&word, &[listener.as_fd()]).unwrap();
        drop(listener);
        let (heard, mut fds) = other.receive(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(heard, word);
        let taken = TcpListener::from(fds.remove(0));
        taken.accept().unwrap().0.write_all(b"hi").unwrap();
        client.read_exact(&mut [0; 2]).unwrap();
    }

    #[test]
    fn the_end_of_the_other_side_is_noticed() {
        let (one, other) = pair().unwrap();
        assert!(matches!(one.receive(Some(Duration::from_millis(10))), Err(ChannelError::TimedOut)));
        drop(other);
        assert!(matches!(one.receive(None), Err(ChannelError::Closed)));
        assert!(matches!(one.send(&Word::Accept, &[]), Err(ChannelError::Closed)));
    }

    #[test]
    fn words_of_a_later_version_are_errors_and_their_new_fields_are_not() {
        assert!(serde_json::from_str::<Word>(r#"{"say":"dance"}"#).is_err());
        let word: Word = serde_json::from_str(r#"{"say":"accept","softly":true}"#).unwrap();
        assert_eq!(word, Word::Accept);
    }

    #[test]
    fn what_is_no_channel_is_not_taken_for_one() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Channel::from_fd(file.into()).is_err());
        assert!(Channel::from_fd(pair().unwrap().0.into_fd()).is_ok());
    }
}
