//! Classes of long-lived traffic: event streams, websockets, downloads. Cut before their time, they have failed.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use hyper::header;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::client::{self, Ask};
use crate::run::Context;
use crate::tally::{Failed, Reason};

/// An event every 50 ms; more than this between two is a failure.
const EVENT_PAUSE: &str = "/stream?n=0&ms=50";

/// Repeats one long exchange until the end; each end is booked as one result.
async fn repeated(context: &Context, class: &'static str, mut work: impl AsyncFnMut() -> Result<u64, Failed>) {
    while !context.over() {
        let start = Instant::now();
        let result = work().await;
        let failed = result.is_err();
        context.tally.book(class, false, start.elapsed(), result);
        if failed {
            // A dead server is not asked a thousand times a second.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

pub(crate) async fn events(context: Context) {
    repeated(&context, "events", async || {
        let dialer = context.dialer.with("http/1.1", false);
        let mut sender = client::open_h1(&dialer, &context.host).await?;
        let request = Ask::get(&context.host, EVENT_PAUSE).request(false)?;
        let response = timeout(context.timeout, sender.send_request(request))
            .await
            .map_err(|_| Failed::new(Reason::Timeout, "no answer to the event stream"))?
            .map_err(|error| Failed::new(Reason::Reset, client::chain(&error)))?;
        if !response.status().is_success() {
            return Err(Failed::new(Reason::Status, response.status()));
        }
        let mut body = response.into_body();
        let mut text = String::new();
        let mut next = 0_u64;
        loop {
            let frame = tokio::select! {
                frame = timeout(context.timeout, body.frame()) => frame,
                () = context.end() => return Ok(next),
            };
            let frame = frame.map_err(|_| Failed::new(Reason::Timeout, format!("no event after {next}")))?;
            let data = match frame {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Err(Failed::new(Reason::Cut, client::chain(&error))),
                None => return Err(Failed::new(Reason::Cut, format!("ended in order after {next} events"))),
            };
            text.push_str(&String::from_utf8_lossy(&data));
            while let Some((event, rest)) = text.split_once("\n\n") {
                if event != format!("id: {next}\ndata: {next}") {
                    return Err(Failed::new(Reason::Corrupt, format!("`{event}` in place of event {next}")));
                }
                text = rest.to_owned();
                next += 1;
                context.tally.seen("events");
            }
        }
    })
    .await;
}

pub(crate) async fn websocket(context: Context) {
    repeated(&context, "websocket", async || {
        let dialer = context.dialer.with("http/1.1", false);
        let (io, _) = dialer.dial(&context.host).await?;
        let request = format!("ws://{}/ws", context.host).into_client_request();
        let request = request.map_err(|error| Failed::new(Reason::Connect, error))?;
        let opened = timeout(context.timeout, tokio_tungstenite::client_async(request, io)).await;
        let (mut socket, _) = opened
            .map_err(|_| Failed::new(Reason::Timeout, "no answer to the upgrade"))?
            .map_err(|error| Failed::new(Reason::Status, client::chain(&error)))?;
        let mut sent = 0_u64;
        while !context.over() {
            let cut = |error: &dyn std::error::Error| Failed::new(Reason::Cut, client::chain(error));
            socket.send(Message::text(sent.to_string())).await.map_err(|error| cut(&error))?;
            let answer = timeout(context.timeout, socket.next()).await;
            match answer.map_err(|_| Failed::new(Reason::Timeout, "no echo"))? {
                Some(Ok(Message::Text(text))) if *text == *sent.to_string() => {
                    sent += 1;
                    context.tally.seen("websocket");
                }
                Some(Ok(Message::Close(frame))) => return Err(Failed::new(Reason::Cut, format!("close {frame:?}"))),
                Some(Ok(message)) => return Err(Failed::new(Reason::Corrupt, message)),
                Some(Err(error)) => return Err(cut(&error)),
                None => return Err(Failed::new(Reason::Cut, "ended")),
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
                () = context.end() => {}
            }
        }
        let _ = socket.close(None).await;
        Ok(sent)
    })
    .await;
}

/// Downloads of `length` bytes stretched over `ms`, one after another, each on its own connection.
pub(crate) async fn transfers(context: Context, length: u64, ms: u64) {
    let pieces = (ms / 10).max(1);
    let path = format!("/bytes/{length}?piece={}&ms=10", length.div_ceil(pieces));
    repeated(&context, "transfer", async || {
        let dialer = context.dialer.with("http/1.1", false);
        let mut sender = client::open_h1(&dialer, &context.host).await?;
        let mut request = Ask::get(&context.host, &path).request(false)?;
        request.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        let response = timeout(context.timeout, sender.send_request(request))
            .await
            .map_err(|_| Failed::new(Reason::Timeout, "no answer to the download").losing(length))?
            .map_err(|error| Failed::new(Reason::Reset, client::chain(&error)).losing(length))?;
        if !response.status().is_success() {
            return Err(Failed::new(Reason::Status, response.status()).losing(length));
        }
        let mut body = response.into_body();
        let mut got = 0;
        loop {
            let frame = timeout(context.timeout, body.frame()).await;
            match frame.map_err(|_| Failed::new(Reason::Timeout, "stalled").losing(length - got))? {
                Some(Ok(frame)) => {
                    let data: Bytes = frame.into_data().unwrap_or_default();
                    if !client::is_pattern(&data, got) {
                        return Err(Failed::new(Reason::Corrupt, format!("other bytes after {got}")));
                    }
                    got += data.len() as u64;
                    context.tally.seen("transfer");
                }
                Some(Err(error)) => {
                    return Err(Failed::new(Reason::Truncated, client::chain(&error)).losing(length - got));
                }
                None if got < length => {
                    return Err(Failed::new(Reason::Truncated, "a false end").losing(length - got));
                }
                None => return Ok(got),
            }
        }
    })
    .await;
}
