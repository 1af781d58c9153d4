//! itsUP's control plane: db.yml, Docker, certificates and the API. It alone publishes to the proxy.

pub mod db;
pub mod units;
