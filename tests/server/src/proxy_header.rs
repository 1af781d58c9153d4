//! PROXY protocol headers, v1 and v2, as a test's upstream reads them: parsed apart, taken off the socket here.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::args::AcceptProxy;

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const LONGEST: usize = 536;

/// What a header said; `addresses` is `None` for UNKNOWN and LOCAL.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProxyHeader {
    version: u8,
    addresses: Option<(SocketAddr, SocketAddr)>,
}

impl ProxyHeader {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "version": self.version,
            "source": self.addresses.map(|(source, _)| source.to_string()),
            "destination": self.addresses.map(|(_, destination)| destination.to_string()),
        })
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    /// The header and its length.
    Whole(ProxyHeader, usize),
    /// More bytes are needed.
    Partial,
    /// These bytes begin no header.
    None,
}

/// Takes the header off the socket; an error where it is required and missing.
pub(crate) async fn take(stream: &mut TcpStream, accept: AcceptProxy) -> Result<Option<ProxyHeader>, &'static str> {
    if accept == AcceptProxy::Off {
        return Ok(None);
    }
    let mut buffer = [0; LONGEST];
    for _ in 0..5_000 {
        let seen = stream.peek(&mut buffer).await.map_err(|_| "the connection broke in the PROXY header")?;
        match parse(&buffer[..seen]) {
            Parsed::Whole(header, length) => {
                stream.read_exact(&mut buffer[..length]).await.map_err(|_| "the connection broke")?;
                return Ok(Some(header));
            }
            Parsed::None if accept == AcceptProxy::Optional => return Ok(None),
            Parsed::None => return Err("no PROXY header"),
            Parsed::Partial if seen == 0 => return Err("closed before a byte"),
            // A peek returns at once while anything is there, so there is no event to wait for.
            Parsed::Partial => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    Err("the PROXY header did not end")
}

fn parse(bytes: &[u8]) -> Parsed {
    let common = bytes.len().min(V2_SIGNATURE.len());
    if bytes[..common] == V2_SIGNATURE[..common] {
        return parse_v2(bytes);
    }
    let common = bytes.len().min(6);
    if bytes[..common] == b"PROXY "[..common] { parse_v1(bytes) } else { Parsed::None }
}

fn parse_v1(bytes: &[u8]) -> Parsed {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < 107 { Parsed::Partial } else { Parsed::None };
    };
    let Ok(line) = std::str::from_utf8(&bytes[..end]) else { return Parsed::None };
    let mut words = line.split(' ').skip(1);
    let addresses = match words.next() {
        Some("UNKNOWN") => None,
        Some("TCP4" | "TCP6") => {
            let mut word = || words.next();
            let (Some(source), Some(destination), Some(from), Some(to)) = (word(), word(), word(), word()) else {
                return Parsed::None;
            };
            let (Ok(source), Ok(destination)) = (source.parse::<IpAddr>(), destination.parse::<IpAddr>()) else {
                return Parsed::None;
            };
            let (Ok(from), Ok(to)) = (from.parse(), to.parse()) else { return Parsed::None };
            Some((SocketAddr::new(source, from), SocketAddr::new(destination, to)))
        }
        _ => return Parsed::None,
    };
    Parsed::Whole(ProxyHeader { version: 1, addresses }, end + 2)
}

fn parse_v2(bytes: &[u8]) -> Parsed {
    let Some(fixed) = bytes.get(..16) else { return Parsed::Partial };
    let length = 16 + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > LONGEST || fixed[12] >> 4 != 2 {
        return Parsed::None;
    }
    let Some(block) = bytes.get(16..length) else { return Parsed::Partial };
    let addresses = match (fixed[12] & 0xf, fixed[13]) {
        (1, 0x11) => pair::<4>(block),
        (1, 0x21) => pair::<16>(block),
        _ => None,
    };
    Parsed::Whole(ProxyHeader { version: 2, addresses }, length)
}

/// Two addresses of N bytes, then two ports.
fn pair<const N: usize>(block: &[u8]) -> Option<(SocketAddr, SocketAddr)>
where
    IpAddr: From<[u8; N]>,
{
    let address = |at: usize| -> Option<IpAddr> { Some(<[u8; N]>::try_from(block.get(at..at + N)?).ok()?.into()) };
    let port = |at: usize| -> Option<u16> { Some(u16::from_be_bytes(block.get(at..at + 2)?.try_into().ok()?)) };
    Some((SocketAddr::new(address(0)?, port(2 * N)?), SocketAddr::new(address(N)?, port(2 * N + 2)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(version: u8, source: &str, destination: &str) -> ProxyHeader {
        ProxyHeader { version, addresses: Some((source.parse().unwrap(), destination.parse().unwrap())) }
    }

    #[test]
    fn v1() {
        let line = b"PROXY TCP4 10.0.0.1 10.0.0.2 1234 443\r\nGET /";
        assert_eq!(parse(line), Parsed::Whole(addresses(1, "10.0.0.1:1234", "10.0.0.2:443"), 39));
        for end in 0..39 {
            assert_eq!(parse(&line[..end]), Parsed::Partial, "{end}");
        }
        assert_eq!(parse(b"PROXY UNKNOWN\r\n"), Parsed::Whole(ProxyHeader { version: 1, addresses: None }, 15));
        assert_eq!(parse(b"PROXY TCP4 x y 1 2\r\n"), Parsed::None);
        assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Parsed::None);
    }

    #[test]
    fn v2() {
        let mut bytes = V2_SIGNATURE.to_vec();
        bytes.extend([0x21, 0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 2, 4, 210, 1, 187]);
        assert_eq!(parse(&bytes), Parsed::Whole(addresses(2, "10.0.0.1:1234", "10.0.0.2:443"), 28));
        for end in 0..28 {
            assert_eq!(parse(&bytes[..end]), Parsed::Partial, "{end}");
        }
    }
}
