//! A terminated client connection as the HTTP engine sees it: TLS below, one request at a time above.
//!
//! Four things happen here that the engine does not do. Bytes behind the current request are held back for the next
//! one, so that pipelined requests are neither lost nor parsed unchecked. Small writes are gathered, so that a response
//! costs one TLS record and one system call, and on HTTP/2 the responses that are ready together. A websocket whose endpoint is to go is closed between two of its frames. And a connection that is closed before the client has finished sending is
//! closed gently, so that the client gets to read the answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::server::TlsStream;

use crate::chunked::ChunkScanner;
use crate::conn::Conn;
use crate::frames::{CLOSE_GOING_AWAY, Frames};
use crate::pieces::poll_write_pieces;
use crate::prefixed::Prefixed;

/// Small writes are gathered up to this.
const WRITE_BUFFER: usize = 4 * 1024;
/// On HTTP/2, where they are many streams' writes: as much as one TLS record holds.
const WRITE_BUFFER_H2: usize = 16 * 1024;
/// The most that is read ahead of the current request.
const READ_AHEAD: usize = 16 * 1024;
/// How long, and for how many bytes, a refused body is read and thrown away, so that the answer is not lost to a reset.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// Which of the client's next bytes belong to the current request.
#[derive(Debug)]
pub(crate) enum Body {
    /// All of them: an upgrade, or h2.
    Open,
    /// This many.
    Length(u64),
    /// Up to the last chunk.
    Chunked(ChunkScanner),
}

impl Body {
    fn is_done(&self) -> bool {
        match self {
            Body::Open => false,
            Body::Length(left) => *left == 0,
            Body::Chunked(scanner) => scanner.is_done(),
        }
    }
}

/// A client's TLS connection, terminated here.
pub(crate) struct Downstream {
    /// `None` only once the connection has been handed over for lingering.
    tls: Option<Box<TlsStream<Prefixed>>>,
    conn: Arc<Conn>,
    digest: Arc<ProxyDigest>,
    body: Body,
    ahead: BytesMut,
    eof: bool,
    write_buffer: Vec<u8>,
    written: usize,
    /// What is gathered goes out when the connection's task comes round next, which it has been told to.
    send_due: bool,
    /// The client does not take what was last sent.
    blocked: bool,
    websocket: Option<Box<Websocket>>,
}

/// What is known of a connection that may become, or is, a websocket.
#[derive(Debug, Default)]
struct Websocket {
    frames: Frames,
    /// The close frame is among what is gathered, or behind it: nothing may follow.
    closed: bool,
}

impl Downstream {
    pub(crate) fn new(tls: TlsStream<Prefixed>, conn: Arc<Conn>) -> io::Result<Self> {
        let response = ResponseHeader::build(200, Some(0)).map_err(io::Error::other)?;
        let digest = Arc::new(ProxyDigest::new(Box::new(response), Some(Box::new(conn.clone()))));
        Ok(Self {
            tls: Some(Box::new(tls)),
            conn,
            digest,
            body: Body::Open,
            ahead: BytesMut::new(),
            eof: false,
            write_buffer: Vec::new(),
            written: 0,
            send_due: false,
            blocked: false,
            websocket: None,
        })
    }

    pub(crate) fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    /// Says which of the next bytes belong to the request that is being handed over, `behind_head` first.
    pub(crate) fn begin_request(&mut self, body: Body, behind_head: BytesMut) {
        self.websocket = matches!(body, Body::Open).then(Box::default);
        self.body = body;
        self.ahead = behind_head;
    }

    /// Takes what was read behind the last request.
    pub(crate) fn take_ahead(&mut self) -> BytesMut {
        std::mem::take(&mut self.ahead)
    }

    /// Reads whatever is there next into `scratch`, whatever request it belongs to.
    pub(crate) fn poll_any(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(scratch);
        ready!(self.poll_below(cx, &mut buf))?;
        Poll::Ready(Ok(buf.filled().len()))
    }

    /// Gives the memory of the write buffer back: the connection is idle.
    pub(crate) fn relax(&mut self) {
        if self.write_buffer.is_empty() {
            self.write_buffer = Vec::new();
        }
    }

    fn poll_below(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(tls) = self.tls.as_mut() else { return Poll::Ready(Ok(())) };
        let before = buf.filled().len();
        let read = ready!(Pin::new(tls).poll_read(cx, buf));
        if read.is_err() || buf.filled().len() == before {
            self.eof = true;
        }
        Poll::Ready(read)
    }

