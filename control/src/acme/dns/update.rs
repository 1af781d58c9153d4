//! Dynamic updates (RFC 2136), signed with TSIG (RFC 8945).

use std::net::SocketAddr;
use std::time::SystemTime;

use hickory_proto::op::update_message::{append, delete_by_rdata};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::TsigAlgorithm as Algorithm;
use hickory_proto::rr::{Name, RData, Record, RecordType, TSigner};

use super::Txt;
use super::query::{addresses, ask, exchange, fqdn};
use crate::acme::due::unix;
use crate::settings::acme::{Tsig, TsigAlgorithm};

/// How far the server's clock and ours may be apart, in seconds.
const FUDGE: u16 = 300;
/// Records live for the length of an order.
const TTL: u32 = 30;

/// What to do with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Add,
    Remove,
}

/// Has the server change its zone.
pub(super) async fn send(server: &str, key: Option<&Tsig>, change: Change, txt: &Txt) -> Result<(), String> {
    let fault = |why: String| format!("ACME_DNS_SERVER {server}: {why}");
    let address = addresses(server).await.into_iter().next().ok_or_else(|| fault("it has no address".into()))?;
    let zone = zone(address, &txt.name).await.map_err(fault)?;
    let signer = key.map(signer).transpose().map_err(fault)?;
    let mut message = message(change, txt, zone).map_err(fault)?;
    let verifier = match &signer {
        Some(signer) => message.finalize(signer, unix(SystemTime::now())).map_err(|error| fault(error.to_string()))?,
        None => None,
    };
    let bytes = message.to_vec().map_err(|error| fault(error.to_string()))?;
    let answer = exchange(address, &bytes).await.map_err(fault)?;
    let read = Message::from_vec(&answer).map_err(|error| fault(format!("its answer cannot be read: {error}")))?;
    match read.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NotAuth => return Err(fault("it does not take our key (NOTAUTH); check ACME_DNS_TSIG".into())),
        code => return Err(fault(format!("it refuses the update: {code}"))),
    }
    if let Some(mut verifier) = verifier {
        verifier.verify(&answer).map_err(|error| fault(format!("its answer is not signed by our key: {error}")))?;
    }
    Ok(())
}

fn message(change: Change, txt: &Txt, zone: Name) -> Result<Message, String> {
    let name = fqdn(&txt.name)?;
    let record = Record::from_rdata(name, TTL, RData::TXT(TXT::new(vec![txt.value.clone()])));
    Ok(match change {
        Change::Add => append(record.into(), zone, false, false),
        Change::Remove => delete_by_rdata(record.into(), zone, false),
    })
}

fn signer(key: &Tsig) -> Result<TSigner, String> {
    let algorithm = match key.algorithm {
        TsigAlgorithm::Sha256 => Algorithm::HmacSha256,
        TsigAlgorithm::Sha384 => Algorithm::HmacSha384,
        TsigAlgorithm::Sha512 => Algorithm::HmacSha512,
    };
    TSigner::new(key.secret.0.clone(), algorithm, fqdn(&key.name)?, FUDGE).map_err(|error| error.to_string())
}

/// The zone of the server's that a name is in.
async fn zone(server: SocketAddr, name: &str) -> Result<Name, String> {
    for zone in std::iter::successors(Some(name), |name| name.split_once('.').map(|(_, parent)| parent)) {
        let answer = ask(server, zone, RecordType::SOA, false).await?;
        let zone = fqdn(zone)?;
        if answer.answers.iter().any(|record| record.record_type() == RecordType::SOA && record.name == zone) {
            return Ok(zone);
        }
    }
    Err(format!("it has no zone that {name} is in"))
}
