//! Bytes both ways between a client and an endpoint, untouched, half-close kept.
//!
//! Small traffic is copied through a buffer that the data thread owns, so that an idle connection holds no memory. Bulk
//! goes from socket to socket inside the kernel.

mod bulk;
mod low_water;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;

use bulk::splice_bulk;

const SCRATCH: usize = 64 * 1024;
/// This many full reads in a row are bulk.
const BULK_READS: u32 = 2;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

/// What went through.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// Client to endpoint, bytes.
    pub(crate) to_endpoint: u64,
    /// Endpoint to client, bytes.
    pub(crate) to_client: u64,
    /// Why it ended, where that was not a clean close of both sides.
    pub(crate) error: Option<io::Error>,
}

/// When bytes last moved, in milliseconds since the relay began.
struct Activity {
    since: Instant,
    last: AtomicU64,
}

impl Activity {
    fn touch(&self) {
        self.last.store(self.now(), Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns when nothing has moved for `limit`.
    async fn idle(&self, limit: Duration) {
        loop {
            let quiet = Duration::from_millis(self.now().saturating_sub(self.last.load(Relaxed)));
            if quiet >= limit {
                return;
            }
            tokio::time::sleep(limit - quiet).await;
        }
    }
}

/// How far one way has come.
struct Progress<'a> {
    activity: &'a Activity,
    bytes: &'a AtomicU64,
}

impl Progress<'_> {
    fn moved(&self, bytes: usize) {
        self.activity.touch();
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }
}

/// Relays until both sides have closed, one has failed, nothing has moved for `idle`, or it is `told` to stop.
pub(crate) async fn relay(
    client: &mut TcpStream,
    endpoint: &mut TcpStream,
    idle: Duration,
    told: impl Future<Output = ()>,
) -> Passed {
    let activity = Activity { since: Instant::now(), last: AtomicU64::new(0) };
    let (up, down) = (AtomicU64::new(0), AtomicU64::new(0));
    let half_closed = AtomicBool::new(false);
    let (from_client, to_client) = client.split();
    let (from_endpoint, to_endpoint) = endpoint.split();
    let both = async {
        tokio::try_join!(
            one_way(from_client, to_endpoint.as_ref(), Progress { activity: &activity, bytes: &up }, &half_closed),
            one_way(from_endpoint, to_client.as_ref(), Progress { activity: &activity, bytes: &down }, &half_closed),
        )
    };
    let error = tokio::select! {
        ended = both => ended.err(),
        () = activity.idle(idle) => Some(io::Error::new(io::ErrorKind::TimedOut, "idle for too long")),
        () = told => Some(io::Error::new(io::ErrorKind::ConnectionAborted, "its endpoint is to go")),
    };
    Passed { to_endpoint: up.into_inner(), to_client: down.into_inner(), error }
}

async fn one_way(
    mut from: ReadHalf<'_>,
    to: &TcpStream,
    progress: Progress<'_>,
    half_closed: &AtomicBool,
) -> io::Result<()> {
    let mut full_reads = 0;
    loop {
        match poll_fn(|cx| poll_copy(cx, &mut from, to)).await? {
            Step::End => break,
            Step::Moved { read, rest } => {
                if let Some(rest) = rest {
                    progress.activity.touch();
                    write_all(to, &rest).await?;
                }
                progress.moved(read);
                full_reads = if read == SCRATCH { full_reads + 1 } else { 0 };
            }
        }
        if full_reads >= BULK_READS {
            full_reads = 0;
            if splice_bulk(from.as_ref(), to, &progress).await? {
                break;
            }
        }
    }
    if half_closed.swap(true, Relaxed) {
        // Both have ended: closing the connections says the rest.
        return Ok(());
    }
    match socket2::SockRef::from(to).shutdown(Shutdown::Write) {
        // The other side has gone already: nothing is lost by that.
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        _ => Ok(()),
    }
}

enum Step {
    End,
    Moved { read: usize, rest: Option<Vec<u8>> },
}

