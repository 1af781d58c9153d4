//! What is remembered of orders across restarts: `data/acme/ledger.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::due::{Record, Unix};
use crate::files;
use crate::settings::Root;

/// Records of orders that nobody wants any more are kept for this long, for the limit of tries.
const KEPT: u64 = 24 * 60 * 60;

/// Records by the key of their order.
pub(super) struct Ledger {
    root: Root,
    records: BTreeMap<String, Record>,
    saved: BTreeMap<String, Record>,
}

#[derive(Default, Serialize, Deserialize)]
struct File {
    orders: BTreeMap<String, Record>,
}

impl Ledger {
    /// Reads it; the warning says why it begins empty.
    pub(super) fn open(root: Root) -> (Ledger, Option<String>) {
        let path = path(&root);
        let (records, warning) = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<File>(&bytes) {
                Ok(file) => (file.orders, None),
                Err(error) => (BTreeMap::new(), Some(format!("{}: {error}; it begins anew", path.display()))),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => (BTreeMap::new(), None),
            Err(error) => (BTreeMap::new(), Some(format!("{}: {error}; it begins anew", path.display()))),
        };
        (Ledger { root, saved: records.clone(), records }, warning)
    }

    /// The record of an order.
    pub(super) fn of(&self, key: &str) -> Option<&Record> {
        self.records.get(key)
    }

    /// The record of an order, for changing it.
    pub(super) fn edit(&mut self, key: &str) -> &mut Record {
        self.records.entry(key.to_owned()).or_default()
    }

    /// Forgets orders that are wanted no more and have not been tried lately.
    pub(super) fn forget_all_but(&mut self, wanted: &BTreeSet<&str>, now: Unix) {
        self.records.retain(|key, record| {
            wanted.contains(key.as_str()) || record.tries.last().is_some_and(|at| at + KEPT > now && *at < now + KEPT)
        });
    }

    /// Writes it, where it has changed.
    pub(super) fn save(&mut self) -> Result<(), String> {
        if self.records == self.saved {
            return Ok(());
        }
        let path = path(&self.root);
        let written = serde_json::to_vec_pretty(&File { orders: self.records.clone() }).map_err(io::Error::from);
        written
            .and_then(|bytes| {
                files::make_private_folder(&self.root.data())?;
                files::make_private_folder(&self.root.acme())?;
                files::write_atomically(&path, &bytes, 0o600)
            })
            .map_err(|error| format!("{}: {error}", path.display()))?;
        self.saved = self.records.clone();
        Ok(())
    }
}

fn path(root: &Root) -> PathBuf {
    root.acme().join("ledger.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_again_and_torn_it_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let (mut ledger, warning) = Ledger::open(root.clone());
        assert_eq!(warning, None);
        ledger.edit("a.com").begin(1000);
        ledger.edit("gone.com").begin(1000);
        ledger.save().unwrap();
        let (mut ledger, warning) = Ledger::open(root.clone());
        assert_eq!((warning, ledger.of("a.com").unwrap().tries.as_slice()), (None, &[1000][..]));
        ledger.forget_all_but(&BTreeSet::from(["a.com"]), 1001);
        assert!(ledger.of("gone.com").is_some(), "its tries still count");
        ledger.forget_all_but(&BTreeSet::from(["a.com"]), 1000 + KEPT);
        assert!(ledger.of("gone.com").is_none() && ledger.of("a.com").is_some());
        fs::write(path(&root), "{\"orders\":{\"a.c").unwrap();
        let (ledger, warning) = Ledger::open(root);
        assert!(ledger.of("a.com").is_none() && warning.unwrap().contains("begins anew"));
    }
}
