//! itsUP's control plane: db.yml, Docker, certificates and the API. It alone publishes to the proxy.

pub mod acme;
pub mod active;
pub mod api;
pub mod apply;
pub mod artifacts;
pub mod change;
pub mod compose;
pub mod control;
pub mod db;
pub mod db_file;
pub mod docker;
pub mod files;
pub mod handover;
pub mod jobs;
pub mod journal;
pub mod local;
pub mod observed;
pub mod pen;
pub mod plan;
pub mod reconcile;
pub mod resolve;
pub mod rollout;
pub mod routes;
pub mod self_update;
pub mod settings;
pub mod status;
pub mod units;
pub mod upgrade;
pub mod versions;
pub mod worker;
pub mod yaml;

#[cfg(test)]
mod testing;
