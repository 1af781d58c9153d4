//! How far a change is: a line for each service that moves, on a terminal; a line for each step, elsewhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use itsup_control::jobs::{Event, Note, Phase};

use super::plan::printable;

/// The width that lines are cut to where the terminal does not say its own.
const WIDTH: usize = 80;
/// The most lines that are kept live.
const LIVE: usize = 16;

/// Shows notes on stderr. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Progress(Arc<Mutex<Shown>>);

struct Shown {
    mode: Mode,
    /// What each project or service does, in the order in which they began.
    rows: Vec<(String, String)>,
    /// How many lines are drawn.
    drawn: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Programs read the end alone.
    Silent,
    Plain,
    Live,
}

impl Progress {
    pub(super) fn new(json: bool) -> Progress {
        let mode = match (json, io::stderr().is_terminal()) {
            (true, _) => Mode::Silent,
            (false, true) => Mode::Live,
            (false, false) => Mode::Plain,
        };
        Progress(Arc::new(Mutex::new(Shown { mode, rows: Vec::new(), drawn: 0 })))
    }

    pub(crate) fn note(&self, note: &Note) {
        let Note::Progress(event) = note else { return };
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = match shown.mode {
            Mode::Silent => return,
            Mode::Plain => plain(event).map(|line| line + "\n").unwrap_or_default(),
            Mode::Live => shown.live(event, width()),
        };
        // Without a stderr there is nobody to tell.
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    /// Leaves what is drawn as it is, so that what is printed next stands below it.
    pub(crate) fn end(&self) {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shown.drawn = 0;
        shown.rows.clear();
    }
}

impl Shown {
    /// Takes an event, and returns what redraws the lines.
    fn live(&mut self, event: &Event, width: usize) -> String {
        let (place, told) = (place(event), told(event));
        let mut text = String::new();
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A\x1b[J", self.drawn));
        }
        let ended = matches!(event.phase, Phase::Done | Phase::Failed | Phase::Warning);
        if ended || place.is_empty() {
            text.push_str(&cut(&format!("{place}{told}"), width));
            if event.phase != Phase::Warning {
                // A project that has ended takes its services with it.
                let below = place.trim_end_matches(": ").to_owned() + "/";
                self.rows.retain(|(known, _)| *known != place && !known.starts_with(&below));
            }
        } else if let Some(row) = self.rows.iter_mut().find(|(known, _)| *known == place) {
            row.1 = told;
        } else {
            self.rows.push((place, told));
        }
        let rows = &self.rows[self.rows.len().saturating_sub(LIVE)..];
        for (place, told) in rows {
            text.push_str(&cut(&format!("{place}{told}"), width));
        }
        self.drawn = rows.len();
        text
    }
}

/// A line for an event; `None` for one that only counts.
fn plain(event: &Event) -> Option<String> {
    let only_counts = event.phase == Phase::Pulling && event.count.is_some();
    (!only_counts).then(|| format!("{}{}", place(event), told(event)))
}

fn place(event: &Event) -> String {
    let text = match (&event.project, &event.service) {
        (Some(project), Some(service)) => format!("{project}/{service}: "),
        (Some(project), None) => format!("{project}: "),
        (None, _) => String::new(),
    };
    printable(&text)
}

fn told(event: &Event) -> String {
    let phase = match event.phase {
        Phase::Waiting => "waiting for its turn",
        Phase::Planning => "planning",
        Phase::Pulling => "pulling",
        Phase::Before => "first",
        Phase::Starting => "starting",
        Phase::Ready => "healthy",
        Phase::Switched => "switched",
        Phase::Draining => "draining",
        Phase::Watching => "watching",
        Phase::Stopping => "stopping",
        Phase::Held => "requests held",
        Phase::Warning => "warning",
        Phase::Done => "done",
        Phase::Failed => "failed",
    };
    let mut text = phase.to_owned();
    match (event.phase, event.count) {
        (Phase::Pulling, Some((done, total))) => return format!("{phase} {} of {}", size(done), size(total)),
        (_, Some((done, total))) => text.push_str(&format!(" {done}/{total}")),
        (_, None) => {}
    }
    if !event.detail.is_empty() {
        text.push_str(&format!(", {}", event.detail));
    }
    printable(&text)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000),
    }
}

/// One line, no wider than the terminal: a wrapped one could not be drawn over.
fn cut(line: &str, width: usize) -> String {
    let mut text: String = line.chars().take(width.saturating_sub(1)).collect();
    text.push('\n');
    text
}

fn width() -> usize {
    std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok()).filter(|width| *width >= 20).unwrap_or(WIDTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(service: Option<&str>, phase: Phase, detail: &str) -> Event {
        match service {
            Some(service) => Event::of_service("shop", service, phase, detail),
            None => Event::of_project("shop", phase, detail),
        }
    }

    #[test]
    fn plain_lines_tell_steps_and_no_bytes() {
        for (event, line) in [
            (event(Some("web"), Phase::Starting, "2 of it"), Some("shop/web: starting, 2 of it")),
            (event(Some("web"), Phase::Ready, "").count(1, 2), Some("shop/web: healthy 1/2")),
            (event(Some("web"), Phase::Draining, "requests").count(3, 9), Some("shop/web: draining 3/9, requests")),
            (event(None, Phase::Pulling, "images"), Some("shop: pulling, images")),
            (event(None, Phase::Pulling, "bytes").count(1, 2), None),
            (event(None, Phase::Failed, "a\x1b[2J"), Some("shop: failed, a\u{fffd}[2J")),
            (Event::of_all(Phase::Planning, "x"), Some("planning, x")),
        ] {
            assert_eq!(plain(&event).as_deref(), line);
        }
        let bytes = event(None, Phase::Pulling, "bytes").count(1_250_000, 40_000_000);
        assert_eq!(told(&bytes), "pulling 1.2 MB of 40.0 MB");
    }

    #[test]
    fn live_lines_are_drawn_over_and_what_has_ended_stays() {
        let mut shown = Shown { mode: Mode::Live, rows: Vec::new(), drawn: 0 };
        let mut see = |event: Event| shown.live(&event, 40);
        assert_eq!(see(event(None, Phase::Pulling, "images")), "shop: pulling, images\n");
        assert_eq!(
            see(event(Some("web"), Phase::Starting, "")),
            "\x1b[1A\x1b[Jshop: pulling, images\nshop/web: starting\n"
        );
        assert_eq!(
            see(event(Some("web"), Phase::Ready, "").count(1, 1)),
            "\x1b[2A\x1b[Jshop: pulling, images\nshop/web: healthy 1/1\n"
        );
        assert_eq!(see(event(None, Phase::Done, "done")), "\x1b[2A\x1b[Jshop: done, done\n");
        let long = see(event(Some("web"), Phase::Starting, &"x".repeat(100)));
        assert_eq!(long.trim_end().chars().count(), 39);
    }
}
