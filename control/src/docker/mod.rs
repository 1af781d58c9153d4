//! Docker: the engine's API in control's words, and the events that keep what is observed true.

pub mod compose_cli;
mod engine;
mod events;

<<<<<<< HEAD
pub use engine::{EngineClient, EngineError, EngineInfo, Event, EventKind, Image};
=======
pub use compose_cli::{ComposeCli, ComposeError, StackFile};
pub use engine::{EngineClient, EngineError, EngineInfo, Event, EventKind, LocalImage};
>>>>>>> 8f2d814 (Plan stacks: compose documents, their hashes, and what a change would do)
pub use events::watch;
