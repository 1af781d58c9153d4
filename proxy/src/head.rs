//! The strict check of an HTTP/1.x request's header block, before the HTTP engine sees it.
//!
//! Pure; knows nothing of sockets, routes or the engine. Whatever two servers could read in two ways is refused here,
//! so that none of it is ever forwarded (request smuggling). Where RFC 9112 leaves a choice, this is the
//! stricter one:
//! - Two `Content-Length` are refused, also when they agree, and so is a list in one.
//! - In absolute-form, the authority and `Host` must be the same bytes (RFC 9112, section 3.2.2, would let
//!   the target win); without `Host`, as HTTP/1.0 may, the target names the host.
//! - The target has no byte that the engine would rewrite or refuse on its own: what is checked is what is forwarded.

use std::ops::Range;

use crate::host;

/// The longest request target, bytes; more is answered 414.
const MAX_TARGET: usize = 16 * 1024;
/// The longest method; the longest registered one has 17 bytes (`UPDATEREDIRECTREF`).
const MAX_METHOD: usize = 32;

/// What the bytes read so far amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A header block that is not whole yet, and faultless so far.
    NeedMore,
    /// A whole and unambiguous one.
    Done(Head),
    /// A faulty one: answer this, then close.
    Reject(Reject),
}

/// Why a request is refused, and with which status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// 400, 405, 414, 431 or 505.
    pub status: u16,
    /// For the log.
    pub reason: &'static str,
}

/// The request's version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    #[default]
    Http11,
}

/// How long the body is (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    #[default]
    None,
    /// This many bytes; may be 0.
    Length(u64),
    /// As the chunks say.
    Chunked,
}

/// A checked header block. Ranges are into the bytes that it was read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Where the request line begins: behind an empty line that was let through.
    pub start: usize,
    /// Where the body begins.
    pub len: usize,
    /// The version.
    pub version: Version,
    /// Whether the client wants the connection kept.
    pub keep_alive: bool,
    /// How long the body is.
    pub framing: Framing,
    /// Whether the client waits for 100 (Continue).
    pub expect_continue: bool,
    /// Whether this is a websocket handshake: a GET without a body, and both `Connection` and `Upgrade` say so.
    pub websocket: bool,
    /// How many header fields there are.
    pub fields: usize,
    /// The method.
    pub method: Range<usize>,
    /// The request target as it was sent.
    pub target: Range<usize>,
    /// The target's path, without its query; empty stands for `/` (absolute-form).
    pub path: Range<usize>,
    /// The host, with its port: the `Host` value, else the target's authority.
    pub host: Option<Range<usize>>,
}

/// Reads one header block out of bytes that arrive in any pieces.
///
/// Each byte is searched once for its line's end and checked once in its line, so the cost is
/// linear however small the pieces are. It does not allocate.
#[derive(Clone, Debug)]
pub struct HeadReader {
    max_bytes: usize,
    max_fields: usize,
    /// Where the line begins that has not been taken in.
    line: usize,
    /// Up to where its end has been looked for.
    searched: usize,
    phase: Phase,
    head: Head,
    authority: Option<Range<usize>>,
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    connection_upgrade: bool,
    upgrades: u8,
    upgrade_websocket: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before the request line: one empty line may come.
    Start,
    RequestLine,
    Fields,
    Rejected(Reject),
}

/// What a line was.
enum Line {
    Taken,
    End,
}

const fn bad(reason: &'static str) -> Reject {
    Reject { status: 400, reason }
}

impl HeadReader {
    /// Makes a reader with limits on the block's bytes and fields.
    pub fn new(max_bytes: usize, max_fields: usize) -> Self {
        Self {
            max_bytes,
            max_fields,
            line: 0,
            searched: 0,
            phase: Phase::Start,
            head: Head::default(),
            authority: None,
            content_length: None,
            chunked: false,
            close: false,
            keep_alive: false,
            connection_upgrade: false,
            upgrades: 0,
            upgrade_websocket: false,
        }
    }

    /// Reads on. `buf` is everything that has arrived since the request began, each time; what follows the block in it is not
    /// looked at. Call it no more once it has said anything but [`Progress::NeedMore`].
    pub fn check(&mut self, buf: &[u8]) -> Progress {
        match self.advance(buf) {
            Ok(progress) => progress,
            Err(reject) => {
                self.phase = Phase::Rejected(reject);
                Progress::Reject(reject)
            }
        }
    }

    fn advance(&mut self, buf: &[u8]) -> Result<Progress, Reject> {
        if let Phase::Rejected(reject) = self.phase {
            return Err(reject);
        }
        while let Some(at) = memchr::memchr(b'\n', &buf[self.searched..]) {
            let lf = self.searched + at;
            self.within_limits(lf + 1)?;
            let start = self.line;
            if lf == start || buf[lf - 1] != b'\r' {
                return Err(bad("line ends without CR"));
            }
            (self.line, self.searched) = (lf + 1, lf + 1);
            if let Line::End = self.take_line(buf, start..lf - 1)? {
                return self.finish(buf, lf + 1).map(Progress::Done);
            }
        }
        self.searched = buf.len();
        self.within_limits(buf.len())?;
        self.check_first_byte(buf)?;
        Ok(Progress::NeedMore)
    }

