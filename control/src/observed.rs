//! What Docker says is there now, in control's own words.
//!
//! Pure data and the rules for reading labels. It must not know how Docker is asked (`docker/`), nor what
//! becomes of what it says (`active.rs`, `routes.rs`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use itsup_proxy::EndpointId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::db::{Http, VerifySetting};

/// The network on which containers are reached.
pub const NETWORK: &str = "proxynet";
/// The label that makes a container one of a compose project.
pub const LABEL_PROJECT: &str = "com.docker.compose.project";
/// The label that names a container's compose service.
pub const LABEL_SERVICE: &str = "com.docker.compose.service";
/// The label of a container that `compose run` made; it serves nobody.
pub const LABEL_ONEOFF: &str = "com.docker.compose.oneoff";
/// The label with the port that the container listens on.
pub const LABEL_PORT: &str = "itsup.port";
/// The label with the HTTP that the container speaks ([`http_label`]).
pub const LABEL_HTTP: &str = "itsup.http";
/// The label with itsUP's own hash of the service's settings.
pub const LABEL_CONFIG: &str = "itsup.config";

/// Everything that Docker says is there, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Observed {
    pub engine: Engine,
    /// Containers of compose projects, running or not. With the engine away: as they last were.
    pub containers: BTreeMap<ContainerId, Container>,
}

impl Observed {
    /// Returns the containers of a compose service, by compose's names, one-off ones left out.
    pub fn service<'a>(&'a self, project: &'a str, service: &'a str) -> impl Iterator<Item = &'a Container> + 'a {
        self.containers.values().filter(move |c| {
            !c.oneoff && c.compose_project.as_ref() == project && c.compose_service.as_deref() == Some(service)
        })
    }
}

/// Whether the Docker engine can be heard.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Engine {
    /// It is not asked at all, or has not been asked yet.
    #[default]
    Off,
    /// It does not answer; what is known of containers is old.
    Away {
        #[serde(serialize_with = "unix_seconds")]
        since: SystemTime,
        why: String,
    },
    /// It answers; what is known of containers is true.
    Up { version: String },
}

impl Engine {
    pub fn is_up(&self) -> bool {
        matches!(self, Engine::Up { .. })
    }
}

/// A container's full id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(Arc<str>);

impl ContainerId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the first twelve characters, as the docker command prints them.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl From<&str> for ContainerId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for ContainerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ContainerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(String::deserialize(deserializer)?.into()))
    }
}

/// A container of a compose project.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Container {
    pub id: ContainerId,
    /// Without the leading slash.
    pub name: String,
    /// RFC 3339, as Docker gives it.
    pub created: String,
    /// RFC 3339, as Docker gives it; the year 1 where it never started.
    pub started_at: String,
    pub compose_project: Box<str>,
    pub compose_service: Option<Box<str>>,
    /// Made by `compose run`: never routed.
    pub oneoff: bool,
    /// Its process is there; false while Docker waits to restart it.
    pub running: bool,
    /// It died, and Docker will start it again.
    pub restarting: bool,
    pub paused: bool,
    pub health: Health,
    /// Its address on the network that the proxy reaches containers by.
    pub address: Option<IpAddr>,
    /// Label `itsup.port`.
    pub port: Option<u16>,
    /// Label `itsup.http`.
    #[serde(serialize_with = "http_as_label")]
    pub http: Option<Http>,
    /// The image as it was asked for.
    pub image: String,
    /// The id of the image that it runs.
    pub image_id: String,
    /// Label `itsup.config`.
    pub config_hash: Option<String>,
    /// Of the last end; `None` while it runs.
    pub exit_code: Option<i64>,
    pub restart_count: i64,
}

/// The container that an endpoint is, by what [`Container::endpoint_id`] has made; any other one is none that there is.
pub fn container_of(endpoint: &str) -> Option<&str> {
    endpoint.split('@').next()
}

impl Container {
    /// Returns its identity as an endpoint: the id and the start, as a restart may change everything else.
    pub fn endpoint_id(&self) -> EndpointId {
        format!("{}@{}", self.id, self.started_at).into()
    }

    /// Whether it is to be used only when nothing better is left.
    pub fn last_choice(&self) -> bool {
        self.paused || matches!(self.health, Health::Starting | Health::Unhealthy)
    }
}

/// What Docker's own health check says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// There is none.
    #[default]
    None,
    Starting,
    Healthy,
    Unhealthy,
}

/// Writes the value of the label `itsup.http`: `h1`, `h2c`, `https`, `https,verify=false`, `https,verify=FILE`.
pub fn http_label(http: &Http) -> String {
    match http {
        Http::H1 => "h1".to_owned(),
        Http::H2c => "h2c".to_owned(),
        Http::Https(VerifySetting::System) => "https".to_owned(),
        Http::Https(VerifySetting::Nothing) => "https,verify=false".to_owned(),
        Http::Https(VerifySetting::Ca(file)) => format!("https,verify={}", file.display()),
    }
}

