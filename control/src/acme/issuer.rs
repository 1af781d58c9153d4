//! Gets and renews certificates: one loop that decides, and a few orders under way beside it.
//!
//! What there should be comes in as [`Wishes`]; what came of it goes out as files in `certs/`, a word to control that
//! a folder has changed, and a [`Report`]. It publishes nothing itself. It looks at the wall clock at least twice a
//! minute, so that a clock that jumps, or a machine that slept, is noticed.

mod asks;
mod outcomes;
mod run;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use itsup_proxy::{HostPattern, Proxy};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::due::{Proof, Record, Unix, Window, unix};
use super::ledger::Ledger;
use super::pairs::Pair;
use super::prove;
use super::wishes::{self, Group, Held, Order, Users};
use crate::pen::Pen;
use crate::settings::{Acme, Root};
use asks::Asked;
pub use asks::{Ask, AskError, UpdateReport};
use run::{Accounts, Ended, Try};

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
    pen: Pen,
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
        accounts: Accounts::new(pen.clone()),
        pen,
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
    /// Held while anything is written; not while the CA is waited for.
    pen: Pen,
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
        let _pen = self.pen.hold().await;
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
                pen: self.pen.clone(),
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
