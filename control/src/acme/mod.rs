//! Certificates: the user's own files and the internal CA.

pub mod internal_ca;
pub mod store;
