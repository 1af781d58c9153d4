//! What holds for any bytes whatever: shared by the fuzz targets and the bounded run in the tests.

#![allow(dead_code)]

use itsup_proxy::internals::{has_dot_segments, head, hello, normalize, proxy_protocol};
use itsup_proxy::{Host, HostPattern, PathPrefix};

/// A hello is read the same whole and in pieces, and its name is in normal form.
pub(crate) fn hello(bytes: &[u8]) {
    let whole = hello::parse(bytes);
    let mut reader = hello::HelloReader::default();
    let mut pieces = hello::Progress::NeedMore;
    for end in ends(bytes) {
        pieces = reader.push(&bytes[..end]);
        if pieces != hello::Progress::NeedMore {
            break;
        }
    }
    assert_eq!(pieces, whole);
    if let hello::Progress::Done(hello::Hello { sni: Some(name), .. }) = whole {
        assert_eq!(normalize(name.as_bytes(), &mut [0; 256]), Some(&*name));
    }
}

/// A header is never longer than its bytes or its cap, its beginning needs more, and its addresses come through writing and reading.
pub(crate) fn proxy_protocol(bytes: &[u8]) {
    use proxy_protocol::{Progress, encode, parse};
    let Progress::Done { source, destination, len } = parse(bytes) else { return };
    assert!(len <= bytes.len() && len <= 16 + 4096);
    assert_eq!(parse(&bytes[..len]), parse(bytes));
    assert_eq!(parse(&bytes[..len - 1]), Progress::NeedMore);
    if let (Some(source), Some(destination)) = (source, destination) {
        for version in [itsup_proxy::ProxyVersion::V1, itsup_proxy::ProxyVersion::V2] {
            let header = encode(version, source, destination);
            let Progress::Done { source: again, destination: there, len } = parse(header.as_ref()) else {
                panic!("what was written is not read")
            };
            assert_eq!((again, there, len), (Some(source), Some(destination), header.as_ref().len()));
        }
    }
}

/// The two readers of names agree, and what one makes is stable.
pub(crate) fn host(bytes: &[u8]) {
    let mut buf = [0; 256];
    let normal = normalize(bytes, &mut buf);
    if let Some(name) = normal {
        assert!(name.len() <= 253 && !name.ends_with('.') && !name.bytes().any(|byte| byte.is_ascii_uppercase()));
        assert_eq!(normalize(name.as_bytes(), &mut [0; 256]), Some(name));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(host) = Host::parse(text) {
        assert_eq!(normal, Some(host.as_str()));
        assert_eq!(Host::parse(host.as_str()).as_ref(), Ok(&host));
    }
    if let Ok(pattern) = HostPattern::parse(text) {
        assert_eq!(HostPattern::parse(&pattern.to_string()), Ok(pattern.clone()));
        assert!(pattern.matches(&pattern.to_string()));
    }
}

/// A prefix matches itself and what is below, and has no dot segments.
pub(crate) fn path(bytes: &[u8]) {
    let dots = has_dot_segments(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(prefix) = PathPrefix::parse(text) {
        assert!(!dots);
        assert!(prefix.matches(text) && prefix.matches(prefix.as_str()));
        assert!(prefix.matches(format!("{}/x", text.trim_end_matches('/'))));
        assert!(prefix.is_empty() || !prefix.matches(format!("{prefix}x")));
        assert!(prefix.strip(text).starts_with('/'));
        assert_eq!(PathPrefix::parse(prefix.as_str()), Ok(prefix));
    }
}

/// A block is read the same whole and in pieces; what is let through is unambiguous.
pub(crate) fn head(bytes: &[u8]) {
    use head::{Framing, HeadReader, Progress};
    let whole = HeadReader::new(4096, 16).check(bytes);
    let mut reader = HeadReader::new(4096, 16);
    let mut pieces = Progress::NeedMore;
    for end in ends(bytes) {
        pieces = reader.check(&bytes[..end]);
        if pieces != Progress::NeedMore {
            break;
        }
    }
    match (&pieces, &whole) {
        // In pieces, a fault may be found before the line that has it ends, and so another one first.
        (Progress::Reject(_), Progress::Reject(_)) => {}
        _ => assert_eq!(pieces, whole),
    }
    let Progress::Done(head) = whole else { return };
    let block = &bytes[head.start..head.len];
    assert!(block.ends_with(b"\r\n\r\n") && block.len() <= 4096 && head.fields <= 16);
    let end = block.windows(4).position(|four| four == b"\r\n\r\n");
    assert_eq!(end, Some(block.len() - 4));
    for (at, &byte) in block.iter().enumerate() {
        match byte {
            b'\n' => assert_eq!(block[at - 1], b'\r'),
            b'\r' => assert_eq!(block[at + 1], b'\n'),
            b'\t' => {}
            byte => assert!(byte >= b' ' && byte != 0x7f),
        }
    }
    let lower = block.to_ascii_lowercase();
    let count = |name: &[u8]| lower.windows(name.len()).filter(|part| *part == name).count();
    assert!(count(b"\r\ncontent-length:") <= 1 && count(b"\r\ntransfer-encoding:") <= 1 && count(b"\r\nhost:") <= 1);
    match head.framing {
        Framing::Chunked => assert_eq!(count(b"\r\ncontent-length:"), 0),
        Framing::Length(_) => assert_eq!(count(b"\r\ntransfer-encoding:"), 0),
        Framing::None => assert_eq!(count(b"\r\ncontent-length:") + count(b"\r\ntransfer-encoding:"), 0),
    }
    if let Some(host) = head.host {
        assert!(normalize(&bytes[host], &mut [0; 256]).is_some());
    }
}

/// Where to cut bytes into pieces: everywhere in short ones, and in some hundred places in long ones.
fn ends(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let step = bytes.len() / 200 + 1;
    (0..bytes.len()).step_by(step).chain([bytes.len()])
}
