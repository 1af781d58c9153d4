//! The receive low-water mark of a socket, for which neither std nor rustix nor socket2 has a call.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libc::{SO_RCVLOWAT, SOL_SOCKET, c_int, setsockopt, socklen_t};

/// Lets the socket count as readable when `bytes` are there, or its end, or as many as its buffer may hold; 1 at first.
///
/// Linux looks at what is there already and says so at once where it is enough. Reading is not bound by the mark.
///
/// # Errors
/// What setsockopt(2) says.
pub(super) fn set_receive_low_water(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    let mark = c_int::try_from(bytes).unwrap_or(c_int::MAX);
    let length = size_of::<c_int>() as socklen_t;
    // SAFETY: the descriptor is borrowed for the call, and the kernel reads one int from where one is.
    let done =
        unsafe { setsockopt(socket.as_fd().as_raw_fd(), SOL_SOCKET, SO_RCVLOWAT, (&raw const mark).cast(), length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
