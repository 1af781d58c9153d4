//! What `itsup status`, `itsup reload` and the API say: plain data, the same on both ends of the socket.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use itsup_proxy::status::{EndpointState, EndpointStatus, InFlight, UpstreamStatus};
use itsup_proxy::{Held, Tally};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::acme::due;
use crate::acme::internal_ca::InternalCa;
use crate::acme::issuer::Standing;
use crate::control::certificates::Shown;
use crate::db::Diagnostic;
use crate::jobs::{JobReport, JobState};
use crate::observed::Engine;

/// The whole of itsUP at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusReport {
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: u64,
    /// How many route tables have been published since start.
    pub generation: u64,
    pub hosts: usize,
    /// Open client connections.
    pub connections: u64,
    pub listen: Listen,
    pub docker: DockerReport,
    pub upstreams: Vec<UpstreamReport>,
    /// Endpoints that have been retired and still have traffic.
    pub draining: Vec<EndpointReport>,
    /// Commands that run or wait.
    #[serde(default)]
    pub changes: Vec<ChangeReport>,
    /// Services that a rollback holds where they are: `project/service`.
    #[serde(default)]
    pub pins: Vec<String>,
    pub certificates: Vec<CertificateReport>,
    pub reloads: Reloads,
    /// Whether the last good db.yml serves, as the real one cannot be read.
    pub last_good: bool,
    /// What is wrong with db.yml since the start; projects with errors are left out.
    pub diagnostics: Vec<Diagnostic>,
    pub warnings: Vec<String>,
}

/// Where itsUP listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    pub http: String,
    pub https: String,
    /// `None` where the API is off.
    pub api: Option<String>,
}

/// A command that runs or waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeReport {
    pub job: u64,
    /// Such as `rollout shop web`.
    pub what: String,
    /// `running` or `queued`.
    pub state: String,
    /// Since when, RFC 3339.
    pub since: String,
}

/// The Docker engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerReport {
    /// `up`, `away` or `off`.
    pub state: String,
    /// Its version, or why it is away.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
}

/// A named set of endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamReport {
    pub name: String,
    pub endpoints: Vec<EndpointReport>,
    /// Its new requests are made to wait.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held: Option<HeldReport>,
}

/// What has become of the requests that came while an upstream was held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldReport {
    pub waiting: u32,
    pub waited: u64,
    pub refused: u64,
    /// Those whose clients left first.
    pub left: u64,
    pub longest_ms: u64,
}

/// One address that traffic goes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointReport {
    pub id: String,
    pub address: String,
    /// `up`, `unhealthy`, `set aside` or `draining`.
    pub state: String,
    pub in_flight: InFlightReport,
    #[serde(default)]
    pub tally: TallyReport,
}

/// What an endpoint is serving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlightReport {
    /// Requests that are soon over.
    pub requests: u32,
    /// Event streams, uploads, downloads.
    #[serde(default)]
    pub streams: u32,
    pub websockets: u32,
    pub passthrough: u32,
}

/// What an endpoint has done since it came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TallyReport {
    pub served: u64,
    /// Answers of 500 and above.
    pub server_errors: u64,
    /// Requests without a valid answer, or with half of one.
    pub broken: u64,
    pub connect_failures: u64,
    /// Requests that were given to another endpoint or connection.
    pub retried: u64,
    /// Ended from here, to let it go.
    pub cut: u64,
}

/// The certificate that a host shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateReport {
    pub host: String,
    /// `file` (the user's), `acme` (ours to renew) or `internal`.
    pub source: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<String>,
    /// Who issued it, as it calls itself.
    #[serde(default)]
    pub issuer: String,
    /// RFC 3339.
    pub not_after: String,
    /// Whole days; below 0 it has ended.
    pub days_left: i64,
    /// How it stands with getting it from a CA, where that is wanted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub acme: Option<AcmeReport>,
}

/// How it stands with a host's certificate from a CA.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcmeReport {
    /// When it is to be renewed, RFC 3339; `None` where it is due, or there is none yet.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub renewal: Option<String>,
    /// Whether an order is under way.
    #[serde(default)]
    pub under_way: bool,
    /// Why the last try failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// What the look through the public name says.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub advice: Option<String>,
    /// When it is tried next, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next_try: Option<String>,
}

/// The internal CA's root, for people to trust.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootReport {
    /// Where it is.
    pub path: String,
    /// RFC 3339.
    pub not_after: String,
    /// In hexadecimal.
    pub sha256: String,
    pub pem: String,
}

/// How reloads went since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloads {
    pub done: u64,
    pub refused: u64,
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    pub generation: u64,
    /// Whether a new table was published.
    pub changed: bool,
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed_hosts: Vec<String>,
    pub warnings: Vec<String>,
}

