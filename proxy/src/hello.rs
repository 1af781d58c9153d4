//! The ClientHello: from raw TLS records to the server name and the application protocols.
//!
//! Pure; knows nothing of sockets, routes or certificates. It reads what routing needs and leaves the
//! rest to the TLS stack, which reads the same bytes again.

use std::ops::Range;

use crate::host;

/// The largest ClientHello (its handshake message without the header), bytes.
pub const MAX_HELLO: usize = 64 * 1024;
/// The most payload that one TLS record carries in the clear (RFC 8446, section 5.1).
const MAX_RECORD: usize = 16 * 1024;
/// Type, version and length.
const RECORD_HEADER: usize = 5;
/// Type and length.
const MESSAGE_HEADER: usize = 4;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const HOST_NAME: u8 = 0;

/// `unexpected_message`.
pub const UNEXPECTED_MESSAGE: u8 = 10;
/// `record_overflow`.
pub const RECORD_OVERFLOW: u8 = 22;
/// `illegal_parameter`.
pub const ILLEGAL_PARAMETER: u8 = 47;
/// `decode_error`.
pub const DECODE_ERROR: u8 = 50;
/// `protocol_version`.
pub const PROTOCOL_VERSION: u8 = 70;
/// `internal_error`.
pub const INTERNAL_ERROR: u8 = 80;
/// `unrecognized_name` (RFC 6066).
pub const UNRECOGNIZED_NAME: u8 = 112;

/// What the bytes read so far amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A ClientHello that is not whole yet.
    NeedMore,
    /// A whole ClientHello.
    Done(Hello),
    /// Anything else; this alert says so.
    Invalid(u8),
    /// HTTP without TLS: no alert, as the other side would not understand it.
    PlainHttp,
}

/// What routing needs of a ClientHello.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The server name, lower-cased, without a trailing dot.
    pub sni: Option<Box<str>>,
    /// Whether `acme-tls/1` is the one protocol offered (RFC 8737, section 3).
    pub alpn_acme: bool,
}

/// Reads one ClientHello out of bytes that arrive in any pieces.
///
/// What has been read is not read again, so the cost is linear however small the pieces are. A hello within one
/// record, the usual case, is read where it stands; only one split over records is copied together.
#[derive(Debug, Default)]
pub struct HelloReader {
    /// Where the first record begins that has not been taken in.
    at: usize,
    /// The payloads of the records before it.
    message: Vec<u8>,
}

impl HelloReader {
    /// Reads on. `buf` is everything that has arrived since the connection began, each time.
    ///
    /// A whole hello takes up at most 6 times [`MAX_HELLO`] of it, when every record carries one byte.
    pub fn push(&mut self, buf: &[u8]) -> Progress {
        loop {
            let payload = match record(buf, self.at) {
                Ok(Some(payload)) => payload,
                Ok(None) => return Progress::NeedMore,
                Err(fault) => return fault,
            };
            self.at = payload.end;
            let payload = &buf[payload];
            let message = if self.message.is_empty() {
                match whole(payload) {
                    Err(alert) => return Progress::Invalid(alert),
                    Ok(true) => payload,
                    Ok(false) => {
                        self.message.extend_from_slice(payload);
                        continue;
                    }
                }
            } else {
                self.message.extend_from_slice(payload);
                match whole(&self.message) {
                    Err(alert) => return Progress::Invalid(alert),
                    Ok(true) => &self.message,
                    Ok(false) => continue,
                }
            };
            return match client_hello(&message[MESSAGE_HEADER..]) {
                Ok(hello) => Progress::Done(hello),
                Err(alert) => Progress::Invalid(alert),
            };
        }
    }
}

/// Reads a ClientHello from its first byte on; [`HelloReader`] is for bytes that arrive in pieces.
pub fn parse(buf: &[u8]) -> Progress {
    HelloReader::default().push(buf)
}

/// A fatal alert, as a record (RFC 8446, section 6).
pub fn alert(description: u8) -> [u8; 7] {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    [ALERT, 3, 3, 0, 2, FATAL, description]
}

/// The payload of the record at `at`, once it is all there.
fn record(buf: &[u8], at: usize) -> Result<Option<Range<usize>>, Progress> {
    let header = &buf[at.min(buf.len())..];
    match header.first() {
        None => return Ok(None),
        Some(&HANDSHAKE) => {}
        Some(byte) if at == 0 && byte.is_ascii_uppercase() => return Err(Progress::PlainHttp),
        // Also SSLv2, whose first byte is a length.
        Some(_) => return Err(Progress::Invalid(UNEXPECTED_MESSAGE)),
    }
    if header.get(1).is_some_and(|&major| major != 3) {
        return Err(Progress::Invalid(PROTOCOL_VERSION));
    }
    let Some(&[high, low]) = header.get(3..RECORD_HEADER) else { return Ok(None) };
    let len = usize::from(u16::from_be_bytes([high, low]));
    if len > MAX_RECORD {
        return Err(Progress::Invalid(RECORD_OVERFLOW));
    }
    // Forbidden for handshake messages, and without end if it were not.
    if len == 0 {
        return Err(Progress::Invalid(UNEXPECTED_MESSAGE));
    }
    let start = at + RECORD_HEADER;
    Ok((buf.len() >= start + len).then_some(start..start + len))
}

