//! Damaged images of every format through decoding and augmentation: no panic may escape, no input
//! may take long or much memory, and every error is one line.
//!
//! `scripts/test` tries a few seconds of it; `BYOL_FUZZ_SECONDS=600 scripts/test --test limits images::` goes on for
//! ten minutes, `BYOL_FUZZ_INPUTS=200000` for so many. Input N is a function of N, so that a finding is repeated with
//! `BYOL_FUZZ_FIRST=N`.

use std::path::Path;
use std::time::{Duration, Instant};

use byol::augment::{AugmentConfig, Scratch, eval_view, two_views};
use byol::data::decode::{DecodeOptions, decode};
use byol::pixels::Pixels;
use byol::rng::{Purpose, Stream};

const MAX_PIXELS: usize = 1 << 20;

/// What `DecodeOptions` promises for so many pixels, with room for a busy machine.
/// An input that takes this long does not end.
const MAX_TIME: Duration = Duration::from_secs(60);
/// Most that an input may add, and that buffers and the allocator may keep of all.
const MAX_ADDED_KIB: usize = (MAX_PIXELS * 32 + (16 << 20)) / 1024;
const MAX_KEPT_KIB: usize = 256 << 10;
/// Most that may be reserved, used or not.
const MAX_RESERVED_KIB: usize = 1 << 20;

/// Format and bytes of every image of the fixtures.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data");
    let list = |name: &str| std::fs::read_dir(fixtures.join(name)).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = list("images").chain(list("dicom")).collect();
    let expected = ["rgb", "bytes", "frames"];
    paths.retain(|path| path.extension().is_some_and(|extension| expected.iter().all(|other| extension != *other)));
    paths.sort();
    let format = |path: &Path| path.extension().unwrap().to_string_lossy().into_owned();
    paths.iter().map(|path| (format(path), std::fs::read(path).unwrap())).collect()
}

/// Input `number`, a damaged one of the corpus, and which.
fn input(corpus: &[(String, Vec<u8>)], number: u64) -> (usize, Vec<u8>) {
    let mut rng = Stream::new(1, Purpose::Synthetic, 0, number, 0);
    let mut draw = |below: usize| rng.below(below.max(1));
    let chosen = draw(corpus.len());
    let mut bytes = crate::support::damage::damaged(corpus, chosen, &mut draw);
    if draw(4) > 0 {
        mend_png_checksums(&mut bytes);
    }
    (chosen, bytes)
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

/// Resident memory in KiB: the peak since the last call, and now; and the peak of the reserved.
fn memory() -> [usize; 3] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    // Where that is forbidden, the peak is that of all inputs so far.
    std::fs::write("/proc/self/clear_refs", "5").ok();
    ["VmHWM", "VmRSS", "VmPeak"].map(|key| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    })
}

#[test]
fn any_bytes_end_in_views_or_in_one_line() {
    let _alone = crate::alone();
    let budget = crate::support::damage::Budget::new(4);
    let first = budget.first;
    let corpus = corpus();
    let options =
        DecodeOptions { max_pixels: MAX_PIXELS, max_bytes: 1 << 20, exif_orientation: true, scaled_above: usize::MAX };
    let augment = AugmentConfig { size: 32.into(), ..Default::default() };
    let (mut image, mut scratch) = (Pixels::default(), Scratch::default());
    let (mut first_view, mut second_view) = (vec![0; 32 * 32 * 3], vec![0; 32 * 32 * 3]);
    // Panics of decoders are caught and become errors; their reports would drown the rest.
    std::panic::set_hook(Box::new(|_| ()));
    let (mut tried, mut decoded, mut panicked) = (0_u64, 0_u64, 0_u64);
    let (mut slowest, mut largest, mut findings) = (Duration::ZERO, 0, Vec::new());
    let mut tally = crate::support::damage::Tally::default();
    memory();
    let [_, at_first, reserved_at_first] = memory();
    let mut before = at_first;
    while budget.goes_on(tried) && findings.len() < 10 {
        let number = first + tried;
        tried += 1;
        let (chosen, bytes) = input(&corpus, number);
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
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        tally.add(&corpus[chosen].0, matches!(ended, Ok(None)));
        match ended {
            Ok(None) => {
                decoded += 1;
            }
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
        if time > MAX_TIME {
            findings.push(format!("input {number} takes {time:?}"));
        }
        let [peak, now, reserved] = memory();
        let (added, kept) = (peak.saturating_sub(before), now.saturating_sub(at_first));
        let reserved = reserved - reserved_at_first;
        (before, largest) = (now, largest.max(added));
        if added > MAX_ADDED_KIB || kept > MAX_KEPT_KIB || reserved > MAX_RESERVED_KIB {
            findings.push(format!("input {number} adds {added} KiB, {kept} are kept, {reserved} reserved"));
        }
    }
    drop(std::panic::take_hook());
    println!("{tally}");
    println!("{tried} inputs: {decoded} decoded, {panicked} panics caught, slowest {slowest:?}, largest {largest} KiB");
    assert!(findings.is_empty(), "{findings:#?}");
    assert!(decoded * 10 > tried && decoded * 10 < tried * 9, "{decoded} of {tried} decoded: poor damage");
}
