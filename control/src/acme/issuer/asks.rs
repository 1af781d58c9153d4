//! What people ask of the issuer: certificates now, or one revoked. And what it asks the CA beside orders.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::{CertificateIdentifier, Error, RevocationRequest};
use itsup_proxy::HostPattern;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::run::Accounts;
use super::{Busy, Done, Issuer, WindowError, Wishes};
use crate::acme::due::{Unix, Window};
use crate::acme::order::is_bad_nonce;
use crate::acme::store::{Owner, Place, Store};
use crate::acme::wishes::{self, Order};
use crate::acme::{account, due};
use crate::settings::{Acme, Root};

const NONCES: usize = 8;

/// What is asked.
pub enum Ask {
    /// Order what is due and what has failed, of this host or of all; `force` what is not due as well.
    Update { host: Option<HostPattern>, force: bool, answer: oneshot::Sender<Result<UpdateReport, AskError>> },
    /// Revoke the certificate of this host, and order another.
    Revoke { host: HostPattern, answer: oneshot::Sender<Result<UpdateReport, AskError>> },
}

/// Why nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AskError(pub String);

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateReport {
    /// Hosts whose certificate is new.
    pub renewed: Vec<String>,
    /// Hosts that have failed.
    pub failed: Vec<FailedHost>,
    /// How many were not due.
    pub not_due: usize,
    /// Whether a certificate was revoked.
    pub revoked: bool,
}

/// A host that has failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedHost {
    pub host: String,
    pub error: String,
}

/// Somebody who waits.
pub(super) struct Asked {
    ask: Ask,
    /// Orders that are still open; `None` until they are chosen.
    open: Option<BTreeSet<String>>,
    report: UpdateReport,
}

impl Ask {
    fn answer(self, answer: Result<UpdateReport, AskError>) {
        let (Ask::Update { answer: to, .. } | Ask::Revoke { answer: to, .. }) = self;
        // Whoever asked may have hung up; what was done is done.
        let _ = to.send(answer);
    }
}

impl Issuer {
    pub(super) fn take_ask(&mut self, ask: Ask) {
        self.asked.push(Asked { ask, open: None, report: UpdateReport::default() });
    }

    pub(super) fn answer_all(&mut self, why: &str) {
        for asked in self.asked.drain(..) {
            asked.ask.answer(Err(AskError(why.to_owned())));
        }
    }

    pub(super) fn is_asked(&self, key: &str) -> bool {
        self.asked.iter().any(|asked| asked.open.as_ref().is_some_and(|open| open.contains(key)))
    }

    /// Chooses the orders of those who have asked since the last look.
    pub(super) fn sort_asked(&mut self, orders: &[Order], wishes: &Wishes, acme: &Arc<Acme>, now: Unix) {
        for mut asked in std::mem::take(&mut self.asked) {
            if asked.open.is_some() {
                self.asked.push(asked);
                continue;
            }
            match &asked.ask {
                Ask::Revoke { host, .. } => {
                    let host = host.clone();
                    self.revoke(asked, host, orders, acme);
                    continue;
                }
                Ask::Update { host, force, .. } => {
                    match self.choose(orders, wishes, acme, host.as_ref(), *force, now) {
                        Ok((open, report)) => (asked.open, asked.report) = (Some(open), report),
                        Err(error) => {
                            asked.ask.answer(Err(error));
                            continue;
                        }
                    }
                }
            }
            self.asked.push(asked);
        }
        self.answer_done();
    }

    fn choose(
        &self,
        orders: &[Order],
        wishes: &Wishes,
        acme: &Acme,
        host: Option<&HostPattern>,
        force: bool,
        now: Unix,
    ) -> Result<(BTreeSet<String>, UpdateReport), AskError> {
        let (mut open, mut report) = (BTreeSet::new(), UpdateReport::default());
        let is_meant = |order: &&Order| host.is_none_or(|host| order.hosts.contains(host));
        let meant: Vec<&Order> = orders.iter().filter(is_meant).collect();
        if let Some(host) = host.filter(|_| meant.is_empty()) {
            return Err(AskError(format!(
                "{host} is not ordered from a CA: it is not in db.yml, has a certificate of yours, is a local name, or \
                 its TLS does not end here"
            )));
        }
        for order in meant {
            let record = self.record(&order.key);
            let held = self.held(order, wishes);
            let wanted = wishes::wanted_at(order, held, acme, record.window.as_ref());
            let at = record.if_asked(now);
            // For all hosts, as from a timer, those that wait after a failure go on waiting.
            let waits = host.is_none() && record.back_off_ends(now).is_some_and(|end| end > now);
            if self.is_busy(&order.key) {
                open.insert(order.key.clone());
            } else if !force && record.failed.is_none() && wanted > now {
                report.not_due += 1;
            } else if let Some(error) = self.cannot(order, acme) {
                report.failed.push(FailedHost { host: order.key.clone(), error });
            } else if at > now || waits && !force {
                let wait = at.max(record.next_try(0, now)) - now;
                let why = record.failed.as_ref().map_or_else(
                    || format!("it was tried {} times within an hour", due::TRIES_AN_HOUR),
                    |failed| failed.why.clone(),
                );
                let error = format!("{why}; it may be tried again in {wait} s");
                report.failed.push(FailedHost { host: order.key.clone(), error });
            } else {
                open.insert(order.key.clone());
            }
        }
        Ok((open, report))
    }

