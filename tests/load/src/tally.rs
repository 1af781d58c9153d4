//! The accounts: every request, transfer and stream is a success or a failure with a reason, and nothing else.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

/// Why something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    /// No TCP connection.
    Connect,
    /// No TLS session.
    Tls,
    /// The connection broke under a request.
    Reset,
    /// A kept connection broke under a request before a byte of its answer, though the server had not said close.
    ReusedReset,
    /// Not a 2xx.
    Status,
    /// Fewer bytes than promised.
    Truncated,
    /// Other bytes than sent.
    Corrupt,
    /// No end within the limit.
    Timeout,
    /// A stream or websocket that ended before its time.
    Cut,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Reset => "reset",
            Self::ReusedReset => "reused_reset",
            Self::Status => "status",
            Self::Truncated => "truncated",
            Self::Corrupt => "corrupt",
            Self::Timeout => "timeout",
            Self::Cut => "cut",
        }
    }
}

/// A failure and what was seen of it.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) reason: Reason,
    pub(crate) detail: String,
    /// Bytes promised and never received.
    pub(crate) lost: u64,
}

impl Failed {
    pub(crate) fn new(reason: Reason, detail: impl ToString) -> Self {
        Self { reason, detail: detail.to_string(), lost: 0 }
    }

    pub(crate) fn losing(mut self, bytes: u64) -> Self {
        self.lost = bytes;
        self
    }
}

#[derive(Default)]
struct Class {
    latencies: Vec<Duration>,
    failures: BTreeMap<Reason, u64>,
    /// Connections opened again because the server had closed them in order.
    reopened: u64,
    bytes: u64,
    seen: bool,
}

/// All classes' accounts. One thread's own.
pub(crate) struct Tally {
    start: Instant,
    inner: RefCell<Inner>,
}

struct Inner {
    classes: BTreeMap<&'static str, Class>,
    last_success: Option<Instant>,
    longest_gap: Duration,
    /// After this nothing new was begun, and gaps mean nothing.
    stopped: bool,
    lost: u64,
    examples: Vec<Value>,
}

/// Failures told in full; the rest are counted.
const EXAMPLES: usize = 20;