    fn within_limits(&self, end: usize) -> Result<(), Reject> {
        // The request line is the target, a method and a version.
        if self.phase != Phase::Fields && end - self.line > MAX_TARGET + MAX_METHOD + " HTTP/1.1\r\n".len() + 1 {
            return Err(Reject { status: 414, reason: "request target too long" });
        }
        if end - self.head.start > self.max_bytes {
            return Err(Reject { status: 431, reason: "header block too large" });
        }
        Ok(())
    }

    /// Refuses at once what is no request at all (TLS, say), as its line may never end.
    fn check_first_byte(&self, buf: &[u8]) -> Result<(), Reject> {
        match (self.phase, buf.get(self.line)) {
            (Phase::Start, Some(b'\r')) | (_, None) => Ok(()),
            (Phase::Start | Phase::RequestLine, Some(&byte)) if !is_token_byte(byte) => Err(bad("no request line")),
            _ => Ok(()),
        }
    }

    fn take_line(&mut self, buf: &[u8], line: Range<usize>) -> Result<Line, Reject> {
        match self.phase {
            Phase::Start if line.is_empty() => {
                self.head.start = line.end + 2;
                self.phase = Phase::RequestLine;
            }
            Phase::Start | Phase::RequestLine => {
                self.take_request_line(buf, line)?;
                self.phase = Phase::Fields;
            }
            Phase::Fields if line.is_empty() => return Ok(Line::End),
            Phase::Fields => self.take_field(buf, line)?,
            Phase::Rejected(reject) => return Err(reject),
        }
        Ok(Line::Taken)
    }

