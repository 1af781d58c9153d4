//! Static hosts that are DNS names: their addresses, looked up again as time goes by.
//!
//! It runs on control's runtime, never on a data thread. It must not know what the addresses are for.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use crate::db::Db;

/// How long an answer is good for.
const AGAIN: Duration = Duration::from_secs(30);
/// The first wait after a look-up that failed; it doubles up to [`AGAIN`].
const RETRY: Duration = Duration::from_secs(1);
/// How long one look-up may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Look-ups at a time.
const AT_A_TIME: usize = 16;

/// The last good addresses of names, sorted; a name that never had one is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved(BTreeMap<Arc<str>, Vec<IpAddr>>);

impl Resolved {
    /// Returns a host's addresses: itself where it is one, else what was last looked up for it.
    pub fn addresses(&self, host: &str) -> Vec<IpAddr> {
        match ip_literal(host) {
            Some(address) => vec![address],
            None => self.0.get(host).cloned().unwrap_or_default(),
        }
    }

    /// Whether all of these have an address.
    pub fn has_all(&self, hosts: &BTreeSet<Arc<str>>) -> bool {
        hosts.iter().all(|host| !self.addresses(host).is_empty())
    }

    /// Puts addresses in place of what was known of a name; says whether that changed anything.
    pub fn set(&mut self, name: Arc<str>, addresses: impl IntoIterator<Item = IpAddr>) -> bool {
        let sorted: BTreeSet<IpAddr> = addresses.into_iter().map(|a| a.to_canonical()).collect();
        let sorted: Vec<IpAddr> = sorted.into_iter().collect();
        self.0.insert(name, sorted.clone()).is_none_or(|old| old != sorted)
    }
}