    /// Reads ahead while the request's own bytes are all there; ready only when the client has gone.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut scratch = [0u8; 2048];
        while self.ahead.len() < READ_AHEAD {
            let read = ready!(self.poll_any(cx, &mut scratch))?;
            if read == 0 {
                return Poll::Ready(Ok(()));
            }
            self.ahead.extend_from_slice(&scratch[..read]);
        }
        Poll::Pending
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if matches!(self.body, Body::Open) && self.ahead.is_empty() {
            return self.poll_below(cx, buf);
        }
        let room = match &self.body {
            Body::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX).min(buf.remaining()),
            _ => buf.remaining(),
        };
        if room == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
        if self.ahead.is_empty() {
            ready!(self.poll_below(cx, &mut part))?;
        } else {
            let step = room.min(self.ahead.len());
            part.put_slice(&self.ahead[..step]);
            self.ahead.advance(step);
        }
        let read = part.filled().len();
        let ours = match &mut self.body {
            Body::Open => read,
            Body::Length(left) => {
                *left -= read as u64;
                read
            }
            Body::Chunked(scanner) => {
                let ours =
                    scanner.advance(part.filled()).map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, bad))?;
                if ours < read {
                    let mut behind = BytesMut::from(&part.filled()[ours..]);
                    behind.extend_from_slice(&self.ahead);
                    self.ahead = behind;
                }
                ours
            }
        };
        buf.advance(ours);
        Poll::Ready(Ok(()))
    }

    fn poll_drain_writes(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(tls) = self.tls.as_mut() else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        while self.written < self.write_buffer.len() {
            let step = ready!(poll_write_pieces(tls, cx, [&self.write_buffer[self.written..]]))?;
            if step == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += step;
        }
        self.write_buffer.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Writes what is gathered together with `buf`, in as few records as it takes.
    fn poll_write_through(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Some(tls) = self.tls.as_mut() else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        while self.written < self.write_buffer.len() {
            let gathered = &self.write_buffer[self.written..];
            let step = ready!(poll_write_pieces(tls, cx, [gathered, buf]))?;
            if step == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_gathered = step.min(gathered.len());
            self.written += of_gathered;
            if step > of_gathered {
                self.write_buffer.clear();
                self.written = 0;
                return Poll::Ready(Ok(step - of_gathered));
            }
        }
        self.write_buffer.clear();
        self.written = 0;
        poll_write_pieces(tls, cx, [buf])
    }
}

impl Downstream {
    /// How much is gathered at most.
    fn gathers(&self) -> usize {
        if self.conn.h2 { WRITE_BUFFER_H2 } else { WRITE_BUFFER }
    }

