//! db.yml: from text to [`Db`], all faults at once.
//!
//! `parse` reads the text twice: with serde_yaml, which decides what is valid and of which the values are
//! built, and with a parser that keeps places (`spans`). The two must agree. `structure` checks keys, types
//! and formats against the schema that is derived from `file`; `check` does what lies between keys; `build`
//! makes the model of each project without a fault. `edit` changes the text, and nothing of it but what must change.

mod build;
mod check;
mod diagnostic;
pub mod edit;
mod fault;
#[expect(dead_code, reason = "some keys are read from the tree; the mirror is their schema")]
mod file;
mod formats;
mod model;
mod parse;
mod read;
mod resolve;
mod schema;
mod spans;
mod structure;

#[cfg(test)]
mod tests;

pub use diagnostic::{Diagnostic, Severity};
pub use model::*;
pub use parse::{Parsed, parse};
pub use schema::schema;
