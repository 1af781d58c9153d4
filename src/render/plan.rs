//! A plan, as a diff that a person can approve.

use std::fmt::Write as _;
use std::io;

use itsup_control::db::Diagnostic;
use itsup_control::plan::{Change, Plan, ProjectPlan, ServicePlan, Step};

use super::table::{Colour, paint};
use super::{Output, colour};
use crate::failure::Failure;

/// What the process ends with where there is something to do and that was asked for.
const SOMETHING_TO_DO: u8 = 3;

impl Output {
    /// Shows a plan. `live` says whether a running itsup was asked for its traffic.
    pub(crate) fn plan(
        &self,
        plan: &Plan,
        warnings: &[Diagnostic],
        live: bool,
        exit_code: bool,
    ) -> Result<(), Failure> {
        self.diagnostics(warnings);
        if exit_code && plan.has_changes() {
            self.exit_code.set(SOMETHING_TO_DO);
        }
        self.result(&plan.shown(), || text(plan, live, colour(&io::stdout())))
    }
}

fn text(plan: &Plan, live: bool, colours: bool) -> String {
    let mut text = String::new();
    if plan.create_network {
        let _ = writeln!(text, "{}", paint("+ network proxynet", Colour::Green, colours));
    }
    for project in plan.projects.iter().filter(|project| project.change != Change::None) {
        project_text(&mut text, project, live, colours);
    }
    for gone in &plan.gone {
        let what = match (gone.removed, gone.containers) {
            (true, 0) => "is removed; its volumes stay".to_owned(),
            (true, count) => format!("is taken down ({count} containers) and removed; its volumes stay"),
            (false, 0) => "is no longer in db.yml; `itsup apply --prune` removes it".to_owned(),
            (false, count) => {
                format!("is no longer in db.yml and has {count} containers; `itsup apply --prune` removes it")
            }
        };
        let colour = if gone.removed { Colour::Red } else { Colour::Yellow };
        let _ = writeln!(text, "{}", paint(&format!("- upstream/{} {what}", printable(&gone.folder)), colour, colours));
    }
    for (sign, colour, hosts) in [("+", Colour::Green, &plan.hosts_added), ("-", Colour::Red, &plan.hosts_dropped)] {
        for host in hosts {
            let _ = writeln!(text, "{}", paint(&format!("{sign} host {host}"), colour, colours));
        }
    }
    let same = plan.projects.iter().filter(|project| project.change == Change::None).count();
    let _ = match (plan.has_changes(), same) {
        (true, 0) => Ok(()),
        (true, same) => writeln!(text, "{same} {} unchanged", if same == 1 { "project" } else { "projects" }),
        (false, _) => writeln!(text, "nothing to do"),
    };
    text
}

fn project_text(text: &mut String, project: &ProjectPlan, live: bool, colours: bool) {
    let (sign, colour, what) = match project.change {
        Change::Create => ("+", Colour::Green, "is created"),
        Change::Remove => ("-", Colour::Red, "is taken down; its volumes stay"),
        Change::Change if project.services.iter().any(ServicePlan::acts) => ("~", Colour::Yellow, "changes"),
        Change::Change | Change::None => ("~", Colour::Cyan, "has its compose file written; no container is touched"),
    };
    let _ = writeln!(text, "{}", paint(&format!("{sign} {} {what}", printable(&project.project)), colour, colours));
    let width = project.services.iter().map(|one| one.service.chars().count()).max().unwrap_or_default();
    for service in &project.services {
        service_text(text, service, width, live, colours);
    }
    for command in project.before.iter().filter(|_| project.change != Change::Remove) {
        let _ = writeln!(text, "    first: {}", printable(command));
    }
    for image in &project.pulls {
        let _ = writeln!(text, "    pull: {} is not here yet", printable(image));
    }
}

fn service_text(text: &mut String, service: &ServicePlan, width: usize, live: bool, colours: bool) {
    let colour = match service.step {
        Step::Start => Some(Colour::Green),
        Step::RollOver | Step::RecreateInPlace => Some(Colour::Yellow),
        Step::Remove => Some(Colour::Red),
        Step::NoChange => None,
    };
    let step = format!("{:17}", service.step);
    let step = colour.map_or(step.clone(), |colour| paint(&step, colour, colours));
    let pin = if service.pinned { " (held by a rollback; `itsup apply --unpin` lets go)" } else { "" };
    let asked = if service.needs_prune { " (only with --prune)" } else { "" };
    let name = printable(&service.service);
    let mut reasons = service.reasons.iter().map(|reason| printable(&reason.to_string()));
    let line = format!("    {name:width$}  {step}  {}{pin}{asked}", reasons.next().unwrap_or_default());
    let _ = writeln!(text, "{}", line.trim_end());
    for reason in reasons {
        let _ = writeln!(text, "    {:width$}  {:17}  {reason}", "", "");
    }
    match &service.impact {
        Some(impact) => {
            let _ = writeln!(text, "    {:width$}  {:17}  traffic: {impact}", "", "");
        }
        None if !live && matches!(service.step, Step::RollOver | Step::RecreateInPlace) => {
            let _ = writeln!(text, "    {:width$}  {:17}  traffic: none, as no itsup runs here", "", "");
        }
        None => {}
    }
}

/// No name may drive the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use itsup_control::plan::{Gone, Impact, Reason};

    use super::*;

    fn service(name: &str, step: Step, reasons: &[&str]) -> ServicePlan {
        ServicePlan {
            service: name.into(),
            compose_service: format!("shop-{name}"),
            step,
            reasons: reasons.iter().map(|key| Reason::new(*key, Some("a".into()), Some("b".into()))).collect(),
            replicas: 1,
            replaces: false,
            routed: true,
            pinned: false,
            needs_prune: false,
            impact: None,
        }
    }

    fn example() -> Plan {
        let mut web = service("web", Step::RollOver, &["image", "env.A"]);
        web.impact = Some(Impact {
            requests: 1,
            streams: 0,
            websockets: 14,
            passthrough: 0,
            closed_after_seconds: Some(300),
            held: false,
            away: false,
            about_seconds: None,
        });
        let mut old = service("old", Step::Remove, &[]);
        old.needs_prune = true;
        let mut held = service("held", Step::NoChange, &[]);
        held.pinned = true;
        let project = |name: &str, change, services| ProjectPlan {
            project: name.into(),
            change,
            services,
            pulls: vec!["app:2".into()],
            writes: true,
            before: vec!["migrate".into()],
        };
        let start = vec![service("db", Step::Start, &["containers"])];
        let same = ProjectPlan { writes: false, ..project("same", Change::None, Vec::new()) };
        Plan {
            create_network: true,
            projects: vec![
                project("new", Change::Create, start),
                project(
                    "shop",
                    Change::Change,
                    vec![service("database", Step::RecreateInPlace, &["image"]), web, held, old],
                ),
                same,
            ],
            gone: vec![Gone { folder: "old".into(), compose_name: "old".into(), containers: 2, removed: false }],
            hosts_added: vec!["a.test".into()],
            hosts_dropped: vec!["b.test".into()],
        }
    }

    #[test]
    fn a_plan_is_a_diff() {
        insta::assert_snapshot!(text(&example(), false, false));
    }

    #[test]
    fn nothing_to_do_is_one_line() {
        assert_eq!(text(&Plan::default(), true, false), "nothing to do\n");
    }
}
