//! Rollouts with a real engine: under load nothing is lost; whatever fails or is killed, traffic goes on, nothing is left over,
//! and the message says what happened.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../harness/mod.rs"]
mod harness;

mod app;
mod back;
mod disk;
mod elders;
mod engine;
mod faults;
mod kills;
mod removal;
mod under_load;
