//! One HTTP exchange, and the connection it may keep: what a careful client does, and how it tells a failure's kind.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request, Response, Uri, header};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::dial::{DialError, Dialer};
use crate::tally::{Failed, Reason};

/// What to ask for.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) host: String,
    pub(crate) path: String,
    /// Sent by POST where there is one.
    pub(crate) body: Option<Bytes>,
}

impl Ask {
    pub(crate) fn get(host: &str, path: &str) -> Self {
        Self { host: host.to_owned(), path: path.to_owned(), body: None }
    }

    pub(crate) fn request(&self, h2: bool) -> Result<Request<Full<Bytes>>, Failed> {
        let method = if self.body.is_some() { Method::POST } else { Method::GET };
        let mut builder = Request::builder().method(method);
        if h2 {
            let uri = Uri::builder().scheme("https").authority(self.host.as_str()).path_and_query(self.path.as_str());
            builder = builder.uri(uri.build().map_err(|error| Failed::new(Reason::Connect, error))?);
        } else {
            builder = builder.uri(self.path.as_str()).header(header::HOST, self.host.as_str());
        }
        builder
            .body(Full::new(self.body.clone().unwrap_or_default()))
            .map_err(|error| Failed::new(Reason::Connect, error))
    }
}

impl From<DialError> for Failed {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Connect(error) => Failed::new(Reason::Connect, error),
            DialError::Tls(error) => Failed::new(Reason::Tls, error),
        }
    }
}

/// The whole chain of an error's causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Opens an h1 connection.
pub(crate) async fn open_h1(dialer: &Dialer, host: &str) -> Result<http1::SendRequest<Full<Bytes>>, Failed> {
    let (io, _) = dialer.dial(host).await?;
    let (sender, connection) =
        http1::handshake(TokioIo::new(io)).await.map_err(|error| Failed::new(Reason::Reset, chain(&error)))?;
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

/// Opens an h2 connection.
pub(crate) async fn open_h2(dialer: &Dialer, host: &str) -> Result<http2::SendRequest<Full<Bytes>>, Failed> {
    let (io, _) = dialer.dial(host).await?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io))
        .await
        .map_err(|error| Failed::new(Reason::Reset, chain(&error)))?;
    tokio::spawn(connection);
    Ok(sender)
}

/// An h1 client that keeps its connection while the server does.
pub(crate) struct KeptH1 {
    dialer: Dialer,
    sender: Option<http1::SendRequest<Full<Bytes>>>,
}

impl KeptH1 {
    pub(crate) fn new(dialer: Dialer) -> Self {
        Self { dialer, sender: None }
    }

    /// One exchange. `reopened` is called where the server had closed the kept connection in order.
    pub(crate) async fn exchange(&mut self, ask: &Ask, reopened: impl FnOnce()) -> Result<Bytes, Failed> {
        if let Some(sender) = &mut self.sender
            && sender.ready().await.is_err()
        {
            self.sender = None;
            reopened();
        }
        let reused = self.sender.is_some();
        let mut sender = match self.sender.take() {
            Some(sender) => sender,
            None => open_h1(&self.dialer, &ask.host).await?,
        };
        let response = sender.send_request(ask.request(false)?).await.map_err(|error| {
            let reason = if reused { Reason::ReusedReset } else { Reason::Reset };
            Failed::new(reason, chain(&error))
        })?;
        let close = response.headers().get(header::CONNECTION).is_some_and(|value| value == "close");
        let body = read(response).await?;
        if !close {
            self.sender = Some(sender);
        }
        Ok(body)
    }
}

/// The body of a good answer, whole.
pub(crate) async fn read(response: Response<Incoming>) -> Result<Bytes, Failed> {
    let status = response.status();
    let promised = response
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
        .unwrap_or(0);
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
            Err(error) => {
                let lost = promised.saturating_sub(bytes.len() as u64);
                return Err(Failed::new(Reason::Truncated, chain(&error)).losing(lost));
            }
        }
    }
    if status.is_success() { Ok(bytes.into()) } else { Err(Failed::new(Reason::Status, status)) }
}

/// Byte `i` of every body is `i % 251`; `from` bytes have gone before.
pub(crate) fn is_pattern(bytes: &[u8], from: u64) -> bool {
    bytes.iter().zip(from..).all(|(byte, i)| u64::from(*byte) == i % 251)
}

/// A body of the pattern.
pub(crate) fn pattern(length: usize) -> Bytes {
    (0..length).map(|i| (i % 251) as u8).collect::<Vec<_>>().into()
}
