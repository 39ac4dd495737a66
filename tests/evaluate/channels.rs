//! A run on images of four 16-bit channels, from TIFF files to linear evaluation and exports; and gray images.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use byol::data::values::ValueRange;
use byol::eval::{Encoder, EncoderOptions};
use serde_json::Value;

const CONFIG: &str = "
data: {format: image_folder, path: train, eval_path: test, workers: 1}
augment:
  size: 16
  view1: {blur_sigma: [0.1, 0.5], saturation: 0, hue: 0, grayscale_prob: 0}
  view2: {blur_sigma: [0.1, 0.5], saturation: 0, hue: 0, grayscale_prob: 0}
model: {arch: resnet18, width: 0.25, stem: cifar, projector_hidden: 32, projection_dim: 16, predictor_hidden: 32}
optimizer: {name: sgd, base_lr: 0.1}
schedule: {epochs: 2, warmup_epochs: 0}
train: {batch_size: 8, precision: fp32, device: cpu, threads: 1, seed: 7}
monitor: {knn_every: 1, knn_k: 3}
output: {dir: run}
";

/// A little-endian TIFF of 16-bit values, interleaved, in one strip.
fn tiff(width: u16, height: u16, channels: u16, values: &[u16]) -> Vec<u8> {
    let bits = vec![16u16; channels as usize];
    let strip = 8 + 2 * bits.len() as u32;
    let directory = strip + 2 * values.len() as u32;
    let mut bytes = [&b"II*\0"[..], &directory.to_le_bytes()].concat();
    bytes.extend(bits.iter().chain(values).flat_map(|value| value.to_le_bytes()));
    let entries: [(u16, u16, u32, u32); 10] = [
        (256, 3, 1, width.into()),
        (257, 3, 1, height.into()),
        (258, 3, channels.into(), if channels > 2 { 8 } else { 0x0010_0010 }),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, strip),
        (277, 3, 1, channels.into()),
        (278, 3, 1, height.into()),
        (279, 4, 1, 2 * values.len() as u32),
        (284, 3, 1, 1),
    ];
    bytes.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in entries {
        bytes
            .extend([&tag.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes(), &value.to_le_bytes()].concat());
    }
    bytes.extend([0; 4]);
    bytes
}

/// Stripes across for one class, along for the other, with 12 bits of contrast, different in each channel.
fn values(class: usize, number: usize, channels: usize) -> Vec<u16> {
    let value = |i: usize| {
        let (y, x, channel) = (i / channels / 20, i / channels % 20, i % channels);
        let along = if class == 0 { x } else { y };
        (500 + 700 * channel + (along + number) * 977 % 1700) as u16
    };
    (0..20 * 20 * channels).map(value).collect()
}

fn folder(make: impl Fn(usize, usize) -> (&'static str, Vec<u8>)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (set, count) in [("train", 12), ("test", 4)] {
        for class in 0..2 {
            let path = folder.path().join(set).join(["across", "along"][class]);
            fs::create_dir_all(&path).expect("made");
            for number in 0..count {
                let (ending, bytes) = make(class, number + if set == "test" { 50 } else { 0 });
                fs::write(path.join(format!("{number}.{ending}")), bytes).expect("written");
            }
        }
    }
    fs::write(folder.path().join("config.yaml"), CONFIG).expect("written");
    folder
}

fn byol(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_byol")).current_dir(folder).args(args).output().expect("byol runs")
}

fn succeeded(output: &Output) -> (String, String) {
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(output.status.success(), "{stderr}");
    (stdout, stderr)
}

fn manifest(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("run/manifest.json")).expect("read")).expect("JSON")
}

