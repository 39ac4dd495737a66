//! DICOM files against pydicom (scripts/reference/dicom.py), and folders of them.

use std::fs;

use byol::data::measure::measure;
use byol::data::values::{Channels, ValueRange};
use byol::data::{DataConfig, Format, open_train};
use byol::pixels::Pixels;
use serde_json::Value;

use crate::bands::{assert_pixels, fixture, ranges};

/// A folder with a file of these bytes, as a set.
fn folder(name: &str, bytes: &[u8]) -> (tempfile::TempDir, DataConfig) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join(name), bytes).expect("written");
    let path = Some(folder.path().into());
    (folder, DataConfig { format: Format::ImageFolder, path, ..Default::default() })
}

fn stored(name: &str) -> Vec<u8> {
    fs::read(fixture("dicom").join(name)).expect("read")
}

/// What reading a file ends in, as one line.
fn refusal(name: &str, bytes: &[u8], change: impl Fn(&mut DataConfig)) -> String {
    let (_folder, mut config) = folder(name, bytes);
    change(&mut config);
    let set = open_train(&config).expect("opens");
    let error = set.load(0, &mut Pixels::default()).expect_err("an error");
    format!("{error:#}")
}

#[test]
fn dicom_files_become_the_bytes_that_pydicom_makes_of_them() {
    let list: Value = serde_yaml::from_slice(&fs::read(fixture("dicom.json")).expect("read")).expect("JSON, exact");
    let list = list.as_array().expect("a list");
    assert!(list.len() > 25);
    for entry in list {
        let name = entry["name"].as_str().expect("a name");
        let (_folder, config) = folder(name, &stored(name));
        let (channels, range) = measure(&*open_train(&config).expect("opens"), &config, false)
            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let config = DataConfig { channels: Channels::Count(channels), ..config };
        let auto = ranges(&entry["auto"]);
        assert_eq!(channels, auto.len(), "{name}");
        match (entry["deep"].as_bool().expect("a truth"), range.of(0)) {
            (false, found) => assert_eq!(found, None, "{name}: {range}"),
            (true, Some([low, high])) => {
                let error = (low - auto[0][0]).abs().max((high - auto[0][1]).abs());
                assert!(error <= 1e-12 * high.abs().max(low.abs()), "{name}: {low} to {high}, expected {auto:?}");
            }
            (true, None) => panic!("{name}: {range}"),
        }
        assert_pixels(&config, "dicom", entry, channels);
    }
}

/// Without a range, what the stored bits can hold becomes 0 to 255.
#[test]
fn the_whole_range_is_that_of_the_stored_bits() {
    let (_folder, config) = folder("a.dcm", &stored("ct_explicit.dcm"));
    let read = |value_range: ValueRange| {
        let config = DataConfig { channels: Channels::Count(1), value_range, ..config.clone() };
        let mut image = Pixels::default();
        open_train(&config).expect("opens").load(0, &mut image).expect("read");
        image.data
    };
    assert_eq!(read(ValueRange::Full), read(ValueRange::All([-1024.0, 4095.0 - 1024.0])));
}

#[test]
fn syntaxes_that_are_not_read_are_named_with_a_command() {
    for (name, kind) in [
        ("unread_ls.dcm", "JPEG-LS (1.2.840.10008.1.2.4.80)"),
        ("unread_j2k.dcm", "JPEG 2000 (1.2.840.10008.1.2.4.90)"),
        ("unread_12.dcm", "JPEG of 12 bits"),
    ] {
        let expected = format!(
            "found DICOM with {kind}, expected uncompressed pixels, RLE, or JPEG (baseline or lossless); convert it, for \
             example with gdcmconv --raw FILE OUT.dcm"
        );
        assert_eq!(refusal(name, &stored(name), |_| ()), expected);
    }
}

#[test]
fn files_without_an_ending_are_found_and_the_list_of_a_medium_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = stored("ct_explicit.dcm");
    for (name, bytes) in [
        ("IM000001", &bytes[..]),
        ("sub/1.2.840.113619.7", &bytes),
        ("sub/b.ima", &bytes),
        ("DICOMDIR", &bytes),
        ("VERSION", b"1"),
        ("notes.txt", &bytes),
    ] {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, bytes).expect("written");
    }
    let path = Some(folder.path().into());
    let config = DataConfig { format: Format::ImageFolder, path, ..Default::default() };
    let set = open_train(&config).expect("opens");
    let names: Vec<String> = (0..set.len()).map(|index| set.name(index)).collect();
    assert_eq!(names, ["IM000001", "sub/1.2.840.113619.7", "sub/b.ima"]);
    (0..set.len()).for_each(|index| set.load(index, &mut Pixels::default()).expect("read"));
}

#[test]
fn files_that_are_too_large_damaged_or_no_images_are_refused_in_one_line() {
    let whole = stored("ct_explicit.dcm");
    let refused = refusal("a.dcm", &whole, |config| config.max_pixels = 300);
    assert_eq!(refused, "found 22 x 17 pixels, expected between 1 and 300 in all (data.max_pixels)");
    let refused = refusal("a.dcm", &whole, |config| config.max_bytes = 600);
    assert!(refused.ends_with("expected at most 600 (data.max_bytes)"), "{refused}");
    // Rows and columns of 65535 each.
    let mut bomb = whole.clone();
    for tag in [0x10, 0x11] {
        let at = bomb.windows(6).position(|bytes| bytes == [0x28, 0, tag, 0, b'U', b'S']).expect("there");
        bomb[at + 8..at + 10].fill(0xff);
    }
    let refused = refusal("a.dcm", &bomb, |_| ());
    assert!(refused.starts_with("found 65535 x 65535 pixels, expected between 1 and 100000000"), "{refused}");
    let refused = refusal("a.dcm", &bomb, |config| config.max_pixels = usize::MAX);
    assert!(refused.starts_with("found 748 bytes of pixels, expected 8589672450"), "{refused}");
    let at = whole.windows(4).position(|bytes| bytes == [0xe0, 0x7f, 0x10, 0]).expect("there");
    let refused = refusal("a.dcm", &whole[..at], |_| ());
    assert!(refused.starts_with("found a DICOM file without pixels (7FE0,0010)"), "{refused}");
}

#[test]
fn damage_anywhere_ends_in_an_image_or_one_line() {
    for name in
        ["ct_explicit.dcm", "rle_u12.dcm", "lossless_i16.dcm", "palette.dcm", "frames_enhanced.dcm", "jpeg_ybr.dcm"]
    {
        let whole = stored(name);
        let (folder, mut config) = folder(name, &whole);
        config.max_pixels = 10_000;
        let (file, set) = (folder.path().join(name), open_train(&config).expect("opens"));
        let mut refused = 0;
        for at in 100..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x5a;
            for bytes in [&bytes[..], &whole[..at]] {
                fs::write(&file, bytes).expect("written");
                if let Err(error) = set.load(0, &mut Pixels::default()) {
                    let text = format!("{error:#}");
                    assert!(!text.is_empty() && !text.contains(['\n', '\r']), "{name} {at}: {text}");
                    assert!(!text.contains("panicked"), "{name} {at}: {text}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 300, "{name}: only {refused}");
    }
}
