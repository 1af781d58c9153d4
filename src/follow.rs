//! Asking the running itsup for a change, and listening to its job until it ends.
//!
//! Ctrl-C stops listening, and the job goes on; a second one soon after cancels it.

use std::time::Duration;

use anyhow::Context as _;
use http::{HeaderName, Method};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use itsup_control::api::Accepted;
use itsup_control::jobs::{Event, JobId, JobReport, Note, Work};
use itsup_control::settings::Root;
use itsup_control::status::ErrorReport;
use tokio::time::{Instant, sleep, timeout};

use crate::client::{self, Answer};
use crate::failure::Failure;

/// How soon a second Ctrl-C must come to cancel the job.
const SECOND: Duration = Duration::from_secs(3);
/// How long a running itsup that went away is waited for: it may be restarting.
const AWAY: Duration = Duration::from_secs(60);

/// Asks for a change, tells everything that its job says, and returns how it ended.
///
/// A job that failed is no failure of this: look at its state, or use [`success`].
pub(crate) fn run(root: &Root, work: &Work, mut tell: impl FnMut(&Note)) -> Result<JobReport, Failure> {
    client::runtime()?.block_on(async {
        let (path, body) = request(work)?;
        let bytes = client::call(root, Method::POST, path, Some(body)).await?;
        let Accepted { job, merged } =
            serde_json::from_slice(&bytes).context("the running itsup's answer cannot be read")?;
        if merged {
            tracing::info!("joined job {}, which is waiting for the same", job.id);
        }
        listen(root, job, &mut tell).await
    })
}

/// The failure that an unsuccessful end is.
pub(crate) fn success(report: &JobReport) -> Result<(), Failure> {
    match &report.outcome {
        Some(outcome) if outcome.success => Ok(()),
        Some(outcome) => Err(ErrorReport {
            error: outcome.message.clone(),
            hint: outcome.hint.clone(),
            diagnostics: outcome.diagnostics.clone(),
        }
        .into()),
        None => Err(Failure::faults(format!("job {} has not ended", report.id), Vec::new())),
    }
}

/// One line for people: what a job says.
pub(crate) fn line(event: &Event) -> String {
    let place = match (&event.project, &event.service) {
        (Some(project), Some(service)) => format!("{project}/{service}: "),
        (Some(project), None) => format!("{project}: "),
        (None, _) => String::new(),
    };
    let phase = format!("{:?}", event.phase).to_lowercase();
    let count = event.count.map(|(done, total)| format!(" {done}/{total}")).unwrap_or_default();
    let detail = if event.detail.is_empty() { String::new() } else { format!(": {}", event.detail) };
    format!("{place}{phase}{count}{detail}")
}

/// The path and the body that ask for this.
fn request(work: &Work) -> Result<(&'static str, Vec<u8>), Failure> {
    let path = match work {
        Work::Apply { .. } => "/apply",
        Work::Rollout { .. } => "/rollout",
        Work::Rollback { .. } => "/rollback",
        Work::SelfUpdate { .. } => "/self-update",
    };
    let mut value = serde_json::to_value(work).context("the request cannot be written")?;
    if let Some(object) = value.as_object_mut() {
        object.remove("kind");
    }
    Ok((path, value.to_string().into_bytes()))
}

/// Listens to a job that was asked for earlier.
pub(crate) fn again(root: &Root, id: JobId, mut tell: impl FnMut(&Note)) -> Result<JobReport, Failure> {
    client::runtime()?.block_on(async {
        let bytes = client::call(root, Method::GET, &format!("/jobs/{id}"), None).await?;
        let job = serde_json::from_slice(&bytes).context("the running itsup's answer cannot be read")?;
        listen(root, job, &mut tell).await
    })
}

async fn listen(root: &Root, mut job: JobReport, tell: &mut impl FnMut(&Note)) -> Result<JobReport, Failure> {
    let mut interrupts = 0;
    let mut heard = 0;
    let mut away_since = None;
    loop {
        let broke = match events(root, job.id, heard).await {
            Ok(mut stream) => loop {
                let said = tokio::select! {
                    said = stream.next() => said,
                    _ = tokio::signal::ctrl_c() => {
                        interrupts += 1;
                        leave_or_cancel(root, &job, interrupts).await?;
                        continue;
                    }
                };
                match said {
                    Ok(Some((number, note))) => {
                        away_since = None;
                        heard = number;
                        tell(&note);
                        if let Note::State(report) = note {
                            job = *report;
                        }
                        if job.state.is_ended() {
                            return Ok(job);
                        }
                    }
                    Ok(None) => break Failure::faults("the running itsup went away", Vec::new()),
                    Err(failure) => break failure,
                }
            },
            Err(failure) => failure,
        };
        // It may be restarting; the job is on its disk.
        if away_since.get_or_insert_with(Instant::now).elapsed() > AWAY {
            return Err(broke);
        }
        tokio::select! {
            () = sleep(Duration::from_millis(500)) => {}
            _ = tokio::signal::ctrl_c() => return Err(broke),
        }
    }
}

