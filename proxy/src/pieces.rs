//! Large writes as a list of small slices, because of how what is encrypted is copied.
//!
//! rustls copies up to 16 KiB at once to behind a record's header of five bytes. glibc does that with `rep movsb`, which AMD's Zen 3
//! and 4 do at 4 GB/s instead of 90 where the odd destination lies just above the source within a page (glibc's bug
//! 30994). Where the allocator puts the two decides it, so 1 MiB cost twice as much in one process as in the
//! next. rustls copies slice by slice, though, and small slices go by plain vector instructions.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

/// Below the size from which glibc uses `rep movsb`, which is 2,112 where the processor says that it is quick at it.
const PIECE: usize = 2048;
/// In all no less than what the engine reads at once, which is 64 KiB, with what is gathered before it.
const PIECES: usize = 34;

/// Writes the first bytes of one or more slices; whatever is to be encrypted goes out by this. Returns how many were taken.
pub(crate) fn poll_write_pieces<'a>(
    tls: &mut (impl AsyncWrite + Unpin),
    cx: &mut Context<'_>,
    bufs: impl IntoIterator<Item = &'a [u8]>,
) -> Poll<io::Result<usize>> {
    Pin::new(tls).poll_write_vectored(cx, Pieces::of(bufs).as_slices())
}

/// The first bytes of one or more slices, as slices of no more than [`PIECE`] bytes.
struct Pieces<'a> {
    slices: [IoSlice<'a>; PIECES],
    used: usize,
}

impl<'a> Pieces<'a> {
    /// Takes as much as there is room for: as a vectored write may, it can be less than all.
    fn of(bufs: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut pieces = Self { slices: [IoSlice::new(&[]); PIECES], used: 0 };
        let all = bufs.into_iter().flat_map(|buf| buf.chunks(PIECE));
        for (slice, piece) in pieces.slices.iter_mut().zip(all) {
            *slice = IoSlice::new(piece);
            pieces.used += 1;
        }
        pieces
    }

    fn as_slices(&self) -> &[IoSlice<'a>] {
        &self.slices[..self.used]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(pieces: &Pieces<'_>) -> Vec<u8> {
        pieces.as_slices().iter().flat_map(|slice| slice.iter().copied()).collect()
    }

    #[test]
    fn all_bytes_are_there_in_their_order() {
        let large = (0..65_536u32).map(|at| at.to_le_bytes()[1] ^ at.to_le_bytes()[0]).collect::<Vec<_>>();
        for (first, second) in [(0, 65_536), (1, 4_096), (300, 60_000), (2_048, 2_048), (0, 0)] {
            let (head, body) = large[..second].split_at(first);
            let pieces = Pieces::of([head, body]);
            assert_eq!(bytes(&pieces), large[..second], "{first} and {second}");
            assert!(pieces.as_slices().iter().all(|slice| slice.len() <= PIECE && !slice.is_empty()));
        }
    }

    #[test]
    fn what_there_is_no_room_for_is_left() {
        let large = vec![7; 1 << 20];
        let pieces = Pieces::of([&large[..]]);
        assert_eq!(pieces.as_slices().len(), PIECES);
        assert_eq!(bytes(&pieces), large[..PIECE * PIECES]);
    }
}