/// Reads what is there and writes what fits; the rest, if any, is kept apart from the shared buffer.
///
/// A read that does not fill the buffer has emptied the socket; `poll_read` knows, and spares the call that would say so.
fn poll_copy(cx: &mut Context<'_>, from: &mut ReadHalf<'_>, to: &TcpStream) -> Poll<io::Result<Step>> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut buf = ReadBuf::new(buffer);
        ready!(Pin::new(from).poll_read(cx, &mut buf))?;
        let read = buf.filled();
        if read.is_empty() {
            return Poll::Ready(Ok(Step::End));
        }
        let written = match to.try_write(read) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Poll::Ready(Err(error)),
        };
        let rest = (written < read.len()).then(|| read[written..].to_vec());
        Poll::Ready(Ok(Step::Moved { read: read.len(), rest }))
    })
}

async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.expect("connect"), far.expect("accept").0)
    }

    /// A client and a server, and the relay between them.
    async fn relayed() -> (TcpStream, TcpStream, JoinHandle<Passed>) {
        let (client, mut proxy_in) = pair().await;
        let (mut proxy_out, server) = pair().await;
        let relaying =
            tokio::spawn(async move { relay(&mut proxy_in, &mut proxy_out, Duration::from_secs(60), pending()).await });
        (client, server, relaying)
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 % 251) as u8).collect()
    }

    #[tokio::test]
    async fn bulk_goes_both_ways_at_once_and_half_close_is_kept() {
        let (mut client, mut server, relaying) = relayed().await;
        let up = pattern(8 * 1024 * 1024 + 7);
        let expected = up.clone();
        let serving = tokio::spawn(async move {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.expect("read to the client's half-close");
            server.write_all(&pattern(3_000_001)).await.expect("answer after it");
            got
        });
        client.write_all(&up).await.expect("write");
        client.shutdown().await.expect("half-close");
        let mut down = Vec::new();
        client.read_to_end(&mut down).await.expect("read");
        assert!(serving.await.expect("server") == expected, "bytes to the endpoint differ");
        assert!(down == pattern(3_000_001), "bytes to the client differ");
        let passed = relaying.await.expect("relay");
        assert_eq!((passed.to_endpoint, passed.to_client), (8 * 1024 * 1024 + 7, 3_000_001));
        assert!(passed.error.is_none());
    }

    /// Bulk rests with a low-water mark far above these: what stays below it must come all the same, and without an end.
    #[tokio::test]
    async fn the_last_bytes_of_a_bulk_and_the_messages_after_it_are_not_held_back() {
        let (mut client, mut server, _relaying) = relayed().await;
        let turns = async {
            for turn in 0..40 {
                let bulk = pattern(1024 * 1024 + turn * 4099 + 1);
                let mut got = vec![0; bulk.len()];
                let (sent, received) = tokio::join!(client.write_all(&bulk), server.read_exact(&mut got));
                sent.expect("write");
                received.expect("read");
                assert!(got == bulk, "bytes differ in turn {turn}");
                for message in 0..u8::try_from(turn).expect("few turns") {
                    client.write_all(&[message]).await.expect("write");
                    assert_eq!(server.read_u8().await.expect("read"), message);
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), turns).await.expect("something was held back");
    }

    #[tokio::test]
    async fn a_reader_that_stops_holds_the_writer_back() {
        let (mut client, server, _relaying) = relayed().await;
        let chunk = pattern(1024 * 1024);
        let mut sent = 0;
        while let Ok(written) = tokio::time::timeout(Duration::from_millis(300), client.write(&chunk)).await {
            sent += written.expect("write");
            assert!(sent < 256 * 1024 * 1024, "nothing holds the writer back");
        }
        drop(server);
    }

    #[tokio::test]
    async fn silence_ends_it() {
        let (client, mut proxy_in) = pair().await;
        let (mut proxy_out, server) = pair().await;
        let passed = relay(&mut proxy_in, &mut proxy_out, Duration::from_millis(50), pending()).await;
        assert_eq!(passed.error.expect("idle").kind(), io::ErrorKind::TimedOut);
        drop((client, server));
    }

    #[tokio::test]
    async fn it_stops_when_it_is_told() {
        let (client, mut proxy_in) = pair().await;
        let (mut proxy_out, server) = pair().await;
        let passed = relay(&mut proxy_in, &mut proxy_out, Duration::from_secs(60), ready(())).await;
        assert_eq!(passed.error.expect("told").kind(), io::ErrorKind::ConnectionAborted);
        drop((client, server));
    }
}
