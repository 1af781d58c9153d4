//! Flags and environment of the test server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// A small web server to put behind a proxy under test.
#[derive(Clone, Debug, Parser)]
#[command(name = "itsup-testd", version)]
pub(crate) struct Args {
    /// Addresses for HTTP/1.1, and h2c by prior knowledge on the same port.
    #[arg(long, env = "TESTD_LISTEN", value_delimiter = ',', default_value = "0.0.0.0:8080")]
    pub(crate) listen: Vec<SocketAddr>,
    /// Addresses for HTTPS (h2 and http/1.1 by ALPN).
    #[arg(long, env = "TESTD_TLS_LISTEN", value_delimiter = ',')]
    pub(crate) tls_listen: Vec<SocketAddr>,
    /// Addresses that send raw bytes back until end of file, then close their half.
    #[arg(long, env = "TESTD_ECHO_LISTEN", value_delimiter = ',')]
    pub(crate) echo_listen: Vec<SocketAddr>,
    /// Names in the self-made certificate.
    #[arg(long, env = "TESTD_TLS_NAMES", value_delimiter = ',', default_value = "localhost")]
    pub(crate) tls_names: Vec<String>,
    /// Protocols offered by ALPN.
    #[arg(long, env = "TESTD_ALPN", value_delimiter = ',', default_value = "h2,http/1.1")]
    pub(crate) alpn: Vec<String>,
    /// Where to write the self-made certificate, for clients to trust.
    #[arg(long, env = "TESTD_WRITE_CERT")]
    pub(crate) write_cert: Option<PathBuf>,
    /// What to do with a PROXY header at the start of a connection.
    #[arg(long, env = "TESTD_ACCEPT_PROXY", default_value = "off", default_missing_value = "required", num_args = 0..=1)]
    pub(crate) accept_proxy: AcceptProxy,

    /// The name in answers.
    #[arg(long, env = "TESTD_NAME", default_value = "testd")]
    pub(crate) name: String,
    /// The version in answers.
    #[arg(long, env = "TESTD_VERSION", default_value = "1")]
    pub(crate) app_version: String,

    /// How long to wait before listening.
    #[arg(long, env = "TESTD_START_DELAY", default_value = "0ms", value_parser = duration)]
    pub(crate) start_delay: Duration,
    /// How long to answer 503 to everything once listening.
    #[arg(long, env = "TESTD_READY_DELAY", default_value = "0ms", value_parser = duration)]
    pub(crate) ready_delay: Duration,
    /// What `/health` says: `true`, `false`, or `after=DURATION` from the start.
    #[arg(long, env = "TESTD_HEALTHY", default_value = "true", value_parser = healthy)]
    pub(crate) healthy: Healthy,
    /// What SIGTERM does.
    #[arg(long, env = "TESTD_ON_TERM", default_value = "graceful")]
    pub(crate) on_term: OnTerm,
    /// The longest a graceful end takes.
    #[arg(long, env = "TESTD_GRACE", default_value = "60s", value_parser = duration)]
    pub(crate) grace: Duration,
    /// Die, with exit code 1, this long after the start.
    #[arg(long, env = "TESTD_CRASH_AFTER", value_parser = duration)]
    pub(crate) crash_after: Option<Duration>,
    /// Run, but never listen.
    #[arg(long, env = "TESTD_NEVER_LISTEN")]
    pub(crate) never_listen: bool,

    /// Serve nothing: ask this address for `/health` and exit 0 where it is well (a container's HEALTHCHECK).
    #[arg(long)]
    pub(crate) check: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AcceptProxy {
    /// Not looked for.
    Off,
    /// Taken where there is one.
    Optional,
    /// Connections without one are closed.
    Required,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnTerm {
    /// Stop accepting, finish what is open, exit 0.
    Graceful,
    /// Exit at once.
    Die,
    /// Nothing.
    Ignore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Healthy {
    Always(bool),
    After(Duration),
}

/// `\d+(ms|s|m|h)`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let number: u64 = digits.parse().map_err(|_| format!("`{text}` is no duration, such as 500ms or 2s"))?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("`{text}` needs a unit: ms, s, m or h")),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(|| format!("`{text}` is too long"))
}

fn healthy(text: &str) -> Result<Healthy, String> {
    match text {
        "true" => Ok(Healthy::Always(true)),
        "false" => Ok(Healthy::Always(false)),
        _ => match text.strip_prefix("after=") {
            Some(rest) => duration(rest).map(Healthy::After),
            None => Err(format!("`{text}` is none of true, false, after=DURATION")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, want) in
            [("0ms", Some(0)), ("250ms", Some(250)), ("2s", Some(2_000)), ("1m", Some(60_000)), ("1h", Some(3_600_000))]
        {
            assert_eq!(duration(text).ok(), want.map(Duration::from_millis), "{text}");
        }
        for text in ["", "s", "5", "5d", "-1s", "1.5s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn health() {
        assert_eq!(healthy("true"), Ok(Healthy::Always(true)));
        assert_eq!(healthy("after=2s"), Ok(Healthy::After(Duration::from_secs(2))));
        assert!(healthy("later").is_err());
    }
}
