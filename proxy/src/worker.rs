//! A data thread: its own runtime, listeners, HTTP engine and upstream pools.
//!
//! A connection lives and dies on the thread that accepted it, so nothing of it crosses threads.

use std::io;
use std::net::{SocketAddr, TcpStream as StdStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use pingora::apps::HttpServerOptions;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::acceptor::Acceptor;
use crate::access_log::FLUSH_EVERY;
use crate::config::Limits;
use crate::ending::{self, Orders};
use crate::http::Gateway;
use crate::listen::Door;
use crate::metrics::Shard;
use crate::shared::{Seat, Shared};
use crate::{front, plain};

/// Waits this long when the process is out of file descriptors.
const OUT_OF_FILES: Duration = Duration::from_millis(50);
/// Idle upstream connections kept by each thread.
const UPSTREAM_POOL: usize = 1024;
/// Password hashes at a time, each thread: they are costly by design.
const BLOCKING_THREADS: usize = 2;

/// What a connection needs of its thread.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) thread: usize,
    pub(crate) engine: Arc<HttpProxy<Gateway>>,
    /// Becomes true when the process is to end: every answer from then on says so (`Connection: close`, GOAWAY).
    pub(crate) shutdown: watch::Receiver<bool>,
    /// Becomes true when connections on which nothing is under way are to be closed, too.
    pub(crate) closing: watch::Receiver<bool>,
}

impl Worker {
    pub(crate) fn count(&self) -> &Shard {
        self.shared.metrics.shard(self.thread)
    }
}

/// A thread's listening sockets.
pub(crate) struct Sockets {
    pub(crate) http: Vec<Door>,
    pub(crate) https: Vec<Door>,
}

/// The turns of a process's life, as the threads see them.
#[derive(Clone)]
pub(crate) struct Signals {
    /// Accept now: the first table is there, and no other process accepts.
    pub(crate) accept: watch::Receiver<bool>,
    /// How many threads accept.
    pub(crate) accepting: watch::Sender<usize>,
    /// Stop accepting and finish what there is.
    pub(crate) shutdown: watch::Receiver<bool>,
    /// Close what is idle.
    pub(crate) closing: watch::Receiver<bool>,
    /// Stop at once.
    pub(crate) kill: watch::Receiver<bool>,
}

/// What a thread is asked from outside.
pub(crate) enum Errand {
    /// Serve this connection as if it had been accepted.
    Serve(StdStream, SocketAddr, Kind),
    /// Say that you are alive.
    Ping(oneshot::Sender<()>),
}

/// A data thread and the way to reach it.
pub(crate) struct Thread {
    pub(crate) join: JoinHandle<()>,
    pub(crate) errands: mpsc::UnboundedSender<Errand>,
}

/// Starts a data thread.
pub(crate) fn start(shared: Arc<Shared>, thread: usize, sockets: Sockets, signals: Signals) -> io::Result<Thread> {
    // Before anything can be published, so that no order is missed.
    let orders = shared.store.enders().join();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build()?;
    let (errands, inbox) = mpsc::unbounded_channel();
    let join = std::thread::Builder::new().name(format!("itsup-data-{thread}")).spawn(move || {
        if let Err(error) = runtime.block_on(run(shared, thread, sockets, signals, inbox, orders)) {
            tracing::error!(thread, %error, "a data thread could not start");
        }
        runtime.shutdown_background();
    })?;
    Ok(Thread { join, errands })
}

async fn run(
    shared: Arc<Shared>,
    thread: usize,
    sockets: Sockets,
    signals: Signals,
    inbox: mpsc::UnboundedReceiver<Errand>,
    orders: Orders,
) -> io::Result<()> {
    let engine = Arc::new(engine(&shared, thread));
    let Signals { accept, accepting, mut shutdown, mut closing, mut kill } = signals;
    let (own_shutdown, own_closing) = (own(shutdown.clone()), own(closing.clone()));
    let worker = Arc::new(Worker { shared, thread, engine, shutdown: own_shutdown, closing: own_closing });
    tokio::spawn(flush_log(worker.clone()));
    tokio::spawn(ending::obey(orders));
    tokio::spawn(run_errands(worker.clone(), inbox));
    tokio::select! {
        failed = accept_while_told(&worker, sockets, accept, accepting) => failed?,
        _ = shutdown.wait_for(|ended| *ended) => {}
    }
    tokio::select! {
        _ = closing.wait_for(|closing| *closing) => {}
        _ = kill.wait_for(|killed| *killed) => {}
    }
    use pingora::apps::HttpServerApp;
    worker.engine.http_cleanup().await;
    let _ = kill.wait_for(|killed| *killed).await;
    worker.shared.log.flush();
    Ok(())
}

/// A flag of this thread's own that follows one of the process. Each request looks at it, and to look is to write, to a lock and
/// a list of waiters: threads that shared one would take its cache lines from each other all the time.
fn own(mut flag: watch::Receiver<bool>) -> watch::Receiver<bool> {
    let (sender, own) = watch::channel(false);
    tokio::spawn(async move {
        // What it is already counts as a change too, as the engine waits for one.
        flag.mark_changed();
        while flag.changed().await.is_ok() {
            let now = *flag.borrow_and_update();
            sender.send_if_modified(|own| std::mem::replace(own, now) != now);
        }
    });
    own
}