impl Tally {
    pub(crate) fn new(classes: &[&'static str]) -> Self {
        let classes = classes.iter().map(|name| (*name, Class::default())).collect();
        let inner = Inner {
            classes,
            last_success: None,
            longest_gap: Duration::ZERO,
            stopped: false,
            lost: 0,
            examples: Vec::new(),
        };
        Self { start: Instant::now(), inner: RefCell::new(inner) }
    }

    /// Books one result of a class. Quick classes make the gaps.
    pub(crate) fn book(&self, class: &'static str, quick: bool, took: Duration, result: Result<u64, Failed>) {
        let mut inner = self.inner.borrow_mut();
        let now = Instant::now();
        match result {
            Ok(bytes) => {
                if quick && !inner.stopped {
                    if let Some(last) = inner.last_success {
                        inner.longest_gap = inner.longest_gap.max(now - last);
                    }
                    inner.last_success = Some(now);
                }
                let class = inner.classes.entry(class).or_default();
                class.latencies.push(took);
                class.bytes += bytes;
            }
            Err(failed) => {
                *inner.classes.entry(class).or_default().failures.entry(failed.reason).or_default() += 1;
                inner.lost += failed.lost;
                if inner.examples.len() < EXAMPLES {
                    inner.examples.push(json!({
                        "at_ms": millis(now - self.start),
                        "class": class,
                        "reason": failed.reason.name(),
                        "detail": failed.detail,
                        "lost_bytes": failed.lost,
                    }));
                }
            }
        }
    }

    /// Books that the server closed a kept connection in order.
    pub(crate) fn reopened(&self, class: &'static str) {
        self.inner.borrow_mut().classes.entry(class).or_default().reopened += 1;
    }

    /// Notes that a long-lived class is flowing, long before its end is booked.
    pub(crate) fn seen(&self, class: &'static str) {
        self.inner.borrow_mut().classes.entry(class).or_default().seen = true;
    }

    /// True once every class flows or has failed.
    pub(crate) fn all_seen(&self) -> bool {
        let inner = self.inner.borrow();
        inner.classes.values().all(|class| class.seen || !class.latencies.is_empty() || !class.failures.is_empty())
    }

    /// Nothing new is begun from here on: closes the last gap.
    pub(crate) fn stop(&self) {
        let mut inner = self.inner.borrow_mut();
        if let Some(last) = inner.last_success {
            inner.longest_gap = inner.longest_gap.max(last.elapsed());
        }
        inner.stopped = true;
    }

    /// The sum, and whether nothing failed.
    pub(crate) fn report(&self) -> (Value, bool) {
        let mut inner = self.inner.borrow_mut();
        let mut classes = Map::new();
        let (mut ok, mut failed, mut reused_reset, mut reopened) = (0, 0, 0, 0);
        for (name, class) in &mut inner.classes {
            class.latencies.sort_unstable();
            let class_failed: u64 = class.failures.values().sum();
            let reused = class.failures.get(&Reason::ReusedReset).copied().unwrap_or(0);
            ok += class.latencies.len() as u64;
            failed += class_failed - reused;
            reused_reset += reused;
            reopened += class.reopened;
            let failures: Map<_, _> =
                class.failures.iter().map(|(reason, count)| (reason.name().to_owned(), json!(count))).collect();
            classes.insert(
                (*name).to_owned(),
                json!({
                    "total": class.latencies.len() as u64 + class_failed,
                    "ok": class.latencies.len(),
                    "failed": class_failed,
                    "failures": failures,
                    "reopened": class.reopened,
                    "bytes": class.bytes,
                    "p50_ms": percentile(&class.latencies, 50),
                    "p99_ms": percentile(&class.latencies, 99),
                    "max_ms": class.latencies.last().copied().map(millis),
                }),
            );
        }
        let report = json!({
            "seconds": self.start.elapsed().as_secs_f64(),
            "total": ok + failed + reused_reset,
            "ok": ok,
            "failed": failed,
            "reused_reset": reused_reset,
            "reopened": reopened,
            "lost_bytes": inner.lost,
            "longest_gap_ms": millis(inner.longest_gap),
            "classes": classes,
            "examples": inner.examples,
        });
        (report, failed + reused_reset == 0)
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The nearest-rank percentile of sorted values, in milliseconds.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().map(millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_result_is_in_the_sums_once() {
        let tally = Tally::new(&["h1", "post"]);
        assert!(!tally.all_seen());
        tally.seen("post");
        assert!(!tally.all_seen());
        tally.book("h1", true, Duration::from_millis(3), Ok(5));
        tally.book("h1", true, Duration::from_millis(1), Err(Failed::new(Reason::Status, "503")));
        tally.book("post", true, Duration::from_millis(1), Err(Failed::new(Reason::ReusedReset, "eof")));
        tally.book("post", true, Duration::from_millis(1), Err(Failed::new(Reason::Truncated, "eof").losing(7)));
        assert!(tally.all_seen());
        let (report, clean) = tally.report();
        assert!(!clean);
        for (key, want) in [("total", 4), ("ok", 1), ("failed", 2), ("reused_reset", 1), ("lost_bytes", 7)] {
            assert_eq!(report[key], want, "{key}");
        }
        assert_eq!(report["classes"]["post"]["total"], 2);
        assert_eq!(report["examples"].as_array().map(Vec::len), Some(3));
    }

    #[test]
    fn percentiles() {
        let values: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 50), Some(50.0));
        assert_eq!(percentile(&values, 99), Some(99.0));
        assert_eq!(percentile(&values[..1], 99), Some(1.0));
        assert_eq!(percentile(&[], 50), None);
    }
}
