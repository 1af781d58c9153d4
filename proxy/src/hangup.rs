//! Whether a client has hung up, found out without reading a byte of what it has sent.

use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

/// How often it is looked.
const EVERY: Duration = Duration::from_millis(250);

/// Returns when the other side has closed or reset the connection.
///
/// Readiness does not tell: a socket with unread bytes is ready all the time. So the kernel is asked now and then.
pub(crate) async fn hung_up(fd: RawFd) {
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        if is_hung_up(fd) {
            return;
        }
    }
}

fn is_hung_up(fd: RawFd) -> bool {
    // SAFETY: the caller owns the connection for as long as it waits; and a number that is no socket is only looked at.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::RDHUP)];
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
    poll(&mut fds, Some(&rustix::event::Timespec::default())).is_ok() && fds[0].revents().intersects(gone)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn unread_bytes_hide_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut client, server) = (client.expect("connect"), server.expect("accept").0);
        client.write_all(&[7; 100_000]).await.expect("write");
        assert!(!is_hung_up(server.as_raw_fd()));
        drop(client);
        tokio::time::timeout(Duration::from_secs(20), hung_up(server.as_raw_fd())).await.expect("found out");
    }
}