    /// Sends what is gathered.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.send_due = false;
        let drained = self.poll_drain_writes(cx);
        self.blocked = drained.is_pending();
        ready!(drained)?;
        if self.conn.h2 {
            // Made anew with the next batch: many connections are idle.
            self.write_buffer = Vec::new();
        }
        match self.tls.as_mut() {
            Some(tls) => Pin::new(tls).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Takes bytes for the client.
    fn poll_take(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.write_buffer.len() + buf.len() > self.gathers() {
            return self.poll_write_through(cx, buf);
        }
        self.make_room();
        self.write_buffer.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn make_room(&mut self) {
        if self.conn.h2 && self.write_buffer.capacity() == 0 {
            self.write_buffer = Vec::with_capacity(WRITE_BUFFER_H2);
        }
    }

    /// Takes bytes of a websocket's: all of them, or, once it is to be closed, those up to the end of a frame.
    fn poll_take_frames(
        &mut self,
        cx: &mut Context<'_>,
        mut websocket: Box<Websocket>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let taken = if !self.conn.is_told_to_end() {
            let taken = self.poll_take(cx, buf);
            if let Poll::Ready(Ok(taken)) = taken {
                websocket.frames.advance(&buf[..taken]);
            }
            taken
        } else if self.close_websocket(&mut websocket) {
            // What is said goes out before the connection is given up.
            self.poll_send(cx).map(|sent| sent.and(Err(io::ErrorKind::BrokenPipe.into())))
        } else {
            let mut rehearsed = websocket.frames.clone();
            let whole = rehearsed.advance_to_boundary(buf);
            let taken = self.poll_take(cx, &buf[..whole]);
            if let Poll::Ready(Ok(taken)) = taken {
                websocket.frames.advance(&buf[..taken]);
                self.close_websocket(&mut websocket);
            }
            taken
        };
        self.websocket = Some(websocket);
        taken
    }

    /// Says goodbye where that can be said now; tells whether nothing more may be.
    fn close_websocket(&mut self, websocket: &mut Websocket) -> bool {
        if !websocket.closed && websocket.frames.is_at_boundary() {
            self.write_buffer.extend_from_slice(&CLOSE_GOING_AWAY);
            websocket.closed = true;
            // The client is to read it, and may answer, before the connection is gone.
            self.conn.refuse_body();
        }
        websocket.closed || websocket.frames.is_over()
    }

    /// Whether a websocket has been closed from here; where it has not, whoever asks is woken when it is to be.
    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(mut websocket) = self.websocket.take() else { return Poll::Pending };
        self.conn.wake_when_told(cx.waker());
        let closed = self.conn.is_told_to_end() && self.close_websocket(&mut websocket);
        self.websocket = Some(websocket);
        if closed { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl AsyncRead for Downstream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.websocket.is_some() && this.poll_closed(cx).is_ready() {
            // To the engine it is as if the client had gone.
            return this.poll_send(cx);
        }
        if !this.write_buffer.is_empty() {
            // Nothing else is ready to be written, so what is gathered has waited long enough.
            if let Poll::Ready(Err(error)) = this.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
        }
        if this.body.is_done() { this.poll_gone(cx) } else { this.poll_body(cx, buf) }
    }
}

impl AsyncWrite for Downstream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.websocket.take() {
            Some(websocket) => this.poll_take_frames(cx, websocket, buf),
            None => this.poll_take(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(websocket) = this.websocket.take() {
            let first = bufs.iter().find(|b| !b.is_empty()).map_or(&[][..], |b| b);
            return this.poll_take_frames(cx, websocket, first);
        }
        let total: usize = bufs.iter().map(|b| b.len()).sum();
        if this.write_buffer.len() + total <= this.gathers() {
            this.make_room();
            for buf in bufs {
                this.write_buffer.extend_from_slice(buf);
            }
            return Poll::Ready(Ok(total));
        }
        if this.write_buffer.is_empty() {
            let Some(tls) = this.tls.as_mut() else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
            return poll_write_pieces(tls, cx, bufs.iter().map(|b| &**b));
        }
        let first = bufs.iter().find(|b| !b.is_empty()).map_or(&[][..], |b| b);
        this.poll_write_through(cx, first)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// On HTTP/2 the engine flushes behind every frame of data, and whatever it does next begins with a read: what is
    /// gathered waits for that, behind the tasks that are ready now and may have more to add.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.conn.h2 && !this.blocked && !this.write_buffer.is_empty() {
            if !this.send_due {
                this.send_due = true;
                cx.waker().wake_by_ref();
            }
            return Poll::Ready(Ok(()));
        }
        this.poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain_writes(cx))?;
        match this.tls.as_mut() {
            Some(tls) => Pin::new(tls).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

/// Closes our half, then reads and throws away for a while, so that the close does not become a reset.
async fn linger(mut tls: Box<TlsStream<Prefixed>>) {
    let _ = tokio::time::timeout(LINGER, async {
        let _ = tls.shutdown().await;
        let mut scratch = vec![0u8; 16 * 1024];
        let mut left = LINGER_BYTES;
        while let Ok(read) = tls.read(&mut scratch).await {
            if read == 0 || read > left {
                break;
            }
            left -= read;
        }
    })
    .await;
}

impl Drop for Downstream {
    fn drop(&mut self) {
        if self.conn.is_broken_off() {
            // A reset: without a last chunk or a length, an orderly close would be taken for the response's end.
            if let Some(tls) = &self.tls {
                let _ = socket2::SockRef::from(tls.get_ref().0.tcp()).set_linger(Some(Duration::ZERO));
            }
            return;
        }
        // Only an answered connection whose client may still be sending needs it.
        let answered_early = self.conn.refused_body() && !self.eof;
        if let (true, Some(tls), Ok(runtime)) = (answered_early, self.tls.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(linger(tls));
        }
    }
}

impl std::fmt::Debug for Downstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Downstream").field("conn", &self.conn).field("body", &self.body).finish_non_exhaustive()
    }
}

#[async_trait]
impl Shutdown for Downstream {
    async fn shutdown(&mut self) {
        let _ = tokio::time::timeout(LINGER, AsyncWriteExt::shutdown(self)).await;
    }
}

impl UniqueID for Downstream {
    fn id(&self) -> UniqueIDType {
        0
    }
}

impl Ssl for Downstream {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(if self.conn.h2 { ALPN::H2 } else { ALPN::H1 })
    }
}

impl GetTimingDigest for Downstream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Downstream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.digest.clone())
    }
}

impl GetSocketDigest for Downstream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}

impl Peek for Downstream {}
