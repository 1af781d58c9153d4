//! Listeners and connections: bind, accept, take PROXY header and TLS off, hand to hyper, end gracefully.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::Failure;
use crate::app::App;
use crate::args::{AcceptProxy, Args};
use crate::endpoints;
use crate::proxy_header::{self, ProxyHeader};

/// What a request can learn of its connection.
pub(crate) struct Connection {
    pub(crate) peer: SocketAddr,
    pub(crate) proxy: Option<ProxyHeader>,
    /// SNI and ALPN.
    pub(crate) tls: Option<(Option<String>, Option<String>)>,
    /// Held by all that is under way; the server is gone when the last is dropped.
    pub(crate) _alive: mpsc::Sender<()>,
}

#[derive(Clone)]
enum Kind {
    Plain,
    Tls(TlsAcceptor),
    Echo,
}

/// Binds all listeners and serves them in the background; the ready line is returned.
pub(crate) async fn start(args: &Args, app: &Arc<App>, alive: &mpsc::Sender<()>) -> Result<Value, Failure> {
    let mut ready = json!({"ready": true, "pid": std::process::id(), "listen": [], "tls": [], "echo": []});
    let mut kinds = vec![("listen", &args.listen, Kind::Plain), ("echo", &args.echo_listen, Kind::Echo)];
    if !args.tls_listen.is_empty() {
        kinds.push(("tls", &args.tls_listen, Kind::Tls(crate::tls::acceptor(args)?)));
    }
    for (name, addresses, kind) in kinds {
        for address in addresses {
            let listener = TcpListener::bind(address).await.map_err(|error| format!("{address}: {error}"))?;
            if let Some(list) = ready[name].as_array_mut() {
                list.push(listener.local_addr()?.to_string().into());
            }
            tokio::spawn(accept(listener, kind.clone(), args.accept_proxy, app.clone(), alive.clone()));
        }
    }
    Ok(ready)
}

async fn accept(listener: TcpListener, kind: Kind, accept_proxy: AcceptProxy, app: Arc<App>, alive: mpsc::Sender<()>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = app.ended() => return,
        };
        let Ok((stream, peer)) = accepted else {
            // Out of file descriptors: let others end first.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (kind, app, alive) = (kind.clone(), app.clone(), alive.clone());
        tokio::spawn(async move {
            if let Err(error) = serve(stream, peer, kind, accept_proxy, app, alive).await {
                eprintln!("{peer}: {error}");
            }
        });
    }
}

async fn serve(
    mut stream: TcpStream,
    peer: SocketAddr,
    kind: Kind,
    accept_proxy: AcceptProxy,
    app: Arc<App>,
    alive: mpsc::Sender<()>,
) -> Result<(), Failure> {
    let proxy = proxy_header::take(&mut stream, accept_proxy).await?;
    match kind {
        Kind::Plain => http(stream, Connection { peer, proxy, tls: None, _alive: alive }, app).await,
        Kind::Echo => echo(stream).await,
        Kind::Tls(acceptor) => {
            let stream = acceptor.accept(stream).await?;
            let (_, session) = stream.get_ref();
            let alpn = session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
            let tls = Some((session.server_name().map(str::to_owned), alpn));
            http(stream, Connection { peer, proxy, tls, _alive: alive }, app).await
        }
    }
}

async fn echo(mut stream: TcpStream) -> Result<(), Failure> {
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    Ok(write.shutdown().await?)
}

async fn http<S>(stream: S, connection: Connection, app: Arc<App>) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = Arc::new(connection);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().half_close(true);
    builder.http2().initial_stream_window_size(1 << 20).initial_connection_window_size(4 << 20);
    let service = service_fn(|request| endpoints::respond(request, connection.clone(), app.clone()));
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(served);
    tokio::select! {
        result = served.as_mut() => return result,
        () = app.ended() => {}
    }
    served.as_mut().graceful_shutdown();
    served.await
}
