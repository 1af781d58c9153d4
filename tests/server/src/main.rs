//! The life of the test server: start as told, listen, say so on standard output, end as told.

mod app;
mod args;
mod body;
mod endpoints;
mod grpc;
mod proxy_header;
mod serve;
mod tls;
mod websocket;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::app::App;
use crate::args::{Args, OnTerm};

fn main() -> ExitCode {
    let start = Instant::now();
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let result = runtime.block_on(async {
        match args.check {
            Some(address) => check(address).await,
            None => run(args, start).await,
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error.as_ref()),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("itsup-testd: {error}");
    ExitCode::FAILURE
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn run(args: Args, start: Instant) -> Result<(), Failure> {
    // As PID 1 of a container, signals without a handler are ignored: install them before anything else.
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (end, ending) = watch::channel(false);
    let (alive, mut all_gone) = mpsc::channel::<()>(1);
    let app = Arc::new(App::new(&args, start, ending));

    let life = async {
        tokio::time::sleep(args.start_delay).await;
        if args.never_listen {
            println!("{}", json!({"ready": false, "pid": std::process::id()}));
            return std::future::pending().await;
        }
        let bound = serve::start(&args, &app, &alive).await?;
        println!("{bound}");
        std::future::pending::<Result<(), Failure>>().await
    };
    let crash = async {
        match args.crash_after {
            Some(delay) => tokio::time::sleep(delay.saturating_sub(start.elapsed())).await,
            None => std::future::pending().await,
        }
    };
    let told_to_end = async {
        loop {
            tokio::select! {
                _ = interrupt.recv() => return OnTerm::Die,
                _ = term.recv() => match args.on_term {
                    OnTerm::Ignore => {}
                    other => return other,
                },
            }
        }
    };
    tokio::select! {
        result = life => return result,
        () = crash => return Err("crashed, as told".into()),
        on_term = told_to_end => if on_term == OnTerm::Die { return Ok(()) },
    }
    end.send_replace(true);
    drop((alive, app));
    let _ = tokio::time::timeout(args.grace, all_gone.recv()).await;
    Ok(())
}

/// Asks a server for `/health`.
async fn check(address: std::net::SocketAddr) -> Result<(), Failure> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        Ok::<_, Failure>(status)
    };
    let status = tokio::time::timeout(Duration::from_secs(5), ask).await??;
    if status.ends_with(b" 200") { Ok(()) } else { Err("unhealthy".into()) }
}
