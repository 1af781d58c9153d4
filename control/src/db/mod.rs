//! db.yml: from text to [`Db`], all faults at once.

mod model;

pub use model::*;
