//! What people and programs see: text tables, colours, and JSON.
//!
//! Results go to stdout, errors to stderr; with `--json` an error is also the result, on stdout.

use std::cell::Cell;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use itsup_control::db::Diagnostic;
use itsup_control::self_update::SelfUpdated;
use itsup_control::status::{EndpointReport, ReloadReport, StatusReport};
use itsup_control::upgrade::UpgradeReport;
use serde::Serialize;

use crate::failure::Failure;

mod apply;
mod certs;
mod day;
mod jobs;
mod plan;
mod progress;
mod table;
#[cfg(test)]
mod tests;

use table::{Colour, Table};

/// Certificates of the internal CA that are listed one by one; more are told in one line.
const INTERNAL_LISTED: usize = 20;
/// Hosts that a reload lists by name in each group.
const HOSTS_LISTED: usize = 50;

/// Where results go, and in which form.
pub(crate) struct Output {
    json: bool,
    /// What the process ends with where nothing has failed.
    exit_code: Cell<u8>,
}

/// Where a running itsup listens.
#[derive(Debug, Serialize)]
pub(crate) struct Ready {
    pub(crate) http: String,
    pub(crate) https: String,
    pub(crate) api: Option<String>,
}

/// Whether this stream takes colours: a terminal, and nobody has said no (<https://no-color.org>).
pub(crate) fn colour(stream: &impl IsTerminal) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && stream.is_terminal()
}

impl Output {
    pub(crate) fn new(json: bool) -> Output {
        Output { json, exit_code: Cell::new(0) }
    }

    /// What the process ends with.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit_code.get())
    }

    /// One line: everything is up.
    pub(crate) fn ready(&self, ready: &Ready) -> Result<(), Failure> {
        if self.json {
            let mut value = serde_json::json!({ "ready": true, "pid": std::process::id() });
            if let (Some(all), Ok(serde_json::Value::Object(own))) =
                (value.as_object_mut(), serde_json::to_value(ready))
            {
                all.extend(own);
            }
            return self.line(&value.to_string());
        }
        self.line(&ready_line(ready))
    }

    pub(crate) fn reload(&self, report: &ReloadReport) -> Result<(), Failure> {
        self.warnings(&report.warnings);
        self.result(report, || reload_text(report, colour(&io::stdout())))
    }

    pub(crate) fn status(&self, report: &StatusReport) -> Result<(), Failure> {
        self.result(report, || status_text(report, colour(&io::stdout())))
    }

    pub(crate) fn upgraded(&self, report: &UpgradeReport) -> Result<(), Failure> {
        self.result(report, || {
            let UpgradeReport { pid, version, took_ms, draining } = report;
            format!("itsup {version} has taken over as process {pid} in {took_ms} ms; {draining} connections drain\n")
        })
    }

    pub(crate) fn self_updated(&self, report: &SelfUpdated) -> Result<(), Failure> {
        self.result(report, || {
            let steps = [("itsUP", &report.itsup), ("db.yml", &report.db)];
            let told = steps.iter().filter_map(|(what, step)| {
                let step = step.as_ref()?;
                Some(format!("{what} is at {} now, and was at {}\n", step.to, step.from))
            });
            let told: String = told.collect();
            if told.is_empty() { "everything is up to date\n".into() } else { told }
        })
    }

    pub(crate) fn valid(&self, warnings: &[Diagnostic]) -> Result<(), Failure> {
        if !self.json {
            let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
            self.say(&warnings.join("\n"));
        }
        let value = serde_json::json!({ "valid": true, "diagnostics": warnings });
        self.result(&value, || match warnings.len() {
            0 => "db.yml is valid\n".into(),
            1 => "db.yml is valid, with 1 warning\n".into(),
            n => format!("db.yml is valid, with {n} warnings\n"),
        })
    }

    pub(crate) fn schema(&self, schema: &serde_json::Value) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(schema).context("the schema cannot be written")?;
        self.line(&text)
    }

    /// Prints why a command failed.
    pub(crate) fn failure(&self, failure: &Failure) {
        if self.json {
            self.print_json(&failure.report);
            self.say(&format!("error: {}", failure.report.error));
            return;
        }
        self.say(failure_text(failure, colour(&io::stderr())).trim_end());
    }

    /// Prints a value; there is nobody to tell when that fails.
    pub(crate) fn print_json(&self, value: &impl Serialize) {
        if let Ok(text) = serde_json::to_string(value) {
            let _ = self.line(&text);
        }
    }

    fn result(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.json {
            return self.line(&serde_json::to_string(value).context("the result cannot be written")?);
        }
        self.line(text().trim_end())
    }

    fn warnings(&self, warnings: &[String]) {
        if !self.json {
            let lines: Vec<String> = warnings.iter().map(|warning| format!("warning: {warning}")).collect();
            self.say(&lines.join("\n"));
        }
    }

    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            // A reader that has seen enough (`| head`) is no failure.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => Ok(written.context("stdout cannot be written to")?),
        }
    }

    fn say(&self, text: &str) {
        if !text.is_empty() {
            // Without a stderr there is nobody to tell.
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }
}

