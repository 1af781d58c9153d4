//! What `benches/table.rs` measures: the store as a publisher and a data thread see it.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::rebuild::rebuild;
use super::{Live, Store};
use crate::table::RouteTable;

/// A store of snapshots.
pub struct Snapshots(Arc<Store>);

impl Snapshots {
    /// An empty one.
    #[allow(clippy::new_without_default, reason = "for benches alone")]
    pub fn new() -> Self {
        Self(Store::new())
    }

    /// Publishes; tells whether anything changed.
    pub fn publish(&self, table: RouteTable) -> bool {
        self.0.publish(table).changed
    }

    /// Looks a host up as a data thread does.
    pub fn lookup(&self, host: &str) -> bool {
        self.0.load().lookup(host).is_some()
    }

    /// Builds the first snapshot of a table, without storing it.
    pub fn build(table: RouteTable) -> Option<Box<dyn Any>> {
        rebuild(&Live::default(), table, Instant::now()).map(|rebuilt| Box::new(rebuilt.live) as Box<dyn Any>)
    }
}

impl fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Snapshots").finish()
    }
}
