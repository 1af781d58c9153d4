//! Docker: the engine's API in control's words, and the events that keep what is observed true.

mod engine;
mod events;

pub use engine::{EngineClient, EngineError, EngineInfo, Event, EventKind, Image};
pub use events::watch;
