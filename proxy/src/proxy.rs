//! The proxy's handle: what others do with it.

use std::fmt::Write;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use crate::access_log::AccessLog;
use crate::certs::Certs;
use crate::challenges::Challenges;
use crate::config::{AccessLogTarget, Config};
use crate::drain::Draining;
use crate::endpoint::Class;
use crate::hold::{Hold, HoldLimits};
use crate::listen::{self, BindError, Listeners};
use crate::live::{Published, Store};
use crate::metrics::{escape_label, header};
use crate::probe;
use crate::self_test::{SelfTest, SelfTestError, Through};
use crate::shared::Shared;
use crate::status::{EndpointState, EndpointStatus, Status, UpstreamStatus};
use crate::table::{EndpointId, RouteTable, UpstreamName};
use crate::tls::Tls;
use crate::worker::{self, Errand, Signals, Sockets};

/// How long those may take that are told to end when the grace is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The running data plane. Cheap to clone; the last clone to go does not stop it, [`Proxy::shutdown`] does.
#[derive(Clone)]
pub struct Proxy {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    http: SocketAddr,
    https: SocketAddr,
    /// The sockets once more, for a newer process; none once this one is to end.
    kept: Mutex<Listeners>,
    /// Whether connections are accepted.
    accept: watch::Sender<bool>,
    /// Whether the next table opens the doors: the first one does, unless an older process accepts.
    opens: AtomicBool,
    /// How many threads accept.
    accepting: watch::Sender<usize>,
    /// How many tables have changed anything.
    generation: watch::Sender<u64>,
    shutdown: watch::Sender<bool>,
    closing: watch::Sender<bool>,
    kill: watch::Sender<bool>,
    errands: Vec<mpsc::UnboundedSender<Errand>>,
    joins: Mutex<Vec<JoinHandle<()>>>,
}

/// The proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener could not be opened.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The TLS library refused its settings.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
}

impl Proxy {
    /// Opens the listeners and starts the helpers. Connections wait, unanswered, until a table is published.
    ///
    /// # Errors
    /// A port is taken or needs a privilege; the system has no more threads.
    pub fn bind(config: Config) -> Result<Self, StartError> {
        Self::start(config, Listeners::default(), true)
    }

    /// The same with sockets that somebody else has opened; those that are missing are opened.
    ///
    /// # Errors
    /// A port is taken or needs a privilege; the system has no more threads.
    pub fn bind_with(config: Config, opened: Listeners) -> Result<Self, StartError> {
        Self::start(config, opened, true)
    }

    /// Takes over an older process's listeners, and opens those that are missing. Nothing is accepted until
    /// [`Proxy::resume`] says so: until then the older one does.
    ///
    /// # Errors
    /// A port is taken or needs a privilege; the system has no more threads.
    pub fn take_over(config: Config, inherited: Listeners) -> Result<Self, StartError> {
        Self::start(config, inherited, false)
    }

