use itsup_control::status::{
    CertificateReport, ChangeReport, DockerReport, HeldReport, InFlightReport, Listen, Reloads, TallyReport,
    UpstreamReport,
};

use super::*;

fn endpoint(address: &str, state: &str, requests: u32) -> EndpointReport {
    EndpointReport {
        id: address.into(),
        address: address.into(),
        state: state.into(),
        in_flight: InFlightReport { requests, streams: 1, websockets: 2, passthrough: 0 },
        tally: TallyReport::default(),
    }
}

fn certificate(host: &str, file: Option<&str>, days_left: i64) -> CertificateReport {
    CertificateReport {
        host: host.into(),
        source: if file.is_some() { "file" } else { "internal" }.into(),
        file: file.map(Into::into),
        not_after: "2026-12-01T00:00:00Z".into(),
        days_left,
        issuer: String::new(),
        acme: None,
    }
}

fn status() -> StatusReport {
    let upstream = |name: &str, endpoints| UpstreamReport { name: name.into(), endpoints, held: None };
    StatusReport {
        version: "0.1.0".into(),
        pid: 42,
        uptime_seconds: 3 * 3600 + 120,
        generation: 7,
        hosts: 3,
        connections: 12,
        listen: Listen { http: "[::]:80".into(), https: "[::]:443".into(), api: Some("127.0.0.1:8888".into()) },
        docker: DockerReport { state: "up".into(), detail: Some("28.0.1".into()) },
        upstreams: vec![
            upstream(
                "web/app",
                vec![endpoint("172.18.0.2:8080", "up", 130), endpoint("172.18.0.3:8080", "set aside", 0)],
            ),
            upstream("nas", vec![]),
            UpstreamReport { held: Some(HeldReport { waiting: 7, ..HeldReport::default() }), ..upstream("db", vec![]) },
        ],
        draining: vec![endpoint("172.18.0.9:8080", "draining", 1)],
        changes: vec![ChangeReport {
            job: 9,
            what: "rollout web app".into(),
            state: "running".into(),
            since: "2026-11-01T12:00:00Z".into(),
        }],
        pins: vec!["web/app".into()],
        certificates: vec![
            certificate("a.example.com", Some("./certs/a.example.com/fullchain.pem"), 3),
            certificate("*.b.example.com", None, 6),
        ],
        reloads: Reloads { done: 6, refused: 1 },
        last_good: false,
        diagnostics: Vec::new(),
        warnings: vec!["ITSUP_HTTP has changed, which needs a restart".into()],
    }
}

#[test]
fn status_is_one_aligned_table() {
    insta::assert_snapshot!(status_text(&status(), false));
}

#[test]
fn colours_take_no_width() {
    let coloured = status_text(&status(), true);
    assert!(coloured.contains("\x1b[31mset aside\x1b[0m"));
    let mut plain = String::new();
    let mut rest = coloured.as_str();
    while let Some((before, after)) = rest.split_once('\x1b') {
        plain.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    plain.push_str(rest);
    assert_eq!(plain, status_text(&status(), false));
}

#[test]
fn many_internal_certificates_are_told_in_one_line() {
    let mut status = status();
    status.certificates = (0..25).map(|n| certificate(&format!("h{n}.example.com"), None, n)).collect();
    let text = status_text(&status, false);
    assert!(text.contains("h19.example.com") && !text.contains("h20.example.com"));
    let last = text.lines().find(|line| line.starts_with("(5 more)")).unwrap();
    assert_eq!(last.split_whitespace().collect::<Vec<_>>(), ["(5", "more)", "internal", "CA", "0"]);
}

#[test]
fn a_reload_lists_what_it_did() {
    let report = ReloadReport {
        generation: 8,
        changed: true,
        added: vec!["new.example.com".into()],
        removed: vec!["old.example.com".into()],
        changed_hosts: (0..51).map(|n| format!("h{n}.example.com")).collect(),
        warnings: Vec::new(),
    };
    let text = reload_text(&report, false);
    assert!(text.starts_with("+ new.example.com\n~ h0.example.com\n"), "{text}");
    assert!(
        text.ends_with(
            "~ h49.example.com\n~ 1 more\n- old.example.com\ngeneration 8: 1 added, 51 changed, 1 removed\n"
        )
    );
    assert_eq!(
        reload_text(&ReloadReport { generation: 8, ..ReloadReport::default() }, false),
        "generation 8: nothing changed\n"
    );
}

#[test]
fn a_failure_shows_faults_then_the_error_then_the_hint() {
    insta::assert_snapshot!(failure_text(&Failure::with_hint("no itsup runs on .", "start it"), false), @r"
    error: no itsup runs on .
    hint: start it
    ");
}

#[test]
fn the_ready_line_names_every_listener() {
    let ready = Ready { http: "[::]:80".into(), https: "[::]:443".into(), api: None };
    assert_eq!(ready_line(&ready), "itsup is ready: http [::]:80, https [::]:443, api off");
}

#[test]
fn names_cannot_drive_the_terminal() {
    let mut table = Table::new();
    table.row([("a\x1b[2Jb", None)]);
    assert_eq!(table.render(false), "a\u{fffd}[2Jb\n");
}

#[test]
fn times_have_two_units() {
    for (seconds, text) in [(0, "0s"), (59, "59s"), (61, "1m 1s"), (3_700, "1h 1m"), (180_000, "2d 2h")] {
        assert_eq!(span(seconds), text);
    }
}
