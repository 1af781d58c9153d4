//! The command line: definitions, no logic.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCompleter;
use itsup_control::settings::{Root, Sources, Variable};

use crate::complete;

/// A reverse proxy on :80 and :443 and the stacks behind it, driven by db.yml.
#[derive(Debug, Parser)]
#[command(name = "itsup", version, propagate_version = true)]
pub(crate) struct Cli {
    /// The folder with db.yml, .env, certs/, upstream/, data/ and logs/
    #[arg(long, global = true, env = "ITSUP_ROOT", default_value = ".", value_name = "DIR")]
    root: PathBuf,
    /// Log more; twice and thrice for more still
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Print results, also errors, as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// The root folder; an empty one is the current one.
    pub(crate) fn root(&self) -> Root {
        Root::new(if self.root.as_os_str().is_empty() { PathBuf::from(".") } else { self.root.clone() })
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve, in the foreground
    Run(Box<SettingFlags>),
    /// Have the running itsup read db.yml, .env and the certificates again
    Reload,
    /// Check db.yml and .env; changes nothing and needs no running itsup
    Validate {
        /// Print db.yml's JSON Schema instead
        #[arg(long)]
        schema: bool,
    },
    /// Show what the running itsup does
    Status,
    /// Show what apply would do, and to whose traffic
    Plan {
        /// The one project to look at
        #[arg(add = ArgValueCompleter::new(complete::projects))]
        project: Option<String>,
        /// Exit with 3 where there is something to do
        #[arg(long)]
        exit_code: bool,
    },
    /// Write upstream/PROJECT/docker-compose.yml and the folders of volumes; touches no container
    Write {
        /// The one project to write
        #[arg(add = ArgValueCompleter::new(complete::projects))]
        project: Option<String>,
    },
    /// Make what runs what db.yml says; without a running itsup too
    Apply {
        /// The one project to change
        #[arg(add = ArgValueCompleter::new(complete::projects))]
        project: Option<String>,
        /// Only show what would be done
        #[arg(long)]
        dry_run: bool,
        /// Remove what db.yml no longer names; volumes stay
        #[arg(long)]
        prune: bool,
        /// Replace containers that have not changed as well
        #[arg(long)]
        force: bool,
        /// Let go of what a rollback holds
        #[arg(long)]
        unpin: bool,
    },
    /// Roll services over to their image and config of now, changed or not
    Rollout {
        #[arg(add = ArgValueCompleter::new(complete::projects))]
        project: String,
        /// The one service; all that traffic leads to where none is named
        service: Option<String>,
    },
    /// Go back to what services were before their last change, and stay there until db.yml says otherwise
    Rollback {
        #[arg(add = ArgValueCompleter::new(complete::projects))]
        project: String,
        /// The one service; all that have an earlier version where none is named
        service: Option<String>,
    },
    /// Run docker compose on a project's stack; `up` implies -d and pulls first
    Stack {
        #[arg(add = ArgValueCompleter::new(complete::projects))]
        project: String,
        /// docker compose's own arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, add = ArgValueCompleter::new(complete::compose))]
        arguments: Vec<OsString>,
    },
    /// Run docker compose on every project's stack, one after another
    All {
        /// docker compose's own arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, add = ArgValueCompleter::new(complete::compose))]
        arguments: Vec<OsString>,
    },
    /// Print the completions for a shell: source <(itsup completions bash)
    Completions { shell: Shell },
    /// List what db.yml was before each change through the API; show or restore one
    History {
        #[command(subcommand)]
        command: Option<HistoryCommand>,
    },
    /// Print the API's description (OpenAPI 3.1)
    Openapi {
        /// Write it to this file instead: YAML, or JSON where the name ends so
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// List changes that wait, run or have ended; with a number, watch that one
    Jobs {
        id: Option<u64>,
        /// Cancel it: a waiting one at once, a running one before it switches
        #[arg(long, requires = "id")]
        cancel: bool,
    },
    /// Show certificates, get them now, revoke one, or trust the internal CA
    Certs {
        #[command(subcommand)]
        command: Option<CertsCommand>,
    },
    /// Make a new root folder: db.yml, .env with a fresh API_KEY, and the folders
    Init,
    /// Look at everything that itsUP stands on, and say how to mend what is not as it ought to be
    Doctor,
    /// The logs of the proxy, of itsUP itself and of the containers, merged by time
    Logs {
        /// A project, or `proxy` (the access log) or `api` (itsUP's own); all of them where it is not said
        #[arg(value_name = "PROJECT|proxy|api")]
        what: Option<String>,
        /// Go on as lines come
        #[arg(short, long)]
        follow: bool,
        /// How many lines of the past
        #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
        lines: usize,
    },
    /// itsUP as a systemd service
    Service {
        #[command(subcommand)]
        command: ServiceCommand,
        /// The folder for units
        #[arg(long, global = true, value_name = "DIR", default_value = "/etc/systemd/system")]
        unit_dir: PathBuf,
    },
    /// Update itsUP, and db.yml where it has a repository of its own, from git: build, try out, upgrade
    SelfUpdate,
    /// Have a new version take over from the running itsup, without a failed request
    Upgrade {
        /// The new version's binary; this very one where it is not said
        #[arg(long, value_name = "BINARY")]
        to: Option<PathBuf>,
        /// How long it may take until it is ready; after that everything stays as it is
        #[arg(long, value_name = "SECONDS", default_value_t = itsup_control::upgrade::PATIENCE.as_secs())]
        timeout: u64,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Get what is due and what has failed; exit code 0 where nothing was
    Update {
        /// This host alone, at once also after a failure
        host: Option<String>,
        /// Also what is not due
        #[arg(long)]
        force: bool,
    },
    /// Show the internal CA's root, and how to trust it
    Ca,
    /// Have the CA revoke a host's certificate, and get another
    Revoke {
        /// The host
        host: String,
    },
}

/// A shell that completions can be printed for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HistoryCommand {
    /// Print one of them
    Show { name: String },
    /// Put one of them in the place of db.yml, which then becomes a former one itself
    Restore { name: String },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Write hardened units, make the user, and start the service
    Install {
        /// Who it runs as
        #[arg(long, default_value = "itsup")]
        user: String,
        /// Have systemd open the ports, so that connections wait while the service starts anew
        #[arg(long)]
        socket: bool,
        /// Write the units and do nothing else
        #[arg(long)]
        no_start: bool,
    },
    /// Stop the service and remove its units; all files stay
    Uninstall,
    /// Whether it is installed, current and active
    Status,
}

/// Settings; each stands for the environment variable that its help names, and wins over it and .env.
#[derive(Args, Debug, Default)]
pub(crate) struct SettingFlags {
    /// Plain listener [ITSUP_HTTP, [::]:80]
    #[arg(long, value_name = "ADDRESS:PORT")]
    http: Option<String>,
    /// TLS listener [ITSUP_HTTPS, [::]:443]
    #[arg(long, value_name = "ADDRESS:PORT")]
    https: Option<String>,
    /// Port that redirects to https name [ITSUP_PUBLIC_HTTPS_PORT, 443]
    #[arg(long, value_name = "PORT")]
    public_https_port: Option<String>,
    /// The API on TCP, or off [ITSUP_API, 127.0.0.1:8888]
    #[arg(long, value_name = "ADDRESS:PORT")]
    api: Option<String>,
    /// Networks whose forwarded headers count [ITSUP_TRUSTED_PROXIES]
    #[arg(long, value_name = "CIDR,...")]
    trusted_proxies: Option<String>,
    /// Networks that must send a PROXY header [ITSUP_PROXY_PROTOCOL]
    #[arg(long, value_name = "CIDR,...")]
    proxy_protocol: Option<String>,
    /// A file below the root, stdout or off [ITSUP_ACCESS_LOG, logs/access.log]
    #[arg(long, value_name = "FILE")]
    access_log: Option<String>,
    /// How long a shutdown waits for traffic to end [ITSUP_GRACE, 30s]
    #[arg(long, value_name = "DURATION")]
    grace: Option<String>,
    /// Whether to look for containers, on or off [ITSUP_DOCKER, on]
    #[arg(long, value_name = "on|off")]
    docker: Option<String>,
    /// Data threads [ITSUP_THREADS, the cores]
    #[arg(long, value_name = "N")]
    threads: Option<String>,
    /// Listen on [::]:8080 and [::]:8443, where the flags above do not say otherwise
    #[arg(long)]
    local: bool,
}

impl SettingFlags {
    /// These flags over the process's environment.
    pub(crate) fn sources(self) -> Sources {
        let local = |text: &str| self.local.then(|| text.to_owned());
        let flags = [
            (Variable::Http, self.http.or_else(|| local("[::]:8080"))),
            (Variable::Https, self.https.or_else(|| local("[::]:8443"))),
            (Variable::PublicHttpsPort, self.public_https_port.or_else(|| local("8443"))),
            (Variable::Api, self.api),
            (Variable::TrustedProxies, self.trusted_proxies),
            (Variable::ProxyProtocol, self.proxy_protocol),
            (Variable::AccessLog, self.access_log),
            (Variable::Grace, self.grace),
            (Variable::Docker, self.docker),
            (Variable::Threads, self.threads),
        ];
        let flags: BTreeMap<Variable, String> =
            flags.into_iter().filter_map(|(variable, text)| text.map(|text| (variable, text))).collect();
        // What is not Unicode is faulty whatever the variable; it then fails as the value it is read as.
        Sources::new(flags, |name| std::env::var_os(name).map(|text| text.to_string_lossy().into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use clap::CommandFactory as _;
    use itsup_control::settings::Settings;

    use super::*;

    #[test]
    fn definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_stand_anywhere() {
        for line in [&["itsup", "--root", "/r", "--json", "status"], &["itsup", "status", "--json", "--root", "/r"]] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert!(cli.json);
            assert_eq!(cli.root().path(), std::path::Path::new("/r"));
        }
    }

    #[test]
    fn local_ports_give_way_to_flags() {
        let cli = Cli::try_parse_from(["itsup", "run", "--local", "--http", "127.0.0.1:1"]).unwrap();
        let Command::Run(flags) = cli.command else { panic!("not run") };
        let settings = Settings::resolve(Root::new("."), &flags.sources(), NonZeroUsize::MIN).unwrap();
        assert_eq!(settings.http.to_string(), "127.0.0.1:1");
        assert_eq!(settings.https.to_string(), "[::]:8443");
        assert_eq!(settings.public_https_port, 8443);
    }
}
