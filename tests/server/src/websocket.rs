//! `/ws`: a websocket that sends every message back.

use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use crate::app::App;
use crate::body::{self, Body};
use crate::serve::Connection;

pub(crate) fn respond(mut request: Request<Incoming>, connection: Arc<Connection>, app: Arc<App>) -> Response<Body> {
    let headers = request.headers();
    let upgrade = headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| upgrade);
    let mut response = Response::new(body::full(""));
    let Some(accept) = key.and_then(|key| HeaderValue::from_str(&derive_accept_key(key.as_bytes())).ok()) else {
        *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        return response;
    };
    let protocol = headers.get(header::SEC_WEBSOCKET_PROTOCOL).cloned();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = response.headers_mut();
    out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    out.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    out.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    let first = protocol.as_ref().and_then(|list| list.to_str().ok()?.split(',').next());
    if let Some(first) = first.and_then(|name| HeaderValue::from_str(name.trim()).ok()) {
        out.insert(header::SEC_WEBSOCKET_PROTOCOL, first);
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        // Held until the socket ends, so that a graceful end waits for it.
        let _connection = connection;
        if let Ok(upgraded) = upgraded.await {
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
            echo(socket, &app).await;
        }
    });
    response
}

async fn echo<S>(mut socket: WebSocketStream<S>, app: &App)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut going_away = false;
    loop {
        let message = tokio::select! {
            message = socket.next() => message,
            () = app.ended(), if !going_away => {
                going_away = true;
                let frame = CloseFrame { code: CloseCode::Away, reason: "going away".into() };
                if socket.close(Some(frame)).await.is_err() {
                    return;
                }
                continue;
            }
        };
        match message {
            Some(Ok(message)) if message.is_text() || message.is_binary() => {
                if socket.send(message).await.is_err() {
                    return;
                }
            }
            // Pings and closes are answered by the next read or flush.
            Some(Ok(_)) => {
                if socket.flush().await.is_err() {
                    return;
                }
            }
            Some(Err(_)) | None => return,
        }
    }
}