    fn start(config: Config, inherited: Listeners, opens: bool) -> Result<Self, StartError> {
        let threads = config.threads.get();
        let http = listen::bind(config.http, inherited.http, threads)?;
        let https = listen::bind(config.https, inherited.https, threads)?;
        let (log, log_thread) = AccessLog::start(config.access_log)?;
        let (certs, challenges) = (Arc::new(Certs::default()), Arc::new(Challenges::default()));
        let tls = Tls::new(certs.clone(), challenges.clone())?;
        let shared = Arc::new(Shared::new(Store::new(), challenges, certs, tls, log, config.limits, threads));
        // The log thread ends with the last handle on the log, which is later than anything that could wait for it.
        drop(log_thread);
        let [accept, shutdown, closing, kill] = std::array::from_fn(|_| watch::Sender::new(false));
        let accepting = watch::Sender::new(0);
        let signals = Signals {
            accept: accept.subscribe(),
            accepting: accepting.clone(),
            shutdown: shutdown.subscribe(),
            closing: closing.subscribe(),
            kill: kill.subscribe(),
        };
        let mut joins = vec![start_keeper(&shared, kill.subscribe())?];
        let mut errands = Vec::with_capacity(threads);
        let doors = http.doors.into_iter().zip(https.doors);
        for (thread, (http, https)) in doors.enumerate() {
            let started = worker::start(shared.clone(), thread, Sockets { http, https }, signals.clone())?;
            joins.push(started.join);
            errands.push(started.errands);
        }
        let inner = Inner {
            shared,
            http: http.address,
            https: https.address,
            kept: Mutex::new(Listeners { http: http.kept, https: https.kept }),
            accept,
            opens: AtomicBool::new(opens),
            accepting,
            generation: watch::Sender::new(0),
            shutdown,
            closing,
            kill,
            errands,
            joins: Mutex::new(joins),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Where plain HTTP is listened for; the real port where 0 was asked for.
    pub fn http_addr(&self) -> SocketAddr {
        self.inner.http
    }

    /// Where TLS is listened for; the real port where 0 was asked for.
    pub fn https_addr(&self) -> SocketAddr {
        self.inner.https
    }

    /// Makes `table` what every new request and connection sees, all at once; an equal table changes nothing.
    ///
    /// Large tables take a while to build, so call it where waiting is allowed.
    pub fn publish(&self, table: RouteTable) -> Published {
        let published = self.inner.shared.store.publish(table);
        if published.changed {
            self.inner.generation.send_replace(published.generation);
        }
        if self.inner.opens.swap(false, Ordering::Relaxed) {
            self.inner.accept.send_replace(true);
        }
        published
    }

    /// Returns the handle on what earlier publishes have retired of these endpoints; an empty one where nothing of them is
    /// in flight any more.
    pub fn draining_of(&self, ours: impl Fn(&EndpointId) -> bool) -> Draining {
        self.inner.shared.store.draining_of(ours)
    }

    /// Makes new requests and connections for an upstream wait, until the guard is released or dropped. They keep their
    /// bodies to themselves meanwhile; past the limits they are answered 503.
    ///
    /// It holds whatever the tables say of the upstream: hold, publish it without endpoints, drain, restart, publish it
    /// with them again, release.
    pub fn hold(&self, upstream: &UpstreamName, limits: HoldLimits) -> Hold {
        self.inner.shared.holds.hold(upstream, limits)
    }

    /// The table that is live.
    pub fn table(&self) -> Arc<RouteTable> {
        self.inner.shared.store.load().table.clone()
    }

    /// How many tables have been published; equal ones do not count.
    pub fn generation(&self) -> u64 {
        self.inner.shared.store.load().generation
    }

    /// The certificates that are shown.
    pub fn certs(&self) -> &Certs {
        &self.inner.shared.certs
    }

    /// The ACME challenges that are answered.
    pub fn challenges(&self) -> &Challenges {
        &self.inner.shared.challenges
    }

    /// The state at this moment.
    pub fn status(&self) -> Status {
        let mut status = self.inner.shared.store.statuses(Instant::now());
        status.connections = self.inner.shared.connections();
        if self.inner.shared.holds.any() {
            for upstream in &mut status.upstreams {
                upstream.held = self.inner.shared.holds.held(&upstream.name);
            }
        }
        status
    }

    /// The state of one upstream at this moment: cheap, however large the table is.
    pub fn upstream_status(&self, upstream: &UpstreamName) -> Option<UpstreamStatus> {
        let mut status = self.inner.shared.store.upstream_status(upstream, Instant::now())?;
        status.held = self.inner.shared.holds.held(upstream);
        Some(status)
    }

    /// The counters and gauges as Prometheus text.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        self.inner.shared.metrics.render(&mut text);
        render_status(&self.status(), &mut text);
        text
    }

    /// Opens the access log again, as after a rotation.
    pub fn reopen_access_log(&self) {
        self.inner.shared.log.reopen();
    }

    /// Writes the access log to another place from now on.
    pub fn set_access_log(&self, target: AccessLogTarget) {
        self.inner.shared.log.retarget(target);
    }

    /// The listening sockets once more, to be handed to a newer process.
    ///
    /// # Errors
    /// The process is out of file descriptors.
    pub fn listeners(&self) -> io::Result<Listeners> {
        let kept = self.kept();
        let clones = |sockets: &[TcpListener]| sockets.iter().map(TcpListener::try_clone).collect::<io::Result<_>>();
        Ok(Listeners { http: clones(&kept.http)?, https: clones(&kept.https)? })
    }

    /// Accepts no connection any more, until [`Proxy::resume`]; those that come wait in the sockets' queues. Returns
    /// when no thread accepts.
    pub async fn pause(&self) {
        self.inner.accept.send_replace(false);
        // The sender is ours: it cannot be gone.
        let _ = self.inner.accepting.subscribe().wait_for(|threads| *threads == 0).await;
    }

    /// Accepts connections.
    pub fn resume(&self) {
        self.inner.accept.send_replace(true);
    }

    /// Tells whether every data thread answers within `limit`.
    pub async fn is_alive(&self, limit: Duration) -> bool {
        let all = async {
            for errands in &self.inner.errands {
                let (alive, is_alive) = oneshot::channel();
                if errands.send(Errand::Ping(alive)).is_err() || is_alive.await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(limit, all).await.unwrap_or(false)
    }

    /// How many tables have changed anything, for whoever waits for the next.
    pub fn generations(&self) -> watch::Receiver<u64> {
        self.inner.generation.subscribe()
    }

    /// Makes connections of its own and looks at what they are answered with: a challenge on the plain port, and the
    /// right certificate on the TLS port.
    ///
    /// # Errors
    /// The first answer that is not the right one.
    pub async fn test_itself(&self, through: Through) -> Result<(), SelfTestError> {
        let Inner { shared, http, https, errands, .. } = &*self.inner;
        let test = SelfTest::new(shared, &self.table());
        match through {
            Through::Listeners => test.by_address(*http, *https).await,
            Through::Threads => test.by_thread(errands).await,
        }
    }

    /// Leaves the field to a newer process: accepts nothing more, answers every further request with the word that it
    /// is the last on its connection (`Connection: close`, GOAWAY), and returns when all connections have ended or
    /// `limit` has passed. Closes none itself.
    pub async fn drain(&self, limit: Duration) {
        self.close_doors();
        // What is left then is the caller's to cut.
        let _ = tokio::time::timeout(limit, self.inner.shared.empty()).await;
    }

    /// Stops accepting, lets what is under way end within `grace`, then cuts what is left. Returns how many
    /// connections were cut.
    ///
    /// Idle connections are closed at once; h2 clients are told by GOAWAY, h1 clients by `Connection: close`. What is cut is
    /// ended as its kind wants it as far as that can be done within a second: websockets by a close frame, event streams by
    /// their proper end.
    pub async fn shutdown(&self, grace: Duration) -> u64 {
        self.close_doors();
        self.inner.closing.send_replace(true);
        let _ = tokio::time::timeout(grace, self.inner.shared.empty()).await;
        let cut = self.inner.shared.connections();
        if cut > 0 {
            let left = self.inner.shared.store.everything();
            let _ = tokio::time::timeout(LAST_WORDS, left.end(&Class::LONG, Duration::ZERO)).await;
        }
        self.inner.kill.send_replace(true);
        let threads = std::mem::take(&mut *self.inner.joins.lock().unwrap_or_else(PoisonError::into_inner));
        let log = self.inner.shared.log.clone();
        let _ = tokio::task::spawn_blocking(move || {
            for thread in threads {
                let _ = thread.join();
            }
            log.sync();
        })
        .await;
        cut
    }

    fn close_doors(&self) {
        self.inner.shutdown.send_replace(true);
        *self.kept() = Listeners::default();
    }

    fn kept(&self) -> MutexGuard<'_, Listeners> {
        self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Probes endpoints, away from the data threads.
fn start_keeper(shared: &Shared, mut kill: watch::Receiver<bool>) -> io::Result<JoinHandle<()>> {
    let store = shared.store.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("itsup-keeper".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = probe::keeper(store) => {}
                _ = kill.wait_for(|killed| *killed) => {}
            }
        });
    })
}

