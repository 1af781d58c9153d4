//! The atomics that `endpoint/gate.rs` is built on: the standard ones here, loom's in `tests/loom_gate.rs`.

pub(crate) use std::sync::Mutex;
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
