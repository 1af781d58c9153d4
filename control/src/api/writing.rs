//! Changes of db.yml that come at once are written at once.
//!
//! Who comes while a write is under way waits for the next, together with all who wait. Where the changes of such a group
//! do not make a valid file together, each is made by itself, so that nobody is refused for another's fault.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::sync::{Semaphore, oneshot};

use super::Problem;
use super::edits::EditFault;
use crate::db_file::DbFile;
use crate::pen::Pen;

/// A change of db.yml's value.
pub(super) type Change = Box<dyn Fn(&mut Value) -> Result<(), EditFault> + Send>;

/// The tag of the file that was written.
type Answer = Result<String, EditFault>;

/// Who writes, one group at a time. Clones are the same one.
#[derive(Clone)]
pub(super) struct Writing {
    db: DbFile,
    pen: Pen,
    waiting: Arc<Mutex<Vec<Waiting>>>,
    turn: Arc<Semaphore>,
}

struct Waiting {
    /// The tag that the file must have; who says that is written by himself.
    seen: Option<String>,
    change: Change,
    answer: oneshot::Sender<Answer>,
}

impl Writing {
    pub(super) fn new(db: DbFile, pen: Pen) -> Writing {
        Writing { db, pen, waiting: Arc::default(), turn: Arc::new(Semaphore::new(1)) }
    }

    /// Makes a change, and returns the file's new tag.
    pub(super) async fn change(&self, seen: Option<String>, change: Change) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(Waiting { seen, change, answer });
        // A task of its own: a client that hangs up takes nobody else's change with it.
        tokio::spawn(self.clone().write());
        let gone = || EditFault::Refused(Problem::internal("db.yml could not be written"));
        answered.await.map_err(|_| gone())?
    }

    async fn write(self) {
        let Ok(turn) = self.turn.clone().acquire_owned().await else { return };
        let pen = self.pen.hold().await;
        let group = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        if group.is_empty() {
            // An earlier turn has taken it along.
            return;
        }
        let written = tokio::task::spawn_blocking(move || {
            let _held = (turn, pen);
            write_group(&self.db, group);
        });
        // A panic has dropped the senders, which is an answer too.
        let _ = written.await;
    }
}

fn write_group(db: &DbFile, group: Vec<Waiting>) {
    let (alone, together): (Vec<Waiting>, Vec<Waiting>) = group.into_iter().partition(|one| one.seen.is_some());
    for one in alone {
        write_one(db, one);
    }
    if together.len() < 2 {
        together.into_iter().for_each(|one| write_one(db, one));
        return;
    }
    let mut faults: Vec<Option<EditFault>> = Vec::new();
    let written = db.change(None, |value| {
        faults.clear();
        for one in &together {
            let before = value.clone();
            let fault = (one.change)(value).err();
            if fault.is_some() {
                *value = before;
            }
            faults.push(fault);
        }
        Ok::<_, EditFault>(())
    });
    match written {
        Ok(((), tag)) => {
            for (one, fault) in together.into_iter().zip(faults) {
                // Who has hung up needs no answer.
                let _ = one.answer.send(fault.map_or_else(|| Ok(tag.clone()), Err));
            }
        }
        Err(_) => together.into_iter().for_each(|one| write_one(db, one)),
    }
}

fn write_one(db: &DbFile, one: Waiting) {
    let Waiting { seen, change, answer } = one;
    let written = db.change(seen.as_deref(), |value| change(value));
    let _ = answer.send(written.map(|((), tag)| tag));
}
