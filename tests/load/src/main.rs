//! Load on one address, counted exactly, told as JSON.

mod bench;
mod client;
mod dial;
mod requests;
mod run;
mod streams;
mod tally;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::dial::{Dialer, Offer};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Load on one address, counted exactly, told as JSON.
#[derive(Parser)]
#[command(name = "itsup-load", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Where the load goes.
#[derive(Args, Clone)]
struct Target {
    /// The address to connect to.
    #[arg(long)]
    target: SocketAddr,
    /// The name to ask for, in SNI and Host.
    #[arg(long, default_value = "localhost")]
    host: String,
    /// Roots to trust, PEM.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Trust any certificate.
    #[arg(long)]
    insecure: bool,
    /// No TLS.
    #[arg(long)]
    plain: bool,
}

impl Target {
    fn dialer(&self, offer: Offer) -> Result<Dialer, Failure> {
        match (self.plain, &self.ca, self.insecure) {
            (true, ..) => Ok(Dialer::plain(self.target)),
            (_, Some(ca), _) => Dialer::tls(self.target, Some(ca), offer),
            (_, None, true) => Dialer::tls(self.target, None, offer),
            (_, None, false) => Err("one of --ca, --insecure, --plain is needed".into()),
        }
    }
}

#[derive(Subcommand)]
enum Command {
    /// Mixed traffic for a time, or until SIGINT or SIGTERM; exit code 1 where anything failed.
    Run(run::Run),
    /// New connections with one request each, as fast as they go.
    Handshakes(bench::Handshakes),
    /// Idle connections, held until standard input ends.
    Idle(bench::Idle),
    /// Websocket messages, one at a time on each connection, as fast as they go.
    Websocket(bench::Websocket),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let local = tokio::task::LocalSet::new();
    let result = local.block_on(&runtime, async {
        match cli.command {
            Command::Run(run) => run.run().await,
            Command::Handshakes(bench) => bench.run().await,
            Command::Idle(bench) => bench.run().await,
            Command::Websocket(bench) => bench.run().await,
        }
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => fail(error.as_ref()),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("itsup-load: {}", client::chain(error));
    ExitCode::from(2)
}
