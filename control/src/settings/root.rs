//! The root folder, and where everything in it is.

use std::path::{Path, PathBuf};

/// The root folder and where things are in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// A root folder; relative paths are below the current one.
    pub fn new(path: impl Into<PathBuf>) -> Root {
        Root(path.into())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// `db.yml`.
    pub fn db(&self) -> PathBuf {
        self.0.join("db.yml")
    }

    /// `.env`.
    pub fn env(&self) -> PathBuf {
        self.0.join(".env")
    }

    /// `certs/`: the user's own certificates, and those that a CA has issued to us.
    pub fn certs(&self) -> PathBuf {
        self.0.join("certs")
    }

    /// `upstream/`: a folder for each project, with its compose file, `.env` and volumes.
    pub fn upstream(&self) -> PathBuf {
        self.0.join("upstream")
    }

    /// `data/`: state; nobody else's business (0700).
    pub fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    /// `data/ca/`: the internal CA.
    pub fn ca(&self) -> PathBuf {
        self.data().join("ca")
    }

    /// `data/acme/`: the CA's accounts, what is remembered of orders, and a copy of every pair that came of one.
    pub fn acme(&self) -> PathBuf {
        self.data().join("acme")
    }

    /// `data/letsencrypt/renewal/`: what the old tool (certbot) managed.
    pub fn old_renewals(&self) -> PathBuf {
        self.data().join("letsencrypt/renewal")
    }

    /// `data/itsup.sock`: the control socket.
    pub fn socket(&self) -> PathBuf {
        self.data().join("itsup.sock")
    }

    /// `data/api.sock`: where the proxy reaches the API in-process.
    pub fn api_socket(&self) -> PathBuf {
        self.data().join("api.sock")
    }

    /// `data/history/`: what db.yml was before each change through the API.
    pub fn history(&self) -> PathBuf {
        self.data().join("history")
    }

    /// `data/receipts/`: what each change did.
    pub fn receipts(&self) -> PathBuf {
        self.data().join("receipts")
    }

    /// `data/jobs.json`: what is queued, and what was done.
    pub fn jobs(&self) -> PathBuf {
        self.data().join("jobs.json")
    }

    /// `data/itsup.pid`: the running process.
    pub fn pid_file(&self) -> PathBuf {
        self.data().join("itsup.pid")
    }

    /// `data/db.last-good.yml`: the last db.yml that had no fault.
    pub fn last_good_db(&self) -> PathBuf {
        self.data().join("db.last-good.yml")
    }
}
