//! Stands before the CA and does what Pebble cannot: renewal windows (RFC 9773), and refusals for too many orders.
//!
//! It speaks HTTP/1.1 over TLS with the CA's own certificate, one request for each connection, and hands everything else on.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::ca::Ca;
use crate::harness::{Answer, Root, tcp, tls_config, tls_over, try_read_answer};

/// What it does beside handing on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ways {
    /// Tell of renewal windows: certificates of the issuer that is asked about first are due, others far from it.
    pub(crate) windows: bool,
    /// Refuse new orders, for these many seconds.
    pub(crate) rate_limit: Option<u32>,
    /// Offer certificates of this profile.
    pub(crate) profile: Option<&'static str>,
}

/// What it has seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// Certificates whose renewal window was asked for.
    pub(crate) windows: Vec<String>,
    /// New orders, refused ones too.
    pub(crate) orders: usize,
    /// Orders that name the certificate that they replace.
    pub(crate) replacing: usize,
    /// The profiles that orders have named.
    pub(crate) profiles: Vec<String>,
}

/// The running front.
pub(crate) struct Front {
    address: SocketAddr,
    ways: Arc<Mutex<Ways>>,
    counts: Arc<Mutex<Counts>>,
}

impl Front {
    pub(crate) fn start(ca: &Ca, ways: Ways) -> Front {
        let listener = TcpListener::bind((ca.ip(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let pem = ca.own_certificate();
        let chain = vec![CertificateDer::from_pem_file(&pem).unwrap()];
        let key = PrivateKeyDer::from_pem_file(pem.with_extension("key")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
        let (ways, counts) = (Arc::new(Mutex::new(ways)), Arc::new(Mutex::new(Counts::default())));
        let front = Front { address, ways: ways.clone(), counts: counts.clone() };
        let behind = ca.directory_address();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let one = One {
                    config: config.clone(),
                    pem: pem.clone(),
                    behind,
                    ways: ways.clone(),
                    counts: counts.clone(),
                };
                // A connection that breaks is the client's to try again.
                std::thread::spawn(move || stream.ok().and_then(|stream| one.serve(stream, address)));
            }
        });
        front
    }

    pub(crate) fn set(&self, ways: Ways) {
        *self.ways.lock().unwrap() = ways;
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts.lock().unwrap().clone()
    }

    /// The URL of the directory as it shows it.
    pub(crate) fn directory(&self) -> String {
        format!("https://{}/dir", self.address)
    }

    /// A root whose .env makes itsup use the CA through it.
    pub(crate) fn root(&self, ca: &Ca) -> Root {
        let root = Root::new();
        root.write(".env", ca.env().replace(&ca.directory(), &self.directory()));
        root
    }
}

struct One {
    config: Arc<ServerConfig>,
    pem: std::path::PathBuf,
    behind: SocketAddr,
    ways: Arc<Mutex<Ways>>,
    counts: Arc<Mutex<Counts>>,
}

impl One {
    fn serve(&self, stream: TcpStream, own: SocketAddr) -> Option<()> {
        let mut tls = StreamOwned::new(ServerConnection::new(self.config.clone()).ok()?, stream);
        let (head, body) = read_request(&mut tls)?;
        let (method, path) = head.split_once(' ').map(|(m, rest)| (m, rest.split(' ').next().unwrap_or("/")))?;
        let ways = self.ways.lock().unwrap().clone();
        let answer = if ways.windows && path.starts_with("/renewal/") {
            let asked = &mut self.counts.lock().unwrap().windows;
            if !asked.iter().any(|known| known == path) {
                asked.push(path.to_owned());
            }
            let issuer = |path: &str| path.split('.').next().map(str::to_owned);
            let year = if issuer(&asked[0]) == issuer(path) { "2026" } else { "2999" };
            let window =
                json!({ "start": format!("{year}-01-01T00:00:00Z"), "end": format!("{year}-01-02T00:00:00Z") });
            let body = json!({ "suggestedWindow": window });
            format!(
                "HTTP/1.1 200 OK\r\nRetry-After: 21600\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.to_string().len()
            )
            .into_bytes()
        } else if let Some(seconds) = ways.rate_limit.filter(|_| path.contains("order-plz")) {
            self.counts.lock().unwrap().orders += 1;
            let problem = json!({
                "type": "urn:ietf:params:acme:error:rateLimited", "status": 429, "detail": "too many orders lately",
            });
            // The nonce is a real one, as a CA would give.
            let nonce =
                self.behind("HEAD", "/nonce-plz", "", b"", own)?.header("replay-nonce").unwrap_or_default().to_owned();
            format!(
                "HTTP/1.1 429 Too Many Requests\r\nRetry-After: {seconds}\r\nReplay-Nonce: {nonce}\r\nContent-Type: application/problem+json\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{problem}",
                problem.to_string().len()
            )
            .into_bytes()
        } else {
            let kind = head.lines().find(|line| line.to_lowercase().starts_with("content-type:")).unwrap_or("");
            let mut answer = self.behind(method, path, kind, &body, own)?;
            if path == "/dir" && ways.windows {
                edit(&mut answer, |directory| directory["renewalInfo"] = json!(format!("https://{own}/renewal")));
            }
            if let Some(profile) = ways.profile.filter(|_| path == "/dir") {
                edit(&mut answer, |directory| directory["meta"]["profiles"] = json!({ profile: "as short as can be" }));
            }
            // A nonce that the CA refuses is no order.
            if path.contains("order-plz") && answer.status < 300 {
                let mut counts = self.counts.lock().unwrap();
                counts.orders += 1;
                counts.profiles.extend(ordered(&body, "profile").and_then(|one| one.as_str().map(str::to_owned)));
                if let Some(replaces) = ordered(&body, "replaces") {
                    counts.replacing += 1;
                    edit(&mut answer, |order| order["replaces"] = replaces);
                }
            }
            write_answer(&answer, method)
        };
        tls.write_all(&answer).ok()?;
        tls.conn.send_close_notify();
        tls.flush().ok()
    }

