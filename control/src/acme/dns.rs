//! TXT records for DNS-01: set by a program or a dynamic update, and looked for at the zone's own name servers.

mod hook;
mod query;
mod update;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::settings::Acme;
use crate::settings::acme::Dns;
use query::Resolver;

/// How often name servers are asked whether they have a record yet.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Of name servers that never answer, this many questions are asked before they are left out.
const SILENT_QUESTIONS: u32 = 5;

/// A TXT record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Txt {
    /// Its name, without a dot at the end.
    pub(super) name: String,
    /// Its value.
    pub(super) value: String,
}

impl Txt {
    /// The record that proves this host (or wildcard) with this value (RFC 8555, section 8.4).
    pub(super) fn new(host: &str, value: String) -> Txt {
        Txt { name: format!("_acme-challenge.{}", host.trim_start_matches("*.")), value }
    }
}

/// Sets it.
pub(super) async fn add(dns: &Dns, txt: &Txt) -> Result<(), String> {
    match dns {
        Dns::Hook(program) => hook::run(program, "add", txt).await,
        Dns::Update { server, key } => update::send(server, key.as_ref(), update::Change::Add, txt).await,
    }
}

/// Takes it away.
pub(super) async fn remove(dns: &Dns, txt: &Txt) -> Result<(), String> {
    match dns {
        Dns::Hook(program) => hook::run(program, "remove", txt).await,
        Dns::Update { server, key } => update::send(server, key.as_ref(), update::Change::Remove, txt).await,
    }
}

/// Waits until every name server of its zone has it; those that never answer do not count.
///
/// Where no name server is found, as behind a split DNS, whoever was asked for them is watched in their place.
pub(super) async fn wait(acme: &Acme, txt: &Txt) -> Result<(), String> {
    let resolver = acme.resolver.map_or_else(Resolver::of_the_system, |address| Some(Resolver(address)));
    let mut servers = match &resolver {
        Some(resolver) => resolver.name_servers(&txt.name).await,
        None => BTreeSet::new(),
    };
    if servers.is_empty() {
        servers = match (&acme.dns, &resolver) {
            (Some(Dns::Update { server, .. }), _) => query::addresses(server).await,
            (_, Some(resolver)) => BTreeSet::from([resolver.0]),
            (_, None) => BTreeSet::new(),
        };
    }
    let deadline = Instant::now() + acme.dns_wait;
    let mut watched: Vec<Watched> =
        servers.into_iter().map(|server| Watched { server, silent: 0, state: State::Silent }).collect();
    loop {
        let looks = watched.iter_mut().filter(|w| w.state != State::HasIt).map(|watched| watched.look(txt));
        futures_util::future::join_all(looks).await;
        let open = |w: &&Watched| w.state == State::LacksIt || w.state == State::Silent && w.silent < SILENT_QUESTIONS;
        let Some(lacking) = watched.iter().find(open) else { return Ok(()) };
        if Instant::now() >= deadline {
            return match lacking.state {
                State::LacksIt => Err(format!("the name server {} has no TXT record {} yet", lacking.server, txt.name)),
                // Nobody has said that it is not there; the CA's own look decides.
                State::Silent | State::HasIt => Ok(()),
            };
        }
        sleep(LOOK_EVERY).await;
    }
}

/// A name server that is asked for a record.
struct Watched {
    server: SocketAddr,
    /// How often in a row it has not answered.
    silent: u32,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Silent,
    LacksIt,
    HasIt,
}

impl Watched {
    async fn look(&mut self, txt: &Txt) {
        match query::txt(self.server, &txt.name).await {
            Ok(values) if values.contains(&txt.value) => self.state = State::HasIt,
            Ok(_) => self.state = State::LacksIt,
            Err(error) => {
                tracing::debug!("{}: {error}", self.server);
                self.silent += 1;
            }
        }
    }
}
