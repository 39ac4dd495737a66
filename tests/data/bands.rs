//! Images of other channels and depths than 8-bit RGB against numpy (scripts/reference/bands.py), and sets of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use byol::data::measure::{mean_and_std, measure};
use byol::data::values::{Axes, Channels, ValueRange};
use byol::data::{DataConfig, Dataset, Format, open_train};
use byol::pixels::Pixels;
use serde_json::Value;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data").join(name)
}

/// A folder with these files, as a set.
fn folder(files: &[PathBuf]) -> (tempfile::TempDir, DataConfig) {
    let folder = tempfile::tempdir().expect("a folder");
    for file in files {
        fs::copy(file, folder.path().join(file.file_name().expect("a name"))).expect("copied");
    }
    let path = Some(folder.path().into());
    (folder, DataConfig { format: Format::ImageFolder, path, ..Default::default() })
}

fn measured(config: &DataConfig) -> anyhow::Result<DataConfig> {
    let (channels, value_range) = measure(&*open_train(config)?, config, false)?;
    Ok(DataConfig { channels: Channels::Count(channels), value_range, ..config.clone() })
}

pub fn loaded(set: &Arc<dyn Dataset>, index: usize) -> Pixels {
    let mut out = Pixels::default();
    set.load(index, &mut out).unwrap_or_else(|error| panic!("{}: {error:#}", set.describe(index)));
    out
}

pub fn ranges(value: &Value) -> Vec<[f64; 2]> {
    serde_json::from_value(value.clone()).expect("ranges")
}

/// A set's only image, of 22 x 17 px, becomes by the ranges `auto` and `tight` of its entry in the list the bytes that the
/// reference made, with as many values clipped; those of a lossy image may be as far off as the entry says.
pub fn assert_pixels(config: &DataConfig, folder: &str, entry: &Value, channels: usize) {
    let name = entry["name"].as_str().expect("a name");
    let expected = fs::read(fixture(&format!("{folder}/{name}.bytes"))).expect("read");
    let (auto, tight) = expected.split_at(expected.len() / 2);
    let off = entry["off"].as_u64().unwrap_or(0) as u8;
    for (key, expected, clipped) in [("auto", auto, None), ("tight", tight, Some("clipped"))] {
        let value_range = ValueRange::Each(ranges(&entry[key]));
        let set = open_train(&DataConfig { value_range, ..config.clone() }).expect("opens");
        let image = loaded(&set, 0);
        assert_eq!((image.width, image.height, image.channels), (22, 17, channels), "{name}");
        let differs = image.data.iter().zip(expected).position(|(ours, theirs)| ours.abs_diff(*theirs) > off);
        let place = differs.map(|at| (at / channels, at % channels, image.data[at], expected[at]));
        assert_eq!(place, None, "{name}: the first pixel and channel that differ");
        if let (Some(key), 0) = (clipped, off) {
            assert_eq!(set.clipped(), [entry[key].as_u64().expect("a number"), expected.len() as u64], "{name}");
        }
    }
}

#[test]
fn bands_become_the_bytes_that_numpy_makes_of_them() {
    let list: Value =
        serde_yaml::from_slice(&fs::read(fixture("bands.json")).expect("read")).expect("JSON, exact to the last bit");
    for entry in list.as_array().expect("a list") {
        let name = entry["name"].as_str().expect("a name");
        let file = fixture("bands").join(name);
        let (_folder, mut config) = folder(&[file]);
        config.axes = if name.starts_with("chw") { Axes::Chw } else { Axes::Hwc };
        let channels = entry["channels"].as_u64().expect("a number") as usize;
        let found = measured(&config).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert_eq!(found.channels, Channels::Count(channels), "{name}");
        let auto = ranges(&entry["auto"]);
        for (channel, [low, high]) in auto.iter().enumerate().filter(|_| !name.contains("u8")) {
            let [a, b] = found.value_range.of(channel).unwrap_or_else(|| panic!("{name}: {}", found.value_range));
            let error = (a - low).abs().max((b - high).abs());
            assert!(error <= 1e-12 * high.abs().max(low.abs()), "{name}: {a} to {b}, expected {low} to {high}");
        }
        assert_pixels(&found, "bands", entry, channels);
    }
}

#[test]
fn a_set_of_gray_images_stays_gray_and_a_mixed_one_becomes_rgb() {
    let image = |name: &str| fixture("images").join(name);
    let gray = [image("grey.png"), image("grey.jpg"), image("grey_alpha.png"), image("grey.tiff")];
    let (_gray, config) = folder(&gray);
    let found = measured(&config).expect("measured");
    assert_eq!((found.channels, &found.value_range), (Channels::Count(1), &ValueRange::Full));
    let (set, rgb) = (open_train(&found).expect("opens"), open_train(&config).expect("opens"));
    for index in 0..set.len() {
        let (one, three) = (loaded(&set, index), loaded(&rgb, index));
        assert_eq!((one.channels, three.channels), (1, 3));
        assert!(one.data.iter().eq(three.data.iter().step_by(3)), "{}", set.describe(index));
    }
    let (_mixed, config) = folder(&[image("grey.png"), image("rgba.png")]);
    let found = measured(&config).expect("measured");
    assert_eq!((found.channels, &found.value_range), (Channels::Count(3), &ValueRange::Full));
    // Alpha only if it is asked for.
    let four = DataConfig { channels: Channels::Count(4), ..found };
    let set = open_train(&four).expect("opens");
    let [grey, rgba] = [0, 1].map(|index| loaded(&set, index));
    assert!(grey.data.as_chunks::<4>().0.iter().all(|[r, g, b, a]| r == g && g == b && *a == 255));
    assert!(rgba.data.as_chunks::<4>().0.iter().any(|pixel| pixel[3] != 255));
}

