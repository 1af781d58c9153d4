//! Bulk from socket to socket inside the kernel (splice), in few and large steps.
//!
//! A sender on the same machine, which is where endpoints are, hands its bytes over in pieces of one TLS record; whoever
//! moves each piece as it comes wakes up thirty times for one MiB. So a step that moved much is followed by a short
//! [`Rest`], and the next one finds more.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;

use super::Progress;
use super::low_water::set_receive_low_water;

/// Most bytes of one step.
const PIPE: usize = 512 * 1024;
/// A step of less than this many bytes is small: another message more likely than part of a bulk, so no rest follows.
const SMALL: usize = 4 * 1024;
/// This many small steps in a row are no longer bulk.
const SMALL_STEPS: u32 = 16;
/// A step of more than this many bytes says that the sender is faster than we: no rest follows.
const LARGE: usize = PIPE / 2;
/// What comes in within it goes as one. Long against a wake-up (10 µs), short against what a person or a protocol notices.
const REST: Duration = Duration::from_micros(150);

/// Moves bulk until the stream ends (true) or its traffic is small again (false).
pub(super) async fn splice_bulk(from: &TcpStream, to: &TcpStream, progress: &Progress<'_>) -> io::Result<bool> {
    let (Ok((out, into)), Ok(mut rest)) = (pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC), Rest::new(from)) else {
        // Out of file descriptors: copying needs none.
        return Ok(false);
    };
    // A larger pipe is fewer system calls; the default will do where the user's limit says no.
    let _ = fcntl_setpipe_size(&into, PIPE);
    let mut small = 0;
    while small < SMALL_STEPS {
        from.readable().await?;
        let moved = match from.try_io(Interest::READABLE, || splice_some(from, &into, PIPE)) {
            Ok(0) => return Ok(true),
            Ok(moved) => moved,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                rest.is_over();
                continue;
            }
            Err(error) => return Err(error),
        };
        drain(&out, to, moved).await?;
        progress.moved(moved);
        small = if moved < SMALL { small + 1 } else { 0 };
        match moved {
            SMALL..=LARGE => rest.take().await?,
            // Other connections have their turn.
            _ => tokio::task::yield_now().await,
        }
    }
    Ok(false)
}

async fn drain(out: &OwnedFd, to: &TcpStream, mut left: usize) -> io::Result<()> {
    while left > 0 {
        to.writable().await?;
        match to.try_io(Interest::WRITABLE, || splice_some(out, to, left)) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(moved) => left -= moved,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn splice_some(from: &impl AsFd, to: &impl AsFd, most: usize) -> io::Result<usize> {
    loop {
        match splice(from, None, to, None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK) {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// Rests between two steps of one stream, in which nothing wakes the thread on its behalf.
///
/// Tokio's timers count whole milliseconds, in which a fast sender fills its window; hence a timer of the kernel's.
struct Rest<'a> {
    socket: &'a TcpStream,
    timer: AsyncFd<OwnedFd>,
    /// Whether the kernel keeps quiet about what comes in.
    quiet: bool,
}

impl<'a> Rest<'a> {
    fn new(socket: &'a TcpStream) -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        // SAFETY: an `OwnedFd` keeps its descriptor open, and is the same one for as long as it lives.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?;
        Ok(Self { socket, timer, quiet: false })
    }

    async fn take(&mut self) -> io::Result<()> {
        // Without it the thread would still wake for each piece, only to find that nobody waits for it.
        self.quiet = self.quiet || set_receive_low_water(self.socket, PIPE).is_ok();
        let it_value = Timespec { tv_sec: 0, tv_nsec: REST.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        self.timer.readable().await?.clear_ready();
        Ok(())
    }

    /// From now on the first byte wakes; where one has come in meanwhile, it does so at once.
    fn is_over(&mut self) {
        if self.quiet {
            // This fails for no socket that is open.
            let _ = set_receive_low_water(self.socket, 1);
            self.quiet = false;
        }
    }
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        self.is_over();
    }
}