/// Why a command was refused: what `--json` and the API answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorReport {
    pub error: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
    #[serde(default)]
    pub diagnostics: Vec<Diagnostic>,
}

impl ChangeReport {
    /// `None` of one that has ended.
    pub fn of(job: &JobReport) -> Option<ChangeReport> {
        let (state, since) = match job.state {
            JobState::Running => ("running", job.started.as_ref().unwrap_or(&job.created)),
            JobState::Queued => ("queued", &job.created),
            JobState::Done | JobState::Failed | JobState::Cancelled => return None,
        };
        Some(ChangeReport { job: job.id.0, what: job.work.to_string(), state: state.into(), since: since.clone() })
    }
}

impl From<&Engine> for DockerReport {
    fn from(engine: &Engine) -> Self {
        let (state, detail) = match engine {
            Engine::Off => ("off", None),
            Engine::Away { why, .. } => ("away", Some(why.clone())),
            Engine::Up { version } => ("up", Some(version.clone())),
        };
        DockerReport { state: state.into(), detail }
    }
}

impl From<&UpstreamStatus> for UpstreamReport {
    fn from(upstream: &UpstreamStatus) -> Self {
        UpstreamReport {
            name: upstream.name.to_string(),
            endpoints: upstream.endpoints.iter().map(EndpointReport::from).collect(),
            held: upstream.held.map(HeldReport::from),
        }
    }
}

impl From<&EndpointStatus> for EndpointReport {
    fn from(endpoint: &EndpointStatus) -> Self {
        let state = match endpoint.state {
            EndpointState::Up => "up",
            EndpointState::Unhealthy => "unhealthy",
            EndpointState::SetAside => "set aside",
            EndpointState::Draining => "draining",
        };
        EndpointReport {
            id: endpoint.id.to_string(),
            address: endpoint.address.clone(),
            state: state.into(),
            in_flight: endpoint.in_flight.into(),
            tally: endpoint.tally.into(),
        }
    }
}

impl From<InFlight> for InFlightReport {
    fn from(InFlight { requests, streams, websockets, passthrough }: InFlight) -> Self {
        InFlightReport { requests, streams, websockets, passthrough }
    }
}

impl From<Held> for HeldReport {
    fn from(Held { waiting, waited, refused, left, longest }: Held) -> Self {
        let longest_ms = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        HeldReport { waiting, waited, refused, left, longest_ms }
    }
}

impl From<Tally> for TallyReport {
    fn from(tally: Tally) -> Self {
        let Tally { served, server_errors, broken, connect_failures, retried, cut } = tally;
        TallyReport { served, server_errors, broken, connect_failures, retried, cut }
    }
}

impl CertificateReport {
    /// What is shown, as it stands at this time.
    pub fn new(shown: &Shown, standing: Option<&Standing>, now: SystemTime) -> CertificateReport {
        let source = match shown.file {
            Some(_) if shown.managed => "acme",
            Some(_) => "file",
            None => "internal",
        };
        CertificateReport {
            host: shown.host.to_string(),
            source: source.into(),
            file: shown.file.as_ref().map(|place| place.cert.display().to_string()),
            issuer: shown.issuer.to_string(),
            not_after: rfc3339(shown.not_after),
            days_left: days_between(now, shown.not_after),
            acme: standing.map(AcmeReport::from),
        }
    }
}

impl From<&Standing> for AcmeReport {
    fn from(standing: &Standing) -> Self {
        AcmeReport {
            renewal: standing.renewal.map(|at| rfc3339(due::time(at))),
            under_way: standing.under_way,
            error: standing.error.clone(),
            advice: standing.advice.clone(),
            next_try: standing.next_try.map(|at| rfc3339(due::time(at))),
        }
    }
}

impl RootReport {
    /// The root as it is now.
    pub fn new(ca: &InternalCa) -> RootReport {
        RootReport {
            path: ca.root_path().display().to_string(),
            not_after: rfc3339(ca.root_not_after()),
            sha256: ca.root_sha256(),
            pem: ca.root_pem(),
        }
    }
}

pub(crate) fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}

fn days_between(now: SystemTime, then: SystemTime) -> i64 {
    let seconds = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    };
    (seconds(then) - seconds(now)).div_euclid(24 * 60 * 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_left_are_whole_and_go_below_zero() {
        let at = |hours: u64| UNIX_EPOCH + Duration::from_secs(hours * 60 * 60);
        for (now, then, days) in [(0, 24, 1), (0, 47, 1), (0, 23, 0), (24, 23, -1), (48, 23, -2)] {
            assert_eq!(days_between(at(now), at(then)), days, "{now} {then}");
        }
        assert_eq!(rfc3339(at(24)), "1970-01-02T00:00:00Z");
    }
}
