//! Where a chunked request body ends (RFC 9112, section 7.1), judged strictly.
//!
//! It looks at the bytes as they pass and never changes them. It exists so that bytes behind the body stay out of
//! the body's reader, and so that a framing that two parsers could read differently never gets through.

/// The longest chunk-size line, extensions included.
const MAX_SIZE_LINE: usize = 1024;
/// The most bytes of trailer fields.
const MAX_TRAILERS: usize = 16 * 1024;

/// A scanner over the bytes of one chunked body.
#[derive(Debug)]
pub(crate) struct ChunkScanner {
    state: State,
    size: u64,
    line: usize,
    trailers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the first digit of a chunk size.
    Size,
    /// Within the digits.
    Digits,
    /// Within a chunk extension.
    Extension,
    /// Behind the CR of a size line.
    SizeLf,
    /// Within chunk data.
    Data,
    /// At the CR behind the data.
    DataCr,
    /// At the LF behind the data.
    DataLf,
    /// At the start of a trailer line.
    TrailerStart,
    /// Within a trailer line.
    Trailer,
    /// Behind the CR of a trailer line.
    TrailerLf,
    /// Behind the CR of the last empty line.
    EndLf,
    Done,
}

/// What is said of one.
pub(crate) const BAD_CHUNK: &str = "malformed chunked body";

/// A byte that no chunked body may have where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{BAD_CHUNK}")]
pub(crate) struct BadChunk;

impl ChunkScanner {
    pub(crate) fn new() -> Self {
        Self { state: State::Size, size: 0, line: 0, trailers: 0 }
    }

    /// Whether the last byte of the body has been seen.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes `bytes` as the body's next ones and returns how many of them belong to it.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Result<usize, BadChunk> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            if self.state == State::Data {
                let step = usize::try_from(self.size).unwrap_or(usize::MAX).min(bytes.len() - at);
                self.size -= step as u64;
                at += step;
                if self.size == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            self.state = self.step(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<State, BadChunk> {
        match self.state {
            State::Size => {
                self.size = u64::from(hex(byte)?);
                self.line = 1;
                Ok(State::Digits)
            }
            State::Digits => match byte {
                b'\r' => Ok(State::SizeLf),
                b';' => Ok(State::Extension),
                _ => {
                    self.count_line()?;
                    self.size = self.size.checked_mul(16).ok_or(BadChunk)? + u64::from(hex(byte)?);
                    Ok(State::Digits)
                }
            },
            State::Extension => match byte {
                b'\r' => Ok(State::SizeLf),
                b'\t' | b' '..=b'~' | 0x80.. => {
                    self.count_line()?;
                    Ok(State::Extension)
                }
                _ => Err(BadChunk),
            },
            State::SizeLf if byte == b'\n' => Ok(if self.size == 0 { State::TrailerStart } else { State::Data }),
            State::DataCr if byte == b'\r' => Ok(State::DataLf),
            State::DataLf if byte == b'\n' => Ok(State::Size),
            State::TrailerStart if byte == b'\r' => Ok(State::EndLf),
            State::TrailerStart | State::Trailer => {
                self.trailers += 1;
                match byte {
                    b'\r' if self.state == State::Trailer => Ok(State::TrailerLf),
                    b'\t' | b' '..=b'~' | 0x80.. if self.trailers <= MAX_TRAILERS => Ok(State::Trailer),
                    _ => Err(BadChunk),
                }
            }
            State::TrailerLf if byte == b'\n' => Ok(State::TrailerStart),
            State::EndLf if byte == b'\n' => Ok(State::Done),
            _ => Err(BadChunk),
        }
    }

    fn count_line(&mut self) -> Result<(), BadChunk> {
        self.line += 1;
        if self.line > MAX_SIZE_LINE { Err(BadChunk) } else { Ok(()) }
    }
}

fn hex(byte: u8) -> Result<u8, BadChunk> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(BadChunk),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(body: &[u8]) -> Result<(usize, bool), BadChunk> {
        let mut scanner = ChunkScanner::new();
        let used = scanner.advance(body)?;
        Ok((used, scanner.is_done()))
    }

    #[test]
    fn finds_the_end() {
        for (body, end) in [
            (&b"0\r\n\r\n"[..], 5),
            (b"5\r\nhello\r\n0\r\n\r\nGET /", 15),
            (b"A;name=value\r\n0123456789\r\n0\r\n\r\n", 31),
            (b"0\r\nX-Sum: 1\r\n\r\nrest", 15),
            (b"00\r\n\r\n", 6),
        ] {
            assert_eq!(whole(body), Ok((end, true)), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn refuses_what_two_parsers_could_read_differently() {
        for body in [
            &b"\r\n"[..],
            b"5\nhello\r\n0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"-5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"10000000000000000\r\n",
            b"5;a\nb\r\nhello\r\n0\r\n\r\n",
            b"0\r\nX: 1\n\r\n",
            b"0\r\n\n",
            b"5;\0\r\nhello",
        ] {
            assert_eq!(whole(body), Err(BadChunk), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn bounds_lines_and_trailers() {
        let mut body = vec![b'0'; MAX_SIZE_LINE + 1];
        assert_eq!(whole(&body), Err(BadChunk));
        body = b"0\r\nX: ".to_vec();
        body.resize(MAX_TRAILERS + 10, b'a');
        assert_eq!(whole(&body), Err(BadChunk));
    }

    proptest! {
        #[test]
        fn splits_anywhere(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6), cut in 1usize..7) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            let end = body.len();
            body.extend_from_slice(b"GET / HTTP/1.1\r\n");
            let mut scanner = ChunkScanner::new();
            let mut used = 0;
            for piece in body.chunks(cut) {
                used += scanner.advance(piece).expect("well-formed");
            }
            prop_assert!(scanner.is_done());
            prop_assert_eq!(used, end);
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ChunkScanner::new().advance(&bytes);
        }
    }
}