#[test]
fn numbers_of_channels_that_do_not_go_together_are_refused() {
    let band = |name: &str| fixture("bands").join(name);
    let (_mixed, config) = folder(&[band("u16_4_planar.tif"), band("u8_5_lzw.tif")]);
    let message = format!("{:#}", measured(&config).expect_err("an error"));
    for part in ["data.channels: ", "4 in ", "u16_4_planar.tif", "5 in ", "set data.channels"] {
        assert!(message.contains(part), "{message}");
    }
    let set = open_train(&DataConfig { channels: Channels::Count(4), ..config.clone() }).expect("opens");
    assert_eq!(loaded(&set, 0).channels, 4);
    let message = format!("{:#}", set.load(1, &mut Pixels::default()).expect_err("an error"));
    assert_eq!(message, "found an image of 5 channels, expected 4 (data.channels)");
    // Types that differ have no common range.
    let (_types, config) = folder(&[band("u16_1.png"), fixture("images/grey.png")]);
    assert_eq!(measured(&config).expect("measured").value_range, ValueRange::Full);
}

#[test]
fn mean_and_standard_deviation_are_those_of_all_pixels() {
    let (_folder, config) = folder(&[fixture("bands/u8_5_lzw.tif"), fixture("bands/u8_5_lzw.tif")]);
    let config = measured(&config).expect("measured");
    let set = open_train(&config).expect("opens");
    let [mean, std] = mean_and_std(&*set, 5, false).expect("some");
    let bytes = loaded(&set, 0).data;
    for (channel, (mean, std)) in mean.iter().zip(&std).enumerate() {
        let values: Vec<f64> = bytes[channel..].iter().step_by(5).map(|v| f64::from(*v) / 255.0).collect();
        let average = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - average).powi(2)).sum::<f64>() / values.len() as f64;
        assert!((mean - average).abs() <= 5.1e-5, "{mean}, expected {average}");
        assert!((std - variance.sqrt()).abs() <= 5.1e-5, "{std}, expected {}", variance.sqrt());
    }
}

/// Headers of npy files that no one writes, and files that end early.
#[test]
fn damaged_arrays_end_in_one_line() {
    for name in ["u16_4.npy", "f32_2.npy", "u16_13_tiles_zstd.tif", "u16_4_planar.tif", "f32_4_tiles.tif"] {
        let whole = fs::read(fixture("bands").join(name)).expect("read");
        let scratch = tempfile::tempdir().expect("a folder");
        let file = scratch.path().join(name);
        let config = DataConfig {
            format: Format::ImageFolder,
            path: Some(scratch.path().into()),
            channels: Channels::Count(4),
            max_pixels: 10_000,
            ..Default::default()
        };
        fs::write(&file, &whole).expect("written");
        let set = open_train(&config).expect("opens");
        let mut refused = 0;
        for at in (0..whole.len().min(600)).chain((600..whole.len()).step_by(97)) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x5a;
            for bytes in [&bytes[..], &whole[..at]] {
                fs::write(&file, bytes).expect("written");
                if let Err(error) = set.load(0, &mut Pixels::default()) {
                    let text = format!("{error:#}");
                    assert!(!text.is_empty() && !text.contains(['\n', '\r']), "{name} {at}: {text}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 300, "{name}: only {refused}");
    }
}

/// Small sets of what users have, where they are at hand.
#[test]
fn deep_and_multi_band_images_of_users_are_read() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/cases");
    if !cases.join("gray12").exists() || !cases.join("tiff_bands").exists() {
        println!("skipped: {} is missing", cases.display());
        return;
    }
    let path = Some(cases.join("gray12/img").as_path().into());
    let config = DataConfig { format: Format::ImageFolder, path, ..Default::default() };
    let found = measured(&config).expect("measured");
    assert_eq!(found.channels, Channels::Count(1));
    let Some([low, high]) = found.value_range.of(0) else { panic!("{}", found.value_range) };
    assert!((0.0..=200.0).contains(&low) && (3900.0..4096.0).contains(&high), "{low} to {high}");
    let set = open_train(&found).expect("opens");
    let images: Vec<Vec<u8>> = (0..set.len()).map(|index| loaded(&set, index).data).collect();
    assert!((1..images.len()).all(|at| !images[..at].contains(&images[at])), "images became equal");
    let levels = images[0].iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(levels > 60, "{levels} levels of gray");
    for entry in fs::read_dir(cases.join("tiff_bands/img")).expect("listed") {
        let file = entry.expect("an entry").path();
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        let (_folder, config) = folder(&[file]);
        let found = measured(&config).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let channels = match name.split('_').next().unwrap_or_default() {
            "bigtiff.tif" | "tifpal" => 3,
            "tif12ch" => 12,
            "tif4ch" => 4,
            "tif2ch" => 2,
            "floattif" | "int16tif" | "tifla" => 1,
            _ => continue,
        };
        assert_eq!(found.channels, Channels::Count(channels), "{name}");
        let image = loaded(&open_train(&found).expect("opens"), 0);
        assert_eq!((image.width, image.height, image.channels), (64, 64, channels), "{name}");
        let levels = image.data.iter().collect::<std::collections::BTreeSet<_>>().len();
        assert!(levels > 4, "{name}: {levels} levels");
    }
}
