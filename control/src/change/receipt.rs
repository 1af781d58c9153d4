//! Receipts: what a change of one service did, printed and kept in `data/receipts/`.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Order;
use crate::active::ServiceKey;
use crate::files;
use crate::observed::Container;
use crate::settings::Root;

/// Receipts that are kept of each service.
const KEPT: usize = 50;

/// What a change of one service did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Its name, and that of its file.
    pub id: String,
    pub project: String,
    pub service: String,
    /// RFC 3339.
    pub began: String,
    pub result: Result,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    pub old: Vec<Side>,
    pub new: Vec<Side>,
    /// Whether the old ones had to go before the new ones came.
    #[serde(default)]
    pub in_place: bool,
    pub seconds: Times,
    pub requests: Counts,
    /// Whether old containers were still finishing what they had when this was written.
    #[serde(default)]
    pub draining: bool,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Result {
    /// The new ones serve.
    Done,
    /// The old ones serve, as before.
    Undone,
    /// Neither can be said.
    Failed,
}

/// A container of either side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    pub container: String,
    pub name: String,
    pub image: String,
    pub image_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
}

/// Seconds per step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Times {
    /// Until compose had made the new ones.
    pub start: f64,
    /// From then until they were ready.
    pub ready: f64,
    /// From ready to routed.
    pub switch: f64,
    /// From the switch until the old ones had nothing left.
    pub drain: f64,
    /// From the switch to the end of the watch.
    pub watch: f64,
    /// Stopping and removing.
    pub stop: f64,
    pub total: f64,
}

/// What became of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Answered during the change.
    pub served: u64,
    /// Given to another endpoint after one had failed them; nobody noticed.
    pub retried: u64,
    /// Seen to fail.
    pub failed: u64,
    /// Under way on the old ones at the switch, and ended by themselves.
    pub drained: u64,
    /// Under way on the old ones at the limit, and ended by us.
    pub cut: u64,
    /// Held while the service restarted.
    pub held: u64,
    /// The longest that one was held, in seconds.
    pub longest_wait: f64,
}

impl Side {
    pub(super) fn of(container: &Container) -> Side {
        Side {
            container: container.id.to_string(),
            name: container.name.clone(),
            image: container.image.clone(),
            image_id: container.image_id.clone(),
            config: container.config_hash.clone(),
        }
    }
}

impl Receipt {
    pub(super) fn begin(order: &Order, id: &str) -> Receipt {
        Receipt {
            id: id.to_owned(),
            project: order.project.to_string(),
            service: order.service.to_string(),
            began: crate::status::rfc3339(SystemTime::now()),
            result: Result::Failed,
            why: None,
            old: Vec::new(),
            new: Vec::new(),
            in_place: false,
            seconds: Times::default(),
            requests: Counts::default(),
            draining: false,
        }
    }

    /// Keeps it; a receipt that cannot be kept spoils no change.
    pub(super) fn keep(&self, root: &Root) {
        if let Err(error) = self.write(root) {
            tracing::warn!("the receipt {} cannot be kept: {error}", self.id);
        }
    }

    fn write(&self, root: &Root) -> io::Result<()> {
        let folder = root.data().join("receipts");
        files::make_private_folder(&folder)?;
        files::write_atomically(&folder.join(format!("{}.json", self.id)), &serde_json::to_vec_pretty(self)?, 0o600)?;
        let own = format!("-{}.{}.json", self.project, self.service);
        let mut names: Vec<String> = std::fs::read_dir(&folder)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.ends_with(&own))
            .collect();
        names.sort_unstable();
        for name in names.iter().take(names.len().saturating_sub(KEPT)) {
            files::remove(&folder.join(name))?;
        }
        Ok(())
    }
}

/// The names of all receipts, the newest first; none where there is no folder yet.
pub fn names(root: &Root) -> Vec<String> {
    let entries = std::fs::read_dir(root.receipts()).into_iter().flatten().flatten();
    let name = |entry: std::fs::DirEntry| entry.file_name().to_str()?.strip_suffix(".json").map(str::to_owned);
    let mut names: Vec<String> = entries.filter_map(name).collect();
    names.sort_unstable_by(|one, other| other.cmp(one));
    names
}

/// How long each service was away when it was last made anew in its place.
pub fn restarts(root: &Root) -> BTreeMap<ServiceKey, Duration> {
    let folder = root.receipts();
    let mut restarts = BTreeMap::new();
    for name in names(root) {
        let read = std::fs::read(folder.join(format!("{name}.json"))).ok();
        let Some(receipt) = read.and_then(|bytes| serde_json::from_slice::<Receipt>(&bytes).ok()) else { continue };
        if receipt.in_place && receipt.result == Result::Done {
            let Times { start, ready, switch, .. } = receipt.seconds;
            let away = Duration::try_from_secs_f64(start + ready + switch).unwrap_or_default();
            restarts.entry(ServiceKey::new(receipt.project, receipt.service)).or_insert(away);
        }
    }
    restarts
}

/// Names a change: by its time first, so that names sort as things went.
pub(super) fn name(order: &Order) -> String {
    let millis = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
    format!("{millis:013}-{}.{}", order.project, order.service)
}

pub(super) fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (times, counts) = (self.seconds, self.requests);
        let result = match self.result {
            Result::Done => "done",
            Result::Undone => "undone",
            Result::Failed => "failed",
        };
        write!(f, "{}/{}: {result} in {:.1} s", self.project, self.service, times.total)?;
        if let Some(why) = &self.why {
            write!(f, ": {why}")?;
        }
        for (side, containers) in [("old", &self.old), ("new", &self.new)] {
            for Side { container, image, image_id, .. } in containers {
                let (container, image_id) = (shortened(container), shortened(image_id.trim_start_matches("sha256:")));
                write!(f, "\n  {side}  {container}  {image} ({image_id})")?;
            }
        }
        write!(
            f,
            "\n  start {:.1} s, ready {:.1} s, switch {:.3} s, drain {:.1} s, watch {:.1} s, stop {:.1} s",
            times.start, times.ready, times.switch, times.drain, times.watch, times.stop
        )?;
        write!(
            f,
            "\n  requests: {} served, {} retried, {} failed, {} drained, {} cut",
            counts.served, counts.retried, counts.failed, counts.drained, counts.cut
        )?;
        if counts.held > 0 {
            write!(f, ", {} held for {:.1} s at most", counts.held, counts.longest_wait)?;
        }
        if self.draining {
            f.write_str("\n  old containers finish what they have, and then go")?;
        }
        Ok(())
    }
}

fn shortened(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_restart_that_went_well_tells_how_long_one_takes() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let receipt = |id: &str, start, in_place, result| Receipt {
            id: id.into(),
            project: "shop".into(),
            service: "db".into(),
            began: String::new(),
            result,
            why: None,
            old: Vec::new(),
            new: Vec::new(),
            in_place,
            seconds: Times { start, ready: 1.0, switch: 0.5, watch: 10.0, ..Times::default() },
            requests: Counts::default(),
            draining: false,
        };
        for one in [
            receipt("0000000000001-shop.db", 9.0, true, Result::Done),
            receipt("0000000000002-shop.db", 4.0, true, Result::Done),
            receipt("0000000000003-shop.db", 7.0, true, Result::Failed),
            receipt("0000000000004-shop.db", 8.0, false, Result::Done),
        ] {
            one.write(&root).unwrap();
        }
        let known = BTreeMap::from([(ServiceKey::new("shop", "db"), Duration::from_millis(5500))]);
        assert_eq!(restarts(&root), known);
    }
}