    fn behind(&self, method: &str, path: &str, header: &str, body: &[u8], own: SocketAddr) -> Option<Answer> {
        let config = tls_config(&self.pem, &["http/1.1"]);
        let mut stream = tls_over(tcp(self.behind), &self.behind.ip().to_string(), config).ok()?;
        // The Host is the front's: the CA makes its URLs of it, and checks those that are signed against it.
        let more = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {own}\r\nUser-Agent: front\r\n{more}Content-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(&[head.as_bytes(), body].concat()).ok()?;
        try_read_answer(&mut stream, method).ok()
    }
}

fn read_request(stream: &mut impl std::io::Read) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        let mut one = [0];
        if stream.read(&mut one).ok()? == 0 {
            return None;
        }
        bytes.push(one[0]);
        if bytes.ends_with(b"\r\n\r\n") {
            break bytes.len();
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let length = head
        .lines()
        .find_map(|line| line.to_lowercase().strip_prefix("content-length:").map(|n| n.trim().parse::<usize>()));
    let mut body = vec![0; length.and_then(Result::ok).unwrap_or(0)];
    stream.read_exact(&mut body).ok()?;
    Some((head, body))
}

/// A key of a signed new order.
fn ordered(body: &[u8], key: &str) -> Option<Value> {
    let signed: Value = serde_json::from_slice(body).ok()?;
    let payload = data_encoding::BASE64URL_NOPAD.decode(signed["payload"].as_str()?.as_bytes()).ok()?;
    let order: Value = serde_json::from_slice(&payload).ok()?;
    order.get(key).cloned()
}

fn edit(answer: &mut Answer, change: impl FnOnce(&mut Value)) {
    if let Ok(mut value) = serde_json::from_slice::<Value>(&answer.body)
        && answer.status < 300
    {
        change(&mut value);
        answer.body = value.to_string().into_bytes();
    }
}

fn write_answer(answer: &Answer, method: &str) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status);
    let own = ["content-length", "connection", "transfer-encoding"];
    for (name, value) in answer.headers.iter().filter(|(name, _)| !own.contains(&name.as_str())) {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if method != "HEAD" {
        text.push_str(&format!("content-length: {}\r\n", answer.body.len()));
    }
    text.push_str("\r\n");
    [text.as_bytes(), &answer.body].concat()
}
