//! Control's own metrics, in Prometheus' text format.
//!
//! Pure. The internal CA's leaves are counted by their earliest end alone: there may be 100,000 of them.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::control::certificates::Shown;
use crate::observed::Engine;
use crate::status::Reloads;

/// What control's metrics are made of.
pub(crate) struct Own<'a> {
    pub(crate) docker: &'a Engine,
    pub(crate) reloads: Reloads,
    pub(crate) certificates: &'a [Shown],
    pub(crate) root_not_after: Option<SystemTime>,
    pub(crate) projects_with_faults: usize,
}

/// Appends the metrics.
pub(crate) fn write(out: &mut String, own: &Own<'_>) {
    if *own.docker != Engine::Off {
        head(out, "itsup_docker_up", "gauge", "Whether the Docker engine answers.");
        line(out, "itsup_docker_up", u64::from(matches!(own.docker, Engine::Up { .. })));
    }
    head(out, "itsup_reloads_total", "counter", "Reloads since the start, by result.");
    line(out, "itsup_reloads_total{result=\"done\"}", own.reloads.done);
    line(out, "itsup_reloads_total{result=\"refused\"}", own.reloads.refused);
    head(out, "itsup_faulty_projects", "gauge", "Projects of db.yml that are left out.");
    line(out, "itsup_faulty_projects", own.projects_with_faults as u64);
    let name = "itsup_certificate_not_after_seconds";
    head(out, name, "gauge", "When a certificate ends, in seconds since 1970.");
    for shown in own.certificates.iter().filter(|shown| shown.file.is_some()) {
        // A host has no character that would need an escape.
        let source = if shown.managed { "acme" } else { "file" };
        line(out, &format!("{name}{{host=\"{}\",source=\"{source}\"}}", shown.host), seconds(shown.not_after));
    }
    let internal = own.certificates.iter().filter(|shown| shown.file.is_none()).map(|shown| shown.not_after).min();
    if let Some(first) = internal {
        line(out, &format!("{name}{{host=\"\",source=\"internal\"}}"), seconds(first));
    }
    if let Some(root) = own.root_not_after {
        line(out, &format!("{name}{{host=\"\",source=\"internal-root\"}}"), seconds(root));
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, value: u64) {
    let _ = writeln!(out, "{name} {value}");
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use itsup_proxy::HostPattern;

    use super::*;
    use crate::acme::store::Place;

    #[test]
    fn reads_as_prometheus_text() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let shown = |host: &str, file, not_after| Shown {
            host: HostPattern::parse(host).unwrap(),
            file,
            managed: false,
            issuer: "a CA".into(),
            not_after,
        };
        let place = Place { cert: "c".into(), key: "k".into() };
        let certificates = [
            shown("a.example.com", Some(place), at(10)),
            shown("b.example.com", None, at(30)),
            shown("*.c.example.com", None, at(20)),
        ];
        let mut text = String::new();
        write(
            &mut text,
            &Own {
                docker: &Engine::Up { version: "28".into() },
                reloads: Reloads { done: 2, refused: 1 },
                certificates: &certificates,
                root_not_after: Some(at(40)),
                projects_with_faults: 3,
            },
        );
        insta::assert_snapshot!(text, @r#"
        # HELP itsup_docker_up Whether the Docker engine answers.
        # TYPE itsup_docker_up gauge
        itsup_docker_up 1
        # HELP itsup_reloads_total Reloads since the start, by result.
        # TYPE itsup_reloads_total counter
        itsup_reloads_total{result="done"} 2
        itsup_reloads_total{result="refused"} 1
        # HELP itsup_faulty_projects Projects of db.yml that are left out.
        # TYPE itsup_faulty_projects gauge
        itsup_faulty_projects 3
        # HELP itsup_certificate_not_after_seconds When a certificate ends, in seconds since 1970.
        # TYPE itsup_certificate_not_after_seconds gauge
        itsup_certificate_not_after_seconds{host="a.example.com",source="file"} 10
        itsup_certificate_not_after_seconds{host="",source="internal"} 20
        itsup_certificate_not_after_seconds{host="",source="internal-root"} 40
        "#);
    }
}
