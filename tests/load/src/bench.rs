//! `handshakes`, `idle`, `websocket`: one kind of load each, as fast as it goes, for the benches.

use std::cell::{Cell, RefCell};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::dial::{DialError, Dialer, Offer};
use crate::tally::percentile;
use crate::{Failure, Target};

/// Counts of one bench.
#[derive(Default)]
struct Counts {
    latencies: RefCell<Vec<Duration>>,
    failed: Cell<u64>,
    resumed: Cell<u64>,
    last_error: RefCell<Option<String>>,
}

impl Counts {
    fn book(&self, start: Instant, result: Result<(), Failure>) {
        match result {
            Ok(()) => self.latencies.borrow_mut().push(start.elapsed()),
            Err(error) => {
                self.failed.set(self.failed.get() + 1);
                *self.last_error.borrow_mut() = Some(error.to_string());
            }
        }
    }

    fn print(&self, elapsed: Duration) -> bool {
        let mut latencies = self.latencies.borrow_mut();
        latencies.sort_unstable();
        println!(
            "{}",
            json!({
                "ok": latencies.len(),
                "failed": self.failed.get(),
                "resumed": self.resumed.get(),
                "seconds": elapsed.as_secs_f64(),
                "per_second": latencies.len() as f64 / elapsed.as_secs_f64(),
                "p50_ms": percentile(&latencies, 50),
                "p99_ms": percentile(&latencies, 99),
                "error": *self.last_error.borrow(),
            })
        );
        self.failed.get() == 0
    }
}

/// Runs `clients` copies of `work` until the time is over.
async fn drive<F>(clients: u32, seconds: f64, counts: &Counts, work: impl Fn(Instant) -> F) -> bool
where
    F: Future<Output = ()> + 'static,
{
    let start = Instant::now();
    let until = start + Duration::from_secs_f64(seconds);
    let tasks: Vec<_> = (0..clients).map(|_| tokio::task::spawn_local(work(until))).collect();
    for task in tasks {
        let _ = task.await;
    }
    counts.print(start.elapsed())
}

fn failure(error: DialError) -> Failure {
    match error {
        DialError::Connect(error) => format!("connect: {error}").into(),
        DialError::Tls(error) => format!("tls: {error}").into(),
    }
}

#[derive(Args)]
pub(crate) struct Handshakes {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Connections at a time.
    #[arg(long, default_value_t = 8)]
    clients: u32,
    /// Resume sessions by ticket; full handshakes otherwise.
    #[arg(long)]
    resume: bool,
    /// TLS 1.2 in place of 1.3.
    #[arg(long)]
    tls12: bool,
    #[arg(long, default_value = "/1k")]
    path: String,
}

impl Handshakes {
    pub(crate) async fn run(self) -> Result<bool, Failure> {
        let counts = Rc::new(Counts::default());
        let base = self.target.dialer(if self.tls12 { Offer::X25519Tls12 } else { Offer::X25519 })?;
        let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.path, self.target.host);
        let clean = drive(self.clients, self.seconds, &counts, |until| {
            let dialer = base.with("http/1.1", self.resume);
            let (counts, host, request) = (counts.clone(), self.target.host.clone(), request.clone());
            async move {
                while Instant::now() < until {
                    let start = Instant::now();
                    let result = handshake(&dialer, &host, request.as_bytes(), &counts).await;
                    counts.book(start, result);
                }
            }
        })
        .await;
        Ok(clean)
    }
}

async fn handshake(dialer: &Dialer, host: &str, request: &[u8], counts: &Counts) -> Result<(), Failure> {
    let (mut io, resumed) = dialer.dial(host).await.map_err(failure)?;
    counts.resumed.set(counts.resumed.get() + u64::from(resumed));
    io.write_all(request).await?;
    let mut answer = Vec::with_capacity(4096);
    // Without close_notify the rest may be missing; the status line tells what matters here.
    if let Err(error) = io.read_to_end(&mut answer).await
        && error.kind() != std::io::ErrorKind::UnexpectedEof
    {
        return Err(error.into());
    }
    if answer.starts_with(b"HTTP/1.1 200") {
        Ok(())
    } else {
        Err(format!("answered {}", String::from_utf8_lossy(&answer[..answer.len().min(60)])).into())
    }
}

#[derive(Args)]
pub(crate) struct Idle {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 2_000)]
    connections: u32,
    /// Connections from each of our addresses, 127.0.0.2 and on, as servers limit them for each client.
    #[arg(long, default_value_t = 500)]
    per_address: u32,
}

impl Idle {
    pub(crate) async fn run(self) -> Result<bool, Failure> {
        let dialer = self.target.dialer(Offer::X25519)?.with("http/1.1", false);
        let mut held = Vec::new();
        for i in 0..self.connections {
            let from = Ipv4Addr::new(127, 0, 0, u8::try_from(2 + i / self.per_address.max(1))?);
            let (mut io, _) = dialer.dial_from(&self.target.host, Some(from)).await.map_err(failure)?;
            // One request first: idle is a connection that has been used and kept.
            io.write_all(format!("GET /1k HTTP/1.1\r\nHost: {}\r\n\r\n", self.target.host).as_bytes()).await?;
            let mut answer = [0; 4096];
            let mut got = io.read(&mut answer).await?;
            while got < 1024 {
                match io.read(&mut answer[got..]).await? {
                    0 => return Err("closed before the answer was whole".into()),
                    more => got += more,
                }
            }
            held.push(io);
        }
        println!("{}", json!({"connections": held.len()}));
        let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
        Ok(true)
    }
}

#[derive(Args)]
pub(crate) struct Websocket {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// Bytes of each message.
    #[arg(long, default_value_t = 128)]
    bytes: usize,
    #[arg(long, default_value = "/ws")]
    path: String,
}

impl Websocket {
    pub(crate) async fn run(self) -> Result<bool, Failure> {
        let counts = Rc::new(Counts::default());
        let dialer = self.target.dialer(Offer::X25519)?.with("http/1.1", false);
        let url = format!("ws://{}{}", self.target.host, self.path);
        let clean = drive(self.connections, self.seconds, &counts, |until| {
            let (counts, dialer, url, host) = (counts.clone(), dialer.clone(), url.clone(), self.target.host.clone());
            let message = Message::text("x".repeat(self.bytes));
            async move {
                let result = echoes(&dialer, &host, &url, message, until, &counts).await;
                if result.is_err() {
                    counts.book(Instant::now(), result);
                }
            }
        })
        .await;
        Ok(clean)
    }
}

async fn echoes(
    dialer: &Dialer,
    host: &str,
    url: &str,
    message: Message,
    until: Instant,
    counts: &Counts,
) -> Result<(), Failure> {
    let (io, _) = dialer.dial(host).await.map_err(failure)?;
    let (mut socket, _) = tokio_tungstenite::client_async(url.into_client_request()?, io).await?;
    while Instant::now() < until {
        let start = Instant::now();
        socket.send(message.clone()).await?;
        match socket.next().await {
            Some(Ok(answer)) if answer == message => counts.book(start, Ok(())),
            other => return Err(format!("no echo: {other:?}").into()),
        }
    }
    Ok(socket.close(None).await?)
}
