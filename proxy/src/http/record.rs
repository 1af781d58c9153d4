//! What is left of a request when it is over: its line in the access log, and the counts.

use std::time::SystemTime;

use pingora::proxy::Session;

use super::judge::authority;
use super::{Gateway, Request};
use crate::access_log::{Record, shown};

impl Gateway {
    /// Writes the access log line, and counts for the site.
    pub(super) fn log(&self, session: &Session, request: &Request, status: u16) {
        let (bytes_in, bytes_out) = (session.body_bytes_read() as u64, session.body_bytes_sent() as u64);
        let label = request.site.as_ref().map(|site| &site.site.label);
        if let Some(label) = label {
            self.shared.metrics.site(label, status, bytes_in, bytes_out);
        }
        let (true, Some(conn)) = (self.shared.log.is_on(), &request.conn) else { return };
        let req = session.req_header();
        let endpoint = request.lease.as_ref().map(|lease| lease.endpoint().address.to_string());
        let record = Record {
            at: SystemTime::now(),
            client: request.client.unwrap_or_else(|| shown(conn.client)),
            host: authority(req).and_then(|raw| std::str::from_utf8(raw).ok()).unwrap_or(&conn.sni),
            method: req.method.as_str(),
            path: req.uri.path_and_query().map_or("", |pq| pq.as_str()),
            protocol: if conn.h2 { "h2" } else { "h1" },
            status,
            bytes_in,
            bytes_out,
            took: request.began.elapsed(),
            site: label.map_or("", |label| label),
            upstream: request.upstream.as_ref().map_or("", |upstream| &upstream.name),
            endpoint: endpoint.as_deref().unwrap_or(""),
            retries: request.retries,
            tls: conn.tls,
            request_id: request.id(),
            failed: request.failed,
            why: request.why,
        };
        if !self.shared.log.write(&record) {
            self.count().add(|c| &c.log_dropped);
        }
    }

    /// Counts for the endpoint what came of the request there.
    pub(super) fn tally(&self, request: &Request, status: u16, failed: bool) {
        let Some(lease) = &request.lease else { return };
        let tally = lease.endpoint().tally();
        if request.is_told() {
            tally.add(|t| &t.cut);
        } else if failed && request.failed == "upstream" {
            tally.add(|t| &t.broken);
        } else if !failed {
            tally.add(|t| &t.served);
            if status >= 500 {
                tally.add(|t| &t.server_errors);
            }
        }
    }
}