/// Reads what [`http_label`] wrote; `None` for anything else.
pub fn parse_http_label(label: &str) -> Option<Http> {
    match label {
        "h1" => Some(Http::H1),
        "h2c" => Some(Http::H2c),
        "https" | "https,verify=true" => Some(Http::Https(VerifySetting::System)),
        "https,verify=false" => Some(Http::Https(VerifySetting::Nothing)),
        _ => {
            let file = label.strip_prefix("https,verify=").filter(|file| !file.is_empty())?;
            Some(Http::Https(VerifySetting::Ca(PathBuf::from(file))))
        }
    }
}

/// Reads the label `itsup.port`; `None` for what is no port.
pub fn parse_port_label(label: &str) -> Option<u16> {
    label.parse().ok().filter(|port| *port != 0)
}

/// Reads an RFC 3339 time as nanoseconds since 1970; `None` where it is none.
pub(crate) fn unix_nanos(time: &str) -> Option<i128> {
    let number = |from: usize, to: usize| -> Option<i128> {
        let digits = time.get(from..to)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let mark = |at: usize, wanted: &[u8]| time.as_bytes().get(at).is_some_and(|b| wanted.contains(b));
    if !(mark(4, b"-") && mark(7, b"-") && mark(10, b"Tt ") && mark(13, b":") && mark(16, b":")) {
        return None;
    }
    let days = days_since_1970(number(0, 4)?, number(5, 7)?, number(8, 10)?)?;
    let seconds = number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?;

    let rest = time.get(19..)?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?),
        None => ("", rest),
    };
    let nanos: i128 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let offset = match zone {
        "Z" | "z" => 0,
        _ => {
            let at = time.len().checked_sub(6)?;
            let minutes = number(at + 1, at + 3)? * 60 + number(at + 4, at + 6)?;
            match (zone.len(), zone.as_bytes().first()) {
                (6, Some(b'+')) => minutes * 60,
                (6, Some(b'-')) => -minutes * 60,
                _ => return None,
            }
        }
    };
    Some((days * 86_400 + seconds - offset) * 1_000_000_000 + nanos)
}

/// Counts the days from 1970-01-01 to a date of the Gregorian calendar.
fn days_since_1970(year: i128, month: i128, day: i128) -> Option<i128> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years begin in March here, so that a leap day is a year's last (the civil calendar in 400-year eras).
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}

fn unix_seconds<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
}

fn http_as_label<S: Serializer>(http: &Option<Http>, serializer: S) -> Result<S::Ok, S::Error> {
    http.as_ref().map(http_label).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_labels_read_back_as_written() {
        for http in [
            Http::H1,
            Http::H2c,
            Http::Https(VerifySetting::System),
            Http::Https(VerifySetting::Nothing),
            Http::Https(VerifySetting::Ca("certs/nas.pem".into())),
        ] {
            assert_eq!(parse_http_label(&http_label(&http)), Some(http));
        }
    }

    #[test]
    fn labels_that_mean_nothing_are_not_there() {
        for label in ["", "h3", "HTTPS", "https,verify=", "https,"] {
            assert_eq!(parse_http_label(label), None, "{label}");
        }
        for (label, port) in
            [("8080", Some(8080)), ("0", None), ("65535", Some(65535)), ("65536", None), ("-1", None), ("", None)]
        {
            assert_eq!(parse_port_label(label), port, "{label}");
        }
    }

    #[test]
    fn times_are_read_as_docker_writes_them() {
        for (time, nanos) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2026-11-22T21:35:35.5Z", Some(1_795_383_335_500_000_000)),
            ("2026-11-22T22:35:35.5+01:00", Some(1_795_383_335_500_000_000)),
            ("2024-02-29T23:59:59.123456789Z", Some(1_709_251_199_123_456_789)),
            ("0001-01-01T00:00:00Z", Some(-62_135_596_800_000_000_000)),
            ("2026-13-01T00:00:00Z", None),
            ("2026-11-22T21:35:35", None),
            ("2026-11-22T21:35:35.", None),
            ("2026-11-22T21:35:35+0100", None),
            ("2026-11-22T21:35:35.5é", None),
            ("", None),
        ] {
            assert_eq!(unix_nanos(time), nanos, "{time}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_upsets_the_reading_of_times(text in "\\PC*", tail in "[-+.Zz0-9:é]*") {
            let _ = unix_nanos(&text);
            let _ = unix_nanos(&format!("2026-11-22T21:35:35{tail}"));
        }
    }
}