#[test]
fn a_run_on_four_16_bit_channels_is_evaluated_and_exported() {
    let folder = folder(|class, number| ("tif", tiff(20, 20, 4, &values(class, number, 4))));
    let at = folder.path();
    let (_, stderr) = succeeded(&byol(at, &["train", "--config", "config.yaml"]));
    for part in ["data.channels: 4", "data.value_range: [[", "of u16 values in 24 images", "augment.mean: ["] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    // What auto stood for is in the run's config, and is taken from there, not measured again.
    let config = &manifest(at)["config"];
    assert_eq!(config["data"]["channels"], 4);
    let ranges: Vec<[f64; 2]> = serde_json::from_value(config["data"]["value_range"].clone()).expect("ranges");
    for (channel, [low, high]) in ranges.iter().enumerate() {
        let first = 500.0 + 700.0 * channel as f64;
        assert!((first..first + 100.0).contains(low) && (first + 1600.0..first + 1700.0).contains(high), "{ranges:?}");
    }
    assert_eq!(config["augment"]["mean"].as_array().map(Vec::len), Some(4));
    let again = ["train", "--config", "config.yaml", "--resume", "auto", "--set", "schedule.epochs=2"];
    let (_, stderr) = succeeded(&byol(at, &again));
    assert!(stderr.contains("nothing left to do") && !stderr.contains("value_range"), "{stderr}");
    let more = [&again[..], &["--set", "train.batch_size=6", "--allow-config-change"]].concat();
    let (_, stderr) = succeeded(&byol(at, &more));
    assert!(stderr.contains("train.batch_size") && !stderr.contains("percentiles"), "{stderr}");

    let (stdout, stderr) = succeeded(&byol(at, &["linear-eval", "--checkpoint", "run", "--json"]));
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    assert!(report["top1"].as_f64().is_some_and(|top1| top1 >= 0.5), "{report}");
    assert!(!stderr.contains("value_range"), "{stderr}");
    exported(at);
    let refused = byol(
        at,
        &[
            "linear-eval",
            "--checkpoint",
            "run",
            "--set",
            "data.channels=3",
            "--set",
            "data.value_range=auto",
            "--set",
            "augment.mean=auto",
            "--set",
            "augment.std=auto",
        ],
    );
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(stderr.contains("found an encoder for images of 4 channels, expected 3 (data.channels)"), "{stderr}");
}

/// Every format says and has four channels.
fn exported(at: &Path) {
    for (format, shape) in
        [("onnx", "[N, 4, 16, 16]"), ("torchscript", "[N, 4, H, W]"), ("safetensors", "Conv2d(4, 16")]
    {
        let output = format!("encoder.{format}");
        let (stdout, _) =
            succeeded(&byol(at, &["export-encoder", "--checkpoint", "run", "--format", format, "--output", &output]));
        assert!(stdout.contains("read back: largest difference") && stdout.contains(shape), "{stdout}");
    }
    let file = at.join("encoder.safetensors");
    let [own, run] =
        [&file, &at.join("run")].map(|path| Encoder::open(path, &EncoderOptions::default()).expect("opens"));
    assert_eq!((own.config, &own.value_range), (run.config, &run.value_range));
    assert!(own.config.channels == 4 && matches!(own.value_range, ValueRange::Each(_)), "{}", own.value_range);
    // The file says of its inputs all that an evaluation on the same images needs.
    let data = ["--set", "data.format=image_folder", "--set", "data.path=train", "--set", "data.eval_path=test"];
    let from = ["knn-eval", "--checkpoint", "encoder.safetensors"];
    let (_, stderr) = succeeded(&byol(at, &[&from[..], &data].concat()));
    assert!(!stderr.contains("percentiles"), "{stderr}");
}

#[test]
fn gray_images_are_trained_on_in_one_channel_by_the_papers_views() {
    let pgm = |class, number| {
        let bytes: Vec<u8> = values(class, number, 1).iter().map(|value| (value / 10) as u8).collect();
        ("pgm", [&b"P5 20 20 255\n"[..], &bytes].concat())
    };
    let folder = folder(pgm);
    let at = folder.path();
    let config = CONFIG.replace(", saturation: 0, hue: 0, grayscale_prob: 0", "");
    fs::write(at.join("config.yaml"), config).expect("written");
    succeeded(&byol(at, &["train", "--config", "config.yaml"]));
    let config = &manifest(at)["config"];
    assert_eq!((&config["data"]["channels"], &config["data"]["value_range"]), (&1.into(), &"full".into()));
    let shown = ["preview", "--config", "config.yaml", "--output", "views.png", "--images", "2"];
    succeeded(&byol(at, &shown));
    let refused = byol(at, &[&shown[..], &["--channels", "2", "--force"]].concat());
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(stderr.contains("--channels: found 2, expected 1 to 1"), "{stderr}");
    // RGB as before, if asked for.
    succeeded(&byol(at, &["train", "--config", "config.yaml", "--set", "data.channels=3", "--set", "output.dir=rgb"]));
}
