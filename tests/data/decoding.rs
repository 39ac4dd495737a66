//! Every image format and oddity against what Pillow makes of it (scripts/reference/images.py).

use std::path::Path;

use byol::augment::{Crop, Part};
use byol::data::decode::{DecodeOptions, decode, decode_part};
use byol::data::{DataConfig, Format, open_train};
use byol::pixels::Pixels;
use byol::rng::{Purpose, Stream};
use serde_json::Value;

const OPTIONS: DecodeOptions =
    DecodeOptions { max_pixels: 1_000_000, max_bytes: 1 << 20, exif_orientation: true, scaled_above: usize::MAX };

fn image_bytes(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data/images");
    std::fs::read(folder.join(name)).unwrap()
}

fn images() -> Vec<Value> {
    let list: Value = serde_json::from_slice(&image_bytes("../images.json")).unwrap();
    list.as_array().unwrap().clone()
}

fn decoded(bytes: &[u8]) -> anyhow::Result<Pixels> {
    let mut out = Pixels::default();
    decode(bytes, OPTIONS, &mut out).map(|()| out)
}

fn message(bytes: &[u8]) -> String {
    let text = format!("{:#}", decoded(bytes).expect_err("an error"));
    assert!(!text.contains(['\n', '\r']), "{text}");
    text
}

