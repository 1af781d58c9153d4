//! The PROXY protocol, versions 1 and 2: reading a header and writing one.
//!
//! Pure; whom to believe is for others to say.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::table::ProxyVersion;

/// The longest version 1 header, with its CRLF.
const MAX_V1: usize = 107;
/// What version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const V2_HEADER: usize = 16;
/// The most that may follow a version 2 header: addresses and TLVs. The protocol allows 64 KiB; senders use
/// some hundred bytes.
const MAX_V2_BODY: usize = 4096;

const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// What the bytes read so far amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A header that is not whole yet.
    NeedMore,
    /// A whole header.
    Done {
        /// The client, where the header names one; none for health checks of the peer's own (LOCAL, UNKNOWN).
        source: Option<SocketAddr>,
        /// What the client connected to.
        destination: Option<SocketAddr>,
        /// How many bytes the header takes up.
        len: usize,
    },
    /// No header, or a faulty one.
    Invalid,
}

/// Reads a header from its first byte on.
///
/// Addresses come back in their own family: an IPv4 address mapped into IPv6 as IPv4. TLVs are skipped. Repeated calls are cheap: a
/// version 1 header has at most 107 bytes, and of version 2 only the fixed part is looked at until all is there.
pub fn parse(buf: &[u8]) -> Progress {
    const V1: &[u8] = b"PROXY ";
    match buf.first() {
        None => Progress::NeedMore,
        Some(b'P') if starts_like(buf, V1) => parse_v1(buf),
        Some(b'\r') if starts_like(buf, SIGNATURE) => parse_v2(buf),
        Some(_) => Progress::Invalid,
    }
}

/// Whether the bytes begin with `start`, as far as they go.
fn starts_like(buf: &[u8], start: &[u8]) -> bool {
    buf.iter().zip(start).all(|(a, b)| a == b)
}

fn parse_v1(buf: &[u8]) -> Progress {
    let window = &buf[..buf.len().min(MAX_V1)];
    let Some(end) = memchr::memchr(b'\n', window) else {
        return if buf.len() >= MAX_V1 { Progress::Invalid } else { Progress::NeedMore };
    };
    let len = end + 1;
    let line = window[..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok());
    let Some(fields) = line.and_then(|line| line.strip_prefix("PROXY ")) else { return Progress::Invalid };
    // What follows UNKNOWN is to be ignored.
    if fields == "UNKNOWN" || fields.starts_with("UNKNOWN ") {
        return Progress::Done { source: None, destination: None, len };
    }
    match v1_addresses(fields) {
        Some((source, destination)) => {
            Progress::Done { source: Some(canonical(source)), destination: Some(canonical(destination)), len }
        }
        None => Progress::Invalid,
    }
}

fn v1_addresses(fields: &str) -> Option<(SocketAddr, SocketAddr)> {
    let mut fields = fields.split(' ');
    let family = fields.next()?;
    let mut address = || -> Option<IpAddr> {
        let text = fields.next()?;
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let (source, destination) = (address()?, address()?);
    let mut port = || -> Option<u16> {
        let text = fields.next()?;
        let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        plain.then(|| text.parse().ok()).flatten()
    };
    let (source_port, destination_port) = (port()?, port()?);
    fields.next().is_none().then(|| ((source, source_port).into(), (destination, destination_port).into()))
}

fn parse_v2(buf: &[u8]) -> Progress {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    let Some(&command) = buf.get(12) else { return Progress::NeedMore };
    if command != LOCAL && command != PROXY {
        return Progress::Invalid;
    }
    let Some(header) = buf.first_chunk::<V2_HEADER>() else { return Progress::NeedMore };
    let family = header[13];
    let body_len = usize::from(u16::from_be_bytes([header[14], header[15]]));
    if body_len > MAX_V2_BODY {
        return Progress::Invalid;
    }
    let len = V2_HEADER + body_len;
    let Some(body) = buf.get(V2_HEADER..len) else { return Progress::NeedMore };
    const UNSPEC: u8 = 0x00;
    const UNIX_STREAM: u8 = 0x31;
    let addresses = match (command, family) {
        // The peer itself is speaking: what it says of addresses is to be ignored.
        (LOCAL, _) | (PROXY, UNSPEC) => None,
        (PROXY, TCP4) => match v2_addresses::<4>(body) {
            Some(addresses) => Some(addresses),
            None => return Progress::Invalid,
        },
        (PROXY, TCP6) => match v2_addresses::<16>(body) {
            Some(addresses) => Some(addresses),
            None => return Progress::Invalid,
        },
        (PROXY, UNIX_STREAM) if body_len >= 216 => None,
        // Datagrams do not come over TCP, and other values are not assigned.
        _ => return Progress::Invalid,
    };
    let (source, destination) = addresses.unzip();
    Progress::Done { source: source.map(canonical), destination: destination.map(canonical), len }
}

/// Two addresses of `N` bytes, then two ports.
fn v2_addresses<const N: usize>(body: &[u8]) -> Option<(SocketAddr, SocketAddr)>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = body.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (source_port, rest) = rest.split_first_chunk::<2>()?;
    let destination_port = rest.first_chunk::<2>()?;
    Some((
        (IpAddr::from(*source), u16::from_be_bytes(*source_port)).into(),
        (IpAddr::from(*destination), u16::from_be_bytes(*destination_port)).into(),
    ))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    (address.ip().to_canonical(), address.port()).into()
}

