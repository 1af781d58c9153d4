//! A client that does exactly what a test says, byte by byte if need be. Real clients are in `tools`.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::PATIENCE;

/// An answer, read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case, in the order they came.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The first header of this name, given in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|header| header.0 == name).map(|header| header.1.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body, which must be JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }

    /// Of a test server's account of a request: the values of a header that it saw, by name in lower case.
    #[track_caller]
    pub(crate) fn seen(&self, name: &str) -> Vec<String> {
        let account = self.json();
        let headers = account["headers"].as_array().expect("an account of a request");
        let values = headers.iter().filter(|header| header[0] == name);
        values.map(|header| header[1].as_str().unwrap().to_owned()).collect()
    }
}

/// A connection: plain, or TLS over it. Reads and writes give up after [`PATIENCE`].
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// The socket below.
    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => &tls.sock,
        }
    }

    /// The TLS session.
    #[track_caller]
    pub(crate) fn session(&self) -> &ClientConnection {
        match self {
            Stream::Plain(_) => panic!("a plain connection"),
            Stream::Tls(tls) => &tls.conn,
        }
    }

    /// No more bytes from us: TLS is told so where there is TLS, then TCP is.
    pub(crate) fn finish(&mut self) {
        if let Stream::Tls(tls) = self {
            tls.conn.send_close_notify();
            // The other side may be gone, which is what is wanted.
            let _ = tls.flush();
        }
        let _ = self.tcp().shutdown(Shutdown::Write);
    }

    /// Whether the other side has ended the connection; waits for that, or for a byte.
    pub(crate) fn ended(&mut self) -> bool {
        match self.read(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe
            ),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(tcp) => tcp.read(buffer),
            Stream::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(tcp) => tcp.write(bytes),
            Stream::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(tcp) => tcp.flush(),
            Stream::Tls(tls) => tls.flush(),
        }
    }
}

/// A TCP connection.
#[track_caller]
pub(crate) fn tcp(to: SocketAddr) -> TcpStream {
    let tcp = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp.set_write_timeout(Some(PATIENCE)).unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp
}

/// A TCP connection from this loopback address, with a small receive buffer where one is given.
#[track_caller]
pub(crate) fn tcp_from(ip: &str, to: SocketAddr, receive_buffer: Option<usize>) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    socket.bind(&SocketAddr::new(ip.parse().unwrap(), 0).into()).unwrap();
    socket.connect_timeout(&to.into(), PATIENCE).unwrap();
    let tcp = TcpStream::from(socket);
    tcp.set_nonblocking(false).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp.set_write_timeout(Some(PATIENCE)).unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp
}

/// A plain connection.
#[track_caller]
pub(crate) fn plain(to: SocketAddr) -> Stream {
    Stream::Plain(tcp(to))
}

/// What a TLS client trusts and offers.
#[track_caller]
pub(crate) fn tls_config(ca: &Path, alpn: &[&str]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

/// A TLS connection for HTTP/1.1, its handshake done.
#[track_caller]
pub(crate) fn tls(to: SocketAddr, name: &str, ca: &Path) -> Stream {
    tls_over(tcp(to), name, tls_config(ca, &["http/1.1"])).unwrap()
}

/// A TLS handshake over a connection.
pub(crate) fn tls_over(mut tcp: TcpStream, name: &str, config: impl Into<Arc<ClientConfig>>) -> io::Result<Stream> {
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    let mut session = ClientConnection::new(config.into(), name).map_err(io::Error::other)?;
    while session.is_handshaking() {
        session.complete_io(&mut tcp)?;
    }
    Ok(Stream::Tls(Box::new(StreamOwned::new(session, tcp))))
}

/// Sends one request; a body gets its Content-Length.
#[track_caller]
pub(crate) fn send(
    stream: &mut impl Write,
    method: &str,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    let bytes = [head.as_bytes(), b"\r\n", body].concat();
    stream.write_all(&bytes).unwrap();
    stream.flush().unwrap();
}

/// Sends these bytes by a new plain connection, and reads the answer.
#[track_caller]
pub(crate) fn ask(to: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = plain(to);
    stream.write_all(request).unwrap();
    read_answer(&mut stream, "GET")
}

/// Reads one answer to a request of this method, 1xx answers before it skipped. The connection can be used again.
#[track_caller]
pub(crate) fn read_answer(stream: &mut impl Read, method: &str) -> Answer {
    try_read_answer(stream, method).unwrap_or_else(|error| panic!("no whole answer: {error}"))
}

/// The same, for where a test expects that none comes.
pub(crate) fn try_read_answer(stream: &mut impl Read, method: &str) -> io::Result<Answer> {
    loop {
        let (status, headers) = read_head(stream)?;
        if (100..200).contains(&status) && status != 101 {
            continue;
        }
        let mut answer = Answer { status, headers, body: Vec::new() };
        answer.body = read_body(stream, method, &answer)?;
        return Ok(answer);
    }
}

/// Reads a status line and headers.
pub(crate) fn read_head(stream: &mut impl Read) -> io::Result<(u16, Vec<(String, String)>)> {
    let first = read_line(stream)?;
    let fault = || io::Error::other(format!("no status line: {first:?}"));
    let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok()).ok_or_else(fault)?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(stream)?;
        if line.is_empty() {
            return Ok((status, headers));
        }
        let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other(format!("no header: {line:?}")))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn read_body(stream: &mut impl Read, method: &str, answer: &Answer) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if method == "HEAD" || matches!(answer.status, 101 | 204 | 304) {
        return Ok(body);
    }
    if answer.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        loop {
            let line = read_line(stream)?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size =
                u64::from_str_radix(size, 16).map_err(|_| io::Error::other(format!("no chunk size: {line:?}")))?;
            if size == 0 {
                while !read_line(stream)?.is_empty() {}
                return Ok(body);
            }
            read_exactly(stream, size, &mut body)?;
            if !read_line(stream)?.is_empty() {
                return Err(io::Error::other("a chunk is longer than it said"));
            }
        }
    }
    if let Some(length) = answer.header("content-length") {
        let length = length.parse().map_err(|_| io::Error::other(format!("no length: {length:?}")))?;
        read_exactly(stream, length, &mut body)?;
    } else {
        stream.read_to_end(&mut body)?;
    }
    Ok(body)
}

fn read_exactly(stream: &mut impl Read, length: u64, body: &mut Vec<u8>) -> io::Result<()> {
    let read = stream.take(length).read_to_end(body)?;
    if (read as u64) < length {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{read} of {length} bytes came")));
    }
    Ok(())
}

/// A line without its end. Byte by byte, so that what follows stays in the stream.
pub(crate) fn read_line(stream: &mut impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        if stream.read(&mut byte)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("ended within {line:?}")));
        }
        match byte[0] {
            b'\n' => break,
            other => line.push(other),
        }
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}
