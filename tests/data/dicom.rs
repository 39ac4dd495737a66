//! DICOM files against pydicom (scripts/reference/dicom.py), and folders of them.

use std::fs;

use byol::data::measure::measure;
use byol::data::values::{Channels, ValueRange};
use byol::data::{DataConfig, Format, Frames, fingerprint, open_train};
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
                let off = entry["off"].as_f64().expect("a number");
                let most = off + 1e-12 * high.abs().max(low.abs());
                assert!(error <= most, "{name}: {low} to {high}, expected {auto:?}");
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
    let (gdcm, pydicom) = ("gdcmconv --raw FILE OUT.dcm", "decompress() and save_as() of Python's pydicom");
    for (name, kind, command) in [
        ("unread_ls.dcm", "JPEG-LS in color", gdcm),
        ("unread_htj2k.dcm", "high-throughput JPEG 2000 (1.2.840.10008.1.2.4.201)", pydicom),
        ("unread_12.dcm", "JPEG of 12 bits", gdcm),
    ] {
        let expected = format!(
            "found DICOM with {kind}, expected uncompressed pixels, RLE, JPEG (8 bits or lossless), JPEG-LS in gray or \
             JPEG 2000; convert it, for example with {command}"
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
    for name in [
        "ct_explicit.dcm",
        "rle_u12.dcm",
        "lossless_i16.dcm",
        "palette.dcm",
        "frames_enhanced.dcm",
        "jpeg_ybr.dcm",
        "ls_u12.dcm",
        "j2k_rct.dcm",
    ] {
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

/// Frames of a file as images of their own.
pub fn frames(name: &str, bytes: &[u8]) -> (tempfile::TempDir, DataConfig) {
    let (folder, config) = folder(name, bytes);
    (folder, DataConfig { frames: Frames::All, ..config })
}

/// Every frame of the files of `list`, in the folder `from`, is the image that the reference made of it.
pub fn assert_frames(from: &str, list: &str, expected: &str) {
    let list: Value = serde_yaml::from_slice(&fs::read(fixture(list)).expect("read")).expect("JSON, exact");
    let list = list.as_array().expect("a list");
    assert!(list.len() >= 9);
    for entry in list {
        let name = entry["name"].as_str().expect("a name");
        let number = |key: &str| entry[key].as_u64().expect("a number") as usize;
        let range: [f64; 2] = serde_json::from_value(entry["range"].clone()).expect("a range");
        let (_folder, config) = frames(name, &fs::read(fixture(from).join(name)).expect("read"));
        let (channels, value_range) = (Channels::Count(number("channels")), ValueRange::All(range));
        let set = open_train(&DataConfig { channels, value_range, ..config }).expect("opens");
        assert_eq!(set.len(), number("frames"), "{name}");
        let expected = fs::read(fixture(&format!("{from}/{name}.{expected}"))).expect("read");
        for (frame, expected) in expected.chunks(22 * 17 * number("channels")).enumerate() {
            let suffix = if set.len() > 1 { format!("/{frame}") } else { String::new() };
            assert_eq!(set.name(frame), format!("{name}{suffix}"));
            let mut image = Pixels::default();
            set.load(frame, &mut image).unwrap_or_else(|error| panic!("{}: {error:#}", set.describe(frame)));
            assert_eq!((image.width, image.height), (22, 17), "{name}");
            assert!(image.data == expected, "{}", set.describe(frame));
        }
    }
}

#[test]
fn every_frame_is_the_image_that_pydicom_makes_of_it() {
    assert_frames("dicom", "frames.json", "frames");
}

#[test]
fn files_of_one_frame_and_of_several_are_a_set_with_the_classes_of_their_files() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, from) in [
        ("ct/one.dcm", "dicom/ct_explicit.dcm"),
        ("ct/picture.png", "images/grey.png"),
        ("mr/IM0001", "dicom/frames_rle.dcm"),
        ("mr/z.dcm", "dicom/u8.dcm"),
    ] {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::copy(fixture(from), path).expect("copied");
    }
    let path = Some(folder.path().into());
    let first = DataConfig { format: Format::ImageFolder, path, ..Default::default() };
    let all = DataConfig { frames: Frames::All, ..first.clone() };
    let [first, set] = [first, all.clone()].map(|config| open_train(&config).expect("opens"));
    let names: Vec<String> = (0..set.len()).map(|index| set.name(index)).collect();
    assert_eq!(names, ["ct/one.dcm", "ct/picture.png", "mr/IM0001/0", "mr/IM0001/1", "mr/IM0001/2", "mr/z.dcm"]);
    let labels: Vec<Option<i64>> = (0..set.len()).map(|index| set.label(index)).collect();
    assert_eq!(labels, [0, 0, 1, 1, 1, 1].map(Some));
    assert!(
        set.describe(3).ends_with("mr/IM0001") && set.describe(3).starts_with("frame 1 of "),
        "{}",
        set.describe(3)
    );
    assert_eq!((first.len(), first.name(2)), (4, "mr/IM0001".into()));
    assert_ne!(fingerprint(&*first), fingerprint(&*set));
    let limited = open_train(&DataConfig { limit: Some(4), ..all }).expect("opens");
    assert_eq!((limited.len(), limited.name(3)), (4, "mr/IM0001/1".into()));
}

/// Files that say that they have more frames than they do are used as with `first`, and cost no more than that.
#[test]
fn frames_that_are_not_there_are_not_counted() {
    for name in [
        "frames.dcm",
        "frames_rle.dcm",
        "frames_jpeg.dcm",
        "frames_jpeg_table.dcm",
        "frames_open.dcm",
        "frames_j2k.dcm",
        "frames_ls.dcm",
    ] {
        let whole = stored(name);
        let at = whole.windows(6).position(|bytes| bytes == [0x28, 0, 8, 0, b'I', b'S']).expect("there");
        let frames_of = |count: &str| {
            let value = format!("{count:<10}");
            [&whole[..at + 6], &10u16.to_le_bytes(), value.as_bytes(), &whole[at + 10..]].concat()
        };
        for count in ["2147483648", "1e300", "1073741824", "7"] {
            let (_folder, config) = frames(name, &frames_of(count));
            let set = open_train(&config).expect("opens");
            assert_eq!((set.len(), set.name(0)), (1, name.to_string()), "{name} {count}");
            set.load(0, &mut Pixels::default()).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        }
    }
}

#[test]
fn damage_to_a_file_of_frames_ends_in_images_or_one_line() {
    for name in ["frames_enhanced.dcm", "frames_rle.dcm", "frames_jpeg_table.dcm"] {
        assert_damage_is_borne(name, &stored(name), (100, 3), 4000);
    }
}

/// With every so many bytes, from `first` on, changed or the rest cut off, a file has at most `most` images, and each ends
/// in pixels or one line.
pub fn assert_damage_is_borne(name: &str, whole: &[u8], (first, every): (usize, usize), most: usize) {
    let (folder, mut config) = frames(name, whole);
    config.max_pixels = 10_000;
    let (file, intact) = (folder.path().join(name), open_train(&config).expect("opens"));
    let mut refused = 0;
    for at in (first..whole.len()).step_by(every) {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 0x5a;
        for bytes in [&bytes[..], &whole[..at]] {
            fs::write(&file, bytes).expect("written");
            let set = open_train(&config).expect("opens");
            assert!(set.len() <= most, "{name} {at}: {} images", set.len());
            // Also as one that was counted before the damage.
            for set in [&set, &intact] {
                let Err(error) = set.load(set.len() - 1, &mut Pixels::default()) else { continue };
                let text = format!("{error:#}");
                assert!(!text.is_empty() && !text.contains(['\n', '\r']), "{name} {at}: {text}");
                assert!(!text.contains("panicked"), "{name} {at}: {text}");
                refused += 1;
            }
        }
    }
    assert!(refused > 300, "{name}: only {refused}");
}

/// Of a file of 3 GB, nearly all of it a hole, the frames at the end are read as fast as those at the beginning.
#[test]
fn a_frame_of_a_large_file_is_read_alone() {
    let whole = stored("frames_rgb.dcm");
    let at = whole.windows(4).position(|bytes| bytes == [0xe0, 0x7f, 0x10, 0]).expect("there");
    let (folder, mut config) = frames("large.dcm", b"");
    config.max_bytes = 100_000;
    let mut head = whole[..at + 4].to_vec();
    let count = head.windows(4).position(|bytes| bytes == [0x28, 0, 8, 0]).expect("there");
    head.splice(count + 4..count + 10, [&8u32.to_le_bytes()[..], b"2500000 "].concat());
    let (frame, frames) = (22 * 17 * 3, 2_500_000u64);
    let length = frame * frames;
    head.extend((length as u32).to_le_bytes());
    let file = fs::File::create(folder.path().join("large.dcm")).expect("created");
    use std::os::unix::fs::FileExt;
    file.write_all_at(&head, 0).expect("written");
    file.set_len(head.len() as u64 + length).expect("enlarged");
    file.write_all_at(&whole[at + 8..][..frame as usize], head.len() as u64 + length - frame).expect("written");
    let set = open_train(&config).expect("opens");
    assert_eq!(set.len() as u64, frames);
    let [mut last, mut before, mut expected] = [(); 3].map(|()| Pixels::default());
    set.load(set.len() - 1, &mut last).expect("read");
    set.load(set.len() - 2, &mut before).expect("read");
    let (_first, config) = self::folder("first.dcm", &whole);
    open_train(&config).expect("opens").load(0, &mut expected).expect("read");
    assert!(last.data == expected.data && before.data.iter().all(|byte| *byte == 0));
}
