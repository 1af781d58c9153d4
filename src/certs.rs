//! `itsup certs`: certificates of the running itsup.

use http::Method;
use itsup_control::acme::issuer::UpdateReport;
use itsup_control::api::certs::{RevokeRequest, UpdateRequest};
use itsup_control::settings::Root;
use itsup_control::status::{CertificateReport, RootReport};

use crate::cli::CertsCommand;
use crate::client::exchange_json;
use crate::failure::Failure;
use crate::render::Output;

/// Without a body.
const NOTHING: Option<&()> = None;

/// Asks, and prints the answer.
pub(crate) fn run(root: &Root, command: Option<CertsCommand>, output: &Output) -> Result<(), Failure> {
    match command {
        None => {
            let certificates: Vec<CertificateReport> = exchange_json(root, Method::GET, "/certs", NOTHING)?;
            output.certs(&certificates)
        }
        Some(CertsCommand::Ca) => {
            let ca: RootReport = exchange_json(root, Method::GET, "/certs/ca", NOTHING)?;
            output.root(&ca)
        }
        Some(CertsCommand::Update { host, force }) => {
            let request = UpdateRequest { host, force };
            let report: UpdateReport = exchange_json(root, Method::POST, "/certs/update", Some(&request))?;
            output.certs_updated(&report)
        }
        Some(CertsCommand::Revoke { host }) => {
            let request = RevokeRequest { host };
            let report: UpdateReport = exchange_json(root, Method::POST, "/certs/revoke", Some(&request))?;
            output.certs_updated(&report)
        }
    }
}
