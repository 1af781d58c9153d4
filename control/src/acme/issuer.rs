//! Gets and renews certificates: one loop that decides, and a few orders under way beside it.
//!
//! What there should be comes in as [`Wishes`]; what came of it goes out as files in `certs/`, a word to control that
//! a folder has changed, and a [`Report`]. It publishes nothing itself. It looks at the wall clock at least twice a
//! minute, so that a clock that jumps, or a machine that slept, is noticed.

mod asks;
mod run;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use itsup_proxy::{HostPattern, Proxy};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::due::{self, Proof, Record, Unix, Window, unix};
use super::failure::{self, Next};
use super::ledger::Ledger;
use super::order::Refusal;
use super::pairs::{self, Pair};
use super::prove;
use super::wishes::{self, Group, Held, Order, Users};
use crate::settings::{Acme, Root};
use asks::Asked;
pub use asks::{Ask, AskError, UpdateReport};
use run::{Accounts, Ended, Fault, Try, blocking};

/// Orders under way at once, so that one host that takes long keeps nobody waiting.
const AT_ONCE: usize = 8;
/// How often the wall clock is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How long a disk that could not be written is left alone.
const DISK_PAUSE: Duration = Duration::from_secs(15);
/// How long a CA that could not be reached is left alone: at first, and at most.
const AWAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long a CA that gives us no account is left alone.
const NO_ACCOUNT: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(60 * 60));
/// How long a host waits whose new certificate is as good as old.
const WRONG_CLOCK: Duration = Duration::from_secs(6 * 60 * 60);
/// When to ask again for a renewal window, where the CA does not say or says something odd.
const WINDOW_AGAIN: (u64, u64) = (60, 24 * 60 * 60);

/// What certificates there should be, and what there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `None` without ACME.
    pub acme: Option<Arc<Acme>>,
    pub groups: Vec<Group>,
    pub users: Users,
    /// Pairs of ours, by their folder.
    pub held: BTreeMap<String, Held>,
}

/// How it stands with every host that a CA is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub hosts: BTreeMap<HostPattern, Standing>,
    pub warnings: Vec<String>,
}

/// How it stands with one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// When its certificate is to be renewed; `None` where there is none yet.
    pub renewal: Option<Unix>,
    /// Whether an order is under way.
    pub under_way: bool,
    /// Why the last try failed.
    pub error: Option<String>,
    /// What the self-check says.
    pub advice: Option<String>,
    /// When it is tried next; `None` where that would be of no use.
    pub next_try: Option<Unix>,
}

/// The issuer's other end.
#[derive(Clone)]
pub struct IssuerHandle {
    pub asks: mpsc::Sender<Ask>,
    pub report: watch::Receiver<Arc<Report>>,
}

/// Starts it. `changed` is told of every folder in `certs/` that has a new pair.
pub fn start(
    root: Root,
    proxy: Proxy,
    wishes: watch::Receiver<Arc<Wishes>>,
    changed: mpsc::UnboundedSender<String>,
    runtime: &tokio::runtime::Handle,
) -> IssuerHandle {
    let (asks, inbox) = mpsc::channel(16);
    let (out, report) = watch::channel(Arc::new(Report::default()));
    let (ledger, warning) = Ledger::open(root.clone());
    if let Some(warning) = &warning {
        tracing::warn!("{warning}");
    }
    let issuer = Issuer {
        root,
        proxy,
        wishes,
        changed,
        out,
        ledger,
        accounts: Accounts::default(),
        busy: HashMap::new(),
        running: JoinSet::new(),
        windows: Windows::default(),
        pause: None,
        stuck: HashMap::new(),
        unwritten: BTreeMap::new(),
        fresh: BTreeMap::new(),
        advice: HashMap::new(),
        asked: Vec::new(),
        own: asks.clone(),
        warning,
    };
    runtime.spawn(issuer.run(inbox));
    IssuerHandle { asks, report }
}