#[test]
fn images_decode_as_in_pillow() {
    // One target for all: what an image leaves behind must not show in the next.
    let mut out = Pixels::default();
    let mut wrong = Vec::new();
    for image in images() {
        let name = image["name"].as_str().unwrap();
        let size = (image["width"].as_u64().unwrap(), image["height"].as_u64().unwrap());
        if let Err(error) = decode(&image_bytes(name), OPTIONS, &mut out) {
            wrong.push(format!("{name}: {error:#}"));
        } else if (out.width as u64, out.height as u64) != size {
            wrong.push(format!("{name}: {} x {}, expected {size:?}", out.width, out.height));
        } else {
            let expected = image_bytes(&format!("{name}.rgb"));
            assert_eq!(out.data.len(), expected.len(), "{name}");
            let difference = out.data.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            if difference as u64 > image["tolerance"].as_u64().unwrap() {
                wrong.push(format!("{name}: largest difference {difference}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Decodes parts of an image and compares them with the whole; returns how many were smaller than that.
fn compare_parts(name: &str, bytes: &[u8], parts: u64) -> usize {
    let whole = decoded(bytes);
    let (mut out, mut smaller) = (Pixels::default(), 0);
    for number in 0..parts {
        let mut rng = Stream::new(2, Purpose::Synthetic, 0, number, 0);
        let mut wanted = Crop::whole(1, 1);
        let mut want = |width, height| {
            let mut span = |length: usize| {
                let start = [0, rng.below(length)][rng.below(4).min(1)];
                (start, [length - start, 1 + rng.below(length - start)][rng.below(4).min(1)])
            };
            let ((left, width), (top, height)) = (span(width), span(height));
            wanted = Crop { left, top, width, height };
            Part { crop: wanted, reduction: 8 } // which the options forbid
        };
        let part = decode_part(bytes, OPTIONS, &mut want, &mut out);
        let (part, whole) = match (part, &whole) {
            (Ok(part), Ok(whole)) => (part, whole),
            (Err(part), Err(whole)) => {
                assert_eq!(part.to_string(), whole.to_string(), "{name}");
                continue;
            }
            (part, whole) => panic!("{name}: {part:?} for {wanted:?}, {whole:?} for the whole"),
        };
        let Part { crop: part, reduction: 1 } = part else { panic!("{name}: {part:?}") };
        assert_eq!((out.width, out.height), (part.width, part.height), "{name}");
        assert_eq!(part.around(wanted), part, "{name}: the part does not hold {wanted:?}");
        let row = |image: &Pixels, left, top| image.data[(top * image.width + left) * 3..][..wanted.width * 3].to_vec();
        for y in wanted.top..wanted.top + wanted.height {
            let found = row(&out, wanted.left - part.left, y - part.top);
            assert_eq!(found, row(whole, wanted.left, y), "{name}: row {y} of {wanted:?}");
        }
        smaller += (out.data.len() < whole.data.len()) as usize;
    }
    smaller
}

#[test]
fn a_part_of_an_image_is_that_part_of_the_whole() {
    for image in images() {
        let name = image["name"].as_str().unwrap();
        let smaller = compare_parts(name, &image_bytes(name), 100);
        let sequential = name.starts_with("large") && !name.contains("progressive");
        assert!(!sequential || smaller > 50, "{name}: only {smaller} parts were smaller than the whole");
    }
    let photos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/imagenet-sample");
    let Ok(photos) = std::fs::read_dir(&photos) else {
        println!("skipped: {} is missing", photos.display());
        return;
    };
    for path in photos.map(|entry| entry.unwrap().path()) {
        compare_parts(&path.display().to_string(), &std::fs::read(&path).unwrap(), 5);
    }
}

/// Or else a bad image would be one in some epochs only.
#[test]
fn damage_shows_alike_in_every_part() {
    for image in images() {
        let name = image["name"].as_str().unwrap();
        let whole = image_bytes(name);
        if !name.starts_with("large") {
            continue;
        }
        for number in 0..400 {
            let mut rng = Stream::new(3, Purpose::Synthetic, 0, number, 0);
            let mut bytes = whole.clone();
            for _ in 0..1 + rng.below(3) {
                let at = rng.below(bytes.len());
                bytes[at] = [rng.below(256) as u8, 0xff, 0xd9, 0xda][rng.below(6).saturating_sub(2)];
            }
            compare_parts(name, &bytes, 6);
        }
    }
}

/// A JPEG at a lower resolution: its size, its part and its colors, and that its damage shows as in full.
#[test]
fn large_jpegs_are_reduced_by_what_is_wanted() {
    let options = DecodeOptions { scaled_above: 83 * 70 - 1, ..OPTIONS };
    let decode_at = |bytes: &[u8], crop: Crop, reduction, out: &mut Pixels| {
        decode_part(bytes, options, &mut |_, _| Part { crop, reduction }, out)
    };
    let means = |image: &Pixels| {
        let sum = |c| image.data.iter().skip(c).step_by(3).map(|v| f64::from(*v)).sum::<f64>();
        [0, 1, 2].map(|c| sum(c) / (image.width * image.height) as f64)
    };
    let names: Vec<String> = images().iter().map(|image| image["name"].as_str().unwrap().to_string()).collect();
    let (mut out, mut whole, mut reduced_in_part) = (Pixels::default(), Pixels::default(), 0);
    for (name, reduction) in
        names.iter().filter(|name| name.starts_with("large")).flat_map(|n| [1, 2, 4, 8].map(|r| (n, r)))
    {
        let bytes = image_bytes(name);
        let full = decoded(&bytes).unwrap();
        let all = Crop::whole(full.width, full.height);
        let part = decode_at(&bytes, all, reduction, &mut whole).unwrap();
        // Turned, an odd number of columns has no place in a reduced image.
        let expected = if name.contains("exif") { 1 } else { reduction };
        assert_eq!(part, Part { crop: all, reduction: expected }, "{name}");
        assert_eq!(
            (whole.width, whole.height),
            (all.width.div_ceil(expected), all.height.div_ceil(expected)),
            "{name}"
        );
        for (found, expected) in means(&whole).into_iter().zip(means(&full)) {
            assert!((found - expected).abs() < 4.0, "{name} at 1/{reduction}: mean {found}, of all {expected}");
        }
        // A part is that part of the reduced whole.
        let wanted = Crop { left: 37, top: 21, width: 24, height: 30 };
        let part = decode_at(&bytes, wanted, reduction, &mut out).unwrap();
        assert_eq!(part.crop.around(wanted), part.crop, "{name}");
        let (inner, place) = (wanted.reduced(part.reduction), part.crop.reduced(part.reduction));
        let row = |image: &Pixels, left, y| image.data[(y * image.width + left) * 3..][..inner.width * 3].to_vec();
        for y in inner.top..inner.top + inner.height {
            let found = row(&out, inner.left - place.left, y - place.top);
            assert_eq!(found, row(&whole, inner.left, y), "{name} at 1/{reduction}: row {y}");
        }
        reduced_in_part += usize::from(out.data.len() < whole.data.len());
        // Damage: readable at every resolution or at none.
        for number in 0..100 {
            let mut rng = Stream::new(4, Purpose::Synthetic, 0, number, 0);
            let (mut bytes, at) = (bytes.clone(), rng.below(bytes.len()));
            bytes[at] = rng.below(256) as u8;
            let (full, reduced) = (decoded(&bytes), decode_at(&bytes, wanted, reduction, &mut out));
            let crop_fits = full.as_ref().is_ok_and(|full| (full.width, full.height) == (all.width, all.height));
            assert!(reduced.is_ok() || !crop_fits, "{name}: byte {at}: {reduced:?}");
            assert!(reduced.is_err() || full.is_ok(), "{name}: byte {at}: {full:?}");
        }
    }
    assert!(reduced_in_part > 10);
    // Small images are never reduced.
    let part = decode_part(
        &image_bytes("large_420.jpg"),
        OPTIONS,
        &mut |w, h| Part { crop: Crop::whole(w, h), reduction: 8 },
        &mut out,
    );
    assert_eq!(part.unwrap().reduction, 1);
}

#[test]
fn orientation_can_be_switched_off() {
    let off = DecodeOptions { exif_orientation: false, ..OPTIONS };
    for (turned, upright) in [
        ("exif6.jpg", "plain.jpg"),
        ("exif2.jpg", "plain.jpg"),
        ("xmp8.jpg", "plain.jpg"),
        ("exif6.png", "rgb.png"),
        ("exif6_late.png", "rgb.png"),
        ("xmp6.png", "rgb.png"),
        ("exif6.tiff", "raw.tiff"),
        ("exif6.webp", "lossless.webp"),
    ] {
        let mut out = Pixels::default();
        decode(&image_bytes(turned), off, &mut out).unwrap();
        let upright = decoded(&image_bytes(upright)).unwrap();
        assert_eq!(out, upright, "{turned}");
        assert_ne!(decoded(&image_bytes(turned)).unwrap(), upright, "{turned}");
    }
    let scratch = tempfile::tempdir().unwrap();
    std::fs::write(scratch.path().join("a.jpg"), image_bytes("exif6.jpg")).unwrap();
    for (exif_orientation, size) in [(true, (16, 24)), (false, (24, 16))] {
        let path = Some(scratch.path().into());
        let config = DataConfig { format: Format::ImageFolder, path, exif_orientation, ..Default::default() };
        let mut out = Pixels::default();
        open_train(&config).unwrap().load(0, &mut out).unwrap();
        assert_eq!((out.width, out.height), size);
    }
}

#[test]
fn damaged_images_end_in_one_line_without_repetition() {
    let (mut errors, mut total) = (0, 0);
    for image in images() {
        let name = image["name"].as_str().unwrap();
        let whole = image_bytes(name);
        let cut = (0..whole.len()).step_by(5).map(|n| whole[..n].to_vec());
        let flipped = (0..whole.len() * 2).step_by(3).map(|n| {
            let mut bytes = whole.clone();
            bytes[n / 2] ^= [0xff, 0x10][n % 2];
            bytes
        });
        for bytes in cut.chain(flipped) {
            total += 1;
            if let Err(error) = decoded(&bytes) {
                errors += 1;
                let text = format!("{error:#}");
                assert!(!text.is_empty() && !text.contains(['\n', '\r']), "{name}: {text}");
                let parts: Vec<&str> = text.split(": ").collect();
                assert!((1..parts.len()).all(|at| !parts[..at].contains(&parts[at])), "{name}: {text}");
            }
        }
    }
    assert!(errors * 3 > total, "only {errors} of {total} damaged images were refused");
}

#[test]
fn truncation_is_found_in_every_format() {
    for name in [
        "plain.jpg",
        "progressive.jpg",
        "trailer.jpg",
        "comment.jpg",
        "rgb.png",
        "interlaced.png",
        "rgb.tiff",
        "raw.tiff",
        "lossless.webp",
        "rgb.bmp",
    ] {
        let whole = image_bytes(name);
        for part in [whole.len() / 3, whole.len() * 2 / 3, whole.len() - 60] {
            assert!(decoded(&whole[..part]).is_err(), "{name} cut to {part} bytes");
        }
    }
    let jpeg = image_bytes("plain.jpg");
    assert_eq!(message(&jpeg[..jpeg.len() - 1]), "the jpeg is truncated: its end marker is missing");
}

/// Headers that promise 65535 pixels a side, or as many as the format can, in a few hundred bytes.
#[test]
fn bombs_are_refused_before_decoding() {
    let bomb = |name: &str, at: usize, size: &[u8]| {
        let mut bytes = image_bytes(name);
        bytes[at..at + size.len()].copy_from_slice(size);
        message(&bytes)
    };
    let jpeg = image_bytes("plain.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    let text = bomb("plain.jpg", frame + 5, &[0xff, 0xdc, 0xff, 0xdc]);
    assert!(text.contains("found 65500 x 65500 pixels, expected between 1 and 1000000"), "{text}");
    // Within the limit, but more than the bytes can hold.
    let text = bomb("plain.jpg", frame + 5, &[3, 0xe0, 3, 0xe0]);
    assert!(text.contains("992 x 992 pixels: the jpeg is damaged"), "{text}");
    // Scans that take time but no bytes.
    let mut jpeg = image_bytes("progressive.jpg");
    let scan = jpeg.windows(2).rposition(|pair| pair == [0xff, 0xda]).unwrap();
    let last = jpeg[scan..jpeg.len() - 2].to_vec();
    (0..60).for_each(|_| drop(jpeg.splice(scan..scan, last.iter().copied())));
    assert_eq!(message(&jpeg), "cannot decode the jpeg: found more than 50 scans");
    let text = bomb("rgb.bmp", 18, &[0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0]);
    assert!(text.contains("found 65535 x 65535 pixels"), "{text}");
    let text = bomb("animated.gif", 6, &[0xff; 4]);
    assert!(text.contains("found 65535 x 65535 pixels"), "{text}");
    // 16383, less one, in 14 bits each.
    let text = bomb("lossless.webp", 21, &[0xfe, 0xbf, 0xff, 0x0f]);
    assert!(text.contains("found 16383 x 16383 pixels"), "{text}");
    let tiff = image_bytes("raw.tiff");
    let widths = tiff.windows(4).position(|tag| tag == [0, 1, 4, 0] || tag == [0, 1, 3, 0]).unwrap();
    let text = bomb("raw.tiff", widths + 8, &[0xff, 0xff]);
    assert!(text.contains("found 65535 x 16 pixels, expected between"), "{text}");
    // With its checksum, 65535 x 65535.
    let text = bomb("rgb.png", 16, &[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff, 8, 2, 0, 0, 0, 0x39, 0x67, 0x4e, 0x07]);
    assert!(text.contains("found 65535 x 65535 pixels"), "{text}");
}

/// Frames that are larger than the file around them says.
#[test]
fn bombs_inside_small_images_are_refused() {
    let bomb = |name: &str, inner: &[u8], at: usize, size: &[u8]| {
        let mut bytes = image_bytes(name);
        let start = bytes.windows(inner.len()).position(|window| window == inner).unwrap() + at;
        bytes[start..start + size.len()].copy_from_slice(size);
        message(&bytes)
    };
    let text = bomb("lossy_alpha.webp", b"VP8 ", 14, &[0xff, 0x3f, 0xff, 0x3f]);
    assert!(text.starts_with("found 16383 x 16383 pixels"), "{text}");
    let text = bomb("animated.webp", b"VP8L", 9, &[0xfe, 0xbf, 0xff, 0x0f]);
    assert!(text.starts_with("found 16383 x 16383 pixels"), "{text}");
    let text = bomb("jpeg.tiff", &[0xff, 0xc0], 5, &[0x3f, 0xff, 0x3f, 0xff]);
    assert!(text.starts_with("found 16383 x 16383 pixels"), "{text}");
    // Metadata of 4 GiB is none.
    let mut webp = image_bytes("exif6.webp");
    let exif = webp.windows(4).position(|window| window == b"EXIF").unwrap();
    webp[exif + 4..exif + 8].fill(0xff);
    decoded(&webp).unwrap();
}

#[test]
fn what_is_no_image_is_named() {
    assert_eq!(message(b""), "found no bytes, expected an image");
    assert!(message(b"hello").starts_with("found an unknown file type, expected JPEG"));
    assert_eq!(message(&vec![0; (1 << 20) + 1]), "found 1048577 bytes, expected at most 1048576 (data.max_bytes)");
    // Two channels: which ones, no one can tell.
    let mut jpeg = image_bytes("plain.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 9] = 2;
    jpeg[frame + 3] -= 3;
    jpeg.drain(frame + 16..frame + 19);
    let scan = jpeg.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
    jpeg[scan + 4] = 2;
    jpeg[scan + 3] -= 2;
    jpeg.drain(scan + 9..scan + 11);
    assert_eq!(message(&jpeg), "found a jpeg of 2 channels, expected 1, 3 or 4");
}

/// What happens to a file while a run is going on makes it a bad image, no more.
#[test]
fn files_that_cannot_be_read_are_bad_images() {
    let scratch = tempfile::tempdir().unwrap();
    let file = |name: &str| scratch.path().join(name);
    for name in ["gone.jpg", "grown.jpg", "pipe.jpg"] {
        std::fs::write(file(name), image_bytes("plain.jpg")).unwrap();
    }
    let path = Some(scratch.path().into());
    let config = DataConfig { format: Format::ImageFolder, path, max_bytes: 2000, ..Default::default() };
    let set = open_train(&config).unwrap();
    let mut out = Pixels::default();
    (0..3).for_each(|index| set.load(index, &mut out).unwrap());
    std::fs::remove_file(file("gone.jpg")).unwrap();
    std::fs::write(file("grown.jpg"), [image_bytes("plain.jpg"), vec![0; 2000]].concat()).unwrap();
    std::fs::remove_file(file("pipe.jpg")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(file("pipe.jpg")).status().unwrap().success());
    let mut error = |index| format!("{:#}", set.load(index, &mut out).unwrap_err());
    assert_eq!(error(0), "no such file");
    assert!(error(1).contains("expected at most 2000 (data.max_bytes)"), "{}", error(1));
    assert_eq!(error(2), "found a named pipe, expected a file");
}
