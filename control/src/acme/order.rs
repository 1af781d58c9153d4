//! One order, from its first request to the certificate (RFC 8555, section 7.4).
//!
//! It decides nothing: which names, how they are proven and what follows from a failure is told from outside.

use std::collections::BTreeSet;
use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error, Identifier, NewOrder, Order,
    OrderStatus, Problem,
};
use itsup_proxy::HostPattern;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, RsaKeySize};
use tokio::time::{Instant, sleep};

use super::due::Proof;
use super::http::{is_away, retry_after};
use super::prove::Prover;
use crate::settings::acme::KeyKind;

/// How often a request is made again as the CA wants another nonce; the client itself has tried thrice each time.
const NONCES: usize = 12;
/// How long a CA that goes away in the middle is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE_WHILE_AWAY: Duration = Duration::from_millis(500);
/// How long a CA may take to look at our proofs, and to issue.
const DECISION: Duration = Duration::from_secs(180);
const FIRST_LOOK: Duration = Duration::from_millis(150);
const LONGEST_LOOK: Duration = Duration::from_secs(10);

/// What to order.
pub(super) struct Ask {
    pub(super) names: Vec<HostPattern>,
    /// How names other than wildcards are proven.
    pub(super) proof: Proof,
    pub(super) profile: Option<String>,
    pub(super) key: KeyKind,
    /// The certificate that this one is to replace, in the CA's spelling.
    pub(super) replaces: Option<String>,
}

/// A certificate and its key, PEM.
pub(super) struct Issued {
    pub(super) chain: String,
    pub(super) key: String,
}

/// Why there is no certificate.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Nobody answered; `placed` is whether the CA had taken the order before.
    Away { why: String, placed: bool },
    /// The CA does not know our account.
    NoAccount,
    /// These names could not be proven.
    Names(Vec<RefusedName>),
    /// Something else.
    Other { why: String, retry_after: Option<Duration> },
}

/// A name that could not be proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RefusedName {
    pub(super) name: String,
    pub(super) why: String,
    /// Whether another kind of proof would fail for the same reason.
    pub(super) whatever_proof: bool,
}

/// Does it again while the CA wants another nonce, and for a while where nobody answers.
macro_rules! patiently {
    ($operation:expr) => {{
        let (mut nonces, deadline) = (0, Instant::now() + PATIENCE);
        loop {
            match $operation {
                Err(error) if is_bad_nonce(&error) && nonces < NONCES => nonces += 1,
                Err(error) if is_away(&error) && Instant::now() < deadline => sleep(PAUSE_WHILE_AWAY).await,
                done => break done,
            }
        }
    }};
}

fn no_profile(profile: &str, offered: &BTreeSet<&str>) -> String {
    let offered: Vec<&str> = offered.iter().copied().collect();
    match offered.as_slice() {
        [] => format!("the CA offers no profiles, so none of the name {profile}: remove ACME_PROFILE"),
        some => format!("the CA offers no profile {profile} (ACME_PROFILE), but {}", some.join(", ")),
    }
}

