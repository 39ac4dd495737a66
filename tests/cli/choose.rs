//! `byol train PATH`: from images to a run by one command, and what it refuses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use byol::config::Config;
use image::{GrayImage, ImageBuffer, Luma, Rgb, RgbImage};

use crate::support::run::{byol, failed, succeeded, text};

/// 24 images of 20 to 60 px in two folders; beside them one of noise, one gray and one large.
fn mixed(folder: &Path) {
    for i in 0..24u32 {
        let class = folder.join(["cats", "dogs"][i as usize % 2]);
        fs::create_dir_all(&class).expect("made");
        let image = RgbImage::from_fn(20 + i, 60 - i, |x, y| Rgb([(i * 9) as u8, (x * 5) as u8, (y * 4) as u8]));
        image.save(class.join(format!("{i}.png"))).expect("saved");
    }
    fs::write(folder.join("cats/corrupt.jpg"), b"\xff\xd8\xff\xe0 no more").expect("written");
    GrayImage::from_fn(40, 30, |x, _| Luma([(x * 6) as u8])).save(folder.join("cats/gray.png")).expect("saved");
    RgbImage::from_fn(1500, 1000, |x, y| Rgb([x as u8, y as u8, 7])).save(folder.join("dogs/huge.png")).expect("saved");
}

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data").join(name).display().to_string()
}

fn train(path: &Path, run: &Path, more: &[&str]) -> Output {
    let (path, run) = (path.display().to_string(), run.display().to_string());
    byol(&["train", &path, "--output", &run, "--set", "train.device=cpu"]).args(more).output().expect("byol runs")
}

#[test]
fn a_folder_of_mixed_images_is_trained_on_by_one_command() {
    let root = tempfile::tempdir().expect("a folder");
    let (photos, run) = (root.path().join("my photos"), root.path().join("run"));
    mixed(&photos);
    let output = train(&photos, &run, &["--epochs", "2"]);
    let said = succeeded(&output);
    for part in [
        "format         image_folder",
        "bad images     1",
        "corrupt.jpg",
        "1 gray",
        "image size     32 px",
        "lowered from 128: there are 27 images",
        "2 epochs, 2 updates",
        "your --epochs",
        "26 of 27", // of what was looked at; see below
        "BatchNorm sees 16 images",
        "2 updates are few",
        "evaluate: byol linear-eval --checkpoint",
        "look:     byol report ",
        "export:   byol export-encoder --checkpoint",
    ] {
        let part = if part == "26 of 27" { "(of 26 looked at)" } else { part };
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let part = part.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(&part), "{part:?} is not in\n{said}");
    }
    let summary: serde_json::Value =
        serde_json::from_slice(&fs::read(run.join("summary.json")).expect("a summary")).expect("JSON");
    assert_eq!((summary["step"].as_u64(), summary["ending"].as_str()), (Some(2), Some("finished")), "{summary}");
    // The config that it wrote explains itself, and --config takes it.
    let file = run.join("config.yaml");
    let yaml = fs::read_to_string(&file).expect("a config");
    for part in ["# lowered from 128: there are 27 images", "# measured on 26 images", "# Seed of the initial weights"]
    {
        assert!(yaml.contains(part), "{part} is not in\n{yaml}");
    }
    let config = Config::load(&file, &[]).expect("loads");
    assert_eq!((config.train.batch_size, config.augment.size, config.schedule.epochs), (16, 32.into(), 2));
    let resumed = train(&photos, &run, &["--resume", "auto"]);
    assert!(succeeded(&resumed).contains("nothing left to do"), "{}", text(&resumed.stderr));
    // A second run is not written over the first one.
    failed(&train(&photos, &run, &[]), &["already contains a run", "--resume auto", "--output"]);
    assert_eq!(fs::read_to_string(&file).expect("a config"), yaml);
    // A change leaves the comments of the others.
    succeeded(&train(&photos, &run, &["--resume", "auto", "--epochs", "3", "--allow-config-change"]));
    let changed = fs::read_to_string(&file).expect("a config");
    let rest =
        |yaml: &str| yaml.lines().filter(|line| !line.contains(" epochs:")).map(str::to_string).collect::<Vec<_>>();
    assert!(changed.contains("  epochs: 3 ") && rest(&changed) == rest(&yaml), "{changed}");
}