async fn run_errands(worker: Arc<Worker>, mut inbox: mpsc::UnboundedReceiver<Errand>) {
    while let Some(errand) = inbox.recv().await {
        match errand {
            Errand::Serve(tcp, peer, kind) => match TcpStream::from_std(tcp) {
                Ok(tcp) => {
                    let _ = tcp.set_nodelay(true);
                    accepted(&worker, tcp, peer, kind);
                }
                Err(error) => tracing::warn!(%error, "a connection could not be served"),
            },
            Errand::Ping(alive) => {
                // Whoever asked may have lost patience.
                let _ = alive.send(());
            }
        }
    }
}

/// Accepts from the first yes on, pauses at a no, goes on at the next yes. The sockets stay open all the while.
async fn accept_while_told(
    worker: &Arc<Worker>,
    sockets: Sockets,
    mut accept: watch::Receiver<bool>,
    accepting: watch::Sender<usize>,
) -> io::Result<()> {
    if accept.wait_for(|yes| *yes).await.is_err() {
        return std::future::pending().await;
    }
    let http = sockets.http.into_iter().map(|door| Ok((Arc::new(door.open()?), Kind::Plain)));
    let https = sockets.https.into_iter().map(|door| Ok((Arc::new(door.open()?), Kind::Tls)));
    let listeners = http.chain(https).collect::<io::Result<Vec<_>>>()?;
    loop {
        let mut accepts = JoinSet::new();
        for (listener, kind) in &listeners {
            let (worker, listener, kind) = (worker.clone(), listener.clone(), *kind);
            accepts.spawn(async move { accept_all(&worker, &listener, kind).await });
        }
        accepting.send_modify(|threads| *threads += 1);
        let paused = accept.wait_for(|yes| !*yes).await.is_ok();
        accepts.shutdown().await;
        accepting.send_modify(|threads| *threads -= 1);
        if !paused || accept.wait_for(|yes| *yes).await.is_err() {
            return std::future::pending().await;
        }
    }
}

fn engine(shared: &Arc<Shared>, thread: usize) -> HttpProxy<Gateway> {
    let conf = ServerConf {
        threads: 1,
        work_stealing: false,
        max_retries: 8,
        upstream_keepalive_pool_size: UPSTREAM_POOL,
        ..ServerConf::default()
    };
    let mut engine = HttpProxy::new(Gateway::new(shared.clone(), thread), Arc::new(conf));
    engine.handle_init_modules();
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(shared.limits.keep_alive);
    engine.server_options = Some(options);
    engine.h2_options = Some(h2_options(&shared.limits));
    engine
}

fn h2_options(limits: &Limits) -> pingora::protocols::http::v2::server::H2Options {
    let mut options = default_h2_options();
    options.max_concurrent_streams(limits.h2_streams);
    options.max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX));
    // One stream may fill a fast, distant client's pipe; all of a connection's together stay bounded.
    options.initial_window_size(1024 * 1024);
    options.initial_connection_window_size(4 * 1024 * 1024);
    // A client that opens and resets streams faster than they are served is cut off (CVE-2023-44487).
    options.max_concurrent_reset_streams(64);
    options.max_pending_accept_reset_streams(32);
    options
}

/// Lines of a thread that has gone quiet must not wait for the next request.
async fn flush_log(worker: Arc<Worker>) {
    let mut tick = tokio::time::interval(FLUSH_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if !worker.shared.log.flush() {
            worker.count().add(|c| &c.log_dropped);
        }
    }
}

/// Which port a connection came to.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Plain,
    Tls,
}

async fn accept_all(worker: &Arc<Worker>, listener: &Acceptor, kind: Kind) {
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => accepted(worker, tcp, peer, kind),
            Err(error) if is_fatal_to_one(&error) => {
                tracing::debug!(%error, "a connection ended before it was accepted")
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections just now");
                tokio::time::sleep(OUT_OF_FILES).await;
            }
        }
    }
}

fn is_fatal_to_one(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

fn accepted(worker: &Arc<Worker>, tcp: TcpStream, peer: SocketAddr, kind: Kind) {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let count = worker.count();
    count.add(match kind {
        Kind::Plain => |c| &c.accepted_http,
        Kind::Tls => |c| &c.accepted_https,
    });
    let live = worker.shared.store.load();
    let trusted = live.edge.is_trusted(peer.ip()) || live.edge.sends_proxy_header(peer.ip());
    let place = if trusted { None } else { worker.shared.crowd.enter(peer.ip()) };
    if !trusted && place.is_none() {
        count.add(|c| &c.refused_limit);
        return;
    }
    drop(live);
    let seat = Seat::take(&worker.shared, place);
    match kind {
        Kind::Plain => drop(tokio::spawn(plain::serve(worker.clone(), tcp, peer, seat))),
        Kind::Tls => drop(tokio::spawn(front::serve(worker.clone(), tcp, peer, seat))),
    }
}
