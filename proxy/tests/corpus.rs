//! Replays the fuzz corpus and changes it, always in the same way, for a bounded time.
//!
//! libFuzzer finds more (`cargo +nightly fuzz run head`, in `proxy/`); this keeps what it has found from coming back.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

#[path = "../fuzz/invariants.rs"]
mod invariants;

/// How long one target is tried.
const TIME: Duration = Duration::from_secs(2);
/// Rounds after which it is enough.
const ROUNDS: u32 = 200_000;

#[test]
fn hello() {
    run("hello", invariants::hello);
}

#[test]
fn proxy_protocol() {
    run("proxy_protocol", invariants::proxy_protocol);
}

#[test]
fn host() {
    run("host", invariants::host);
}

#[test]
fn path() {
    run("path", invariants::path);
}

#[test]
fn head() {
    run("head", invariants::head);
}

fn run(target: &str, check: fn(&[u8])) {
    let corpus = corpus(target);
    for (_, bytes) in &corpus {
        check(bytes);
        for end in 0..bytes.len().min(300) {
            check(&bytes[..end]);
        }
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let end = Instant::now() + TIME;
    for _ in 0..ROUNDS {
        if Instant::now() >= end {
            break;
        }
        let mut bytes = corpus[random.below(corpus.len())].1.clone();
        for _ in 0..=random.below(4) {
            mutate(&mut bytes, &corpus[random.below(corpus.len())].1, &mut random);
        }
        // A failure prints the bytes: add them to the corpus.
        if let Err(fault) = std::panic::catch_unwind(|| check(&bytes)) {
            eprintln!("{target} failed for {:?}", bytes.escape_ascii().to_string());
            std::panic::resume_unwind(fault);
        }
    }
}

/// The checked-in files, in the same order everywhere.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    assert!(files.len() >= 5, "the corpus of {target} is there");
    files
}

fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    const TELLING: &[u8] = b"\0\x01\x03\x16\x20\x21\x7f\xff\r\n\t :./%;,*#?@[]2eE5";
    let at = random.below(bytes.len() + 1);
    match random.below(7) {
        0 => bytes.insert(at, TELLING[random.below(TELLING.len())]),
        1 => bytes.truncate(at),
        2 if at < bytes.len() => bytes[at] = TELLING[random.below(TELLING.len())],
        3 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        4 if at < bytes.len() => drop(bytes.remove(at)),
        5 => {
            let from = random.below(other.len() + 1);
            let len = random.below((other.len() - from).min(64) + 1);
            bytes.splice(at..at, other[from..from + len].iter().copied());
        }
        _ => {
            let len = random.below((bytes.len() - at).min(32) + 1);
            bytes.drain(at..at + len);
        }
    }
}

/// SplitMix64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }
}
