//! itsUP's control plane: db.yml, Docker, certificates and the API. It alone publishes to the proxy.

pub mod acme;
pub mod db;
pub mod files;
pub mod settings;
pub mod units;
