//! What came of an order, a look at a renewal window, or a write; and what follows from it.

use std::time::{Duration, SystemTime};

use itsup_proxy::HostPattern;
use tokio::time::Instant;

use super::run::{Ended, Fault, blocking};
use super::{AWAY, Busy, DISK_PAUSE, Done, Issuer, NO_ACCOUNT, Pause, WINDOW_AGAIN, WRONG_CLOCK, WindowError};
use crate::acme::due::{self, Proof, Window, unix};
use crate::acme::failure::{self, Next};
use crate::acme::order::Refusal;
use crate::acme::pairs;
use crate::acme::prove;
use crate::acme::wishes::{Held, Order};

impl Issuer {
    pub(super) async fn take_done(&mut self, done: Result<(tokio::task::Id, Done), tokio::task::JoinError>) {
        let _pen = self.pen.hold().await;
        let done = match done {
            Ok((id, done)) => {
                self.busy.remove(&id);
                done
            }
            Err(error) => {
                if let Some(Busy::Order(key)) = self.busy.remove(&error.id()) {
                    self.fail(&key, format!("the order broke off: {error}"), None);
                }
                return;
            }
        };
        match done {
            Done::Order(ended) => self.take_ended(*ended).await,
            Done::Window { key, id, answer } => self.take_window(&key, &id, answer),
            Done::Other => {}
        }
        if let Err(why) = self.save().await {
            tracing::warn!("{why}; what came of an order is not remembered");
        }
    }

    async fn take_ended(&mut self, Ended { order, proof, advice, result }: Ended) {
        let key = order.key.clone();
        self.advice.remove(&key);
        match result {
            Ok(held) => {
                self.pause = None;
                self.succeed(&order, proof, held);
            }
            Err(fault) => {
                if let Some(advice) = advice {
                    tracing::warn!("{advice}");
                    self.advice.insert(key, advice);
                }
                self.take_fault(&order, proof, fault).await;
            }
        }
    }

    fn succeed(&mut self, order: &Order, proof: Proof, held: Held) {
        let now = unix(SystemTime::now());
        let record = self.ledger.edit(&order.key);
        record.succeed();
        record.window = None;
        record.proof = order.names.iter().any(|name| matches!(name, HostPattern::Exact(_))).then_some(proof);
        tracing::info!("{}: a new certificate, for {}", order.key, list(&order.names));
        self.settle(&order.key, Ok(()));
        if due::renew_at(held.life, None, due::seed(&order.key)) <= now {
            // By a clock that is wrong it would be ordered again and again.
            let why = "the new certificate is due again already by this host's clock: is the clock right?";
            self.fail(&order.key, why.into(), Some(WRONG_CLOCK));
        }
        let before = self.wishes.borrow().held.get(&order.folder).map(|held| held.sha256.clone());
        self.fresh.insert(order.folder.clone(), (held, before));
        // Without control there is nobody to show it, and the process is ending.
        let _ = self.changed.send(order.folder.clone());
    }

    async fn take_fault(&mut self, order: &Order, proof: Proof, fault: Fault) {
        let key = order.key.as_str();
        match fault {
            Fault::Refused(Refusal::Names(refused)) => {
                let acme = self.wishes.borrow().acme.clone();
                let proofs = acme.as_deref().map(prove::proofs).unwrap_or_default();
                let record = self.ledger.edit(key);
                let next = failure::next(&refused, order, record.round, &proofs);
                record.round = if next == Next::AnotherProof { record.round + 1 } else { 0 };
                record.proof = failure::proof_after(proof, &proofs);
                // What there are no tries left for is a failure for now.
                let spent = record.limit_ends(unix(SystemTime::now())) > unix(SystemTime::now());
                let first = &refused[0];
                match next {
                    Next::AnotherProof if spent => self.fail(key, first.why.clone(), None),
                    Next::AnotherProof => tracing::info!("{key}: {}; another kind of proof is tried", first.why),
                    Next::WithoutThem(names) => {
                        self.split_off(order, names);
                        if spent {
                            self.fail(key, format!("{}: {}", first.name, first.why), None);
                        }
                    }
                    Next::Wait(why) => self.fail(key, why, None),
                }
            }
            Fault::Refused(Refusal::Other { why, retry_after }) => self.fail(key, why, retry_after),
            Fault::Refused(Refusal::Away { why, placed }) => {
                if !placed {
                    self.ledger.edit(key).uncount();
                }
                self.leave_alone(AWAY, why.clone());
                self.settle(key, Err(why));
            }
            Fault::Refused(Refusal::NoAccount) => self.fail(key, "the CA does not know our account".into(), None),
            Fault::NoAccount(id) => {
                let acme = self.wishes.borrow().acme.clone();
                if let Some(acme) = acme {
                    self.accounts.forget(&self.root, &acme, &id).await;
                }
            }
            Fault::Account(why) => {
                self.ledger.edit(key).uncount();
                self.leave_alone(NO_ACCOUNT, why.clone());
                self.settle(key, Err(why));
            }
            Fault::NotWritable(why) => {
                self.ledger.edit(key).uncount();
                self.get_stuck(key, why);
            }
            Fault::NotWritten(issued, why) => {
                self.unwritten.insert(key.to_owned(), *issued);
                self.get_stuck(key, why);
            }
        }
    }

