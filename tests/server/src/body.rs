//! Response bodies of all sorts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;

use crate::Failure;
use crate::app::App;

pub(crate) type Body = UnsyncBoxBody<Bytes, Failure>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(Into::into).boxed_unsync()
}

pub(crate) fn streamed<S>(frames: S) -> Body
where
    S: Stream<Item = Result<Frame<Bytes>, Failure>> + Send + 'static,
{
    StreamBody::new(frames).boxed_unsync()
}

/// The length of the pattern: byte `i` of every deterministic body is `i % 251`.
const PERIOD: usize = 251;
const BLOCK: usize = PERIOD * 256;

/// `length` deterministic bytes, in pieces of `piece` bytes with `pause` before each but the first.
pub(crate) fn pattern(length: u64, piece: usize, pause: Duration) -> Body {
    let block: Bytes = (0..BLOCK + PERIOD).map(|i| (i % PERIOD) as u8).collect::<Vec<_>>().into();
    let piece = piece.clamp(1, BLOCK);
    streamed(stream::unfold(0, move |sent: u64| {
        let block = block.clone();
        async move {
            let left = length.checked_sub(sent).filter(|left| *left > 0)?;
            if sent > 0 && !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let size = piece.min(usize::try_from(left).unwrap_or(piece));
            let from = (sent % PERIOD as u64) as usize;
            Some((Ok(Frame::data(block.slice(from..from + size))), sent + size as u64))
        }
    }))
}

/// Server-sent events, `count` of them or without end, with `pause` between.
pub(crate) fn events(count: u64, pause: Duration, app: Arc<App>) -> Body {
    let next = move |sent: u64| {
        let app = app.clone();
        async move {
            if count > 0 && sent == count {
                return None;
            }
            if sent > 0 {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = app.ended() => return None,
                }
            }
            Some((Ok(Frame::data(format!("id: {sent}\ndata: {sent}\n\n").into())), sent + 1))
        }
    };
    streamed(stream::unfold(0, next))
}

/// `length` bytes of the pattern, then a failure: the promised rest never comes.
pub(crate) fn broken(length: u64) -> Body {
    let block = pattern(length, BLOCK, Duration::ZERO);
    streamed(stream::unfold(Some(block), |body| async move {
        let mut body = body?;
        match body.frame().await {
            Some(frame) => Some((frame, Some(body))),
            None => {
                // What was sent shall leave before the connection does.
                tokio::time::sleep(Duration::from_millis(50)).await;
                Some((Err("closed half-way, as told".into()), None))
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pattern_is_the_same_in_any_pieces() {
        for piece in [1, 7, 250, 251, 252, 1_000_000] {
            let bytes = pattern(70_001, piece, Duration::ZERO).collect().await.unwrap().to_bytes();
            assert_eq!(bytes.len(), 70_001, "{piece}");
            assert!(bytes.iter().enumerate().all(|(i, byte)| usize::from(*byte) == i % 251), "{piece}");
        }
    }

    #[tokio::test]
    async fn broken_fails_after_its_bytes() {
        let mut body = broken(10);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), 10);
        assert!(body.frame().await.unwrap().is_err());
        assert!(body.frame().await.is_none());
    }
}
