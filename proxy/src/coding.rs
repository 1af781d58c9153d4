//! How a response's body is coded on its way to the client: compressed where a site asks for that, and never in chunks for
//! HTTP/1.0.
//!
//! The engine does the compressing; what it leaves out is mended here. It knows no site.

use std::any::Any;

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::{HttpModule, HttpModuleBuilder, Module};
use pingora::protocols::http::compression::ResponseCompressionCtx;

/// The level of gzip, br and zstd: the knee of all three curves.
const LEVEL: u32 = 5;
/// The last, empty meta-block of a brotli stream (RFC 7932, section 9.2). The engine flushes its encoder and does not finish
/// it, and decoders take such a stream for one that broke off.
const BROTLI_END: u8 = 0b11;

/// One response's coding; a module of the HTTP engine.
pub(crate) struct Coding {
    compression: ResponseCompressionCtx,
    /// The client speaks HTTP/1.0 and knows no chunks (RFC 9112, section 6.1): what has no length ends with the connection.
    old: bool,
    /// The last of the compressed body has been given out.
    ended: bool,
}

/// Makes one for each request.
pub(crate) struct Codings;

impl HttpModuleBuilder for Codings {
    /// Behind all others.
    fn order(&self) -> i16 {
        i16::MIN / 2
    }

    fn init(&self) -> Module {
        Box::new(Coding { compression: ResponseCompressionCtx::new(0, false, false), old: false, ended: false })
    }
}

impl Coding {
    /// Compresses the response to this request, as far as the client takes that. To be called before its header goes out.
    pub(crate) fn compress(&mut self, request: &RequestHeader) {
        if !self.old {
            self.compression.adjust_level(LEVEL);
            // It does not look at requests as long as it is off.
            self.compression.request_filter(request);
        }
    }

    fn encode(&mut self, body: Option<&Bytes>, end: bool) -> Option<Bytes> {
        if self.ended || !self.compression.is_enabled() {
            return None;
        }
        self.ended = end;
        let brotli = end && self.compression.get_info().is_some_and(|(name, ..)| name == "brotli");
        let encoded = self.compression.response_body_filter(body, end)?;
        if !brotli {
            return Some(encoded);
        }
        let mut whole = BytesMut::with_capacity(encoded.len() + 1);
        whole.put_slice(&encoded);
        whole.put_u8(BROTLI_END);
        Some(whole.freeze())
    }
}

#[async_trait]
impl HttpModule for Coding {
    async fn request_header_filter(&mut self, request: &mut RequestHeader) -> pingora::Result<()> {
        self.old = request.version == http::Version::HTTP_10;
        Ok(())
    }

    async fn response_header_filter(&mut self, response: &mut ResponseHeader, end: bool) -> pingora::Result<()> {
        self.compression.response_header_filter(response, end);
        if self.old {
            response.remove_header(&http::header::TRANSFER_ENCODING);
        }
        Ok(())
    }

    fn response_body_filter(&mut self, body: &mut Option<Bytes>, end: bool) -> pingora::Result<()> {
        if let Some(encoded) = self.encode(body.as_ref(), end) {
            *body = Some(encoded);
        }
        Ok(())
    }

    fn response_done_filter(&mut self) -> pingora::Result<Option<Bytes>> {
        Ok(self.encode(None, true))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