/// Orders a certificate.
pub(super) async fn place(account: &Account, ask: &Ask, prover: &mut Prover) -> Result<Issued, Refusal> {
    let identifiers: Vec<Identifier> = ask.names.iter().map(|name| Identifier::Dns(name.to_string())).collect();
    let mut new = NewOrder::new(&identifiers);
    if let Some(profile) = &ask.profile {
        let offered: BTreeSet<&str> = account.profiles().map(|profile| profile.name).collect();
        if !offered.contains(profile.as_str()) {
            return Err(Refusal::Other { why: no_profile(profile, &offered), retry_after: None });
        }
        new = new.profile(profile);
    }
    if let Some(replaces) = ask.replaces.as_deref().and_then(parse_id) {
        new = new.replaces(replaces);
    }
    let mut nonces = 0;
    let mut order = loop {
        match account.new_order(&new).await {
            Err(error) if is_bad_nonce(&error) && nonces < NONCES => nonces += 1,
            placed => break placed.map_err(|error| refusal(error, false))?,
        }
    };
    let placed = |error| refusal(error, true);
    patiently!(show_proofs(&mut order, ask, prover).await).map_err(placed)??;
    prover.settle().await.map_err(|refused| Refusal::Names(vec![refused]))?;
    patiently!(say_ready(&mut order, prover).await).map_err(placed)?;
    match decided(&mut order, &[OrderStatus::Ready, OrderStatus::Valid]).await? {
        OrderStatus::Invalid => return Err(refused_names(&mut order).await),
        OrderStatus::Valid => return Err(other("the order is done already, with a key that is not ours")),
        _ => {}
    }
    let key = make_key(ask.key).map_err(|error| other(&error.to_string()))?;
    let csr = signing_request(&ask.names, &key).map_err(|error| other(&error.to_string()))?;
    if let Err(error) = patiently!(order.finalize_csr(&csr).await) {
        // Where the connection broke, it may have been taken all the same; what became of it is asked below.
        if !matches!(&error, Error::Api(problem) if ends_with(problem, "orderNotReady")) {
            return Err(placed(error));
        }
    }
    if decided(&mut order, &[OrderStatus::Valid]).await? != OrderStatus::Valid {
        let why = order.state().error.as_ref().map_or_else(|| "the CA would not issue it".into(), explain);
        return Err(other(&why));
    }
    match patiently!(order.certificate().await).map_err(placed)? {
        Some(chain) => Ok(Issued { chain, key: key.serialize_pem() }),
        None => Err(other("the CA has issued it and does not hand it out")),
    }
}

/// Shows the proofs of every name that is not proven yet; what is shown already is left alone.
async fn show_proofs(order: &mut Order, ask: &Ask, prover: &mut Prover) -> Result<Result<(), Refusal>, Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status != AuthorizationStatus::Pending {
            continue;
        }
        let name = authorization.identifier().to_string();
        let wildcard = authorization.wildcard;
        let proofs = if wildcard { vec![Proof::Dns] } else { prover.in_turn(ask.proof) };
        let offered = |proof: &Proof| authorization.challenges.iter().any(|c| c.r#type == challenge_type(*proof));
        let Some(proof) = proofs.into_iter().find(offered) else {
            let why = "the CA offers no way to prove it that is set up here".to_owned();
            return Ok(Err(Refusal::Names(vec![RefusedName { name, why, whatever_proof: true }])));
        };
        let Some(challenge) = authorization.challenge(challenge_type(proof)) else { continue };
        let (token, authorization) = (challenge.token.clone(), challenge.key_authorization());
        if let Err(why) = prover.show(proof, &name, &token, &authorization).await {
            return Ok(Err(Refusal::Names(vec![RefusedName { name, why, whatever_proof: false }])));
        }
    }
    Ok(Ok(()))
}

/// Has the CA look at what is shown.
async fn say_ready(order: &mut Order, prover: &Prover) -> Result<(), Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        let name = authorization.identifier().to_string();
        let Some(proof) = prover.shown(&name).filter(|_| authorization.status == AuthorizationStatus::Pending) else {
            continue;
        };
        let said = match authorization.challenge(challenge_type(proof)) {
            Some(mut challenge) => challenge.set_ready().await,
            None => Ok(()),
        };
        match said {
            // Said before, and lost on its way back: then it is looked at already.
            Err(Error::Api(problem)) if ends_with(&problem, "malformed") => {
                tracing::debug!("{name}: {}", explain(&problem));
            }
            said => said?,
        }
    }
    Ok(())
}

/// Waits until the order is in one of these states or invalid.
async fn decided(order: &mut Order, wanted: &[OrderStatus]) -> Result<OrderStatus, Refusal> {
    let (mut pause, deadline) = (FIRST_LOOK, Instant::now() + DECISION);
    loop {
        sleep(pause).await;
        let status = patiently!(order.refresh().await.map(|state| state.status));
        let status = status.map_err(|error| refusal(error, true))?;
        if status == OrderStatus::Invalid || wanted.contains(&status) {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            return Err(other(&format!("the CA has not decided within {} s", DECISION.as_secs())));
        }
        pause = (pause * 3 / 2).max(retry_after().unwrap_or_default()).min(LONGEST_LOOK);
    }
}