/// The first Ctrl-C leaves, unless a second one comes soon, which cancels and goes on listening; a third one leaves.
async fn leave_or_cancel(root: &Root, job: &JobReport, interrupts: u32) -> Result<(), Failure> {
    let id = job.id;
    let left = || Failure::with_hint(format!("job {id} goes on"), "its end is in `itsup jobs`");
    if interrupts > 1 {
        return Err(left());
    }
    eprintln!("no longer watching; Ctrl-C again within {} s cancels the job", SECOND.as_secs());
    if timeout(SECOND, tokio::signal::ctrl_c()).await.is_err() {
        return Err(left());
    }
    client::call(root, Method::POST, &format!("/jobs/{id}/cancel"), None).await?;
    eprintln!("cancelling job {id}; what has been switched already stays");
    Ok(())
}

async fn events(root: &Root, id: JobId, heard: u64) -> Result<Events, Failure> {
    let path = format!("/jobs/{id}/events");
    let headers = [(HeaderName::from_static("last-event-id"), heard.to_string())];
    let answer = client::send(root, Method::GET, &path, &headers, None).await?;
    if answer.status.is_success() {
        return Ok(Events { answer, lines: Lines::default() });
    }
    let bytes = answer.body.collect().await.context("the running itsup's answer broke off")?.to_bytes();
    Err(client::refusal(answer.status, &bytes))
}

/// Server-sent events as they come.
struct Events {
    answer: Answer,
    lines: Lines,
}

impl Events {
    async fn next(&mut self) -> Result<Option<(u64, Note)>, Failure> {
        loop {
            if let Some(note) = self.lines.next()? {
                return Ok(Some(note));
            }
            match read(&mut self.answer.body).await? {
                Some(bytes) => self.lines.0.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }
}

async fn read(body: &mut Incoming) -> Result<Option<hyper::body::Bytes>, Failure> {
    while let Some(frame) = body.frame().await {
        if let Ok(bytes) = frame.context("the running itsup's answer broke off")?.into_data() {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// The text of an event stream, cut into events.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn next(&mut self) -> Result<Option<(u64, Note)>, Failure> {
        while let Some(end) = self.0.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = self.0.drain(..end + 2).collect();
            let text = String::from_utf8_lossy(&event);
            let field = |name: &str| {
                let mut lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                lines.next().map(|value| value.strip_prefix(' ').unwrap_or(value))
            };
            // A comment that keeps the connection alive has no data.
            let (Some(name), Some(data)) = (field("event"), field("data")) else { continue };
            let note = match name {
                "progress" => serde_json::from_str(data).map(Note::Progress),
                "state" => serde_json::from_str(data).map(|report| Note::State(Box::new(report))),
                _ => continue,
            };
            let number = field("id").and_then(|id| id.parse().ok()).unwrap_or_default();
            return Ok(Some((number, note.context("the running itsup's events cannot be read")?)));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use itsup_control::jobs::Phase;

    use super::*;

    #[test]
    fn events_are_cut_wherever_the_bytes_are() {
        let text = ": alive\n\nevent: progress\nid: 7\ndata: {\"job\":1,\"time\":\"t\",\"project\":\"a\",\"service\":\"web\",\
                    \"phase\":\"pulling\",\"detail\":\"image\",\"count\":[1,2]}\n\nevent: new\ndata: x\n\n";
        let mut lines = Lines::default();
        let mut heard = Vec::new();
        for byte in text.bytes() {
            lines.0.push(byte);
            heard.extend(lines.next().unwrap());
        }
        let [(7, Note::Progress(event))] = heard.as_slice() else { panic!("{heard:?}") };
        assert_eq!((event.phase, line(event).as_str()), (Phase::Pulling, "a/web: pulling 1/2: image"));
        assert!(lines.0.is_empty());
    }

    #[test]
    fn a_request_is_what_the_api_takes() {
        let work = Work::Rollout { project: "a".into(), service: None };
        assert_eq!(request(&work).unwrap(), ("/rollout", br#"{"project":"a"}"#.to_vec()));
    }
}
