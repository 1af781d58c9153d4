//! One try of one order, apart from the loop: look, order, check, write.

use std::sync::Arc;
use std::time::Duration;

use instant_acme::Account;
use itsup_proxy::{HostPattern, Proxy};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::acme::account::{self, AccountError};
use crate::acme::due::{Life, Proof, unix};
use crate::acme::http::noting_retry_after;
use crate::acme::order::{self, Ask, Refusal};
use crate::acme::owner::Marker;
use crate::acme::pairs::{self, Pair};
use crate::acme::prove::Prover;
use crate::acme::self_check;
use crate::acme::store;
use crate::acme::wishes::{Held, Order};
use crate::pen::Pen;
use crate::settings::{Acme, Root};

/// No try takes longer, whatever the CA or a hook does.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Everything that a try needs.
pub(super) struct Try {
    pub root: Root,
    pub proxy: Proxy,
    pub acme: Arc<Acme>,
    pub accounts: Accounts,
    pub pen: Pen,
    pub order: Order,
    pub proof: Proof,
    pub held: Option<Held>,
    /// Whether the CA is to be told which certificate this one replaces.
    pub replaces: bool,
}

/// How a try ended.
pub(super) struct Ended {
    pub order: Order,
    pub proof: Proof,
    /// What the self-check had to say.
    pub advice: Option<String>,
    pub result: Result<Held, Fault>,
}

/// Why it has not worked.
pub(super) enum Fault {
    /// The CA said no, or is not there.
    Refused(Refusal),
    /// The account that was used is not known to the CA.
    NoAccount(String),
    /// There is no account: nothing can be ordered.
    Account(String),
    /// It could not be written, so nothing was ordered.
    NotWritable(String),
    /// It was issued and cannot be written.
    NotWritten(Box<(Pair, Held)>, String),
}

/// The account in use, opened when the first order needs it.
#[derive(Clone)]
pub(super) struct Accounts {
    open: Arc<Mutex<Option<Open>>>,
    pen: Pen,
}

/// An account, and the settings that it was opened with.
struct Open {
    settings: Arc<Acme>,
    account: Account,
}

impl Accounts {
    pub(super) fn new(pen: Pen) -> Accounts {
        Accounts { open: Arc::default(), pen }
    }

    /// The account for these settings; one is opened at a time.
    pub(super) async fn get(&self, root: &Root, acme: &Arc<Acme>) -> Result<Account, AccountError> {
        // The pen first: who waits for the lock with the pen in hand must not wait for somebody who waits for the pen.
        let _pen = self.pen.hold().await;
        let mut open = self.open.lock().await;
        if let Some(open) = open.as_ref().filter(|open| open.settings == *acme) {
            return Ok(open.account.clone());
        }
        let account = account::open(root, acme).await?;
        *open = Some(Open { settings: acme.clone(), account: account.clone() });
        Ok(account)
    }

    /// Puts the account with this id away; another that has been opened since stays. The pen must be held.
    pub(super) async fn forget(&self, root: &Root, acme: &Acme, id: &str) {
        let mut open = self.open.lock().await;
        if open.as_ref().is_some_and(|open| open.account.id() == id) {
            *open = None;
            account::forget(root, acme);
        }
    }
}

impl Try {
    /// Tries it.
    pub(super) async fn run(self) -> Ended {
        let (order, proof) = (self.order.clone(), self.proof);
        let mut advice = None;
        let result = match timeout(LIMIT, noting_retry_after(self.issue(&mut advice))).await {
            Ok(result) => result,
            Err(_) => Err(other(format!("it takes longer than {} s", LIMIT.as_secs()))),
        };
        Ended { order, proof, advice, result }
    }

    async fn issue(self, advice: &mut Option<String>) -> Result<Held, Fault> {
        let (root, folder) = (self.root.clone(), self.order.folder.clone());
        blocking(move || pairs::can_write(&root, &folder)).await.map_err(Fault::NotWritable)?;
        if let Some(name) = self.order.names.iter().find_map(exact)
            && !self.acme.own_directory
        {
            *advice = self_check::advice(name, self.proxy.challenges()).await;
        }
        let account = self.accounts.get(&self.root, &self.acme).await.map_err(|error| match error {
            AccountError::Here(why) => Fault::Account(why),
            AccountError::Ca(error) => match order::refusal(error, false) {
                away @ Refusal::Away { .. } => Fault::Refused(away),
                Refusal::Other { why, .. } => Fault::Account(why),
                other => Fault::Account(format!("the CA gives us no account: {other:?}")),
            },
        })?;
        let ask = Ask {
            names: self.order.names.clone(),
            proof: self.proof,
            profile: self.acme.profile.clone(),
            key: self.acme.key,
            replaces: self.held.as_ref().filter(|_| self.replaces).and_then(|held| held.id.clone()),
        };
        let mut prover = Prover::new(self.proxy.clone(), self.acme.clone());
        let issued = order::place(&account, &ask, &mut prover).await.map_err(|refusal| match refusal {
            Refusal::NoAccount => Fault::NoAccount(account.id().to_owned()),
            refusal => Fault::Refused(refusal),
        })?;
        drop(prover);
        let (pair, held) = self.check(issued.chain, issued.key).map_err(other)?;
        let root = self.root.clone();
        // From here on it is the newer process's to write, where one has taken over meanwhile: this one waits for ever.
        let _pen = self.pen.hold().await;
        let (pair, written) = blocking(move || {
            let written = pairs::write(&root, &pair);
            (pair, written)
        })
        .await;
        match written {
            Ok(()) => Ok(held),
            Err(why) => Err(Fault::NotWritten(Box::new((pair, held)), why)),
        }
    }

    /// Nothing is used that is no pair, or is for other names than were asked for.
    fn check(&self, chain: String, key: String) -> Result<(Pair, Held), String> {
        let loaded = store::parse_pair(&chain, &key).map_err(|fault| format!("what the CA has issued: {fault}"))?;
        if let Some(missing) = self.order.names.iter().find(|name| !loaded.facts.names.contains(name)) {
            return Err(format!("what the CA has issued is not for {missing}"));
        }
        let names = self.order.names.iter().map(ToString::to_string).collect();
        let before = self.held.as_ref().map(|held| held.sha256.clone());
        let marker = Marker::new(&self.acme.directory, names, loaded.sha256.clone(), before);
        let held = Held {
            names: loaded.facts.names.clone(),
            life: Life { not_before: unix(loaded.facts.not_before), not_after: unix(loaded.facts.not_after) },
            directory: Some(self.acme.directory.clone()),
            id: loaded.id.clone(),
            sha256: loaded.sha256,
        };
        Ok((Pair { folder: self.order.folder.clone(), chain, key, marker }, held))
    }
}

fn exact(name: &HostPattern) -> Option<&str> {
    match name {
        HostPattern::Exact(host) => Some(host.as_str()),
        HostPattern::Wildcard(_) => None,
    }
}

fn other(why: String) -> Fault {
    Fault::Refused(Refusal::Other { why, retry_after: None })
}

/// Runs what waits for the disk where waiting is allowed. A panic there is one here.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is ending, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}
