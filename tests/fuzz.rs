//! Damaged images of every format through decoding and augmentation: no panic may escape, no input
//! may take long or much memory, and every error is one line.
//!
//! `scripts/test` tries a few seconds of it; `BYOL_FUZZ_SECONDS=600 scripts/test --test fuzz` goes on
//! for ten minutes. Input N is a function of N, so that a finding is repeated with
//! `BYOL_FUZZ_FIRST=N`.

use std::path::Path;
use std::time::{Duration, Instant};

use byol::augment::{AugmentConfig, Scratch, eval_view, two_views};
use byol::data::decode::{DecodeOptions, decode};
use byol::pixels::Pixels;
use byol::rng::{Purpose, Stream};

const MAX_PIXELS: usize = 1 << 20;

/// What `DecodeOptions` promises for so many pixels, with room for a busy machine and for what buffers
/// and the allocator keep.
const MOST_TIME: Duration = Duration::from_secs(5);
const MOST_MEMORY_KIB: usize = (MAX_PIXELS * 32 + (64 << 20)) / 1024;

fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data/images");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension != "rgb"));
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Input `number`: one of the corpus, damaged in one to three ways.
fn input(corpus: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut rng = Stream::new(1, Purpose::Synthetic, 0, number, 0);
    let mut draw = |below: usize| rng.below(below.max(1));
    let mut bytes = corpus[draw(corpus.len())].clone();
    for _ in 0..1 + draw(3) {
        if bytes.is_empty() {
            break;
        }
        // Headers are where most decisions are made.
        let near = [bytes.len(), bytes.len().min(64)][draw(4) / 3];
        let at = draw(near);
        match draw(8) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << draw(8),
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, 0xd9][draw(6)],
            3 => {
                let value = [0, 1, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff_u32][draw(7)];
                let value = if draw(2) == 0 { value.to_be_bytes() } else { value.to_le_bytes() };
                let length = (bytes.len() - at).min(2 + 2 * draw(2));
                bytes[at..at + length].copy_from_slice(&value[4 - length.max(2)..][..length]);
            }
            4 => {
                let other = &corpus[draw(corpus.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[draw(other.len())..]);
            }
            5 => drop(bytes.drain(at..at + draw((bytes.len() - at).min(40)))),
            6 => {
                let part = bytes[at..at + draw((bytes.len() - at).min(200))].to_vec();
                for _ in 0..1 + draw(20) {
                    let to = draw(bytes.len());
                    bytes.splice(to..to, part.iter().copied());
                }
            }
            _ => (0..draw(16)).for_each(|offset| {
                if let Some(byte) = bytes.get_mut(at + offset) {
                    *byte = draw(256) as u8;
                }
            }),
        }
    }
    if draw(4) > 0 {
        mend_png_checksums(&mut bytes);
    }
    bytes
}

/// Without it hardly any damage would get past the checksums.
fn mend_png_checksums(bytes: &mut [u8]) {
    if !bytes.starts_with(b"\x89PNG") {
        return;
    }
    let mut at = 8;
    while let Some(length) = bytes.get(at..at + 4) {
        let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
        let end = at + 8 + length;
        if end + 4 > bytes.len() {
            return;
        }
        let mut sum = !0_u32;
        for &byte in &bytes[at + 4..end] {
            sum ^= byte as u32;
            (0..8).for_each(|_| sum = (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()));
        }
        bytes[end..end + 4].copy_from_slice(&(!sum).to_be_bytes());
        at = end + 4;
    }
}

/// Peak resident memory in KiB since the last call.
fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    // Where that is forbidden, the bound is on all inputs so far.
    std::fs::write("/proc/self/clear_refs", "5").ok();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn any_bytes_end_in_views_or_in_one_line() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seconds = number("BYOL_FUZZ_SECONDS").unwrap_or(4);
    let first = number("BYOL_FUZZ_FIRST").unwrap_or(0);
    let corpus = corpus();
    let options = DecodeOptions { max_pixels: MAX_PIXELS, max_bytes: 1 << 20, exif_orientation: true };
    let augment = AugmentConfig { size: 32, ..Default::default() };
    let (mut image, mut scratch) = (Pixels::default(), Scratch::default());
    let (mut first_view, mut second_view) = (vec![0; 32 * 32 * 3], vec![0; 32 * 32 * 3]);
    // Panics of decoders are caught and become errors; their reports would drown the rest.
    std::panic::set_hook(Box::new(|_| ()));
    let (mut tried, mut decoded, mut panicked) = (0_u64, 0_u64, 0_u64);
    let (mut slowest, mut largest, mut findings) = (Duration::ZERO, 0, Vec::new());
    let started = Instant::now();
    peak_memory();
    let before = peak_memory();
    while started.elapsed() < Duration::from_secs(seconds) && findings.len() < 10 {
        let number = first + tried;
        tried += 1;
        let bytes = input(&corpus, number);
        let start = Instant::now();
        let run = || match decode(&bytes, options, &mut image) {
            Ok(()) => {
                let size = image.width * image.height;
                assert!((1..=MAX_PIXELS).contains(&size) && image.data.len() == size * 3);
                let views = [&mut first_view[..], &mut second_view[..]];
                two_views(&augment, &image, 1, 2, number, &mut scratch, views);
                eval_view(&augment, &image, &mut scratch, &mut first_view);
                None
            }
            Err(error) => Some(format!("{error:#}")),
        };
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            Ok(None) => decoded += 1,
            Ok(Some(text)) if text.contains("decoder panicked") => {
                panicked += 1;
                eprintln!("input {number}: {text}");
            }
            Ok(Some(text)) if text.is_empty() || text.contains(['\n', '\r']) || text.len() > 500 => {
                findings.push(format!("input {number}: {text:?}"));
            }
            Ok(Some(_)) => (),
            Err(_) => findings.push(format!("input {number} panics")),
        }
        let time = start.elapsed();
        slowest = slowest.max(time);
        if time > MOST_TIME {
            findings.push(format!("input {number} takes {time:?}"));
        }
        let memory = peak_memory().saturating_sub(before);
        largest = largest.max(memory);
        if memory > MOST_MEMORY_KIB {
            findings.push(format!("input {number} takes {memory} KiB"));
        }
    }
    drop(std::panic::take_hook());
    println!("{tried} inputs: {decoded} decoded, {panicked} panics caught, slowest {slowest:?}, largest {largest} KiB");
    assert!(findings.is_empty(), "{findings:#?}");
    assert!(decoded * 10 > tried && decoded * 10 < tried * 9, "{decoded} of {tried} decoded: poor damage");
}
