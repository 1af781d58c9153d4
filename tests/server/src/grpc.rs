//! `test.Echo`, a gRPC service on bytes: `Unary`, `Server` (the message's number of answers), `Bidi`, `Fail`.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response};

use crate::Failure;
use crate::body::{self, Body};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const OK: &str = "0";
const INVALID: &str = "3";
const UNIMPLEMENTED: &str = "12";
const INTERNAL: &str = "13";
/// The most answers one `Server` call gives.
const MOST: u32 = 100_000;

pub(crate) fn respond(request: Request<Incoming>) -> Response<Body> {
    let method = request.uri().path().to_owned();
    let messages = Messages { body: request.into_body(), buffer: BytesMut::new() };
    let body = match method.as_str() {
        "/test.Echo/Unary" => body::streamed(stream::unfold(State::new(messages), unary)),
        "/test.Echo/Server" => body::streamed(stream::unfold(State::new(messages), server)),
        "/test.Echo/Bidi" => body::streamed(stream::unfold(State::new(messages), bidi)),
        "/test.Echo/Fail" => return trailers_only(INTERNAL),
        _ => return trailers_only(UNIMPLEMENTED),
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn trailers_only(status: &'static str) -> Response<Body> {
    let mut response = Response::new(body::full(""));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response.headers_mut().insert(STATUS, HeaderValue::from_static(status));
    response
}

/// The length-prefixed messages of a request's body.
struct Messages {
    body: Incoming,
    buffer: BytesMut,
}

impl Messages {
    async fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        loop {
            if let Some(message) = split(&mut self.buffer) {
                return Some(Ok(message));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
                Some(Err(error)) => return Some(Err(error.into())),
                None => return None,
            }
        }
    }
}

/// Takes one whole message, with its prefix, off the buffer.
fn split(buffer: &mut BytesMut) -> Option<Bytes> {
    let prefix = buffer.get(1..5)?;
    let length = u32::from_be_bytes(prefix.try_into().ok()?) as usize;
    (buffer.len() - 5 >= length).then(|| buffer.split_to(5 + length).freeze())
}

fn framed(payload: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(5 + payload.len());
    message.extend_from_slice(&[0]);
    message.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(0).to_be_bytes());
    message.extend_from_slice(payload);
    message.freeze()
}

struct State {
    messages: Messages,
    waiting: VecDeque<Bytes>,
    read: bool,
    done: bool,
}

type Step = Option<(Result<Frame<Bytes>, Failure>, State)>;

impl State {
    fn new(messages: Messages) -> Self {
        Self { messages, waiting: VecDeque::new(), read: false, done: false }
    }

    fn give(self, message: Bytes) -> Step {
        Some((Ok(Frame::data(message)), self))
    }

    fn end(mut self, status: &'static str) -> Step {
        if self.done {
            return None;
        }
        self.done = true;
        let mut trailers = HeaderMap::new();
        trailers.insert(STATUS, HeaderValue::from_static(status));
        Some((Ok(Frame::trailers(trailers)), self))
    }

    fn fail(mut self, error: Failure) -> Step {
        self.done = true;
        Some((Err(error), self))
    }
}

async fn unary(mut state: State) -> Step {
    if state.done || state.read {
        return state.end(OK);
    }
    state.read = true;
    match state.messages.next().await {
        Some(Ok(message)) => state.give(message),
        Some(Err(error)) => state.fail(error),
        None => state.end(INVALID),
    }
}

async fn bidi(mut state: State) -> Step {
    if state.done {
        return None;
    }
    match state.messages.next().await {
        Some(Ok(message)) => state.give(message),
        Some(Err(error)) => state.fail(error),
        None => state.end(OK),
    }
}

async fn server(mut state: State) -> Step {
    if state.done {
        return None;
    }
    if !state.read {
        state.read = true;
        let count = match state.messages.next().await {
            Some(Ok(mut message)) => {
                message.advance(5);
                std::str::from_utf8(&message).ok().and_then(|text| text.parse::<u32>().ok())
            }
            Some(Err(error)) => return state.fail(error),
            None => None,
        };
        match count {
            Some(count) => state.waiting = (0..count.min(MOST)).map(|i| framed(i.to_string().as_bytes())).collect(),
            None => return state.end(INVALID),
        }
    }
    match state.waiting.pop_front() {
        Some(message) => state.give(message),
        None => state.end(OK),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_whole_however_they_are_split() {
        let bytes = [framed(b"one"), framed(b""), framed(b"three")].concat();
        let mut buffer = BytesMut::new();
        let mut got = Vec::new();
        for byte in bytes {
            buffer.extend_from_slice(&[byte]);
            got.extend(split(&mut buffer));
        }
        assert_eq!(got, [framed(b"one"), framed(b""), framed(b"three")]);
        assert!(buffer.is_empty());
    }
}