struct Issuer {
    root: Root,
    proxy: Proxy,
    wishes: watch::Receiver<Arc<Wishes>>,
    changed: mpsc::UnboundedSender<String>,
    out: watch::Sender<Arc<Report>>,
    ledger: Ledger,
    accounts: Accounts,
    /// What each running task is at.
    busy: HashMap<tokio::task::Id, Busy>,
    running: JoinSet<Done>,
    windows: Windows,
    /// The CA is left alone until then.
    pause: Option<Pause>,
    /// Orders that failed for a reason of this host's own, and when to look again.
    stuck: HashMap<String, (String, Instant)>,
    /// Pairs that were issued and are not on the disk yet.
    unwritten: BTreeMap<String, (Pair, Held)>,
    /// Pairs that control has not read yet, by their folder, with the SHA-256 of the one before.
    fresh: BTreeMap<String, (Held, Option<String>)>,
    advice: HashMap<String, String>,
    asked: Vec<Asked>,
    /// For asking itself.
    own: mpsc::Sender<Ask>,
    warning: Option<String>,
}

/// What a task is at.
enum Busy {
    Order(String),
    Window(String),
    Other,
}

/// What came of a task.
enum Done {
    Order(Box<Ended>),
    Window { key: String, id: String, answer: Result<(Window, Duration), WindowError> },
    Other,
}

enum WindowError {
    /// The CA knows no such thing.
    Unsupported,
    Failed(String),
}

/// What the CA says of renewals (RFC 9773).
#[derive(Default)]
struct Windows {
    /// Directories that have none.
    unsupported: BTreeSet<String>,
    /// By the CA's name for a certificate, when to ask again.
    ask_again: HashMap<String, Unix>,
}

struct Pause {
    until: Instant,
    wait: Duration,
    why: String,
}

