//! What an apply did, and what `write` wrote.

use std::fmt::Write as _;
use std::io;

use itsup_control::apply::Applied;
use itsup_control::db::Diagnostic;

use super::plan::printable;
use super::progress::Progress;
use super::table::{Colour, paint};
use super::{Output, colour};
use crate::failure::Failure;

impl Output {
    /// Where the progress of a change is shown: live on a terminal, as plain lines elsewhere.
    pub(crate) fn progress(&self) -> Progress {
        Progress::new(self.json)
    }

    /// Shows what an apply did; where some of it failed, that is this process's end.
    pub(crate) fn applied(&self, applied: &Applied) -> Result<(), Failure> {
        let ok = applied.outcome().success;
        if !ok {
            self.exit_code.set(1);
        }
        self.result(applied, || text(applied, colour(&io::stdout())))
    }

    pub(crate) fn written(&self, written: &[(String, bool)]) -> Result<(), Failure> {
        let projects: Vec<_> = written
            .iter()
            .map(|(project, changed)| serde_json::json!({ "project": project, "changed": changed }))
            .collect();
        let value = serde_json::json!({ "projects": projects });
        self.result(&value, || {
            let line = |(project, changed): &(String, bool)| {
                let what = if *changed { "written" } else { "unchanged" };
                format!("upstream/{project}/docker-compose.yml {what}\n")
            };
            match written {
                [] => "no project has containers\n".to_owned(),
                some => some.iter().map(line).collect(),
            }
        })
    }

    /// Warnings of db.yml, for people.
    pub(crate) fn diagnostics(&self, warnings: &[Diagnostic]) {
        if !self.json {
            warnings.iter().for_each(|warning| self.say(&warning.to_string()));
        }
    }

    /// A warning, for people.
    pub(crate) fn warning(&self, warning: &str) {
        if !self.json {
            self.say(&format!("warning: {}", printable(warning)));
        }
    }
}

fn text(applied: &Applied, colours: bool) -> String {
    let mut text = String::new();
    let mut line = |line: String, colour: Option<Colour>| {
        let line = printable(&line);
        let _ = writeln!(text, "{}", colour.map_or(line.clone(), |colour| paint(&line, colour, colours)));
    };
    if applied.network_created {
        line("+ network proxynet".into(), Some(Colour::Green));
    }
    for project in &applied.projects {
        for service in &project.services {
            line(format!("{}/{} {}: {}", project.project, service.service, service.step, service.summary), None);
        }
        for warning in &project.warnings {
            line(format!("warning: {}: {warning}", project.project), Some(Colour::Yellow));
        }
    }
    for project in &applied.removed {
        line(format!("- upstream/{project}"), Some(Colour::Red));
    }
    for project in &applied.gone {
        line(format!("upstream/{project} is no longer in db.yml; --prune removes it"), Some(Colour::Yellow));
    }
    for warning in &applied.warnings {
        line(format!("warning: {warning}"), Some(Colour::Yellow));
    }
    for project in applied.projects.iter().filter(|project| !project.ok) {
        for logged in &project.log {
            line(format!("  | {logged}"), None);
        }
        line(format!("{} failed: {}", project.project, project.error), Some(Colour::Red));
        if let Some(hint) = &project.hint {
            line(format!("hint: {hint}"), Some(Colour::Cyan));
        }
    }
    line(applied.summary(), None);
    text
}

#[cfg(test)]
mod tests {
    use itsup_control::apply::{ProjectApplied, ServiceApplied};
    use itsup_control::plan::Step;

    use super::*;

    #[test]
    fn what_was_done_and_what_failed() {
        let service = |service: &str, step, summary: &str| ServiceApplied {
            service: service.into(),
            step,
            summary: summary.into(),
            receipt: None,
        };
        let applied = Applied {
            network_created: true,
            projects: vec![
                ProjectApplied {
                    project: "shop".into(),
                    ok: true,
                    services: vec![
                        service("web", Step::RollOver, "2 new, 0 failed"),
                        service("db", Step::Start, "1 started"),
                    ],
                    warnings: vec!["the pull failed".into()],
                    ..ProjectApplied::default()
                },
                ProjectApplied { project: "same".into(), ok: true, ..ProjectApplied::default() },
                ProjectApplied {
                    project: "bad".into(),
                    error: "web: it ended with 1".into(),
                    hint: Some("look".into()),
                    log: vec!["panic\x1b[2J".into()],
                    ..ProjectApplied::default()
                },
            ],
            removed: vec!["old".into()],
            gone: vec!["older".into()],
            seconds: 1.26,
            ..Applied::default()
        };
        insta::assert_snapshot!(text(&applied, false));
        assert!(!applied.outcome().success);
    }
}