fn ready_line(ready: &Ready) -> String {
    let api = ready.api.as_deref().unwrap_or("off");
    format!("itsup is ready: http {}, https {}, api {api}", ready.http, ready.https)
}

fn failure_text(failure: &Failure, coloured: bool) -> String {
    let report = &failure.report;
    let mut text = String::new();
    for diagnostic in &report.diagnostics {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "{diagnostic}");
    }
    let _ = writeln!(text, "{}: {}", table::paint("error", Colour::Red, coloured), report.error);
    if let Some(hint) = &report.hint {
        let _ = writeln!(text, "{}: {hint}", table::paint("hint", Colour::Cyan, coloured));
    }
    text
}

fn reload_text(report: &ReloadReport, coloured: bool) -> String {
    let mut text = String::new();
    let groups = [
        ("+", Colour::Green, &report.added),
        ("~", Colour::Yellow, &report.changed_hosts),
        ("-", Colour::Red, &report.removed),
    ];
    for (sign, colour, hosts) in groups {
        for host in hosts.iter().take(HOSTS_LISTED) {
            let _ = writeln!(text, "{}", table::paint(&format!("{sign} {host}"), colour, coloured));
        }
        if let Some(more) = hosts.len().checked_sub(HOSTS_LISTED).filter(|more| *more > 0) {
            let _ = writeln!(text, "{}", table::paint(&format!("{sign} {more} more"), colour, coloured));
        }
    }
    let ReloadReport { generation, added, removed, changed_hosts, .. } = report;
    let _ = if report.changed {
        let (added, changed, removed) = (added.len(), changed_hosts.len(), removed.len());
        writeln!(text, "generation {generation}: {added} added, {changed} changed, {removed} removed")
    } else {
        writeln!(text, "generation {generation}: nothing changed")
    };
    text
}

fn status_text(report: &StatusReport, coloured: bool) -> String {
    let mut text = String::new();
    let uptime = span(report.uptime_seconds);
    let _ = writeln!(
        text,
        "itsup {}, pid {}, up {uptime}, generation {}, {} hosts, {} connections",
        report.version, report.pid, report.generation, report.hosts, report.connections
    );
    let api = report.listen.api.as_deref().unwrap_or("off");
    let _ = writeln!(text, "http {}, https {}, api {api}", report.listen.http, report.listen.https);
    let docker = &report.docker;
    let detail = docker.detail.as_deref().map(|detail| format!(" ({detail})")).unwrap_or_default();
    let state = table::paint(&docker.state, state_colour(&docker.state), coloured);
    let reloads = &report.reloads;
    let _ = writeln!(text, "docker {state}{detail}, reloads {} done, {} refused", reloads.done, reloads.refused);
    text.push('\n');
    text.push_str(&status_table(report).render(coloured));
    changes_and_pins(&mut text, report, coloured);
    let problems = report.diagnostics.iter().map(ToString::to_string);
    let warnings = report.warnings.iter().map(|warning| format!("warning: {warning}"));
    for problem in problems.chain(warnings).chain(certs::failures(&report.certificates)) {
        let _ = write!(text, "\n{}", table::paint(&problem, Colour::Yellow, coloured));
    }
    text
}