/// A header to send; it lives on the stack.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    bytes: [u8; MAX_V1],
    len: u8,
}

impl AsRef<[u8]> for Header {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Writes the header for a connection from `source` to `destination`.
///
/// A header speaks of one family: where both fit IPv4 (also mapped into IPv6), it is IPv4; where
/// only one does, that one is sent mapped into IPv6.
pub fn encode(version: ProxyVersion, source: SocketAddr, destination: SocketAddr) -> Header {
    let ports = (source.port(), destination.port());
    match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => match version {
            ProxyVersion::V1 => encode_v1("TCP4", &source, &destination, ports),
            ProxyVersion::V2 => encode_v2(TCP4, &source.octets(), &destination.octets(), ports),
        },
        (source, destination) => {
            let (source, destination) = (to_v6(source), to_v6(destination));
            match version {
                ProxyVersion::V1 => encode_v1("TCP6", &source, &destination, ports),
                ProxyVersion::V2 => encode_v2(TCP6, &source.octets(), &destination.octets(), ports),
            }
        }
    }
}

fn to_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn encode_v1(
    family: &str,
    source: &dyn std::fmt::Display,
    destination: &dyn std::fmt::Display,
    ports: (u16, u16),
) -> Header {
    let mut bytes = [0; MAX_V1];
    let mut rest = &mut bytes[..];
    // It always fits: two addresses of 39 bytes and two ports of 5 make 104.
    let _ = write!(rest, "PROXY {family} {source} {destination} {} {}\r\n", ports.0, ports.1);
    let len = (MAX_V1 - rest.len()) as u8;
    Header { bytes, len }
}

