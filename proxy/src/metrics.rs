//! What has been counted since start, as Prometheus text.
//!
//! Each data thread counts in a shard of its own; a scrape adds the shards up.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the request duration histogram, milliseconds.
const BUCKETS: [u64; 11] = [1, 5, 10, 25, 50, 100, 250, 500, 1_000, 5_000, 30_000];

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $field:ident => $name:literal $({$labels:literal})?,)+) => {
        /// One data thread's counters. Padded, so that threads do not share a cache line.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub(crate) struct Shard {
            $($(#[doc = $help])+ pub(crate) $field: AtomicU64,)+
            durations: [AtomicU64; BUCKETS.len() + 1],
            duration_micros: AtomicU64,
        }

        /// Name, labels, help and where the value is.
        const COUNTERS: &[(&str, &str, &str, fn(&Shard) -> &AtomicU64)] = &[
            $(($name, concat!($($labels)?), concat!($($help),+), |s: &Shard| &s.$field),)+
        ];
    };
}

counters! {
    /// Client connections accepted.
    accepted_http => "itsup_connections_accepted_total" {"listener=\"http\""},
    /// Client connections accepted.
    accepted_https => "itsup_connections_accepted_total" {"listener=\"https\""},
    /// Client connections refused, by reason.
    refused_limit => "itsup_connections_refused_total" {"reason=\"client_limit\""},
    /// Client connections refused, by reason.
    refused_proxy_header => "itsup_connections_refused_total" {"reason=\"proxy_protocol\""},
    /// Client connections refused, by reason.
    refused_hello => "itsup_connections_refused_total" {"reason=\"client_hello\""},
    /// Client connections refused, by reason.
    refused_unknown_host => "itsup_connections_refused_total" {"reason=\"unknown_host\""},
    /// TLS handshakes, by outcome.
    handshakes => "itsup_tls_handshakes_total" {"outcome=\"done\""},
    /// TLS handshakes, by outcome.
    handshakes_resumed => "itsup_tls_handshakes_total" {"outcome=\"resumed\""},
    /// TLS handshakes, by outcome.
    handshakes_failed => "itsup_tls_handshakes_total" {"outcome=\"failed\""},
    /// Passthrough connections, by outcome.
    passed => "itsup_passthrough_connections_total" {"outcome=\"passed\""},
    /// Passthrough connections, by outcome.
    pass_failed => "itsup_passthrough_connections_total" {"outcome=\"failed\""},
    /// Passthrough bytes, by direction.
    passed_in => "itsup_passthrough_bytes_total" {"direction=\"in\""},
    /// Passthrough bytes, by direction.
    passed_out => "itsup_passthrough_bytes_total" {"direction=\"out\""},
    /// Requests on :80, by outcome.
    redirected => "itsup_plain_requests_total" {"outcome=\"redirect\""},
    /// Requests on :80, by outcome.
    challenged => "itsup_plain_requests_total" {"outcome=\"challenge\""},
    /// Requests on :80, by outcome.
    plain_unknown => "itsup_plain_requests_total" {"outcome=\"unknown_host\""},
    /// Requests on :80, by outcome.
    plain_rejected => "itsup_plain_requests_total" {"outcome=\"rejected\""},
    /// Requests answered over TLS, by protocol.
    requests_h1 => "itsup_http_requests_total" {"protocol=\"h1\""},
    /// Requests answered over TLS, by protocol.
    requests_h2 => "itsup_http_requests_total" {"protocol=\"h2\""},
    /// Requests whose head was refused before it reached any upstream.
    rejected_heads => "itsup_http_rejected_total",
    /// Connections upgraded to websockets.
    websockets => "itsup_websockets_total",
    /// Upstream attempts beyond a request's first.
    retries => "itsup_upstream_retries_total",
    /// Failed upstream attempts, by reason.
    connect_failures => "itsup_upstream_failures_total" {"reason=\"connect\""},
    /// Failed upstream attempts, by reason.
    upstream_failures => "itsup_upstream_failures_total" {"reason=\"response\""},
    /// Access log lines that were dropped because the writer could not keep up.
    log_dropped => "itsup_access_log_dropped_total",
}

impl Shard {
    /// Counts one.
    pub(crate) fn add(&self, counter: fn(&Shard) -> &AtomicU64) {
        counter(self).fetch_add(1, Relaxed);
    }

    /// Counts one request's duration.
    pub(crate) fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.iter().position(|bound| micros <= bound * 1_000).unwrap_or(BUCKETS.len());
        self.durations[bucket].fetch_add(1, Relaxed);
        self.duration_micros.fetch_add(micros, Relaxed);
    }
}

/// Status classes, and 0 for none.
const CLASSES: usize = 6;

/// What one thread has answered for one site.
#[derive(Debug, Default)]
struct SiteCounters {
    /// By the first digit of the status; 0 for clients that left before an answer.
    classes: [AtomicU64; CLASSES],
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// All counters.
#[derive(Debug)]
pub(crate) struct Metrics {
    shards: Box<[Shard]>,
    /// Each thread has its own for each site that it has served.
    sites: Mutex<BTreeMap<Arc<str>, Vec<Arc<SiteCounters>>>>,
}

thread_local! {
    /// The sites that this thread has counted for, so that it takes the lock once for each site in its life.
    static SITES: RefCell<HashMap<Arc<str>, Arc<SiteCounters>>> = RefCell::new(HashMap::new());
}

impl Metrics {
    pub(crate) fn new(threads: usize) -> Self {
        Self { shards: (0..threads).map(|_| Shard::default()).collect(), sites: Mutex::default() }
    }

