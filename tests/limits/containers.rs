//! Damaged parquet files, tar shards, CIFAR archives and files, STL-10 files and image lists, opened and read to the
//! end: no panic may escape, nothing may take long or much memory, and every error is one line.
//!
//! `scripts/test` tries a few seconds of it; BYOL_FUZZ_INPUTS, BYOL_FUZZ_SECONDS and BYOL_FUZZ_FIRST are those of
//! images.rs.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use byol::data::{DataConfig, Format, open_train};
use byol::logging::one_line;
use byol::pixels::Pixels;
use byol::rng::{Purpose, Stream};
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use native::peak_bytes;

use crate::alone;

const MAX_PIXELS: usize = 1 << 16;
const MAX_BYTES: usize = 1 << 20;
/// The promise for an image, twice an encoded one, what is kept of a set, and room for the readers' own tables.
const MAX_PEAK: u64 = (MAX_PIXELS * 32 + 3 * MAX_BYTES + (8 << 20)) as u64;
/// An input that takes this long does not end.
const MAX_TIME: Duration = Duration::from_secs(60);

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data").join(name)
}

/// The files with this ending below a folder of the fixtures.
fn files(kind: &str, folder: &str, ending: &str) -> Vec<(String, Vec<u8>)> {
    let mut paths: Vec<PathBuf> = fs::read_dir(fixture(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_string_lossy().ends_with(ending));
    paths.sort();
    paths.iter().map(|path| (kind.to_string(), fs::read(path).unwrap())).collect()
}

/// The members of a `.tar.gz`, by name.
fn members(archive: &str) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(GzDecoder::new(fs::File::open(fixture(archive)).unwrap()));
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().file_name().unwrap_or_default().to_string_lossy().into_owned(), bytes)
    });
    entries.collect()
}

