//! Answers that are given from here: error pages, redirects, the welcome page.

use bytes::Bytes;
use http::{Method, header};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::explain::LONG_BODY;
use super::judge::content_length;
use super::{Gateway, Request, Result};
use crate::error_page::{self, Page};
use crate::headers;
use crate::host::Host;
use crate::redirect::https_url;
use crate::welcome;

impl Gateway {
    /// Answers from here.
    async fn answer(
        &self,
        session: &mut Session,
        request: &mut Request,
        mut head: ResponseHeader,
        body: Bytes,
    ) -> Result<()> {
        request.status = head.status.as_u16();
        if !session.downstream_session.is_body_done()
            && let Some(conn) = &request.conn
        {
            conn.refuse_body();
            // A short rest is read and thrown away; for a long one the connection is the cheaper loss.
            if content_length(&session.req_header().headers).is_none_or(|length| length > LONG_BODY) {
                session.set_keepalive(None);
            }
        }
        if let Some(site) = &request.site {
            headers::to_client(&mut head, &site.site.headers, site.site.hsts.as_deref())?;
        }
        head.insert_header("x-request-id", request.id())?;
        head.insert_header(header::CONTENT_LENGTH, body.len())?;
        let bare = session.req_header().method == Method::HEAD || body.is_empty();
        session.write_response_header(Box::new(head), bare).await?;
        if !bare {
            session.write_response_body(Some(body), true).await?;
        }
        Ok(())
    }

    pub(super) async fn answer_error(&self, session: &mut Session, request: &mut Request, status: u16) -> Result<()> {
        let accept = session.req_header().headers.get(header::ACCEPT).map(|v| v.as_bytes());
        let Page { content_type, body } = error_page::render(status, accept, request.id());
        let mut head = ResponseHeader::build(status, Some(8))?;
        head.insert_header(header::CONTENT_TYPE, content_type)?;
        head.insert_header(header::CACHE_CONTROL, "no-store")?;
        match status {
            503 => head.insert_header(header::RETRY_AFTER, request.retry_after.max(1))?,
            401 => head.insert_header(header::WWW_AUTHENTICATE, "Basic realm=\"itsUP\", charset=\"UTF-8\"")?,
            _ => {}
        }
        self.answer(session, request, head, body).await
    }

    pub(super) async fn answer_redirect(&self, session: &mut Session, request: &mut Request, to: &Host) -> Result<()> {
        let req = session.req_header();
        let port = self.shared.store.load().edge.public_https_port;
        let target = req.uri.path_and_query().map_or("/", |pq| pq.as_str());
        let location = https_url(to.as_str(), port, target);
        let permanent = if matches!(req.method, Method::GET | Method::HEAD) { 301 } else { 308 };
        let mut head = ResponseHeader::build(permanent, Some(6))?;
        head.insert_header(header::LOCATION, location)?;
        self.answer(session, request, head, Bytes::new()).await
    }

    pub(super) async fn answer_welcome(&self, session: &mut Session, request: &mut Request) -> Result<()> {
        let name = request.conn.as_ref().map_or("", |conn| &conn.sni);
        let Page { content_type, body } = welcome::render(name);
        let mut head = ResponseHeader::build(200, Some(6))?;
        head.insert_header(header::CONTENT_TYPE, content_type)?;
        head.insert_header(header::CACHE_CONTROL, "no-store")?;
        self.answer(session, request, head, body).await
    }
}