/// Whether a handshake message is a whole ClientHello and nothing more.
fn whole(message: &[u8]) -> Result<bool, u8> {
    if message.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
        return Err(UNEXPECTED_MESSAGE);
    }
    let Some(&[high, middle, low]) = message.get(1..MESSAGE_HEADER) else { return Ok(false) };
    let len = u32::from_be_bytes([0, high, middle, low]) as usize;
    if len > MAX_HELLO {
        return Err(DECODE_ERROR);
    }
    match message.len().cmp(&(MESSAGE_HEADER + len)) {
        std::cmp::Ordering::Less => Ok(false),
        std::cmp::Ordering::Equal => Ok(true),
        // A client has nothing to say before it has heard the server.
        std::cmp::Ordering::Greater => Err(UNEXPECTED_MESSAGE),
    }
}

/// Reads the message's body (RFC 8446, section 4.1.2).
fn client_hello(body: &[u8]) -> Result<Hello, u8> {
    let mut rest = Bytes(body);
    let version = rest.u16()?;
    if version >> 8 != 3 {
        return Err(PROTOCOL_VERSION);
    }
    rest.take(32)?;
    if rest.vec8()?.0.len() > 32 {
        return Err(DECODE_ERROR);
    }
    let suites = rest.vec16()?.0.len();
    if suites == 0 || suites % 2 == 1 {
        return Err(DECODE_ERROR);
    }
    if rest.vec8()?.0.is_empty() {
        return Err(DECODE_ERROR);
    }
    let mut hello = Hello::default();
    if rest.0.is_empty() {
        return Ok(hello);
    }
    let mut extensions = rest.vec16()?;
    rest.end()?;
    let (mut seen_name, mut seen_alpn) = (false, false);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vec16()?;
        match kind {
            SERVER_NAME if std::mem::replace(&mut seen_name, true) => return Err(ILLEGAL_PARAMETER),
            SERVER_NAME => hello.sni = Some(server_name(data)?),
            ALPN if std::mem::replace(&mut seen_alpn, true) => return Err(ILLEGAL_PARAMETER),
            ALPN => hello.alpn_acme = only_acme(data)?,
            _ => {}
        }
    }
    Ok(hello)
}

/// Reads the name list, in which one name of each type may stand (RFC 6066, section 3).
fn server_name(mut data: Bytes<'_>) -> Result<Box<str>, u8> {
    let mut list = data.vec16()?;
    data.end()?;
    let mut name = None;
    while !list.0.is_empty() {
        let kind = list.u8()?;
        let value = list.vec16()?.0;
        if kind == HOST_NAME && name.replace(value).is_some() {
            return Err(ILLEGAL_PARAMETER);
        }
    }
    let name = name.ok_or(DECODE_ERROR)?;
    if name.is_empty() {
        return Err(DECODE_ERROR);
    }
    // A port and an address in brackets have their place in Host, not here.
    if name.contains(&b':') {
        return Err(UNRECOGNIZED_NAME);
    }
    host::normalize(name, &mut [0; 256]).map(Into::into).ok_or(UNRECOGNIZED_NAME)
}

fn only_acme(mut data: Bytes<'_>) -> Result<bool, u8> {
    let mut list = data.vec16()?;
    data.end()?;
    let (mut protocols, mut acme) = (0, false);
    while !list.0.is_empty() {
        let protocol = list.vec8()?.0;
        if protocol.is_empty() {
            return Err(DECODE_ERROR);
        }
        protocols += 1;
        acme |= protocol == b"acme-tls/1";
    }
    if protocols == 0 {
        return Err(DECODE_ERROR);
    }
    Ok(acme && protocols == 1)
}

