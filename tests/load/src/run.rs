//! `run`: mixed traffic at given rates, and its account.

use std::rc::Rc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::dial::{Dialer, Offer};
use crate::tally::Tally;
use crate::{Failure, Target, requests, streams};

#[derive(Args)]
pub(crate) struct Run {
    #[command(flatten)]
    target: Target,
    /// How long new work is begun. What is under way then is finished and counted.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// The longest a request may take.
    #[arg(long, default_value_t = 15.0)]
    timeout: f64,
    /// Kept h1 connections, and the requests per second on all of them.
    #[arg(long, default_value_t = 0)]
    h1: u32,
    #[arg(long, default_value_t = 200.0)]
    h1_rate: f64,
    /// h2 connections, streams at a time on each, and the requests per second on all of them.
    #[arg(long, default_value_t = 0)]
    h2: u32,
    #[arg(long, default_value_t = 4)]
    h2_streams: u32,
    #[arg(long, default_value_t = 100.0)]
    h2_rate: f64,
    /// New connections per second, one request each.
    #[arg(long, default_value_t = 0.0)]
    new_rate: f64,
    /// Kept connections that POST, bytes of each body, and the POSTs per second on all of them.
    #[arg(long, default_value_t = 0)]
    post: u32,
    #[arg(long, default_value_t = 100_000)]
    post_bytes: usize,
    #[arg(long, default_value_t = 10.0)]
    post_rate: f64,
    /// Slow requests per second, and how slow.
    #[arg(long, default_value_t = 0.0)]
    slow_rate: f64,
    #[arg(long, default_value_t = 2_000)]
    slow_ms: u64,
    /// Event streams held throughout.
    #[arg(long, default_value_t = 0)]
    events: u32,
    /// Websockets held throughout, 20 messages a second on each.
    #[arg(long, default_value_t = 0)]
    websockets: u32,
    /// Loops of downloads on new connections under `--transfer-host`, and the bytes of each.
    #[arg(long, default_value_t = 0)]
    transfers: u32,
    #[arg(long, default_value_t = 1 << 20)]
    transfer_bytes: u64,
    /// How long the server is asked to stretch each download.
    #[arg(long, default_value_t = 1_000)]
    transfer_ms: u64,
    /// The name for downloads, such as a passthrough host. `--host` where there is none.
    #[arg(long)]
    transfer_host: Option<String>,
    /// Trust any certificate for downloads.
    #[arg(long)]
    transfer_insecure: bool,
    /// Bytes of the answers to h1, h2 and new connections.
    #[arg(long, default_value_t = 1024)]
    bytes: u64,
}

/// What every class of traffic is given.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) dialer: Dialer,
    pub(crate) host: String,
    pub(crate) tally: Rc<Tally>,
    pub(crate) timeout: Duration,
    end: watch::Receiver<bool>,
}

impl Context {
    /// True when no new work is to begin.
    pub(crate) fn over(&self) -> bool {
        *self.end.borrow()
    }

    /// Comes back when no new work is to begin.
    pub(crate) async fn end(&self) {
        let _ = self.end.clone().wait_for(|over| *over).await;
    }
}

impl Run {
    pub(crate) async fn run(self) -> Result<bool, Failure> {
        let (stop, end) = watch::channel(false);
        let tally = Rc::new(Tally::new(&self.classes()));
        let context = Context {
            dialer: self.target.dialer(Offer::All)?,
            host: self.target.host.clone(),
            tally: tally.clone(),
            timeout: Duration::from_secs_f64(self.timeout),
            end,
        };
        let tasks = self.start(&context)?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut term = signal(SignalKind::terminate())?;
        let all_seen = async {
            while !tally.all_seen() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            println!("{}", json!({"ready": true}));
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs_f64(self.seconds)) => {}
            _ = interrupt.recv() => {}
            _ = term.recv() => {}
            () = all_seen => {}
        }
        stop.send_replace(true);
        tally.stop();
        for task in tasks {
            task.await?;
        }
        let (report, clean) = tally.report();
        println!("{report}");
        Ok(clean)
    }

    fn classes(&self) -> Vec<&'static str> {
        let all = [
            ("h1", self.h1 > 0),
            ("h2", self.h2 > 0),
            ("new", self.new_rate > 0.0),
            ("post", self.post > 0),
            ("slow", self.slow_rate > 0.0),
            ("events", self.events > 0),
            ("websocket", self.websockets > 0),
            ("transfer", self.transfers > 0),
        ];
        all.into_iter().filter(|class| class.1).map(|class| class.0).collect()
    }

    fn start(&self, context: &Context) -> Result<Vec<tokio::task::JoinHandle<()>>, Failure> {
        let mut tasks = Vec::new();
        let path = format!("/bytes/{}", self.bytes);
        for i in 0..self.h1 {
            let pace = Pace::new(self.h1_rate / f64::from(self.h1), i, self.h1);
            tasks.push(tokio::task::spawn_local(requests::h1(context.clone(), path.clone(), pace)));
        }
        for i in 0..self.h2 {
            let pace = Pace::new(self.h2_rate / f64::from(self.h2 * self.h2_streams), i, self.h2);
            let streams = self.h2_streams;
            tasks.push(tokio::task::spawn_local(requests::h2(context.clone(), path.clone(), streams, pace)));
        }
        if self.new_rate > 0.0 {
            let pace = Pace::new(self.new_rate, 0, 1);
            tasks.push(tokio::task::spawn_local(requests::new(context.clone(), "new", path, pace)));
        }
        if self.slow_rate > 0.0 {
            let path = format!("/slow?ms={}", self.slow_ms);
            let pace = Pace::new(self.slow_rate, 0, 1);
            tasks.push(tokio::task::spawn_local(requests::new(context.clone(), "slow", path, pace)));
        }
        for i in 0..self.post {
            let pace = Pace::new(self.post_rate / f64::from(self.post), i, self.post);
            tasks.push(tokio::task::spawn_local(requests::post(context.clone(), self.post_bytes, pace)));
        }
        for _ in 0..self.events {
            tasks.push(tokio::task::spawn_local(streams::events(context.clone())));
        }
        for _ in 0..self.websockets {
            tasks.push(tokio::task::spawn_local(streams::websocket(context.clone())));
        }
        let mut transfer = context.clone();
        if let Some(host) = &self.transfer_host {
            transfer.host.clone_from(host);
        }
        if self.transfer_insecure {
            transfer.dialer = Dialer::tls(self.target.target, None, Offer::All)?;
        }
        for _ in 0..self.transfers {
            let (bytes, ms) = (self.transfer_bytes, self.transfer_ms);
            tasks.push(tokio::task::spawn_local(streams::transfers(transfer.clone(), bytes, ms)));
        }
        Ok(tasks)
    }
}

/// When a worker's requests are due: evenly, and shifted against its fellows.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) every: Duration,
    pub(crate) first: Duration,
}

impl Pace {
    fn new(rate: f64, index: u32, of: u32) -> Self {
        let every = Duration::from_secs_f64(1.0 / rate.max(0.001));
        Self { every, first: every * index / of.max(1) }
    }
}