/// How metrics call them.
const CLASSES: [(Class, &str); 4] = [
    (Class::Request, "request"),
    (Class::Stream, "stream"),
    (Class::Websocket, "websocket"),
    (Class::Passthrough, "passthrough"),
];

fn render_status(status: &Status, out: &mut String) {
    for (name, help, value) in [
        ("itsup_generation", "Route tables published since start.", status.generation),
        ("itsup_hosts", "Hosts in the live table.", status.hosts as u64),
        ("itsup_connections", "Open client connections.", status.connections),
    ] {
        header(out, name, "gauge", help);
        let _ = writeln!(out, "{name} {value}");
    }
    header(out, "itsup_endpoint_up", "gauge", "Whether an endpoint gets traffic.");
    for (upstream, endpoint) in endpoints(status) {
        let up = u8::from(matches!(endpoint.state, EndpointState::Up));
        let _ = writeln!(out, "itsup_endpoint_up{{{}}} {up}", labels(upstream, endpoint));
    }
    header(out, "itsup_endpoint_in_flight", "gauge", "What an endpoint is serving, by class.");
    for (upstream, endpoint) in endpoints(status) {
        let labels = labels(upstream, endpoint);
        for (class, name) in CLASSES {
            let count = endpoint.in_flight.of(class);
            let _ = writeln!(out, "itsup_endpoint_in_flight{{{labels},class=\"{name}\"}} {count}");
        }
    }
    header(out, "itsup_endpoint_outcomes_total", "counter", "What became of what an endpoint was asked to do.");
    for (upstream, endpoint) in endpoints(status) {
        let labels = labels(upstream, endpoint);
        let tally = endpoint.tally;
        for (outcome, count) in [
            ("served", tally.served - tally.server_errors.min(tally.served)),
            ("server_error", tally.server_errors),
            ("broken", tally.broken),
            ("connect_failure", tally.connect_failures),
            ("retried", tally.retried),
            ("cut", tally.cut),
        ] {
            let _ = writeln!(out, "itsup_endpoint_outcomes_total{{{labels},outcome=\"{outcome}\"}} {count}");
        }
    }
    header(out, "itsup_upstream_waiting", "gauge", "Requests and connections that wait for a held upstream.");
    for (upstream, held) in status.upstreams.iter().filter_map(|upstream| Some((&upstream.name, upstream.held?))) {
        let _ = writeln!(out, "itsup_upstream_waiting{{upstream=\"{}\"}} {}", escape_label(upstream), held.waiting);
    }
}

fn endpoints(status: &Status) -> impl Iterator<Item = (&str, &EndpointStatus)> {
    status.upstreams.iter().flat_map(|upstream| upstream.endpoints.iter().map(|e| (&*upstream.name, e)))
}

fn labels(upstream: &str, endpoint: &EndpointStatus) -> String {
    format!(
        "upstream=\"{}\",endpoint=\"{}\",address=\"{}\"",
        escape_label(upstream),
        escape_label(&endpoint.id),
        escape_label(&endpoint.address)
    )
}
