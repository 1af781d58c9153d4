//! What an older and a newer process say to each other: sockets go over, later the older one tells what it still serves.
//!
//! The conversation is between two versions of itsUP, so words are JSON and what is not known in one is left out. It knows no
//! signal and starts no process; `src/` does.

mod channel;
mod elders;
mod follow;
mod words;

pub use channel::{Channel, ChannelError, pair};
pub use elders::{Elders, serve_younger};
pub(crate) use follow::follow;
pub use follow::{Seat, Seats};
pub use words::{PROTOCOL, SocketName, Word};