/// The config that is chosen for a path, and the table.
fn dry(path: &str, more: &[&str]) -> (Config, String) {
    let root = tempfile::tempdir().expect("a folder");
    let run = root.path().join("run");
    let output = train(Path::new(path), &run, &[&["--dry-run"], more].concat());
    succeeded(&output);
    assert!(!run.join("checkpoints").exists(), "a dry run trains");
    (Config::load(&run.join("config.yaml"), &[]).expect("loads"), text(&output.stdout))
}

#[test]
fn gray_deep_and_multi_band_images_are_trained_on_by_one_command() {
    let root = tempfile::tempdir().expect("a folder");
    let gray = |x: u32, y: u32, i: u32| (x * 5 + y * 3 + i * 9) as u8;
    for i in 0..8u32 {
        let folder = |name: &str| {
            let folder = root.path().join(name);
            fs::create_dir_all(&folder).expect("made");
            folder
        };
        let image = GrayImage::from_fn(40, 40, |x, y| Luma([gray(x, y, i)]));
        image.save(folder("gray").join(format!("{i}.png"))).expect("saved");
        let deep = ImageBuffer::from_fn(40, 40, |x, y| Luma([u16::from(gray(x, y, i)) * 16]));
        deep.save(folder("deep").join(format!("{i}.png"))).expect("saved");
        fs::copy(fixture("bands/u16_4_planar.tif"), folder("bands").join(format!("{i}.tif"))).expect("copied");
    }
    for (name, channels) in [("gray", 1), ("deep", 1), ("bands", 4)] {
        let run = root.path().join(format!("run_{name}"));
        let said = succeeded(&train(&root.path().join(name), &run, &["--epochs", "1"]));
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(&format!("channels {channels} of all that were looked at")), "{said}");
        let summary = fs::read_to_string(run.join("summary.json")).expect("a summary");
        assert!(summary.contains("finished"), "{summary}");
    }
}

#[test]
fn every_format_is_recognized_and_the_choice_follows_the_users_wishes() {
    for (path, format, labels) in [
        (fixture("flat.parquet"), "parquet", "no labels of several classes"),
        (fixture("webdataset"), "webdataset", "5 of 5 images have one of 5 labels"),
        (fixture("cifar/cifar-10-binary.tar.gz"), "cifar10", "10 of 10 images have one of 6 labels"),
        (fixture("cifar/cifar-100-binary.tar.gz"), "cifar100", "2 of 2 images have one of 2 labels"),
    ] {
        let (config, table) = dry(&path, &["--epochs", "3"]);
        assert!(table.contains(&format!("format         {format}")) && table.contains(labels), "{path}:\n{table}");
        assert_eq!(config.schedule.epochs, 3, "{path}");
    }
    let path = fixture("flat.parquet");
    let (config, table) = dry(&path, &["--hours", "0.5", "--size", "64", "--set", "optimizer.base_lr=0.125"]);
    assert_eq!((config.schedule.hours, config.augment.size, config.optimizer.base_lr), (Some(0.5), 64.into(), 0.125));
    assert!(table.contains("your --hours") && table.contains("your augment.size"), "{table}");
    assert!(table.contains("your optimizer.base_lr"), "{table}");
    // A preset of views stays, too.
    let (config, table) = dry(&path, &["--epochs", "1", "--set", "augment.preset=small_images"]);
    assert_eq!((config.augment.size, config.augment.view1.crop_scale), (32.into(), [0.08, 1.0]));
    assert!(table.contains("your augment.preset"), "{table}");
    let (config, table) = dry(&path, &["--preset", "imagenette_resnet18", "--epochs", "4"]);
    assert!(table.contains("preset imagenette_resnet18") && table.contains("lowered from 256: there are"), "{table}");
    assert_eq!((config.augment.size, config.optimizer.base_lr, config.optimizer.clip_lr), (128.into(), 2.0, false));
    // Without either it is an hour on a CPU.
    assert_eq!(dry(&path, &[]).0.schedule.hours, Some(1.0));
}