    /// The counters of one data thread.
    pub(crate) fn shard(&self, thread: usize) -> &Shard {
        &self.shards[thread]
    }

    /// Counts an answer of the site `label`.
    pub(crate) fn site(&self, label: &Arc<str>, status: u16, bytes_in: u64, bytes_out: u64) {
        SITES.with_borrow_mut(|known| {
            let site = match known.get(label) {
                Some(site) => site,
                None => known.entry(label.clone()).or_insert(self.register(label)),
            };
            site.classes[usize::from(status / 100).min(5)].fetch_add(1, Relaxed);
            site.bytes_in.fetch_add(bytes_in, Relaxed);
            site.bytes_out.fetch_add(bytes_out, Relaxed);
        });
    }

    fn register(&self, label: &Arc<str>) -> Arc<SiteCounters> {
        let site = Arc::<SiteCounters>::default();
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        sites.entry(label.clone()).or_default().push(site.clone());
        site
    }

    fn sum(&self, counter: fn(&Shard) -> &AtomicU64) -> u64 {
        self.shards.iter().map(|shard| counter(shard).load(Relaxed)).sum()
    }

    /// Renders the counters in Prometheus' text format.
    pub(crate) fn render(&self, out: &mut String) {
        let mut last = "";
        for (name, labels, help, counter) in COUNTERS {
            if *name != last {
                header(out, name, "counter", help.trim());
                last = name;
            }
            let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let _ = writeln!(out, "{name}{braces} {}", self.sum(*counter));
        }
        self.render_durations(out);
        self.render_sites(out);
    }

    fn render_durations(&self, out: &mut String) {
        let name = "itsup_http_request_duration_seconds";
        header(out, name, "histogram", "Time from a request's head to the end of its response.");
        let mut seen = 0;
        for bucket in 0..=BUCKETS.len() {
            seen += self.shards.iter().map(|s| s.durations[bucket].load(Relaxed)).sum::<u64>();
            let bound = BUCKETS.get(bucket).map_or("+Inf".to_owned(), |ms| (*ms as f64 / 1e3).to_string());
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {seen}");
        }
        let micros: u64 = self.shards.iter().map(|s| s.duration_micros.load(Relaxed)).sum();
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {seen}", micros as f64 / 1e6);
    }

    fn render_sites(&self, out: &mut String) {
        let sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner).clone();
        header(out, "itsup_site_requests_total", "counter", "Requests answered, by site and status class.");
        let sum = |site: &[Arc<SiteCounters>], counter: fn(&SiteCounters) -> &AtomicU64| {
            site.iter().map(|thread| counter(thread).load(Relaxed)).sum::<u64>()
        };
        for (label, site) in &sites {
            for class in 0..CLASSES {
                let count = site.iter().map(|thread| thread.classes[class].load(Relaxed)).sum::<u64>();
                let class = if class == 0 { "none".to_owned() } else { format!("{class}xx") };
                if count > 0 {
                    let label = escape_label(label);
                    let _ = writeln!(out, "itsup_site_requests_total{{site=\"{label}\",class=\"{class}\"}} {count}");
                }
            }
        }
        header(out, "itsup_site_bytes_total", "counter", "Body bytes, by site and direction.");
        for (label, site) in &sites {
            let label = escape_label(label);
            for (direction, bytes) in [("in", sum(site, |s| &s.bytes_in)), ("out", sum(site, |s| &s.bytes_out))] {
                let _ = writeln!(out, "itsup_site_bytes_total{{site=\"{label}\",direction=\"{direction}\"}} {bytes}");
            }
        }
    }
}

/// Writes a metric's HELP and TYPE lines.
pub(crate) fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Escapes a label value as the text format asks.
pub(crate) fn escape_label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_the_shards_up() {
        let metrics = Metrics::new(2);
        metrics.shard(0).add(|s| &s.retries);
        metrics.shard(1).add(|s| &s.retries);
        metrics.shard(1).observe(Duration::from_millis(3));
        metrics.shard(0).observe(Duration::from_secs(60));
        metrics.site(&"shop \"x\"".into(), 204, 1, 2);
        std::thread::scope(|threads| {
            threads.spawn(|| metrics.site(&"shop \"x\"".into(), 204, 1, 2));
        });
        let mut text = String::new();
        metrics.render(&mut text);
        for line in [
            "itsup_upstream_retries_total 2",
            "itsup_http_request_duration_seconds_bucket{le=\"0.001\"} 0",
            "itsup_http_request_duration_seconds_bucket{le=\"0.005\"} 1",
            "itsup_http_request_duration_seconds_bucket{le=\"+Inf\"} 2",
            "itsup_http_request_duration_seconds_count 2",
            "itsup_site_requests_total{site=\"shop \\\"x\\\"\",class=\"2xx\"} 2",
            "itsup_site_bytes_total{site=\"shop \\\"x\\\"\",direction=\"out\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("# TYPE itsup_tls_handshakes_total").count(), 1);
    }
}