    /// Tells those who wait for this order what came of it.
    pub(super) fn settle(&mut self, key: &str, result: Result<(), String>) {
        for asked in &mut self.asked {
            if !asked.open.as_mut().is_some_and(|open| open.remove(key)) {
                continue;
            }
            match &result {
                Ok(()) => asked.report.renewed.push(key.to_owned()),
                Err(error) => asked.report.failed.push(FailedHost { host: key.to_owned(), error: error.clone() }),
            }
        }
        self.answer_done();
    }

    /// Lets nobody wait for an order that may not be tried for now.
    pub(super) fn answer_spent(&mut self, now: Unix) {
        let open: BTreeSet<String> = self.asked.iter().filter_map(|asked| asked.open.clone()).flatten().collect();
        for key in open {
            let at = self.record(&key).if_asked(now);
            if at > now && !self.is_busy(&key) {
                self.settle(&key, Err(format!("it may be tried again in {} s", at - now)));
            }
        }
    }

    fn answer_done(&mut self) {
        for asked in std::mem::take(&mut self.asked) {
            if asked.open.as_ref().is_some_and(BTreeSet::is_empty) {
                asked.ask.answer(Ok(asked.report));
            } else {
                self.asked.push(asked);
            }
        }
    }

    /// Revokes in a task of its own; afterwards the order is asked for like any other.
    fn revoke(&mut self, asked: Asked, host: HostPattern, orders: &[Order], acme: &Arc<Acme>) {
        let order = orders.iter().find(|order| order.hosts.contains(&host));
        let folder = order.map_or_else(|| wishes::folder_of(&host), |order| order.folder.clone());
        let ordered = order.is_some();
        let (root, acme, accounts) = (self.root.clone(), acme.clone(), self.accounts.clone());
        let again = self.own.clone();
        let task = self.running.spawn(async move {
            let revoked = revoke(&root, &acme, &accounts, &folder).await;
            match (revoked, asked.ask) {
                (Ok(()), Ask::Revoke { host, answer }) if ordered => {
                    let (done, replaced) = oneshot::channel();
                    let update = Ask::Update { host: Some(host), force: true, answer: done };
                    // The loop may end before it reads it; then nobody is answered any more.
                    let _ = again.send(update).await;
                    tokio::spawn(async move {
                        let report = match replaced.await {
                            Ok(Ok(report)) => Ok(UpdateReport { revoked: true, ..report }),
                            Ok(Err(error)) => Err(AskError(format!("it is revoked, and not replaced: {error}"))),
                            Err(_) => Err(AskError("itsup is shutting down".into())),
                        };
                        let _ = answer.send(report);
                    });
                }
                (Ok(()), ask) => ask.answer(Ok(UpdateReport { revoked: true, ..UpdateReport::default() })),
                (Err(why), ask) => ask.answer(Err(AskError(why))),
            }
            Done::Other
        });
        self.busy.insert(task.id(), Busy::Other);
    }
}

async fn revoke(root: &Root, acme: &Arc<Acme>, accounts: &Accounts, folder: &str) -> Result<(), String> {
    let place = Place::in_folder(&root.certs(), folder);
    let mut store = Store::new(root.clone());
    let fault = store.reread(&place);
    let none = || fault.clone().unwrap_or_else(|| format!("there is no {}", place.cert.display()));
    let loaded = store.find(&place).ok_or_else(none)?;
    let directory = match &loaded.owner {
        Owner::Itsup { directory } => directory.clone(),
        _ => return Err(format!("{} is not one that itsup got from a CA", place.cert.display())),
    };
    if directory != acme.directory {
        return Err(format!("it is from {directory}, and the account in use is at {}", acme.directory));
    }
    let account = accounts.get(root, acme).await.map_err(|error| error.to_string())?;
    let certificate = loaded.cert.chain().first().ok_or_else(none)?;
    for _ in 0..NONCES {
        match account.revoke(&RevocationRequest { certificate, reason: None }).await {
            Err(error) if is_bad_nonce(&error) => {}
            revoked => return revoked.map_err(|error| format!("the CA does not revoke it: {error}")),
        }
    }
    Err("the CA does not revoke it: it takes none of its own nonces".into())
}

/// When the CA wants this certificate to be renewed, and when to ask again.
pub(super) async fn window(
    root: &Root,
    acme: &Arc<Acme>,
    accounts: &Accounts,
    id: &str,
) -> Result<(Window, Duration), WindowError> {
    let account = accounts.get(root, acme).await.map_err(|error| match error {
        account::AccountError::Here(why) => WindowError::Failed(why),
        account::AccountError::Ca(error) => WindowError::Failed(error.to_string()),
    })?;
    let parts = id.split_once('.').ok_or_else(|| WindowError::Failed("its name is of no use".into()))?;
    let certificate = CertificateIdentifier { authority_key_identifier: parts.0.into(), serial: parts.1.into() };
    match account.renewal_info(&certificate).await {
        Ok((info, again)) => {
            let seconds = |time: time::OffsetDateTime| time.unix_timestamp().try_into().unwrap_or(0);
            let (start, end) = (seconds(info.suggested_window.start), seconds(info.suggested_window.end));
            if end < start {
                return Err(WindowError::Failed("the window ends before it starts".into()));
            }
            Ok((Window { certificate: id.to_owned(), start, end }, again))
        }
        Err(Error::Unsupported(_)) => Err(WindowError::Unsupported),
        Err(error) => Err(WindowError::Failed(error.to_string())),
    }
}
