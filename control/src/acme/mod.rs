//! Certificates: the user's own files, those that a CA issues (ACME), and the internal CA.
//!
//! Deciding is pure: which ([`wishes`]), when ([`due`]) and what after a failure ([`failure`]).

mod account;
mod dns;
pub mod due;
mod failure;
mod http;
pub mod internal_ca;
pub mod issuer;
mod ledger;
mod order;
pub mod owner;
mod pairs;
mod prove;
mod self_check;
pub mod store;
pub mod wishes;
