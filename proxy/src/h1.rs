//! An HTTP/1 connection, one request after the other (RFC 9112).
//!
//! The header block is read and judged here, under one deadline, before the engine sees a byte of it: the engine rewrites
//! some bytes before any hook runs, accepts framing that other parsers read differently, and has no deadline for a whole
//! header.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::SystemTime;

use bytes::{Buf, BytesMut};
use pingora::apps::HttpServerApp;
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::access_log::{Record, shown};
use crate::chunked::ChunkScanner;
use crate::error_page;
use crate::head::{Framing, Head, HeadReader, Progress, Reject};
use crate::request_id::RequestId;
use crate::shared::Seat;
use crate::stream::{Body, Downstream};
use crate::worker::Worker;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; 16 * 1024]);
}

enum Next {
    Request(BytesMut, Head),
    Reject(Reject),
    Closed,
}

/// Serves requests until either side ends the connection.
pub(crate) async fn serve(worker: Arc<Worker>, mut stream: Box<Downstream>, seat: Seat) {
    // One for all requests: to move a deadline on costs less than to make one.
    let mut timer = pin!(sleep_until(Instant::now()));
    let mut closing = worker.closing.clone();
    loop {
        let (mut bytes, head) = match next_request(&worker, &mut stream, timer.as_mut(), &mut closing).await {
            Next::Request(bytes, head) => (bytes, head),
            Next::Reject(reject) => {
                refuse(&worker, &mut stream, reject).await;
                break;
            }
            Next::Closed => break,
        };
        // Nearly always there is nothing behind, and to split would make the buffer a shared one.
        let behind = if bytes.len() > head.len { bytes.split_off(head.len) } else { BytesMut::new() };
        bytes.advance(head.start);
        stream.begin_request(body_of(&head), behind);
        let mut session = ServerSession::new_http1(stream as Stream);
        session.set_pipelined_prefix(bytes);
        session.set_read_timeout(Some(worker.shared.limits.body_stall));
        // What is left of a body once its request is answered.
        session.set_total_drain_timeout(Some(worker.shared.limits.body_stall));
        let Some(reused) = worker.engine.process_new_http(session, &worker.shutdown).await else { break };
        match reused.consume().0.into_any().downcast() {
            Ok(same) => stream = same,
            Err(_) => break,
        }
    }
    drop(seat);
}

fn body_of(head: &Head) -> Body {
    match head.framing {
        Framing::None if head.websocket => Body::Open,
        Framing::None => Body::Length(0),
        Framing::Length(length) => Body::Length(length),
        Framing::Chunked => Body::Chunked(ChunkScanner::new()),
    }
}

async fn next_request(
    worker: &Worker,
    stream: &mut Downstream,
    mut timer: Pin<&mut Sleep>,
    closing: &mut watch::Receiver<bool>,
) -> Next {
    let limits = &worker.shared.limits;
    let mut bytes = stream.take_ahead();
    let mut reader = HeadReader::new(limits.header_bytes, limits.header_fields);
    let mut begun = false;
    if bytes.is_empty() {
        timer.as_mut().reset(Instant::now() + limits.keep_alive);
    }
    loop {
        let idle = bytes.is_empty();
        if !idle {
            match reader.check(&bytes) {
                Progress::Done(head) => return Next::Request(bytes, head),
                Progress::Reject(reject) => return Next::Reject(reject),
                // One deadline for the whole header, from its first byte on; most come whole and need none.
                Progress::NeedMore if !begun => timer.as_mut().reset(Instant::now() + limits.header),
                Progress::NeedMore => {}
            }
            begun = true;
        }
        tokio::select! {
            biased;
            more = read_more(stream, &mut bytes) => if !more { return Next::Closed },
            () = timer.as_mut() => {
                return if idle { Next::Closed } else { Next::Reject(Reject { status: 408, reason: "header too slow" }) };
            }
            _ = closing.wait_for(|closing| *closing), if idle => return Next::Closed,
        }
    }
}

/// Appends what is there to `bytes`; false at the end of the connection.
async fn read_more(stream: &mut Downstream, bytes: &mut BytesMut) -> bool {
    poll_fn(|cx| {
        SCRATCH.with_borrow_mut(|scratch| {
            let polled = stream.poll_any(cx, scratch);
            if polled.is_pending() && bytes.is_empty() {
                stream.relax();
            }
            let read = ready!(polled).unwrap_or(0);
            bytes.extend_from_slice(&scratch[..read]);
            Poll::Ready(read > 0)
        })
    })
    .await
}

/// Answers a head that no upstream will see, and closes.
async fn refuse(worker: &Worker, stream: &mut Downstream, reject: Reject) {
    let request_id = RequestId::random();
    let page = error_page::render(reject.status, None, request_id.as_str());
    let mut answer = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nX-Request-Id: {}\r\nConnection: close\r\n\r\n",
        reject.status,
        http::StatusCode::from_u16(reject.status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Error"),
        page.content_type,
        page.body.len(),
        request_id.as_str(),
    )
    .into_bytes();
    answer.extend_from_slice(&page.body);
    let conn = stream.conn().clone();
    conn.refuse_body();
    let sent = async {
        stream.write_all(&answer).await?;
        stream.flush().await
    };
    let _ = tokio::time::timeout(worker.shared.limits.header, sent).await;
    let count = worker.count();
    count.add(|c| &c.rejected_heads);
    count.add(|c| &c.requests_h1);
    let record = Record {
        at: SystemTime::now(),
        client: shown(conn.client),
        host: &conn.sni,
        method: "",
        path: "",
        protocol: "h1",
        status: reject.status,
        bytes_in: 0,
        bytes_out: page.body.len() as u64,
        took: std::time::Duration::ZERO,
        site: "",
        upstream: "",
        endpoint: "",
        retries: 0,
        tls: conn.tls,
        request_id: request_id.as_str(),
        failed: "client",
        why: reject.reason,
    };
    if worker.shared.log.is_on() && !worker.shared.log.write(&record) {
        count.add(|c| &c.log_dropped);
    }
}