fn unzipped(archive: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    GzDecoder::new(fs::File::open(fixture(archive)).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

/// Every kind of file and its whole examples.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let mut corpus = [files("parquet", "parquet", ".parquet"), files("parquet", "shards", ".parquet")].concat();
    corpus.extend(files("tar", "webdataset", ".tar"));
    for name in ["cifar-10", "cifar-100"] {
        let archive = format!("cifar/{name}-binary.tar.gz");
        let kind = name.replace('-', "");
        corpus.push((format!("{kind}.gz"), fs::read(fixture(&archive)).unwrap()));
        corpus.push((format!("{kind}.tar"), unzipped(&archive)));
        let records =
            members(&archive).into_iter().filter(|(name, _)| name == "data_batch_1.bin" || name == "train.bin");
        corpus.extend(records.map(|(_, bytes)| (format!("{kind}.bin"), bytes)));
    }
    let stl10 = members("stl10/stl10_binary.tar.gz");
    for (name, kind) in [("train_X.bin", "stl10.X"), ("train_y.bin", "stl10.y")] {
        let found = stl10.iter().find(|(member, _)| member == name).unwrap();
        corpus.push((kind.to_string(), found.1.clone()));
    }
    let list = "# a list\nrgb.png\t0\ngrey.jpg 1\n\n../images/rgb.bmp\r\n/dev/null\nno such file\t12\n";
    corpus.push(("list".to_string(), list.into()));
    corpus
}

/// Puts a damaged file where its reader looks for it; what to open then.
fn place(kind: &str, bytes: &[u8], folder: &Path) -> DataConfig {
    let (format, name) = match kind {
        "parquet" => (Format::Parquet, "train.parquet"),
        "tar" => (Format::Webdataset, "train.tar"),
        "cifar10.bin" => (Format::Cifar10, "cifar10/data_batch_1.bin"),
        "cifar100.bin" => (Format::Cifar100, "cifar100/train.bin"),
        "stl10.X" => (Format::Stl10, "stl10/train_X.bin"),
        "stl10.y" => (Format::Stl10, "stl10/train_y.bin"),
        "list" => (Format::ImageFolder, "images/list.txt"),
        _ if kind.starts_with("cifar100") => (Format::Cifar100, "cifar100.tar.gz"),
        _ => (Format::Cifar10, "cifar10.tar.gz"),
    };
    fs::write(folder.join(name), bytes).unwrap();
    // Without an index of an earlier one.
    let _ = fs::remove_file(folder.join("train.tar.byol-index"));
    let whole = kind.ends_with(".bin") || format == Format::Stl10;
    let path = if whole { folder.join(name.split('/').next().unwrap()) } else { folder.join(name) };
    let split = (format == Format::Stl10).then_some(byol::data::formats::stl10::Split::Train);
    let path = Some(path.into());
    DataConfig { format, path, split, max_pixels: MAX_PIXELS, max_bytes: MAX_BYTES, ..Default::default() }
}

/// What stays whole beside the damaged files.
fn prepare(folder: &Path) {
    for name in ["cifar10", "cifar100", "stl10", "images"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    for (archive, name) in [
        ("cifar/cifar-10-binary.tar.gz", "cifar10"),
        ("cifar/cifar-100-binary.tar.gz", "cifar100"),
        ("stl10/stl10_binary.tar.gz", "stl10"),
    ] {
        for (member, bytes) in members(archive).into_iter().filter(|(member, _)| member.contains('.')) {
            fs::write(folder.join(name).join(member), bytes).unwrap();
        }
    }
    for name in ["rgb.png", "grey.jpg"] {
        fs::copy(fixture("images").join(name), folder.join("images").join(name)).unwrap();
    }
}

/// Ends the process with the number of an input that does not come to an end.
fn watch(current: &'static AtomicU64) {
    std::thread::spawn(move || {
        let mut since = (current.load(Ordering::Relaxed), Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let number = current.load(Ordering::Relaxed);
            if number != since.0 {
                since = (number, Instant::now());
            } else if number != u64::MAX && since.1.elapsed() > 2 * MAX_TIME {
                eprintln!("input {number} does not come to an end");
                std::process::exit(1);
            }
        }
    });
}

/// Opens the set and reads what it has; whether any image could be read.
fn read(config: &DataConfig) -> Result<bool, String> {
    let line = |error: anyhow::Error| {
        // As it is shown: names of members may hold anything.
        let text = one_line(&format!("{error:#}"));
        assert!(!text.is_empty() && !text.contains(['\n', '\r']) && text.len() < 2000, "{text:?}");
        text
    };
    let set = open_train(config).map_err(line)?;
    let (mut image, mut any) = (Pixels::default(), false);
    for index in (0..set.len()).take(40) {
        match set.load(index, &mut image) {
            Ok(()) => any = image.data.len() == image.width * image.height * 3,
            Err(error) => drop(line(error)),
        }
        assert!(!set.describe(index).is_empty());
        assert!(set.label(index).is_none_or(|label| label >= 0));
    }
    assert_eq!(set.fingerprint().len(), 64);
    set.class_names();
    Ok(any)
}

fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

#[test]
fn any_container_ends_in_images_or_in_one_line() {
    let _alone = alone();
    let budget = crate::support::damage::Budget::new(6);
    let corpus = corpus();
    let folder = scratch();
    prepare(folder.path());
    std::panic::set_hook(Box::new(|_| ()));
    let mut kinds: Vec<&str> = corpus.iter().map(|(kind, _)| kind.as_str()).collect();
    kinds.dedup();
    let (mut tried, mut tally, mut findings) = (0, crate::support::damage::Tally::default(), Vec::new());
    let (mut slowest, mut largest) = ((Duration::ZERO, 0), (0, 0));
    static CURRENT: AtomicU64 = AtomicU64::new(u64::MAX);
    watch(&CURRENT);
    while budget.goes_on(tried) && findings.len() < 10 {
        let number = budget.first + tried;
        tried += 1;
        CURRENT.store(number, Ordering::Relaxed);
        let mut rng = Stream::new(2, Purpose::Synthetic, 0, number, 0);
        let mut draw = |below: usize| rng.below(below.max(1));
        // Every kind as often as the others, however many examples it has.
        let kind = kinds[number as usize % kinds.len()];
        let of_kind: Vec<usize> = (0..corpus.len()).filter(|&at| corpus[at].0 == kind).collect();
        let bytes = crate::support::damage::damaged(&corpus, of_kind[draw(of_kind.len())], &mut draw);
        let mut config = place(kind, &bytes, folder.path());
        // Kept in memory, or unpacked to a file.
        config.cache_bytes = [0, MAX_BYTES][draw(2)];
        let started = Instant::now();
        let run = || std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read(&config)));
        let (ended, peak) = peak_bytes(run);
        let time = started.elapsed();
        tally.add(kind, matches!(ended, Ok(Ok(true))));
        (slowest, largest) = (slowest.max((time, number)), largest.max((peak, number)));
        if let Err(panic) = &ended {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
            findings.push(format!("input {number} ({kind}) panics, or its error is no line: {text}"));
        }
        if time > MAX_TIME || peak > MAX_PEAK {
            findings.push(format!("input {number} ({kind}) takes {time:?} and {peak} bytes"));
        }
    }
    CURRENT.store(u64::MAX, Ordering::Relaxed);
    drop(std::panic::take_hook());
    println!("{tally}{tried} inputs: slowest {slowest:?}, largest {largest:?}");
    assert!(findings.is_empty(), "{findings:#?}");
    assert!(tally.fewest() * 2 > tried / kinds.len() as u64, "{tally}");
}