fn encode_v2(family: u8, source: &[u8], destination: &[u8], ports: (u16, u16)) -> Header {
    let body = source.len() + destination.len() + 4;
    let mut bytes = [0; MAX_V1];
    let mut at = 0;
    for part in [
        &SIGNATURE[..],
        &[0x21, family],
        &(body as u16).to_be_bytes(),
        source,
        destination,
        &ports.0.to_be_bytes(),
        &ports.1.to_be_bytes(),
    ] {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    Header { bytes, len: at as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn done(source: &str, destination: &str, len: usize) -> Progress {
        Progress::Done { source: source.parse().ok(), destination: destination.parse().ok(), len }
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        [&SIGNATURE[..], &[command, family], &(body.len() as u16).to_be_bytes(), body].concat()
    }

    #[test]
    fn reads_version_1() {
        let longest = "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n";
        for (text, want) in [
            ("PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", done("192.0.2.1:56324", "192.0.2.2:443", 42)),
            ("PROXY TCP6 2001:db8::1 ::1 0 65535\r\nGET", done("[2001:db8::1]:0", "[::1]:65535", 36)),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 1 2\r\n", done("192.0.2.1:1", "192.0.2.2:2", 50)),
            ("PROXY UNKNOWN\r\n", done("", "", 15)),
            (longest, done("", "", longest.len())),
        ] {
            assert_eq!(parse(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn refuses_faulty_version_1() {
        for text in [
            "GET / HTTP/1.1\r\n",
            "PROXy",
            "PROXY\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
            "PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2  1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 +2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 \r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.256 1 2\r\n",
            "PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY UNKNOWNX\r\n",
            "PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
        ] {
            assert_eq!(parse(text.as_bytes()), Progress::Invalid, "{text}");
        }
        let endless = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
        assert_eq!(parse(endless.as_bytes()), Progress::Invalid, "108 bytes");
        let fits = format!("PROXY UNKNOWN {}\r\n", "x".repeat(91));
        assert_eq!(parse(fits.as_bytes()), done("", "", 107));
    }

    #[test]
    fn reads_version_2() {
        let v4 = [192, 0, 2, 1, 192, 0, 2, 2, 0, 1, 1, 187];
        assert_eq!(parse(&v2(0x21, TCP4, &v4)), done("192.0.2.1:1", "192.0.2.2:443", 28));
        let tlv = [&v4[..], &[4, 0, 3, 1, 2, 3]].concat();
        assert_eq!(parse(&v2(0x21, TCP4, &tlv)), done("192.0.2.1:1", "192.0.2.2:443", 34));
        let mut v6 = [0; 36];
        (v6[15], v6[31], v6[33], v6[35]) = (1, 2, 3, 4);
        assert_eq!(parse(&v2(0x21, TCP6, &v6)), done("[::1]:3", "[::2]:4", 52));
        (v6[10], v6[11]) = (255, 255);
        assert_eq!(parse(&v2(0x21, TCP6, &v6)), done("0.0.0.1:3", "[::2]:4", 52), "mapped");
        assert_eq!(parse(&v2(0x20, 0, &[])), done("", "", 16));
        assert_eq!(parse(&v2(0x20, TCP4, &v4)), done("", "", 28), "LOCAL says nothing of a client");
        assert_eq!(parse(&v2(0x21, 0, &[1, 2, 3])), done("", "", 19));
        assert_eq!(parse(&v2(0x21, 0x31, &[0; 216])), done("", "", 232));
        assert_eq!(parse(&v2(0x20, 0, &[0; MAX_V2_BODY])), done("", "", 16 + MAX_V2_BODY));
    }

    #[test]
    fn refuses_faulty_version_2() {
        for bytes in [
            v2(0x21, TCP4, &[0; 11]),
            v2(0x21, TCP6, &[0; 35]),
            v2(0x21, 0x12, &[0; 12]),
            v2(0x21, 0x31, &[0; 215]),
            v2(0x21, 0x41, &[0; 300]),
            v2(0x21, 0x13, &[0; 300]),
            v2(0x22, TCP4, &[0; 12]),
            v2(0x11, TCP4, &[0; 12]),
            v2(0x21, TCP4, &[0; MAX_V2_BODY + 1]),
            b"\r\n\r\n\0\r\nQUIX".to_vec(),
            b"\r\nGET".to_vec(),
        ] {
            assert_eq!(parse(&bytes), Progress::Invalid, "{bytes:02x?}");
        }
    }

    #[test]
    fn what_is_cut_short_needs_more() {
        for whole in [
            b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n".to_vec(),
            v2(0x21, TCP4, &[1; 40]),
            v2(0x21, TCP6, &[1; 36]),
        ] {
            for len in 0..whole.len() {
                assert_eq!(parse(&whole[..len]), Progress::NeedMore, "{:02x?}", &whole[..len]);
            }
            assert!(matches!(parse(&whole), Progress::Done { len, .. } if len == whole.len()));
        }
    }

    #[test]
    fn writes_one_family() {
        let v1 = |source: &str, destination: &str| {
            let header = encode(ProxyVersion::V1, source.parse().unwrap(), destination.parse().unwrap());
            String::from_utf8(header.as_ref().to_vec()).unwrap()
        };
        assert_eq!(v1("192.0.2.1:1", "192.0.2.2:2"), "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n");
        assert_eq!(v1("[::ffff:192.0.2.1]:1", "192.0.2.2:2"), "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n");
        assert_eq!(v1("192.0.2.1:1", "[2001:db8::1]:2"), "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 1 2\r\n");
        let longest = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
        assert_eq!(v1(longest, longest).len(), 104);
    }

    fn ip() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 16]>().prop_map(IpAddr::from),
            any::<[u8; 4]>().prop_map(|v4| IpAddr::V6(Ipv4Addr::from(v4).to_ipv6_mapped())),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(source in ip(), destination in ip(), ports: (u16, u16), v2: bool) {
            let version = if v2 { ProxyVersion::V2 } else { ProxyVersion::V1 };
            let (source, destination) = ((source, ports.0).into(), (destination, ports.1).into());
            let header = encode(version, source, destination);
            let want = Progress::Done {
                source: Some(canonical(source)),
                destination: Some(canonical(destination)),
                len: header.as_ref().len(),
            };
            prop_assert_eq!(parse(header.as_ref()), want);
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..120), start in 0..3usize) {
            let start: &[u8] = [&b""[..], b"PROXY TCP4 ", SIGNATURE][start];
            if let Progress::Done { len, .. } = parse(&[start, &bytes].concat()) {
                prop_assert!(len <= start.len() + bytes.len());
            }
        }
    }
}
