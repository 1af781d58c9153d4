//! Where a websocket's frames end (RFC 6455, section 5.2), as its server's bytes pass on their way to the client.
//!
//! It looks at bytes and never changes them. It begins with the response head, and goes on for as long as what follows
//! is frames: what is no upgrade is not followed.

/// The longest frame header without a mask, which servers never set.
const LONGEST_HEADER: usize = 10;
/// As much of a response head as says what it is: `HTTP/1.1 101`.
const STATUS_LINE: usize = 12;
const OPCODE_CLOSE: u8 = 8;

/// "Going away" (RFC 6455, section 7.4.1), as a whole frame of the server's.
pub(crate) const CLOSE_GOING_AWAY: [u8; 4] = [0x80 | OPCODE_CLOSE, 2, 0x03, 0xe9];

/// A follower of one connection's bytes to the client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frames {
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// In a response head: its first bytes, how many of them there are, and how much of its end has been seen.
    Head { start: [u8; STATUS_LINE], len: usize, end: usize },
    /// In a frame's header; at a boundary where it is empty.
    Header { bytes: [u8; LONGEST_HEADER], len: usize },
    /// In a frame's payload, with this much of it to come.
    Payload { left: u64, close: bool },
    /// Behind the server's own close frame.
    Closed,
    /// These are no frames.
    Unknown,
}

impl Default for State {
    fn default() -> Self {
        State::Head { start: [0; STATUS_LINE], len: 0, end: 0 }
    }
}

const BOUNDARY: State = State::Header { bytes: [0; LONGEST_HEADER], len: 0 };

impl Frames {
    /// Whether the next byte would be the first one of a frame.
    pub(crate) fn is_at_boundary(&self) -> bool {
        matches!(self.state, State::Header { len: 0, .. })
    }

    /// Whether nothing may be said any more: the server has closed, or what it sends is no websocket.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Closed | State::Unknown)
    }

    /// Takes `bytes` as the next ones.
    pub(crate) fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.advance_to_boundary(bytes)..];
        }
    }

    /// Takes bytes up to and including the last one of the frame that is under way, or all of them; returns how many. At
    /// a boundary it takes a whole frame, so ask first.
    pub(crate) fn advance_to_boundary(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            at += self.step(&bytes[at..]);
            if self.is_at_boundary() {
                break;
            }
        }
        at
    }

    /// Takes at least one byte.
    fn step(&mut self, bytes: &[u8]) -> usize {
        match &mut self.state {
            State::Head { start, len, end } => {
                let byte = bytes[0];
                if *len < STATUS_LINE {
                    start[*len] = byte;
                }
                *len += 1;
                *end = match (*end, byte) {
                    (0 | 2, b'\r') | (1 | 3, b'\n') => *end + 1,
                    (_, b'\r') => 1,
                    _ => 0,
                };
                if *end == 4 {
                    self.state = behind_head(&start[..STATUS_LINE.min(*len)]);
                }
                1
            }
            State::Header { bytes: header, len } => {
                header[*len] = bytes[0];
                *len += 1;
                if let Some(next) = behind_header(&header[..*len]) {
                    self.state = next;
                }
                1
            }
            State::Payload { left, close } => {
                let step = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= step as u64;
                if *left == 0 {
                    self.state = if *close { State::Closed } else { BOUNDARY };
                }
                step
            }
            State::Closed | State::Unknown => bytes.len(),
        }
    }
}

fn behind_head(start: &[u8]) -> State {
    match start {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', _, b' ', b'1', b'0', b'1'] => BOUNDARY,
        // Another head follows an informational one.
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', _, b' ', b'1', _, _] => State::default(),
        _ => State::Unknown,
    }
}

