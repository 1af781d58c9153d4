//! What was said, kept for late listeners, bounded.
//!
//! Listeners read at their own pace and never slow the speaker. A slow one misses nothing but counts that newer
//! counts have replaced, and what fell out of a log that is full.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::model::Note;

/// The most notes that a log keeps.
const KEPT: usize = 2_000;
/// How far back a count is looked for that a newer one replaces.
const LOOK_BACK: usize = 32;

/// A log of notes. Clones are the same log.
#[derive(Clone)]
pub(super) struct Log {
    shared: Arc<Shared>,
}

struct Shared {
    notes: Mutex<Notes>,
    last: watch::Sender<u64>,
}

#[derive(Default)]
struct Notes {
    last: u64,
    ended: bool,
    kept: VecDeque<(u64, Arc<Note>)>,
}

/// A note, and its number in the log: they rise, with gaps.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its number.
    pub number: u64,
    /// What was said.
    pub note: Arc<Note>,
}

/// A listener's place in a log.
pub struct Follow {
    log: Log,
    seen: u64,
    last: watch::Receiver<u64>,
}

impl Default for Log {
    fn default() -> Self {
        Log { shared: Arc::new(Shared { notes: Mutex::default(), last: watch::Sender::new(0) }) }
    }
}

impl Log {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.shared.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, note: Arc<Note>) {
        let mut notes = self.notes();
        let from = notes.kept.len().saturating_sub(LOOK_BACK);
        let replaced = notes.kept.iter().skip(from).position(|(_, earlier)| note.replaces(earlier));
        if let Some(index) = replaced {
            notes.kept.remove(from + index);
        }
        if notes.kept.len() >= KEPT {
            notes.kept.pop_front();
        }
        notes.last += 1;
        let number = notes.last;
        notes.kept.push_back((number, note));
        drop(notes);
        self.shared.last.send_replace(number);
    }

    /// Nothing more will be said.
    pub(super) fn end(&self) {
        self.notes().ended = true;
        self.shared.last.send_modify(|_| ());
    }

    /// Forgets all but the last note, of a job that ended long ago.
    pub(super) fn shrink(&self) {
        let mut notes = self.notes();
        let keep = notes.kept.len().saturating_sub(1);
        notes.kept.drain(..keep);
        notes.kept.shrink_to_fit();
    }

    /// Listens to what comes after this number; a number from the future is one of another process: all of it then.
    pub(super) fn follow(&self, after: u64) -> Follow {
        let last = self.notes().last;
        let seen = if after > last { 0 } else { after };
        Follow { log: self.clone(), seen, last: self.shared.last.subscribe() }
    }

    /// Listens to what comes from now on.
    pub(super) fn follow_new(&self) -> Follow {
        let seen = self.notes().last;
        Follow { log: self.clone(), seen, last: self.shared.last.subscribe() }
    }
}

impl Follow {
    /// The next note; `None` once all is said.
    pub async fn next(&mut self) -> Option<Seen> {
        loop {
            self.last.mark_unchanged();
            {
                let notes = self.log.notes();
                let index = notes.kept.partition_point(|(number, _)| *number <= self.seen);
                if let Some((number, note)) = notes.kept.get(index) {
                    self.seen = *number;
                    return Some(Seen { number: *number, note: note.clone() });
                }
                if notes.ended {
                    return None;
                }
            }
            self.last.changed().await.ok()?;
        }
    }
}