/// A finding of this test: the header of a page promises billions of fields behind the end of the file.
#[test]
fn a_header_without_an_end_is_an_error() {
    let _alone = alone();
    let path = Some(fixture("damaged/endless.parquet").into());
    let config = DataConfig { format: Format::Parquet, path, cache_bytes: 0, ..Default::default() };
    let (set, started) = (open_train(&config).expect("the footer is whole"), Instant::now());
    let messages: Vec<String> = (0..set.len())
        .filter_map(|index| set.load(index, &mut Pixels::default()).err().map(|error| format!("{error:#}")))
        .collect();
    assert!(started.elapsed() < MAX_TIME, "{:?}", started.elapsed());
    assert!(messages.iter().any(|message| message.contains("found the end of the file")), "{messages:?}");
}

/// Small files that say, or become, much: refused without the memory.
#[test]
fn bombs_are_refused_by_what_they_say() {
    let _alone = alone();
    let folder = scratch();
    prepare(folder.path());
    // 400 MB of zeros, packed in 0.4 MB, where a file of 30 MB belongs.
    let mut header = tar::Header::new_gnu();
    header.set_size(400 << 20);
    header.set_path("data_batch_1.bin").unwrap();
    header.set_cksum();
    let mut packed = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(header.as_bytes()).unwrap();
    let block = vec![0; 1 << 20];
    (0..400).for_each(|_| packed.write_all(&block).unwrap());
    let config = place("cifar10.gz", &packed.finish().unwrap(), folder.path());
    let (ended, peak) = peak_bytes(|| read(&config));
    let message = ended.unwrap_err();
    assert!(message.ends_with("found 419430400 bytes of data_batch_1.bin, expected at most 268435456"), "{message}");
    assert!(peak < MAX_PEAK, "{peak}");
    // The same unpacked: a file of holes.
    let records = folder.path().join("cifar10/data_batch_1.bin");
    fs::File::create(&records).unwrap().set_len(400 << 20).unwrap();
    let config = DataConfig { path: Some(folder.path().join("cifar10").into()), ..config };
    let (ended, peak) = peak_bytes(|| read(&config));
    let message = ended.unwrap_err();
    assert!(message.ends_with("found 419430400 bytes, expected at most 268435456"), "{message}");
    assert!(peak < MAX_PEAK, "{peak}");
    // A header that promises 200 MB in an archive that ends there.
    header.set_size(200 << 20);
    header.set_cksum();
    let config = place("cifar10.tar", header.as_bytes(), folder.path());
    let (ended, peak) = peak_bytes(|| read(&config));
    assert!(ended.unwrap_err().contains("found 0 of 209715200 bytes of data_batch_1.bin"));
    assert!(peak < MAX_PEAK, "{peak}");
}
