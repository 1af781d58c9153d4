//! What a change does to the traffic of now.
//!
//! Pure. What is in flight comes from the proxy's own status, by whatever way.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ServicePlan, Step};
use crate::active::ServiceKey;
use crate::db::{Project, Service};
use crate::status::{InFlightReport, StatusReport};

/// How long streams may take to end, unless the service says otherwise.
const STREAM_DRAIN: Duration = Duration::from_secs(5 * 60);

/// The traffic of now, and what is known of restarts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Live {
    /// What each upstream serves.
    pub in_flight: BTreeMap<String, InFlightReport>,
    /// How long a service was away when it was last recreated in place.
    pub restarts: BTreeMap<ServiceKey, Duration>,
}

impl Live {
    /// Takes what a running itsUP says of itself, and how long restarts have taken.
    pub fn of(status: &StatusReport, restarts: BTreeMap<ServiceKey, Duration>) -> Live {
        let mut in_flight: BTreeMap<String, InFlightReport> = BTreeMap::new();
        for upstream in &status.upstreams {
            let sum = in_flight.entry(upstream.name.clone()).or_default();
            for endpoint in &upstream.endpoints {
                sum.requests += endpoint.in_flight.requests;
                sum.streams += endpoint.in_flight.streams;
                sum.websockets += endpoint.in_flight.websockets;
                sum.passthrough += endpoint.in_flight.passthrough;
            }
        }
        Live { in_flight, restarts }
    }
}

/// What becomes of a service's traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Impact {
    /// What is in flight now.
    pub requests: u32,
    pub streams: u32,
    pub websockets: u32,
    pub passthrough: u32,
    /// Those that are still there, other than requests that are soon over, are closed after so long.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub closed_after_seconds: Option<u64>,
    /// Whether new requests wait while it restarts.
    pub held: bool,
    /// Whether it is away for a while, to whoever uses it.
    pub away: bool,
    /// How long that took the last time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub about_seconds: Option<u64>,
}

pub(super) fn impact(project: &Project, service: &Service, plan: &ServicePlan, live: &Live) -> Option<Impact> {
    let in_place = match plan.step {
        Step::RollOver => false,
        Step::RecreateInPlace | Step::Remove => true,
        Step::Start | Step::NoChange => return None,
    };
    let key = ServiceKey::new(project.name.clone(), service.name.clone());
    let now = live.in_flight.get(&key.to_string()).copied().unwrap_or_default();
    let streams = now.streams > 0 || now.websockets > 0 || now.passthrough > 0;
    let after = service.rollout.stream_drain.unwrap_or(STREAM_DRAIN);
    let recreated = plan.step == Step::RecreateInPlace;
    Some(Impact {
        requests: now.requests,
        streams: now.streams,
        websockets: now.websockets,
        passthrough: now.passthrough,
        closed_after_seconds: streams.then_some(if in_place { 0 } else { after.as_secs() }),
        held: recreated && plan.routed,
        away: recreated && !plan.routed,
        about_seconds: live.restarts.get(&key).filter(|_| recreated).map(|time| time.as_secs().max(1)),
    })
}

impl fmt::Display for Impact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        let about = self.about_seconds.map(|seconds| format!("about {}", span(seconds)));
        if self.held {
            parts.push(format!("requests held {}", about.as_deref().unwrap_or("while it restarts")));
        }
        if self.away {
            parts.push(format!("away {}", about.as_deref().unwrap_or("while it restarts")));
        }
        if let Some(after) = self.closed_after_seconds {
            let many = |count: u32, one: &str| match count {
                0 => None,
                1 => Some(format!("1 {one}")),
                count => Some(format!("{count} {one}s")),
            };
            let kinds = [
                many(self.websockets, "websocket"),
                many(self.streams, "stream"),
                many(self.passthrough, "passthrough connection"),
            ];
            let kinds: Vec<String> = kinds.into_iter().flatten().collect();
            let when = if after == 0 { "at once".to_owned() } else { format!("after {}", span(after)) };
            parts.push(format!("{} will be closed {when}", kinds.join(" and ")));
        }
        f.write_str(if parts.is_empty() { "none" } else { "" })?;
        f.write_str(&parts.join("; "))
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}
