//! `itsup`: one binary, proxy and controller.
//!
//! Parses the command line, sets up logs and cryptography, and turns what came of it into an exit code:
//! 0 done, 1 failed or faulty input, 2 usage, 3 something to do (`plan --exit-code`).

mod certs;
mod changes;
mod cli;
mod client;
mod complete;
mod doctor;
mod failure;
mod follow;
mod history;
mod inherit;
mod init;
mod logs;
mod render;
mod serve;
mod service;
mod stacks;
mod systemd;
mod upgrade;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

use cli::{Cli, Command, ServiceCommand};
use failure::Failure;
use itsup_control::apply::Request;
use itsup_control::control::read_settings;
use itsup_control::jobs::{JobId, Work};
use itsup_control::settings::{Root, Settings};
use render::Output;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The proxy's engine has a provider of its own; ours must be the process's default before anyone asks.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("error: another TLS provider is installed already");
        return ExitCode::FAILURE;
    }
    complete::answer();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &arguments),
    };
    trace(cli.verbose);
    let output = Output::new(cli.json);
    match run(cli, &output) {
        Ok(()) => output.exit_code(),
        Err(failure) => {
            output.failure(&failure);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli, output: &Output) -> Result<(), Failure> {
    let root = cli.root();
    match cli.command {
        Command::Run(flags) => serve::run(root, flags, output),
        Command::Reload => output.reload(&client::reload(&root)?),
        Command::Validate { schema: true } => output.schema(itsup_control::db::schema()),
        Command::Validate { schema: false } => {
            let mut sources = cli::SettingFlags::default().sources();
            match itsup_control::control::validate(&root, &mut sources, serve::cores()) {
                Ok(warnings) => output.valid(&warnings),
                Err(refused) => Err(refused.into()),
            }
        }
        Command::History { command } => history::history(root, command, output),
        Command::Openapi { out } => history::openapi(out.as_deref(), output),
        Command::Jobs { id: None, .. } => output.jobs(&client::jobs(&root)?),
        Command::Jobs { id: Some(id), cancel: true } => output.jobs(&[client::cancel(&root, id)?]),
        Command::Jobs { id: Some(id), cancel: false } => {
            let report = follow::again(&root, JobId(id), |note| output.note(note))?;
            output.jobs(std::slice::from_ref(&report))?;
            follow::success(&report)
        }
        Command::Status => output.status(&client::status(&root)?),
        Command::Certs { command } => certs::run(&root, command, output),
        Command::Plan { project, exit_code } => {
            let request = Request { project: project.map(Into::into), ..Request::default() };
            changes::plan(&root, &request, exit_code, output)
        }
        Command::Write { project } => changes::write(&root, project.as_deref(), output),
        Command::Apply { project, dry_run, prune, force, unpin } => {
            let project = project.map(Into::into);
            let request = Request { project, prune, force, unpin, ..Request::default() };
            if dry_run {
                changes::plan(&root, &request, false, output)
            } else {
                changes::apply(&root, &request, output)
            }
        }
        Command::Rollout { project, service } => {
            let work = Work::Rollout { project: project.into(), service: service.map(Into::into) };
            changes::roll(&root, &work, output)
        }
        Command::Rollback { project, service } => {
            let work = Work::Rollback { project: project.into(), service: service.map(Into::into) };
            changes::roll(&root, &work, output)
        }
        Command::Stack { project, arguments } => stacks::stack(&root, &project, &arguments),
        Command::All { arguments } => stacks::all(&root, &arguments),
        Command::Completions { shell } => complete::print(shell, output),
        Command::Init => output.made(&init::init(&root)?),
        Command::Doctor => {
            let checks = doctor::examine(&root, cli::SettingFlags::default().sources());
            output.examined(&checks)?;
            // What is bad has been told; an error on top would tell nothing more.
            if checks.iter().any(|check| check.verdict == doctor::Verdict::Bad) {
                std::process::exit(1)
            } else {
                Ok(())
            }
        }
        Command::Logs { what, follow, lines } => {
            let settings = settings(&root)?;
            let coloured = render::colour(&std::io::stdout());
            logs::logs(&root, &settings, &logs::Asked { what, follow, lines, coloured, json: cli.json })
        }
        Command::Service { command, unit_dir } => run_service(&root, command, unit_dir, output),
        Command::SelfUpdate => output.self_updated(&client::self_update(&root)?),
        Command::Upgrade { to, timeout } => output.upgraded(&client::upgrade(&root, to, timeout)?),
    }
}

fn settings(root: &Root) -> Result<Settings, Failure> {
    let mut sources = cli::SettingFlags::default().sources();
    read_settings(root, &mut sources, serve::cores())
        .map_err(|faults| Failure::faults("the settings have faults", faults))
}

fn run_service(root: &Root, command: ServiceCommand, folder: PathBuf, output: &Output) -> Result<(), Failure> {
    match command {
        ServiceCommand::Install { user, socket, no_start } => {
            let wanted = service::Wanted { folder, user, socket, start: !no_start };
            output.service("installed", &service::install(root, &settings(root)?, &wanted)?)
        }
        ServiceCommand::Uninstall => output.service("removed", &service::uninstall(&folder)?),
        ServiceCommand::Status => {
            let wanted = service::Wanted { folder, user: "itsup".into(), socket: false, start: false };
            output.service("there", &service::status(root, &settings(root)?, &wanted)?)
        }
    }
}

/// Help and version are no errors; anything else is, also for programs.
fn usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if !asked_for && arguments.iter().any(|argument| argument == "--json") {
        let text = error.to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        Output::new(true).print_json(&serde_json::json!({ "error": message, "diagnostics": [] }));
    }
    // Nobody is left to tell when even this cannot be printed.
    let _ = error.print();
    ExitCode::from(if asked_for { 0 } else { 2 })
}

/// Logs go to stderr: ours from info on, others' from warn on, more with each `-v`; `RUST_LOG` overrides.
fn trace(verbose: u8) {
    let levels = match verbose {
        0 => "warn,itsup=info,itsup_proxy=info,itsup_control=info",
        1 => "info,itsup=debug,itsup_proxy=debug,itsup_control=debug",
        2 => "debug,itsup=trace,itsup_proxy=trace,itsup_control=trace",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(levels));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(render::colour(&std::io::stderr()))
        .with_target(verbose > 0)
        .init();
}