/// What follows a frame header, once it is whole.
fn behind_header(header: &[u8]) -> Option<State> {
    let [first, second, extended @ ..] = header else { return None };
    // A server that masks is no websocket server: its frames cannot be told.
    if second & 0x80 != 0 {
        return Some(State::Unknown);
    }
    let left = match (second & 0x7f, extended) {
        (126, [a, b]) => u64::from(u16::from_be_bytes([*a, *b])),
        (127, &[a, b, c, d, e, f, g, h]) => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        (126 | 127, _) => return None,
        (short, _) => u64::from(short),
    };
    let close = first & 0x0f == OPCODE_CLOSE;
    Some(match (left, close) {
        (0, true) => State::Closed,
        (0, false) => BOUNDARY,
        (left, close) => State::Payload { left, close },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";

    fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            short @ 0..126 => frame.push(short as u8),
            medium @ 126..65_536 => {
                frame.push(126);
                frame.extend_from_slice(&(medium as u16).to_be_bytes());
            }
            long => {
                frame.push(127);
                frame.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(payload);
        frame
    }

    fn after(bytes: &[u8]) -> Frames {
        let mut frames = Frames::default();
        frames.advance(bytes);
        frames
    }

    #[test]
    fn frames_begin_behind_the_upgrade() {
        assert!(!after(&HEAD[..HEAD.len() - 1]).is_at_boundary());
        assert!(after(HEAD).is_at_boundary());
        assert!(after(&[b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", HEAD].concat()).is_at_boundary());
        for head in [&b"HTTP/1.1 200 OK\r\n\r\n"[..], b"HTTP/1.1 400 Bad Request\r\nA: b\r\n\r\n", b"\r\n\r\n"] {
            assert!(after(head).is_over(), "{}", head.escape_ascii());
        }
    }

    #[test]
    fn nothing_is_said_behind_a_close() {
        let closed = after(&[HEAD, &frame(8, b"\x03\xe8bye")].concat());
        assert!(closed.is_over() && !closed.is_at_boundary());
        assert!(after(&[HEAD, &frame(8, b"")].concat()).is_over());
        assert!(after(&[HEAD, &CLOSE_GOING_AWAY].concat()).is_over());
    }

    #[test]
    fn masked_frames_are_not_followed() {
        assert!(after(&[HEAD, &[0x82, 0x81, 1, 2, 3, 4, 5]].concat()).is_over());
    }

    #[test]
    fn stops_at_the_end_of_the_frame_under_way() {
        let mut frames = after(HEAD);
        let (first, second) = (frame(2, &[7; 300]), frame(1, b"x"));
        frames.advance(&first[..10]);
        let rest = [&first[10..], &second].concat();
        assert_eq!(frames.advance_to_boundary(&rest), first.len() - 10);
        assert!(frames.is_at_boundary());
        assert_eq!(frames.advance_to_boundary(&second), second.len());
    }

    #[test]
    fn a_length_of_eight_bytes_may_be_any() {
        let mut frames = after(HEAD);
        frames.advance(&[0x82, 127, 255, 255, 255, 255, 255, 255, 255, 255]);
        assert_eq!(frames.advance_to_boundary(&[0; 100]), 100);
        assert!(!frames.is_at_boundary());
    }

    proptest! {
        /// However the bytes are split, boundaries are where the frames end, and nowhere else.
        #[test]
        fn splits_anywhere(
            payloads in prop::collection::vec((prop::sample::select(vec![0u8, 1, 2, 9, 10]), prop_oneof![
                0usize..5, 120usize..130, 65_530usize..65_540,
            ]), 0..6),
            cuts in prop::collection::vec(1usize..70_000, 1..40),
        ) {
            let mut bytes = HEAD.to_vec();
            let mut ends = vec![bytes.len()];
            for (opcode, len) in payloads {
                bytes.extend(frame(opcode, &vec![0x88; len]));
                ends.push(bytes.len());
            }
            let mut frames = Frames::default();
            let (mut at, mut cuts) = (0, cuts.iter().cycle());
            while at < bytes.len() {
                let piece = &bytes[at..(at + cuts.next().unwrap()).min(bytes.len())];
                let used = frames.advance_to_boundary(piece);
                prop_assert!(used > 0);
                at += used;
                prop_assert_eq!(frames.is_at_boundary(), ends.contains(&at), "at {}", at);
                prop_assert!(frames.is_at_boundary() || used == piece.len());
            }
            prop_assert!(frames.is_at_boundary());
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut frames = after(HEAD);
            frames.advance(&bytes);
            Frames::default().advance(&bytes);
        }
    }
}