impl Issuer {
    async fn run(mut self, mut inbox: mpsc::Receiver<Ask>) {
        loop {
            let until = self.pass().await;
            tokio::select! {
                changed = self.wishes.changed() => if changed.is_err() { return },
                Some(ask) = inbox.recv() => self.take_ask(ask),
                Some(done) = self.running.join_next_with_id() => self.take_done(done).await,
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Starts what is due and says how things stand; returns when to look again.
    async fn pass(&mut self) -> Instant {
        let wishes = self.wishes.borrow_and_update().clone();
        let now = unix(SystemTime::now());
        let Some(acme) = wishes.acme.clone() else {
            self.answer_all("no CA is set up: set LE_EMAIL in .env");
            self.show(Report { warnings: self.warning.iter().cloned().collect(), ..Report::default() });
            return Instant::now() + LOOK_EVERY;
        };
        self.forget_stale(&wishes);
        let orders = self.orders(&wishes, &acme);
        self.ledger.forget_all_but(&orders.iter().map(|order| order.key.as_str()).collect(), now);
        self.write_unwritten().await;
        self.sort_asked(&orders, &wishes, &acme, now);
        self.answer_spent(now);
        let due = self.due(&orders, &wishes, &acme, now);
        self.start_due(due, &wishes, &acme, now).await;
        self.ask_for_windows(&orders, &wishes, &acme, now);
        let report = self.report(&orders, &wishes, &acme, now);
        let soonest = report.hosts.values().filter(|host| !host.under_way).filter_map(|host| host.next_try).min();
        let mut until = Instant::now() + LOOK_EVERY;
        if let Some(soonest) = soonest.filter(|_| self.orders_under_way() < AT_ONCE) {
            until = until.min(Instant::now() + Duration::from_secs(soonest.saturating_sub(now).max(1)));
        }
        if let Some(pause) = &self.pause {
            until = until.min(pause.until.max(Instant::now()));
        }
        self.show(report);
        until
    }

    fn orders(&self, wishes: &Wishes, acme: &Acme) -> Vec<Order> {
        let dns = acme.dns.is_some();
        let none = BTreeSet::new();
        let of_group = |group: &Group| {
            let record = group.names.first().and_then(|first| self.ledger.of(&first.to_string()));
            wishes::orders(group, &wishes.users, record.map_or(&none, |record| &record.split_off), dns)
        };
        wishes.groups.iter().flat_map(of_group).collect()
    }

    /// The pair of an order that is in use, or will be as soon as control has read it.
    fn held<'a>(&'a self, order: &Order, wishes: &'a Wishes) -> Option<&'a Held> {
        self.fresh.get(&order.folder).map(|(held, _)| held).or_else(|| wishes.held.get(&order.folder))
    }

    /// What control has read is no longer fresh.
    fn forget_stale(&mut self, wishes: &Wishes) {
        let read = |folder: &String| wishes.held.get(folder).map(|held| held.sha256.clone());
        self.fresh.retain(|folder, (_, before)| read(folder) == *before);
    }

    fn record(&self, key: &str) -> std::borrow::Cow<'_, Record> {
        self.ledger.of(key).map_or_else(|| std::borrow::Cow::Owned(Record::default()), std::borrow::Cow::Borrowed)
    }

    /// The orders to start now, those without a certificate first.
    fn due(&self, orders: &[Order], wishes: &Wishes, acme: &Acme, now: Unix) -> Vec<Order> {
        if self.pause.as_ref().is_some_and(|pause| pause.until > Instant::now()) {
            return Vec::new();
        }
        let mut due: Vec<(Unix, &Order)> = Vec::new();
        for order in orders.iter().filter(|order| !self.is_busy(&order.key) && self.cannot(order, acme).is_none()) {
            let held = self.held(order, wishes);
            let record = self.record(&order.key);
            let wanted = wishes::wanted_at(order, held, acme, record.window.as_ref());
            let at = if self.is_asked(&order.key) { record.if_asked(now) } else { record.next_try(wanted, now) };
            // Where the CA may have a say in when, it is asked first.
            let unknown = held.is_some_and(|held| wanted > 0 && self.windows.is_unasked(held, acme));
            if at <= now && (!unknown || self.is_asked(&order.key)) {
                due.push((wanted, order));
            }
        }
        due.sort_by_key(|(wanted, _)| *wanted);
        due.into_iter().take(AT_ONCE.saturating_sub(self.orders_under_way())).map(|(_, order)| order.clone()).collect()
    }

    /// Why an order is not placed at all, or not now.
    fn cannot(&self, order: &Order, acme: &Acme) -> Option<String> {
        if let Some(wildcard) = order.names.iter().find(|name| matches!(name, HostPattern::Wildcard(_)))
            && acme.dns.is_none()
        {
            return Some(format!("{wildcard} needs a TXT record: set ACME_DNS_HOOK or ACME_DNS_SERVER"));
        }
        if self.unwritten.contains_key(&order.key) {
            return Some("it is issued, and waits for the disk".into());
        }
        self.stuck.get(&order.key).filter(|(_, until)| *until > Instant::now()).map(|(why, _)| why.clone())
    }

    fn is_busy(&self, key: &str) -> bool {
        self.busy.values().any(|busy| matches!(busy, Busy::Order(at) if at == key))
    }

    fn orders_under_way(&self) -> usize {
        self.busy.values().filter(|busy| matches!(busy, Busy::Order(_))).count()
    }

    async fn start_due(&mut self, due: Vec<Order>, wishes: &Wishes, acme: &Arc<Acme>, now: Unix) {
        for order in &due {
            self.ledger.edit(&order.key).begin(now);
        }
        // A try that would not be remembered could be made again and again by a machine that keeps restarting.
        if let Err(why) = self.save().await {
            for order in due {
                self.ledger.edit(&order.key).uncount();
                self.get_stuck(&order.key, why.clone());
            }
            return;
        }
        for order in due {
            let record = self.record(&order.key);
            let proof = record.proof.filter(|proof| prove::proofs(acme).contains(proof)).unwrap_or(Proof::Http);
            let held = self.held(&order, wishes).cloned();
            let replaces = record.failures == 0 && record.window.is_some();
            let key = order.key.clone();
            tracing::debug!("{key}: ordering from {}", acme.directory);
            let one = Try {
                root: self.root.clone(),
                proxy: self.proxy.clone(),
                acme: acme.clone(),
                accounts: self.accounts.clone(),
                order,
                proof,
                held,
                replaces,
            };
            let task = self.running.spawn(async move { Done::Order(Box::new(one.run().await)) });
            self.busy.insert(task.id(), Busy::Order(key));
        }
    }

    async fn save(&mut self) -> Result<(), String> {
        // It is small, and must be on the disk before anything follows from it.
        tokio::task::block_in_place(|| self.ledger.save())
    }

    async fn take_done(&mut self, done: Result<(tokio::task::Id, Done), tokio::task::JoinError>) {
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

    fn fail(&mut self, key: &str, why: String, retry_after: Option<Duration>) {
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

    fn get_stuck(&mut self, key: &str, why: String) {
        tracing::warn!("{key}: {why}");
        self.stuck.insert(key.to_owned(), (why.clone(), Instant::now() + DISK_PAUSE));
        self.settle(key, Err(why));
    }

    /// Tries again to write what a full disk did not take.
    async fn write_unwritten(&mut self) {
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

    /// Asks the CA when it wants its certificates to be renewed.
    fn ask_for_windows(&mut self, orders: &[Order], wishes: &Wishes, acme: &Arc<Acme>, now: Unix) {
        if self.pause.as_ref().is_some_and(|pause| pause.until > Instant::now()) {
            return;
        }
        let mut free = AT_ONCE.saturating_sub(self.busy.values().filter(|b| matches!(b, Busy::Window(_))).count());
        for order in orders {
            let Some(held) = self.held(order, wishes) else { continue };
            let Some(id) = held.id.clone().filter(|_| free > 0 && self.windows.is_due(held, acme, now)) else {
                continue;
            };
            if self.busy.values().any(|busy| matches!(busy, Busy::Window(at) if *at == id)) {
                continue;
            }
            free -= 1;
            let (root, acme, accounts, key) =
                (self.root.clone(), acme.clone(), self.accounts.clone(), order.key.clone());
            let task = self.running.spawn({
                let id = id.clone();
                async move {
                    let answer = asks::window(&root, &acme, &accounts, &id).await;
                    Done::Window { key, id, answer }
                }
            });
            self.busy.insert(task.id(), Busy::Window(id));
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

    fn report(&self, orders: &[Order], wishes: &Wishes, acme: &Acme, now: Unix) -> Report {
        let paused = self.pause.as_ref().filter(|pause| pause.until > Instant::now());
        let mut report = Report::default();
        report.warnings.extend(self.warning.iter().cloned());
        report.warnings.extend(paused.map(|pause| format!("certificates: {}", pause.why)));
        for order in orders {
            let record = self.record(&order.key);
            let held = self.held(order, wishes);
            let wanted = wishes::wanted_at(order, held, acme, record.window.as_ref());
            let cannot = self.cannot(order, acme);
            let next = record.next_try(wanted, now);
            let standing = Standing {
                renewal: held.map(|_| wanted.max(1)).filter(|_| wanted > 0),
                under_way: self.is_busy(&order.key),
                error: cannot.clone().or_else(|| record.failed.as_ref().map(|failed| failed.why.clone())),
                advice: self.advice.get(&order.key).cloned(),
                next_try: match cannot {
                    Some(_) if !self.stuck.contains_key(&order.key) => None,
                    Some(_) => Some(now + DISK_PAUSE.as_secs()),
                    None => Some(next),
                },
            };
            report.hosts.extend(order.hosts.iter().map(|host| (host.clone(), standing.clone())));
        }
        report
    }

    fn show(&self, report: Report) {
        self.out.send_if_modified(|shown| {
            let changed = **shown != report;
            if changed {
                *shown = Arc::new(report);
            }
            changed
        });
    }
}

impl Windows {
    /// Whether the CA of this certificate may have a say, and has not been asked since the start.
    fn is_unasked(&self, held: &Held, acme: &Acme) -> bool {
        self.applies(held, acme) && held.id.as_ref().is_some_and(|id| !self.ask_again.contains_key(id))
    }

    fn is_due(&self, held: &Held, acme: &Acme, now: Unix) -> bool {
        let at = held.id.as_ref().and_then(|id| self.ask_again.get(id));
        // What is further away than any wait was written by another clock.
        self.applies(held, acme) && at.is_none_or(|at| *at <= now || *at > now + WINDOW_AGAIN.1 + 60)
    }

    fn applies(&self, held: &Held, acme: &Acme) -> bool {
        held.id.is_some()
            && !self.unsupported.contains(&acme.directory)
            && held.directory.as_ref().is_none_or(|directory| *directory == acme.directory)
    }
}

fn list(names: &[HostPattern]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