    /// Has the names that cannot be proven go on alone; the rest is ordered again at once.
    fn split_off(&mut self, order: &Order, names: Vec<(String, String)>) {
        let now = unix(SystemTime::now());
        let wishes = self.wishes.borrow().clone();
        let host = order.names.first();
        let group = wishes.groups.iter().find(|group| host.is_some_and(|host| group.names.contains(host)));
        let group = group.and_then(|group| group.names.first()).map_or_else(|| order.key.clone(), ToString::to_string);
        for (name, why) in names {
            tracing::warn!("{}: goes on without {name}: {why}", order.key);
            self.ledger.edit(&group).split_off.insert(name.clone());
            let record = self.ledger.edit(&name);
            if name != order.key {
                record.begin(now);
            }
            record.fail(now, why, None, due::seed(&name));
        }
    }

    pub(super) fn fail(&mut self, key: &str, why: String, retry_after: Option<Duration>) {
        let now = unix(SystemTime::now());
        let record = self.ledger.edit(key);
        record.fail(now, why.clone(), retry_after, due::seed(key));
        let again = record.next_try(0, now);
        tracing::warn!("{key}: no certificate: {why}; tried again in {} s", again.saturating_sub(now));
        self.settle(key, Err(why));
    }

    fn leave_alone(&mut self, (first, most): (Duration, Duration), why: String) {
        let now = Instant::now();
        // Orders that fail together are one failure.
        if self.pause.as_ref().is_some_and(|pause| pause.until > now) {
            return;
        }
        let wait = self.pause.as_ref().map_or(first, |pause| pause.wait * 2).clamp(first, most);
        tracing::warn!("{why}; the CA is asked again in {} s", wait.as_secs());
        self.pause = Some(Pause { until: now + wait, wait, why });
    }

    pub(super) fn get_stuck(&mut self, key: &str, why: String) {
        tracing::warn!("{key}: {why}");
        self.stuck.insert(key.to_owned(), (why.clone(), Instant::now() + DISK_PAUSE));
        self.settle(key, Err(why));
    }

    /// Tries again to write what a full disk did not take.
    pub(super) async fn write_unwritten(&mut self) {
        let again = |key: &String| self.stuck.get(key).is_none_or(|(_, until)| *until <= Instant::now());
        let keys: Vec<String> = self.unwritten.keys().filter(|key| again(key)).cloned().collect();
        for key in keys {
            let Some((pair, held)) = self.unwritten.remove(&key) else { continue };
            let root = self.root.clone();
            let (pair, written) = blocking(move || {
                let written = pairs::write(&root, &pair);
                (pair, written)
            })
            .await;
            match written {
                Ok(()) => {
                    tracing::info!("{key}: the new certificate is written at last");
                    self.stuck.remove(&key);
                    self.ledger.edit(&key).succeed();
                    let before = self.wishes.borrow().held.get(&pair.folder).map(|held| held.sha256.clone());
                    self.fresh.insert(pair.folder.clone(), (held, before));
                    let _ = self.changed.send(pair.folder);
                }
                Err(why) => {
                    self.unwritten.insert(key.clone(), (pair, held));
                    self.stuck.insert(key, (why, Instant::now() + DISK_PAUSE));
                }
            }
        }
    }

    fn take_window(&mut self, key: &str, id: &str, answer: Result<(Window, Duration), WindowError>) {
        let now = unix(SystemTime::now());
        let (least, most) = WINDOW_AGAIN;
        let again = match answer {
            Ok((window, again)) => {
                self.ledger.edit(key).window = Some(window);
                again.as_secs().clamp(least, most)
            }
            Err(WindowError::Unsupported) => {
                if let Some(acme) = &self.wishes.borrow().acme {
                    self.windows.unsupported.insert(acme.directory.clone());
                }
                most
            }
            Err(WindowError::Failed(why)) => {
                tracing::debug!("{key}: no word on its renewal: {why}");
                // Two thirds of the life hold meanwhile.
                60 * 60
            }
        };
        self.windows.ask_again.insert(id.to_owned(), now + again);
    }
}

fn list(names: &[HostPattern]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
