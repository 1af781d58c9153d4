//! What the day-to-day commands print: init, doctor, service.

use std::io;

use super::table::{Colour, paint};
use super::{Output, colour};
use crate::doctor::{Check, Verdict};
use crate::failure::Failure;
use crate::init::Made;
use crate::service::Report;

impl Output {
    pub(crate) fn made(&self, made: &Made) -> Result<(), Failure> {
        self.result(made, || {
            let width = made.entries.iter().map(|entry| entry.name.len()).max().unwrap_or_default();
            let lines = made.entries.iter().map(|entry| {
                let there = if entry.new { "new " } else { "kept" };
                format!("{there}  {:width$}  {}\n", entry.name, entry.what)
            });
            let next = "\nNext: write your projects into db.yml, look at them with `itsup validate`, and start with `itsup run`\n\
                        or, as a service, with `itsup service install`. `itsup doctor` says what is missing.\n";
            format!("{}:\n{}{next}", made.root, lines.collect::<String>())
        })
    }

    pub(crate) fn examined(&self, checks: &[Check]) -> Result<(), Failure> {
        self.result(&checks, || checks_text(checks, colour(&io::stdout())))
    }

    pub(crate) fn service(&self, done: &str, report: &Report) -> Result<(), Failure> {
        self.result(report, || {
            let mut lines: Vec<String> =
                report.units.iter().map(|unit| format!("{done}: {}", unit.display())).collect();
            if !report.active.is_empty() {
                let pid = report.main_pid.map(|pid| format!(", process {pid}")).unwrap_or_default();
                let enabled = if report.enabled.is_empty() { "not installed" } else { &report.enabled };
                lines.push(format!("service: {}, {enabled}{pid}", report.active));
            }
            lines.extend(report.notes.iter().cloned());
            if lines.is_empty() {
                lines.push("nothing to do".into());
            }
            lines.join("\n") + "\n"
        })
    }
}

fn checks_text(checks: &[Check], coloured: bool) -> String {
    let width = checks.iter().map(|check| check.what.len()).max().unwrap_or_default();
    let lines = checks.iter().map(|check| {
        let (word, shade) = match check.verdict {
            Verdict::Good => ("ok  ", Colour::Green),
            Verdict::Warning => ("warn", Colour::Yellow),
            Verdict::Bad => ("BAD ", Colour::Red),
        };
        let hint = check.hint.as_ref().map(|hint| format!("\n      {:width$}  -> {hint}", "")).unwrap_or_default();
        format!("{}  {:width$}  {}{hint}\n", paint(word, shade, coloured), check.what, check.found)
    });
    lines.collect()
}
