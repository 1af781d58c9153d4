//! Jobs and what they say, for people.

use std::io;

use itsup_control::db_file::Former;
use itsup_control::jobs::{JobReport, JobState, Note, Origin};

use super::table::{Colour, Table};
use super::{Output, colour};
use crate::failure::Failure;
use crate::{follow, history};

impl Output {
    /// The jobs as a table.
    pub(crate) fn jobs(&self, jobs: &[JobReport]) -> Result<(), Failure> {
        self.result(&jobs, || if jobs.is_empty() { "no jobs".into() } else { text(jobs, colour(&io::stdout())) })
    }

    /// What db.yml was.
    pub(crate) fn history(&self, formers: &[Former]) -> Result<(), Failure> {
        self.result(&formers, || history::lines(formers))
    }

    /// A text as it is; for programs, as a JSON string.
    pub(crate) fn text(&self, text: &str) -> Result<(), Failure> {
        self.result(&text, || text.to_owned())
    }

    /// Something is done.
    pub(crate) fn done(&self, message: &str) -> Result<(), Failure> {
        self.result(&serde_json::json!({ "done": true, "message": message }), || message.to_owned())
    }

    /// One thing that a job says, as a line on stderr; programs read the end alone.
    pub(crate) fn note(&self, note: &Note) {
        if let (Note::Progress(event), false) = (note, self.json) {
            self.say(&follow::line(event));
        }
    }
}

fn text(jobs: &[JobReport], colours: bool) -> String {
    let mut table = Table::new();
    table.head(["JOB", "STATE", "WORK", "ASKED BY", "SINCE", "OUTCOME"]);
    for job in jobs {
        let (state, colour) = match job.state {
            JobState::Queued => ("queued", None),
            JobState::Running => ("running", Some(Colour::Cyan)),
            JobState::Done => ("done", Some(Colour::Green)),
            JobState::Failed => ("failed", Some(Colour::Red)),
            JobState::Cancelled => ("cancelled", Some(Colour::Yellow)),
        };
        let since = job.ended.as_ref().or(job.started.as_ref()).unwrap_or(&job.created);
        let outcome = job.outcome.as_ref().map(|outcome| outcome.message.as_str()).unwrap_or_default();
        table.row([
            (job.id.to_string().as_str(), None),
            (state, colour),
            (job.work.to_string().as_str(), None),
            (asked_by(&job.origins).as_str(), None),
            // To the second.
            (since.split('.').next().unwrap_or(since), None),
            (outcome, None),
        ]);
    }
    table.render(colours)
}

fn asked_by(origins: &[Origin]) -> String {
    let name = |origin: &Origin| match origin {
        Origin::Cli => "cli".to_owned(),
        Origin::Api { key: Some(key) } => format!("api ({key})"),
        Origin::Api { key: None } => "api".to_owned(),
        Origin::Webhook { event, .. } => format!("webhook ({event})"),
        Origin::Timer => "timer".to_owned(),
    };
    match origins {
        [] => String::new(),
        [one] => name(one),
        [first, rest @ ..] => format!("{} and {} more", name(first), rest.len()),
    }
}