    /// method SP request-target SP HTTP-version (RFC 9112, section 3).
    fn take_request_line(&mut self, buf: &[u8], line: Range<usize>) -> Result<(), Reject> {
        let bytes = &buf[line.clone()];
        let first = memchr::memchr(b' ', bytes).ok_or(bad("no request line"))?;
        let last = memchr::memrchr(b' ', bytes).unwrap_or(first);
        if first == last {
            return Err(bad("request line of two parts"));
        }
        let (method, target, version) = (&bytes[..first], &bytes[first + 1..last], &bytes[last + 1..]);
        if method.is_empty() || method.len() > MAX_METHOD || !method.iter().all(|&byte| is_token_byte(byte)) {
            return Err(bad("bad method"));
        }
        self.head.version = match version {
            b"HTTP/1.1" => Version::Http11,
            b"HTTP/1.0" => Version::Http10,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
                return Err(Reject { status: 505, reason: "HTTP version not supported" });
            }
            _ => return Err(bad("bad HTTP version")),
        };
        if target.len() > MAX_TARGET {
            return Err(Reject { status: 414, reason: "request target too long" });
        }
        if method == b"CONNECT" {
            return Err(Reject { status: 405, reason: "CONNECT" });
        }
        self.head.method = line.start..line.start + first;
        self.head.target = line.start + first + 1..line.start + last;
        self.take_target(buf, method == b"OPTIONS")
    }

    fn take_target(&mut self, buf: &[u8], options: bool) -> Result<(), Reject> {
        let range = self.head.target.clone();
        let target = &buf[range.clone()];
        let mut path = range.start;
        match target {
            [b'/', ..] => {}
            b"*" if options => {}
            b"*" => return Err(bad("asterisk-form without OPTIONS")),
            _ => {
                let scheme = [&b"http://"[..], b"https://"]
                    .into_iter()
                    .find(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
                    .ok_or(bad("bad request target"))?;
                let start = range.start + scheme.len();
                path = start + target[scheme.len()..].iter().take_while(|byte| !matches!(byte, b'/' | b'?')).count();
                if host::normalize(&buf[start..path], &mut [0; 256]).is_none() {
                    return Err(bad("bad authority in request target"));
                }
                self.authority = Some(start..path);
            }
        }
        let rest = &buf[path..range.end];
        let query = memchr::memchr(b'?', rest).unwrap_or(rest.len());
        if !rest[..query].iter().all(|&byte| CLASS[usize::from(byte)] & PATH != 0) {
            return Err(bad("byte that no path has"));
        }
        if !rest[query..].iter().all(|&byte| CLASS[usize::from(byte)] & QUERY != 0) {
            return Err(bad("byte that no query has"));
        }
        self.head.path = path..path + query;
        Ok(())
    }

    /// field-name ":" OWS field-value OWS (RFC 9112, section 5).
    fn take_field(&mut self, buf: &[u8], line: Range<usize>) -> Result<(), Reject> {
        let bytes = &buf[line.clone()];
        if matches!(bytes.first(), Some(b' ' | b'\t')) {
            return Err(bad("folded line, or space before the first field"));
        }
        self.head.fields += 1;
        if self.head.fields > self.max_fields {
            return Err(Reject { status: 431, reason: "too many header fields" });
        }
        let colon = bytes.iter().position(|&byte| CLASS[usize::from(byte)] & TOKEN == 0).unwrap_or(bytes.len());
        match bytes.get(colon) {
            Some(b':') if colon == 0 => return Err(bad("empty field name")),
            Some(b':') => {}
            Some(b' ' | b'\t') => return Err(bad("space in or after a field name")),
            Some(_) => return Err(bad("byte that no field name has")),
            None => return Err(bad("line without a colon")),
        }
        // Without an early exit, so that it is done many bytes at a time.
        let value = &bytes[colon + 1..];
        if value.iter().fold(false, |bad, &byte| bad | ((byte < b' ') & (byte != b'\t')) | (byte == 0x7f)) {
            return Err(bad("control byte in a field value"));
        }
        let trimmed = trim(value);
        let start = line.start + colon + 1 + value.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        self.take_known_field(&bytes[..colon], trimmed, start)
    }

    fn take_known_field(&mut self, name: &[u8], value: &[u8], start: usize) -> Result<(), Reject> {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        match name.len() {
            4 if is(b"host") => {
                if self.head.host.replace(start..start + value.len()).is_some() {
                    return Err(bad("repeated Host"));
                }
                if host::normalize(value, &mut [0; 256]).is_none() {
                    return Err(bad("bad Host"));
                }
            }
            6 if is(b"expect") => self.head.expect_continue |= value.eq_ignore_ascii_case(b"100-continue"),
            7 if is(b"upgrade") => {
                self.upgrades = self.upgrades.saturating_add(1);
                self.upgrade_websocket = value.eq_ignore_ascii_case(b"websocket");
            }
            10 if is(b"connection") => self.take_connection(value),
            14 if is(b"content-length") => {
                let length = digits(value).ok_or(bad("bad Content-Length"))?;
                if self.content_length.replace(length).is_some() {
                    return Err(bad("repeated Content-Length"));
                }
            }
            17 if is(b"transfer-encoding") => {
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(bad("Transfer-Encoding other than chunked"));
                }
                if std::mem::replace(&mut self.chunked, true) {
                    return Err(bad("repeated Transfer-Encoding"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn take_connection(&mut self, value: &[u8]) {
        for option in value.split(|&byte| byte == b',').map(trim) {
            match option.len() {
                5 => self.close |= option.eq_ignore_ascii_case(b"close"),
                7 => self.connection_upgrade |= option.eq_ignore_ascii_case(b"upgrade"),
                10 => self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive"),
                _ => {}
            }
        }
    }

    /// What can only be judged with all fields known.
    fn finish(&mut self, buf: &[u8], end: usize) -> Result<Head, Reject> {
        let mut head = std::mem::take(&mut self.head);
        head.len = end;
        head.framing = match (self.chunked, self.content_length) {
            (true, Some(_)) => return Err(bad("both Content-Length and Transfer-Encoding")),
            (true, None) if head.version == Version::Http10 => return Err(bad("Transfer-Encoding in HTTP/1.0")),
            (true, None) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::None,
        };
        match (&head.host, self.authority.take()) {
            (Some(host), Some(authority)) if buf[host.clone()] != buf[authority.clone()] => {
                return Err(bad("Host differs from the request target"));
            }
            (None, None | Some(_)) if head.version == Version::Http11 => return Err(bad("no Host")),
            (None, authority) => head.host = authority,
            (Some(_), _) => {}
        }
        head.keep_alive = !self.close && (head.version == Version::Http11 || self.keep_alive);
        head.expect_continue &= head.version == Version::Http11;
        head.websocket = head.version == Version::Http11
            && self.connection_upgrade
            && self.upgrades == 1
            && self.upgrade_websocket
            && matches!(head.framing, Framing::None | Framing::Length(0))
            && &buf[head.method.clone()] == b"GET";
        Ok(head)
    }
}

/// 1*DIGIT, as far as a body can be long.
fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    let mut number = 0u64;
    for &byte in value {
        if !byte.is_ascii_digit() {
            return None;
        }
        number = number.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?;
    }
    // The engine counts in signed numbers.
    i64::try_from(number).is_ok().then_some(number)
}

/// Without the spaces and tabs around it (OWS).
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fn is_token_byte(byte: u8) -> bool {
    CLASS[usize::from(byte)] & TOKEN != 0
}

/// RFC 9110, section 5.6.2.
const TOKEN: u8 = 1;
/// What stands in a path: visible ASCII without `#`, and without what `http::Uri` refuses.
const PATH: u8 = 2;
/// The same for a query.
const QUERY: u8 = 4;

const CLASS: [u8; 256] = {
    let mut class = [0; 256];
    let mut byte = 0x21u8;
    while byte < 0x7f {
        let mut bits = 0;
        if byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            )
        {
            bits |= TOKEN;
        }
        if !matches!(byte, b'#' | b'<' | b'>' | b'`') {
            bits |= PATH;
        }
        if !matches!(byte, b'#' | b'<' | b'>' | b'"') {
            bits |= QUERY;
        }
        class[byte as usize] = bits;
        byte += 1;
    }
    class
};

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