fn changes_and_pins(text: &mut String, report: &StatusReport, coloured: bool) {
    for change in &report.changes {
        let state = table::paint(&change.state, Colour::Cyan, coloured);
        let _ =
            write!(text, "\njob {}: {} ({state} since {})", change.job, plan::printable(&change.what), change.since);
    }
    for pin in &report.pins {
        let pin = plan::printable(pin);
        let _ =
            write!(text, "\n{pin} is held by a rollback until its part of db.yml changes, or `itsup apply --unpin`");
    }
}

/// One table for endpoints and certificates, so that everything stands in line.
fn status_table(report: &StatusReport) -> Table {
    let mut table = Table::new();
    table.head(["UPSTREAM", "ENDPOINT", "STATE", "REQUESTS", "STREAMS", "WEBSOCKETS", "PASSTHROUGH"]);
    for upstream in &report.upstreams {
        for endpoint in &upstream.endpoints {
            endpoint_row(&mut table, &upstream.name, endpoint);
        }
        if let Some(held) = &upstream.held {
            let (waiting, state) = (held.waiting.to_string(), Some(Colour::Yellow));
            table.row([(upstream.name.as_str(), None), ("-", None), ("held", state), (waiting.as_str(), None)]);
        } else if upstream.endpoints.is_empty() {
            table.row([(upstream.name.as_str(), None), ("-", None), ("no endpoint", Some(Colour::Red))]);
        }
    }
    for endpoint in &report.draining {
        endpoint_row(&mut table, "(retired)", endpoint);
    }
    table.blank();
    table.head(["CERTIFICATE", "FROM", "DAYS LEFT"]);
    let (files, internal): (Vec<_>, Vec<_>) =
        report.certificates.iter().partition(|certificate| certificate.source != "internal");
    for certificate in &files {
        let left = certificate.days_left.to_string();
        let colour = if certificate.days_left < 7 { Colour::Red } else { Colour::Green };
        let from = certificate.file.as_deref().unwrap_or("file");
        table.row([(certificate.host.as_str(), None), (from, None), (left.as_str(), Some(colour))]);
    }
    for certificate in internal.iter().take(INTERNAL_LISTED) {
        let left = certificate.days_left.to_string();
        table.row([(certificate.host.as_str(), None), ("internal CA", None), (left.as_str(), None)]);
    }
    if let Some(more) = internal.len().checked_sub(INTERNAL_LISTED).filter(|more| *more > 0) {
        let soonest = internal.iter().map(|certificate| certificate.days_left).min().unwrap_or_default().to_string();
        let name = format!("({more} more)");
        table.row([(name.as_str(), None), ("internal CA", None), (soonest.as_str(), None)]);
    }
    table
}

fn endpoint_row(table: &mut Table, upstream: &str, endpoint: &EndpointReport) {
    let count = endpoint.in_flight;
    let counts = [count.requests, count.streams, count.websockets, count.passthrough].map(|count| count.to_string());
    let [requests, streams, websockets, passthrough] = counts.each_ref().map(String::as_str);
    table.row([
        (upstream, None),
        (endpoint.address.as_str(), None),
        (endpoint.state.as_str(), Some(state_colour(&endpoint.state))),
        (requests, None),
        (streams, None),
        (websockets, None),
        (passthrough, None),
    ]);
}

fn state_colour(state: &str) -> Colour {
    match state {
        "up" => Colour::Green,
        "unhealthy" | "off" => Colour::Yellow,
        "draining" => Colour::Cyan,
        _ => Colour::Red,
    }
}

/// A time as people say it, in its two largest units.
fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}