/// Bytes yet to be read; running out of them is a `decode_error`.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], u8> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(DECODE_ERROR)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Result<u16, u8> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vec8(&mut self) -> Result<Bytes<'a>, u8> {
        let len = self.u8()?;
        self.take(len.into()).map(Bytes)
    }

    fn vec16(&mut self) -> Result<Bytes<'a>, u8> {
        let len = self.u16()?;
        self.take(len.into()).map(Bytes)
    }

    fn end(&self) -> Result<(), u8> {
        if self.0.is_empty() { Ok(()) } else { Err(DECODE_ERROR) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vec16(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
    }

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &vec16(data)].concat()
    }

    fn names(names: &[(u8, &[u8])]) -> Vec<u8> {
        let list: Vec<u8> = names.iter().flat_map(|(kind, name)| [&[*kind][..], &vec16(name)].concat()).collect();
        extension(SERVER_NAME, &vec16(&list))
    }

    fn alpn(protocols: &[&str]) -> Vec<u8> {
        let list: Vec<u8> = protocols.iter().flat_map(|p| [&[p.len() as u8], p.as_bytes()].concat()).collect();
        extension(ALPN, &vec16(&list))
    }

    /// The body of a ClientHello with these extensions.
    fn body(extensions: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(32);
        body.extend([9; 32]);
        body.extend([0, 2, 0x13, 0x01, 1, 0]);
        body.extend(vec16(&extensions.concat()));
        body
    }

    fn message(body: &[u8]) -> Vec<u8> {
        [&[CLIENT_HELLO][..], &(body.len() as u32).to_be_bytes()[1..], body].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|part| [&[HANDSHAKE, 3, 1][..], &vec16(part)].concat()).collect()
    }

    fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
        records(&message(&body(extensions)), MAX_RECORD)
    }

    fn named(sni: &str) -> Progress {
        Progress::Done(Hello { sni: Some(sni.into()), alpn_acme: false })
    }

    #[test]
    fn reads_names_and_protocols() {
        assert_eq!(parse(&hello(&[names(&[(0, b"Example.COM")])])), named("example.com"));
        assert_eq!(parse(&hello(&[names(&[(0, b"example.com.")])])), named("example.com"));
        assert_eq!(parse(&hello(&[names(&[(7, b"x"), (0, b"a.b")])])), named("a.b"));
        assert_eq!(parse(&hello(&[])), Progress::Done(Hello::default()));
        assert_eq!(
            parse(&hello(&[extension(0x0a0a, &[]), names(&[(0, b"a.b")]), alpn(&["h2", "http/1.1"])])),
            named("a.b")
        );
        let acme = Progress::Done(Hello { sni: Some("a.b".into()), alpn_acme: true });
        assert_eq!(parse(&hello(&[names(&[(0, b"a.b")]), alpn(&["acme-tls/1"])])), acme);
        assert_eq!(parse(&hello(&[names(&[(0, b"a.b")]), alpn(&["acme-tls/1", "h2"])])), named("a.b"));
        let mut old = body(&[]);
        old.truncate(old.len() - 2);
        assert_eq!(parse(&records(&message(&old), 100)), Progress::Done(Hello::default()), "no extensions at all");
    }

    #[test]
    fn refuses_what_is_no_hello() {
        let good = hello(&[names(&[(0, b"a.b")])]);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        for (bytes, want) in [
            (b"GET / HTTP/1.1\r\n".to_vec(), Progress::PlainHttp),
            (b"G".to_vec(), Progress::PlainHttp),
            (b"\x80\x2e\x01\x03\x01".to_vec(), Progress::Invalid(UNEXPECTED_MESSAGE)),
            (with(0, 23), Progress::Invalid(UNEXPECTED_MESSAGE)),
            (with(0, 21), Progress::Invalid(UNEXPECTED_MESSAGE)),
            (with(1, 2), Progress::Invalid(PROTOCOL_VERSION)),
            (vec![22, 2], Progress::Invalid(PROTOCOL_VERSION)),
            (with(5, 2), Progress::Invalid(UNEXPECTED_MESSAGE)),
            (with(9, 2), Progress::Invalid(PROTOCOL_VERSION)),
            (vec![22, 3, 1, 0, 0], Progress::Invalid(UNEXPECTED_MESSAGE)),
            (vec![22, 3, 1, 0x40, 1], Progress::Invalid(RECORD_OVERFLOW)),
            (vec![22, 3, 1, 0, 4, 1, 1, 0, 1], Progress::Invalid(DECODE_ERROR)),
            (records(&[message(&body(&[])), vec![1]].concat(), 1000), Progress::Invalid(UNEXPECTED_MESSAGE)),
            (hello(&[names(&[(0, b"a"), (0, b"b")])]), Progress::Invalid(ILLEGAL_PARAMETER)),
            (hello(&[names(&[(0, b"a")]), names(&[(0, b"a")])]), Progress::Invalid(ILLEGAL_PARAMETER)),
            (hello(&[alpn(&["h2"]), alpn(&["h2"])]), Progress::Invalid(ILLEGAL_PARAMETER)),
            (hello(&[names(&[])]), Progress::Invalid(DECODE_ERROR)),
            (hello(&[names(&[(0, b"")])]), Progress::Invalid(DECODE_ERROR)),
            (hello(&[extension(SERVER_NAME, &[])]), Progress::Invalid(DECODE_ERROR)),
            (hello(&[extension(SERVER_NAME, &[0, 4, 0, 0, 1, b'a', 9])]), Progress::Invalid(DECODE_ERROR)),
            (hello(&[extension(ALPN, &[0, 0])]), Progress::Invalid(DECODE_ERROR)),
            (hello(&[extension(ALPN, &[0, 1, 0])]), Progress::Invalid(DECODE_ERROR)),
            (hello(&[vec![0, 0, 0]]), Progress::Invalid(DECODE_ERROR)),
            (hello(&[names(&[(0, b"a.b:443")])]), Progress::Invalid(UNRECOGNIZED_NAME)),
            (hello(&[names(&[(0, b"[::1]")])]), Progress::Invalid(UNRECOGNIZED_NAME)),
            (hello(&[names(&[(0, b"a b")])]), Progress::Invalid(UNRECOGNIZED_NAME)),
            (hello(&[names(&[(0, &[b'a'; 300])])]), Progress::Invalid(UNRECOGNIZED_NAME)),
            (hello(&[names(&[(0, b"a\0.b")])]), Progress::Invalid(UNRECOGNIZED_NAME)),
        ] {
            assert_eq!(parse(&bytes), want, "{bytes:02x?}");
        }
    }

    #[test]
    fn every_shortened_body_is_refused() {
        let whole = body(&[names(&[(0, b"a.b")]), alpn(&["h2"])]);
        for len in 0..whole.len() {
            let got = parse(&records(&message(&whole[..len]), MAX_RECORD));
            // Up to the compression methods, a hello without extensions is a whole one.
            let bare = 2 + 32 + 33 + 4 + 2;
            match got {
                Progress::Done(hello) => assert_eq!((len, hello), (bare, Hello::default())),
                other => assert_eq!(other, Progress::Invalid(DECODE_ERROR), "{len}"),
            }
        }
    }

    #[test]
    fn hellos_of_any_size_come_together() {
        for padding in [0, 1_700, 17_000, 40_000, 65_000] {
            let message = message(&body(&[extension(21, &vec![0; padding]), names(&[(0, b"a.b")])]));
            for size in [1, 2, 3, 255, 1_400, MAX_RECORD] {
                let bytes = records(&message, size);
                assert_eq!(parse(&bytes), named("a.b"), "{padding} in records of {size}");
                assert_eq!(parse(&bytes[..bytes.len() - 1]), Progress::NeedMore);
                assert_eq!(
                    parse(&[&bytes[..], &[20, 3, 3, 0, 1, 1]].concat()),
                    named("a.b"),
                    "what follows is not read"
                );
            }
        }
    }

    #[test]
    fn bytes_one_by_one_cost_no_more_than_once() {
        let bytes = records(&message(&body(&[extension(21, &vec![0; 65_000]), names(&[(0, b"a.b")])])), 1);
        let mut reader = HelloReader::default();
        for len in 0..bytes.len() {
            assert_eq!(reader.push(&bytes[..len]), Progress::NeedMore);
            assert!(len - reader.at <= RECORD_HEADER, "everything but the last record has been taken in");
        }
        assert_eq!(reader.push(&bytes), named("a.b"));
        assert_eq!(reader.message.len(), bytes.len() / 6);
    }

    #[test]
    fn what_rustls_sends_is_understood() {
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
        config.max_fragment_size = Some(64);
        let mut client =
            rustls::ClientConnection::new(std::sync::Arc::new(config), "shop.example.com".try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let want = Progress::Done(Hello { sni: Some("shop.example.com".into()), alpn_acme: true });
        assert_eq!(parse(&bytes), want);
    }

    #[test]
    fn alerts_are_fatal_records() {
        assert_eq!(alert(UNRECOGNIZED_NAME), [21, 3, 3, 0, 2, 2, 112]);
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            mut bytes in prop::sample::select(vec![
                records(&message(&body(&[names(&[(0, b"a.b")]), alpn(&["h2"])])), 20),
                records(&message(&body(&[names(&[(0, b"a.b")]), alpn(&["h2"])])), MAX_RECORD),
            ]),
            change in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            if let Some((at, byte)) = change {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let whole = parse(&bytes);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.sort_unstable();
            let mut reader = HelloReader::default();
            for cut in cuts {
                let got = reader.push(&bytes[..cut]);
                if got != Progress::NeedMore {
                    prop_assert_eq!(got, whole);
                    return Ok(());
                }
            }
            prop_assert_eq!(reader.push(&bytes), whole);
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
            parse(&records(&message(&bytes), 50));
            parse(&hello(&[bytes]));
        }
    }
}
