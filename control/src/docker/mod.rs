//! Docker: the engine's API in control's words, and the events that keep what is observed true.

pub mod compose_cli;
mod engine;
mod events;

pub use compose_cli::{ComposeCli, ComposeError, StackFile};
pub use engine::{EngineClient, EngineError, EngineInfo, Event, EventKind, Image};
pub use events::watch;
