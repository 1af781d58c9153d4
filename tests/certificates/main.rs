//! Certificates: got from a real CA (Pebble), renewed, kept when things fail, and the internal CA's.

#![allow(clippy::unwrap_used, reason = "these are tests")]

#[path = "../harness/mod.rs"]
mod harness;

mod behind;
mod ca;
mod failures;
mod files;
mod front;
mod issue;
mod names;
mod renewals;
mod trust;
