//! Classes of short requests: kept h1, h2, new connections, POST.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use aws_lc_rs::digest;
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval_at, timeout};

use crate::client::{self, Ask, KeptH1};
use crate::run::{Context, Pace};
use crate::tally::{Failed, Reason};

/// Calls `work` at the pace given until the end.
async fn paced(context: &Context, pace: Pace, mut work: impl AsyncFnMut()) {
    let mut ticks = interval_at(tokio::time::Instant::now() + pace.first, pace.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = context.end() => return,
        }
        work().await;
    }
}

/// The result within the context's limit.
async fn limited<T>(context: &Context, work: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    let late = |_| Err(Failed::new(Reason::Timeout, format!("no end after {:?}", context.timeout)));
    timeout(context.timeout, work).await.unwrap_or_else(late)
}

/// `/bytes/N` answered with N bytes of the pattern; anything else with anything.
fn verify(path: &str, body: &Bytes) -> Result<u64, Failed> {
    let got = body.len() as u64;
    let want = path.strip_prefix("/bytes/").and_then(|length| length.parse::<u64>().ok());
    match want {
        Some(want) if got < want => {
            Err(Failed::new(Reason::Truncated, format!("{got} of {want} bytes")).losing(want - got))
        }
        Some(want) if got > want || !client::is_pattern(body, 0) => Err(Failed::new(Reason::Corrupt, "other bytes")),
        _ => Ok(got),
    }
}

pub(crate) async fn h1(context: Context, path: String, pace: Pace) {
    let mut client = KeptH1::new(context.dialer.with("http/1.1", true));
    let ask = Ask::get(&context.host, &path);
    paced(&context, pace, async || {
        let start = Instant::now();
        let reopened = || context.tally.reopened("h1");
        let result = limited(&context, client.exchange(&ask, reopened)).await.and_then(|body| verify(&path, &body));
        context.tally.book("h1", true, start.elapsed(), result);
    })
    .await;
}

type Shared = Rc<RefCell<Option<SendRequest<Full<Bytes>>>>>;

pub(crate) async fn h2(context: Context, path: String, streams: u32, pace: Pace) {
    let shared = Shared::default();
    let workers = (0..streams).map(|i| {
        let pace = Pace { every: pace.every, first: pace.first + pace.every * i / streams.max(1) };
        let (context, path, shared) = (context.clone(), path.clone(), shared.clone());
        tokio::task::spawn_local(async move {
            let dialer = context.dialer.with("h2", true);
            let ask = Ask::get(&context.host, &path);
            paced(&context, pace, async || {
                let start = Instant::now();
                let result = limited(&context, h2_exchange(&context, &dialer, &ask, &shared)).await;
                context.tally.book("h2", true, start.elapsed(), result.and_then(|body| verify(&path, &body)));
            })
            .await;
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        let _ = worker.await;
    }
}

async fn h2_exchange(
    context: &Context,
    dialer: &crate::dial::Dialer,
    ask: &Ask,
    shared: &Shared,
) -> Result<Bytes, Failed> {
    for attempt in 0.. {
        let kept = shared.borrow().clone();
        let reused = kept.is_some();
        let mut sender = match kept {
            Some(sender) => sender,
            None => {
                let sender = client::open_h2(dialer, &ask.host).await?;
                *shared.borrow_mut() = Some(sender.clone());
                sender
            }
        };
        let sent = match sender.ready().await {
            Ok(()) => sender.send_request(ask.request(true)?).await,
            Err(error) => Err(error),
        };
        match sent {
            Ok(response) => return client::read(response).await,
            // GOAWAY in order: the protocol says that this stream was never looked at, so it is asked again.
            Err(error) if attempt < 3 && reused && never_looked_at(&error) => {
                shared.borrow_mut().take();
                context.tally.reopened("h2");
            }
            Err(error) => {
                shared.borrow_mut().take();
                return Err(Failed::new(Reason::Reset, client::chain(&error)));
            }
        }
    }
    Err(Failed::new(Reason::Reset, "every connection was closed before the request"))
}

/// True where the request was never sent, or was refused by a GOAWAY without error or REFUSED_STREAM.
fn never_looked_at(error: &hyper::Error) -> bool {
    let text = client::chain(error);
    error.is_canceled() || error.is_closed() || text.contains("not a result of an error") || text.contains("refused")
}

/// One request on each new connection, all at their time, however long the others take.
pub(crate) async fn new(context: Context, class: &'static str, path: String, pace: Pace) {
    let mut tasks = tokio::task::JoinSet::new();
    let dialer = context.dialer.with("http/1.1", false);
    paced(&context, pace, async || {
        let (context, dialer, path) = (context.clone(), dialer.clone(), path.clone());
        tasks.spawn_local(async move {
            let start = Instant::now();
            let ask = Ask::get(&context.host, &path);
            let mut client = KeptH1::new(dialer);
            let result = limited(&context, client.exchange(&ask, || ())).await.and_then(|body| verify(&path, &body));
            context.tally.book(class, class == "new", start.elapsed(), result);
        });
        while tasks.try_join_next().is_some() {}
    })
    .await;
    tasks.join_all().await;
}

pub(crate) async fn post(context: Context, length: usize, pace: Pace) {
    let body = client::pattern(length);
    let sha256: String = digest::digest(&digest::SHA256, &body).as_ref().iter().map(|b| format!("{b:02x}")).collect();
    let ask = Ask { body: Some(body), ..Ask::get(&context.host, "/upload") };
    let mut client = KeptH1::new(context.dialer.with("http/1.1", true));
    paced(&context, pace, async || {
        let start = Instant::now();
        let reopened = || context.tally.reopened("post");
        let result = limited(&context, client.exchange(&ask, reopened)).await.and_then(|answer| {
            let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
            let got = answer["bytes"].as_u64().unwrap_or(0);
            let want = length as u64;
            match () {
                () if got < want => {
                    Err(Failed::new(Reason::Truncated, format!("{got} of {want} bytes")).losing(want - got))
                }
                () if answer["sha256"] != sha256.as_str() => Err(Failed::new(Reason::Corrupt, answer)),
                () => Ok(want),
            }
        });
        context.tally.book("post", true, start.elapsed(), result);
    })
    .await;
}