/// Finds out which names of an invalid order failed, and why.
async fn refused_names(order: &mut Order) -> Refusal {
    let mut refused = Vec::new();
    if let Err(error) = patiently!(collect_refused(order, &mut refused).await) {
        return refusal(error, true);
    }
    if refused.is_empty() {
        let why = order.state().error.as_ref().map_or_else(|| "the CA does not say why".into(), explain);
        return other(&why);
    }
    Refusal::Names(refused)
}

async fn collect_refused(order: &mut Order, refused: &mut Vec<RefusedName>) -> Result<(), Error> {
    refused.clear();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        authorization.refresh().await?;
        if authorization.status != AuthorizationStatus::Invalid {
            continue;
        }
        let name = authorization.identifier().to_string();
        let problem = authorization.challenges.iter().find_map(|challenge| challenge.error.as_ref());
        let why = problem.map_or_else(|| "the CA does not say why".into(), explain);
        let whatever_proof =
            problem.is_some_and(|p| ["dns", "caa", "rejectedIdentifier"].iter().any(|t| ends_with(p, t)));
        refused.push(RefusedName { name, why, whatever_proof });
    }
    Ok(())
}

/// What an error of the client means for an order.
pub(super) fn refusal(error: Error, placed: bool) -> Refusal {
    match error {
        Error::Api(problem) if ends_with(&problem, "accountDoesNotExist") => Refusal::NoAccount,
        Error::Api(problem) => {
            let names: Vec<RefusedName> = problem
                .subproblems
                .iter()
                .filter_map(|part| match &part.identifier {
                    Some(Identifier::Dns(name)) => Some(RefusedName {
                        name: name.clone(),
                        why: part.detail.clone().unwrap_or_else(|| explain(&problem)),
                        whatever_proof: true,
                    }),
                    _ => None,
                })
                .collect();
            match names.is_empty() {
                true => Refusal::Other { why: explain(&problem), retry_after: retry_after() },
                false => Refusal::Names(names),
            }
        }
        error if is_away(&error) => Refusal::Away { why: error.to_string(), placed },
        error => other(&error.to_string()),
    }
}

/// Whether the CA wants the request again with another nonce.
pub(super) fn is_bad_nonce(error: &Error) -> bool {
    matches!(error, Error::Api(problem) if ends_with(problem, "badNonce"))
}

fn other(why: &str) -> Refusal {
    Refusal::Other { why: why.to_owned(), retry_after: None }
}

fn ends_with(problem: &Problem, kind: &str) -> bool {
    problem.r#type.as_deref().and_then(|text| text.rsplit(':').next()) == Some(kind)
}

/// A problem in one line, for people.
fn explain(problem: &Problem) -> String {
    let kind = problem.r#type.as_deref().and_then(|text| text.rsplit(':').next()).unwrap_or_default();
    let detail = problem.detail.as_deref().unwrap_or_default().trim();
    match (kind, detail) {
        ("", "") => "the CA does not say why".into(),
        ("", detail) => detail.to_owned(),
        (kind, "") => kind.to_owned(),
        (kind, detail) => format!("{detail} ({kind})"),
    }
}

fn challenge_type(proof: Proof) -> ChallengeType {
    match proof {
        Proof::Http => ChallengeType::Http01,
        Proof::TlsAlpn => ChallengeType::TlsAlpn01,
        Proof::Dns => ChallengeType::Dns01,
    }
}

fn parse_id(id: &str) -> Option<CertificateIdentifier<'_>> {
    let (key, serial) = id.split_once('.')?;
    Some(CertificateIdentifier { authority_key_identifier: key.into(), serial: serial.into() })
}

fn make_key(kind: KeyKind) -> Result<KeyPair, rcgen::Error> {
    match kind {
        KeyKind::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        KeyKind::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        KeyKind::Rsa2048 => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048),
    }
}

fn signing_request(names: &[HostPattern], key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key)?.der().to_vec())
}