/// Reads a host that is an address, also `[::1]` in brackets.
pub fn ip_literal(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

/// Returns the static hosts that must be looked up.
pub fn names(db: &Db) -> BTreeSet<Arc<str>> {
    let services = db.projects.iter().filter(|p| p.enabled).flat_map(|p| &p.services);
    let hosts = services.filter(|s| s.image.is_none() && ip_literal(&s.name).is_none());
    hosts.map(|s| s.name.clone()).collect()
}

/// Looks the names up with the system's resolver, again every 30 s and whenever they change, until `names` is closed.
///
/// A look-up that fails is tried again soon, and the last good addresses stay. What changes is sent to `out`.
pub async fn run(names: watch::Receiver<BTreeSet<Arc<str>>>, out: watch::Sender<Arc<Resolved>>) {
    run_with(system, names, out).await;
}

async fn system(name: Arc<str>) -> io::Result<Vec<IpAddr>> {
    let found = tokio::net::lookup_host((name.as_ref(), 0)).await?;
    Ok(found.map(|address| address.ip()).collect())
}

/// When a name is looked up next, and how long it waits should that fail.
struct Due {
    at: Instant,
    retry: Duration,
}

async fn run_with<L, F>(lookup: L, mut names: watch::Receiver<BTreeSet<Arc<str>>>, out: watch::Sender<Arc<Resolved>>)
where
    L: Fn(Arc<str>) -> F,
    F: Future<Output = io::Result<Vec<IpAddr>>>,
{
    let mut due: BTreeMap<Arc<str>, Due> = BTreeMap::new();
    loop {
        let wanted = names.borrow_and_update().clone();
        forget(&wanted, &mut due, &out);
        let now = Instant::now();
        for name in &wanted {
            due.entry(name.clone()).or_insert(Due { at: now, retry: RETRY });
        }
        let turn = async {
            look_up(&lookup, &mut due, &out).await;
            match due.values().map(|d| d.at).min() {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // A look-up that is cut short here is still due, and so begins again with the new names.
        tokio::select! {
            () = turn => {}
            changed = names.changed() => if changed.is_err() { return },
        }
    }
}

fn forget(wanted: &BTreeSet<Arc<str>>, due: &mut BTreeMap<Arc<str>, Due>, out: &watch::Sender<Arc<Resolved>>) {
    due.retain(|name, _| wanted.contains(name));
    out.send_if_modified(|resolved| {
        let stale = resolved.0.keys().any(|name| !wanted.contains(name));
        if stale {
            Arc::make_mut(resolved).0.retain(|name, _| wanted.contains(name));
        }
        stale
    });
}

/// Looks up every name whose time has come, and sends answers as they come in.
async fn look_up<L, F>(lookup: &L, due: &mut BTreeMap<Arc<str>, Due>, out: &watch::Sender<Arc<Resolved>>)
where
    L: Fn(Arc<str>) -> F,
    F: Future<Output = io::Result<Vec<IpAddr>>>,
{
    let now = Instant::now();
    let todo: Vec<Arc<str>> = due.iter().filter(|(_, d)| d.at <= now).map(|(name, _)| name.clone()).collect();
    let answers = stream::iter(todo).map(|name| async move {
        let answer = timeout(LIMIT, lookup(name.clone())).await;
        (name, answer.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut))))
    });
    let mut answers = std::pin::pin!(answers.buffer_unordered(AT_A_TIME).ready_chunks(AT_A_TIME));
    while let Some(chunk) = answers.next().await {
        let now = Instant::now();
        let mut good = Vec::new();
        for (name, answer) in chunk {
            let Some(entry) = due.get_mut(&name) else { continue };
            match answer {
                Ok(addresses) if !addresses.is_empty() => {
                    *entry = Due { at: now + AGAIN, retry: RETRY };
                    good.push((name, addresses));
                }
                failed => {
                    let why = failed.err().map_or("no addresses".to_owned(), |e| e.to_string());
                    if entry.retry == RETRY {
                        warn!(%name, %why, "cannot look up; the last good addresses stay");
                    }
                    *entry = Due { at: now + entry.retry, retry: (entry.retry * 2).min(AGAIN) };
                }
            }
        }
        out.send_if_modified(|resolved| {
            let mut changed = false;
            let next = Arc::make_mut(resolved);
            for (name, addresses) in good {
                if next.set(name.clone(), addresses) {
                    info!(%name, addresses = ?next.0.get(&name), "looked up");
                    changed = true;
                }
            }
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::testing::{db, image, project, service};

    type Answers = Arc<Mutex<BTreeMap<&'static str, Result<Vec<&'static str>, ()>>>>;

    fn ips(addresses: &[&str]) -> Vec<IpAddr> {
        addresses.iter().map(|a| a.parse().unwrap()).collect()
    }

    fn wanted(names: &[&str]) -> BTreeSet<Arc<str>> {
        names.iter().map(|n| Arc::from(*n)).collect()
    }

    struct Running {
        names: watch::Sender<BTreeSet<Arc<str>>>,
        out: watch::Receiver<Arc<Resolved>>,
        answers: Answers,
    }

    fn start(first: &[&str], answers: &[(&'static str, Result<Vec<&'static str>, ()>)]) -> Running {
        let answers: Answers = Arc::new(Mutex::new(answers.iter().cloned().collect()));
        let (names, names_rx) = watch::channel(wanted(first));
        let (out_tx, out) = watch::channel(Arc::default());
        let told = answers.clone();
        let lookup = move |name: Arc<str>| {
            let answer = told.lock().unwrap().get(name.as_ref()).cloned();
            async move {
                match answer {
                    Some(Ok(addresses)) => Ok(ips(&addresses)),
                    Some(Err(())) => Err(io::Error::other("SERVFAIL")),
                    None => std::future::pending().await,
                }
            }
        };
        tokio::spawn(run_with(lookup, names_rx, out_tx));
        Running { names, out, answers }
    }

    #[test]
    fn only_names_of_enabled_static_hosts_are_looked_up() {
        let mut off = project("off", vec![service("off.lan")]);
        off.enabled = false;
        let on = project("on", vec![service("nas.lan"), service("10.0.0.1"), service("[::1]"), image("web")]);
        assert_eq!(names(&db([off, on])), wanted(&["nas.lan"]));
    }

    #[test]
    fn addresses_need_no_look_up() {
        assert_eq!(Resolved::default().addresses("10.0.0.1"), ips(&["10.0.0.1"]));
        assert_eq!(Resolved::default().addresses("[::1]"), ips(&["::1"]));
        assert!(Resolved::default().addresses("nas.lan").is_empty());
    }

    #[test]
    fn the_order_of_an_answer_is_no_change() {
        let mut resolved = Resolved::default();
        assert!(resolved.set("nas".into(), ips(&["10.0.0.2", "10.0.0.1"])));
        assert!(!resolved.set("nas".into(), ips(&["10.0.0.1", "10.0.0.2", "10.0.0.1"])));
        assert!(resolved.set("nas".into(), ips(&["10.0.0.1"])));
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_is_seen_at_the_next_look_up_and_a_failure_keeps_the_last() {
        let mut run = start(&["nas"], &[("nas", Ok(vec!["10.0.0.1"]))]);
        run.out.changed().await.unwrap();
        assert_eq!(run.out.borrow_and_update().addresses("nas"), ips(&["10.0.0.1"]));

        let began = Instant::now();
        run.answers.lock().unwrap().insert("nas", Err(()));
        tokio::time::sleep(AGAIN * 4).await;
        assert!(!run.out.has_changed().unwrap());
        assert_eq!(run.out.borrow().addresses("nas"), ips(&["10.0.0.1"]));

        run.answers.lock().unwrap().insert("nas", Ok(vec!["10.0.0.2"]));
        run.out.changed().await.unwrap();
        assert_eq!(run.out.borrow_and_update().addresses("nas"), ips(&["10.0.0.2"]));
        assert!(began.elapsed() <= AGAIN * 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_fails_at_first_is_tried_again_soon() {
        let mut run = start(&["nas"], &[("nas", Err(()))]);
        tokio::time::sleep(Duration::from_millis(10)).await;
        run.answers.lock().unwrap().insert("nas", Ok(vec!["10.0.0.1"]));
        let began = Instant::now();
        run.out.changed().await.unwrap();
        assert!(began.elapsed() <= RETRY, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_hangs_holds_up_nobody_else() {
        let mut run = start(&["hangs", "nas"], &[("nas", Ok(vec!["10.0.0.1"]))]);
        let began = Instant::now();
        run.out.changed().await.unwrap();
        assert_eq!(run.out.borrow().addresses("nas"), ips(&["10.0.0.1"]));
        assert!(began.elapsed() < LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn new_names_are_looked_up_at_once_and_old_ones_forgotten() {
        let mut run = start(&["nas"], &[("nas", Ok(vec!["10.0.0.1"])), ("tv", Ok(vec!["10.0.0.3"]))]);
        run.out.changed().await.unwrap();
        run.out.borrow_and_update();
        let began = Instant::now();
        run.names.send(wanted(&["tv"])).unwrap();
        run.out.wait_for(|r| !r.addresses("tv").is_empty()).await.unwrap();
        assert!(run.out.borrow().addresses("nas").is_empty());
        assert!(began.elapsed() < RETRY);
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_are_looked_up_at_a_time() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let seen = most.clone();
        let lookup = move |_| {
            let (now, most) = (now.clone(), most.clone());
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
                now.fetch_sub(1, Ordering::Relaxed);
                Ok(ips(&["10.0.0.1"]))
            }
        };
        let all: Vec<String> = (0..100).map(|n| format!("host{n}")).collect();
        let all: BTreeSet<Arc<str>> = all.into_iter().map(Arc::from).collect();
        let (_names, names) = watch::channel(all);
        let (out_tx, mut out) = watch::channel(Arc::default());
        tokio::spawn(run_with(lookup, names, out_tx));
        out.wait_for(|r| !r.addresses("host99").is_empty() && r.0.len() == 100).await.unwrap();
        assert_eq!(seen.load(Ordering::Relaxed), AT_A_TIME);
    }

    #[tokio::test]
    async fn the_system_knows_localhost() {
        let found = system("localhost".into()).await.unwrap();
        assert!(!found.is_empty() && found.iter().all(IpAddr::is_loopback), "{found:?}");
    }
}
