//! `itsup run`: wires proxy, control and API together, and listens to signals.

use std::net::{Ipv6Addr, SocketAddr, TcpListener as StdTcpListener};
use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::Context as _;
use itsup_control::api::{self, Api, Claim, SocketError};
use itsup_control::apply::ByCompose;
use itsup_control::change::Rollouts;
use itsup_control::control::{Control, ReloadError, Start, read_settings};
use itsup_control::jobs::Jobs;
use itsup_control::reconcile;
use itsup_control::settings::{Root, Settings, without_ipv6};
use itsup_control::worker::{Changes, Published};
use itsup_proxy::{Config, Limits, Listeners, Proxy};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::SettingFlags;
use crate::failure::Failure;
use crate::render::{Output, Ready};

/// The data threads are the proxy's own; these serve Docker, certificates and the API.
const CONTROL_THREADS: usize = 2;

/// What `ITSUP_THREADS` defaults to.
pub(crate) fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Serves until a signal ends it.
pub(crate) fn run(root: Root, flags: Box<SettingFlags>, output: &Output) -> Result<(), Failure> {
    let mut sources = flags.sources();
    let settings = read_settings(&root, &mut sources, cores())
        .map_err(|faults| Failure::faults("the settings have faults", faults))?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("itsup-control-io")
        .enable_all()
        .build()
        .context("the async runtime cannot be started")?;
    let done = runtime.block_on(async {
        let doors = Doors::open(&settings).await?;
        let proxy = bind_proxy(&settings)?;
        let start = Start { proxy: proxy.clone(), settings, sources, cores: cores(), api: doors.tcp_address() };
        let mut worker = Changes::new(&start.settings);
        let control = Control::start(start).await?;
        worker.changer = match worker.engine.clone() {
            Some(engine) => {
                let rollouts = Rollouts::start(worker.root.clone(), engine, control.clone());
                Arc::new(rollouts.context("data/journal cannot be used")?)
            }
            None => Arc::new(Published { control: control.clone(), changer: ByCompose }),
        };
        serve(proxy, control, worker, doors, output).await
    });
    // Look-ups may hang in the system's resolver; nobody waits for them.
    runtime.shutdown_background();
    done
}

/// The API's sockets, bound and not served yet.
struct Doors {
    root: Root,
    control: UnixListener,
    proxy: UnixListener,
    tcp: Option<TcpListener>,
    _claim: Claim,
}

impl Doors {
    async fn open(settings: &Settings) -> Result<Doors, Failure> {
        let root = settings.root.clone();
        let claim = Claim::take(&root).map_err(claim_failure)?;
        let tcp = match settings.api {
            Some(address) => {
                let address = if has_ipv6() { address } else { without_ipv6(address) };
                let bound = TcpListener::bind(address).await;
                Some(bound.map_err(|error| {
                    Failure::with_hint(
                        format!("ITSUP_API: {address} cannot be listened on: {error}"),
                        "set ITSUP_API (or --api) to another address, or to off",
                    )
                })?)
            }
            None => None,
        };
        let control = claim.bind_control(&root).map_err(claim_failure)?;
        let proxy = claim.bind_api(&root).map_err(claim_failure)?;
        Ok(Doors { root, control, proxy, tcp, _claim: claim })
    }

    fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|listener| listener.local_addr().ok())
    }
}

fn claim_failure(error: SocketError) -> Failure {
    let hint = match &error {
        SocketError::Running(_) => "use `itsup status` to see it, or another --root",
        SocketError::TooLong(_) => "use a root folder with a shorter path",
        SocketError::Io { .. } => "itsup must be able to write to data/ in its root folder",
    };
    Failure::with_hint(error.to_string(), hint)
}

fn bind_proxy(settings: &Settings) -> Result<Proxy, Failure> {
    settings.make_log_folder().context("the access log's folder cannot be made")?;
    let address = |address| if has_ipv6() { address } else { without_ipv6(address) };
    let config = Config {
        http: address(settings.http),
        https: address(settings.https),
        threads: settings.threads,
        access_log: settings.access_log.clone(),
        limits: Limits::default(),
    };
    Proxy::bind(config, Listeners::default()).map_err(|error| {
        let hint = "ports below 1024 need root or CAP_NET_BIND_SERVICE; `itsup run --local` takes 8080 and 8443";
        Failure::with_hint(error.to_string(), hint)
    })
}

/// A socket for all addresses is what the proxy will ask for; a kernel without IPv6 refuses it.
fn has_ipv6() -> bool {
    StdTcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok()
}

async fn serve(proxy: Proxy, control: Control, worker: Changes, doors: Doors, output: &Output) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let Doors { root, control: control_socket, proxy: proxy_socket, tcp, _claim } = doors;
    let ready = Ready {
        http: proxy.http_addr().to_string(),
        https: proxy.https_addr().to_string(),
        api: tcp.as_ref().and_then(|listener| listener.local_addr().ok()).map(|address| address.to_string()),
    };
    let jobs = Jobs::start(root.jobs(), Arc::new(worker));
    tokio::spawn(reconcile::run(control.clone(), jobs.clone()));
    let api = Api::new(control.clone(), jobs.clone());
    tokio::spawn(api::serve_control(control_socket, api.clone()));
    tokio::spawn(api::serve_proxy(proxy_socket, api.clone()));
    if let Some(listener) = tcp {
        tokio::spawn(api::serve_tcp(listener, api));
    }
    output.ready(&ready)?;
    signals.until_the_end(&proxy, &control).await;
    let grace = control.grace();
    tracing::info!("shutting down, within {grace:?}");
    tokio::select! {
        // A change that is not done within the grace is finished or undone at the next start.
        (cut, _) = async { tokio::join!(proxy.shutdown(grace), tokio::time::timeout(grace, jobs.close())) } => {
            if cut > 0 {
                tracing::warn!(connections = cut, "the grace is over: connections were cut");
            }
        }
        () = signals.second_interrupt() => {
            remove_sockets(&root);
            tracing::warn!("interrupted again: what was under way is cut");
            std::process::exit(130);
        }
    }
    remove_sockets(&root);
    Ok(())
}

fn remove_sockets(root: &Root) {
    for path in [root.socket(), root.api_socket()] {
        // The next start replaces what is left.
        let _ = std::fs::remove_file(path);
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user1: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Signals> {
        let listen = |kind| signal(kind).context("signals cannot be listened to");
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
            user1: listen(SignalKind::user_defined1())?,
        })
    }

    /// Does what SIGHUP and SIGUSR1 ask for, until SIGTERM or SIGINT.
    async fn until_the_end(&mut self, proxy: &Proxy, control: &Control) {
        let control = Arc::new(control.clone());
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => { tokio::spawn(reload(control.clone())); }
                _ = self.user1.recv() => proxy.reopen_access_log(),
            }
        }
    }

    async fn second_interrupt(&mut self) {
        self.interrupt.recv().await;
    }
}

/// A reload that nobody waits for: what came of it is logged.
async fn reload(control: Arc<Control>) {
    match control.reload().await {
        Ok(report) => {
            for warning in &report.warnings {
                tracing::warn!("{warning}");
            }
            tracing::info!(generation = report.generation, changed = report.changed, "reloaded");
        }
        Err(error) => {
            if let ReloadError::Refused(refused) = &error {
                for diagnostic in &refused.diagnostics {
                    tracing::error!("{diagnostic}");
                }
            }
            tracing::error!("reload: {error}");
        }
    }
}

/// Every connection is a file; the usual soft limit of 1,024 is soon reached.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        tracing::warn!("the limit on open files cannot be raised: {error}");
    }
}