#[test]
fn what_cannot_be_trained_on_is_refused_before_anything_is_written() {
    let root = tempfile::tempdir().expect("a folder");
    let place = |name: &str| -> PathBuf { root.path().join(name) };
    let run = place("run");
    for name in ["empty", "text", "one", "broken"] {
        fs::create_dir(place(name)).expect("made");
    }
    fs::write(place("text/a.md"), "words").expect("written");
    RgbImage::new(20, 20).save(place("one/a.png")).expect("saved");
    fs::write(place("broken/a.png"), "dust").expect("written");
    fs::write(place("broken/b.png"), "dust").expect("written");
    for (name, parts) in [
        ("none", &["no such file or folder"][..]),
        ("empty", &["found no images, parquet files or tar shards"]),
        ("text", &["(1 other files)"]),
        ("one", &["found 1 image, expected at least 2"]),
        ("one/a.png", &["is one image, expected a folder"]),
        ("broken", &["none of 2 images can be read", ".png: "]),
    ] {
        failed(&train(&place(name), &run, &["--dry-run"]), parts);
        assert!(!run.exists(), "{name}");
    }
    mixed(&place("photos"));
    failed(
        &train(&place("photos"), &run, &["--preset", "no"]),
        &["--preset: found no recipe no, expected one of quick"],
    );
    // A number of the user's own is not lowered.
    let own = train(&place("photos"), &run, &["--epochs", "1", "--set", "train.batch_size=64"]);
    failed(&own, &["train.batch_size: found 64, expected at most the 27 training images"]);
    for arguments in [&["train"][..], &["train", "photos", "--config", "quickstart"], &["train", "--size", "32"]] {
        let output = byol(arguments).output().expect("byol runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn a_data_set_is_described_and_cleaned() {
    let root = tempfile::tempdir().expect("a folder");
    let photos = root.path().join("photos");
    mixed(&photos);
    let [first, copy] = ["cats/0.png", "dogs/copy.png"].map(|name| photos.join(name));
    fs::copy(&first, &copy).expect("copied");
    let (path, list) = (photos.display().to_string(), root.path().join("clean.txt"));
    let output =
        byol(&["data", &path, "--json", "--clean-list", &list.display().to_string()]).output().expect("byol runs");
    succeeded(&output);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (json["images"].as_u64(), json["readable"].as_u64(), json["gray"].as_u64()),
        (Some(28), Some(27), Some(1))
    );
    let names = |json: &serde_json::Value| json.to_string();
    assert_eq!(json["duplicates"].as_array().expect("groups").len(), 1, "{json}");
    assert!(names(&json["duplicates"]).contains("copy.png") && names(&json["bad"]).contains("corrupt.jpg"), "{json}");
    assert_eq!(json["classes"][0]["name"], "cats");
    // The list is taken as data.path, with the labels.
    let listed = fs::read_to_string(&list).expect("a list");
    assert!(listed.lines().count() == 26 && !listed.contains("corrupt") && listed.contains("0.png\tcats"), "{listed}");
    let again = byol(&["data", &list.display().to_string()]).output().expect("byol runs");
    succeeded(&again);
    let said = text(&again.stdout);
    for part in [
        "images       26, 26 readable, 1 gray",
        "labels       2 classes",
        "channels     3-channel 8-bit: 25, 1-channel 8-bit: 1",
        "duplicates   0 ",
        "bad          0 ",
        "from  1000 px",
    ] {
        let part = if part == "from  1000 px" { "px         1 ##" } else { part };
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
    // Any number of channels, of any depth.
    let bands = root.path().join("bands");
    fs::create_dir(&bands).expect("made");
    for name in ["u16_4_planar.tif", "u16_4_predictor.tif"] {
        fs::copy(fixture(&format!("bands/{name}")), bands.join(name)).expect("copied");
    }
    let output = byol(&["data", &bands.display().to_string()]).output().expect("byol runs");
    let said = succeeded(&output) + &text(&output.stdout);
    assert!(said.contains("channels     4-channel 16-bit: 2\n") && said.contains("value range  [["), "{said}");
    let parquet = fixture("flat.parquet");
    let refused = byol(&["data", &parquet, "--clean-list", "x"]).output().expect("byol runs");
    failed(&refused, &["--clean-list: found format \"parquet\", expected image_folder"]);
    assert!(text(&byol(&["data", &parquet]).output().expect("byol runs").stdout).contains("readable"));
}
