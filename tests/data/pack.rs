//! `byol pack`: what is in the shards, that a killed packing continues, and what is refused.

use std::fs;
use std::path::Path;
use std::time::Duration;

use byol::data::{DataConfig, Dataset, Format, open_eval, open_train};
use byol::pixels::Pixels;
use image::{ImageBuffer, ImageFormat, Luma, RgbImage};

use crate::support::run::{byol, failed, succeeded, text};

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data/images").join(name)).expect("a fixture")
}

/// Two classes of training images with awkward names, one held-out image, one that is none, and a config.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join("set").join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        fs::write(path, bytes).expect("written");
    };
    write("train/cat/a.jpg", &fixture("large_420.jpg"));
    write("train/cat/a.png", &fixture("rgb.png"));
    write("train/cat/b.v2.JPG", &fixture("exif6.jpg"));
    write("train/cat/empty.jpg", b"");
    for number in 0..30 {
        write(&format!("train/dog/{number:02}.png"), &fixture("rgb.png"));
    }
    write("val/dog/x.jpg", &fixture("plain.jpg"));
    let set = folder.path().join("set");
    let config = format!("data: {{format: image_folder, path: {}}}", set.display());
    fs::write(folder.path().join("c.yaml"), config).expect("written");
    folder
}

fn pack(folder: &Path, output: &Path, more: &[&str]) -> std::process::Command {
    let (config, output) = (folder.join("c.yaml").display().to_string(), output.display().to_string());
    byol(&[&["pack", "--config", &config, "--output", &output], more].concat())
}

fn shards(path: &Path) -> DataConfig {
    DataConfig { format: Format::Webdataset, path: Some(path.into()), ..DataConfig::default() }
}

fn bytes_of(set: &dyn Dataset, index: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let encoded = set.with_encoded(index, &mut |bytes| {
        all.extend_from_slice(bytes);
        Ok(())
    });
    assert!(encoded.expect("read"), "pixels");
    all
}

/// Names, in order, and bytes of the files of a folder, without the caches of its indices.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).expect("listed").map(|entry| entry.expect("an entry").path());
    let entries = entries.filter(|path| !path.display().to_string().ends_with("-index"));
    let mut files: Vec<_> = entries
        .map(|path| (path.file_name().expect("a name").to_string_lossy().into_owned(), fs::read(path).expect("read")))
        .collect();
    files.sort();
    files
}

#[test]
fn shards_hold_the_bytes_names_and_classes_and_a_killed_packing_continues() {
    let folder = folder();
    let (whole, torn) = (folder.path().join("whole"), folder.path().join("torn"));
    let small = ["--shard-size", "6000"];
    let output = pack(folder.path(), &whole, &small).output().expect("byol runs");
    let stderr = succeeded(&output);
    assert!(stderr.contains("skipping bad image") && stderr.contains("empty.jpg"), "{stderr}");
    let line = text(&output.stdout);
    assert!(line.contains(": 34 images, ") && line.contains("1 unreadable images skipped"), "{line}");
    assert!(line.trim_end().ends_with(&format!("data.path: {}", whole.display())), "{line}");
    let set = open_train(&shards(&whole)).expect("opened");
    assert_eq!((set.len(), set.class_names()), (33, vec!["cat".to_string(), "dog".to_string()]));
    let held_out = open_eval(&shards(&whole)).expect("opened").expect("held out");
    assert_eq!((held_out.len(), held_out.label(0)), (1, Some(1)));
    for (index, name, original, label) in [
        (0, "a.jpg", "large_420.jpg", 0),
        (1, "a_2.png", "rgb.png", 0),
        (2, "b_v2.jpg", "exif6.jpg", 0),
        (3, "00.png", "rgb.png", 1),
    ] {
        assert!(bytes_of(&*set, index) == fixture(original), "{index}");
        assert!(set.describe(index).ends_with(&format!("/{name}")), "{}", set.describe(index));
        assert_eq!(set.label(index), Some(label));
    }
    // Killed after the first shard.
    let mut child = pack(folder.path(), &torn, &small).spawn().expect("byol runs");
    while !torn.join("train-000000.tar").exists() && child.try_wait().expect("waited").is_none() {
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().expect("killed");
    child.wait().expect("waited");
    fs::write(torn.join(".partial-pack.json-Xy12z9"), "{").expect("written"); // as one killed a little later leaves it
    succeeded(&pack(folder.path(), &torn, &small).output().expect("byol runs"));
    assert!(files(&whole) == files(&torn), "{:?}", files(&torn).iter().map(|file| &file.0).collect::<Vec<_>>());
    // The same again has nothing to do; other options do not mix, and a lost shard is made again.
    let before = fs::metadata(whole.join("train-000001.tar")).expect("a shard").modified().expect("a time");
    succeeded(&pack(folder.path(), &whole, &small).output().expect("byol runs"));
    assert_eq!(fs::metadata(whole.join("train-000001.tar")).expect("a shard").modified().expect("a time"), before);
    failed(&pack(folder.path(), &whole, &["--shard-size", "7000"]).output().expect("byol runs"), &["another packing"]);
    fs::remove_file(whole.join("train-000001.tar")).expect("removed");
    succeeded(&pack(folder.path(), &whole, &small).output().expect("byol runs"));
    assert!(files(&whole) == files(&torn));
    fs::remove_file(whole.join("pack.json")).expect("removed");
    failed(&pack(folder.path(), &whole, &small).output().expect("byol runs"), &["already has", ".tar"]);
}

#[test]
fn large_images_shrink_and_the_others_are_copied() {
    let folder = folder();
    let big = RgbImage::from_fn(120, 60, |x, y| image::Rgb([(x * 2) as u8, (y * 4) as u8, 90]));
    big.save_with_format(folder.path().join("set/train/cat/big.png"), ImageFormat::Png).expect("written");
    let deep = ImageBuffer::from_fn(120, 60, |x, y| Luma([(x * 300 + y) as u16]));
    deep.save_with_format(folder.path().join("set/train/cat/deep.png"), ImageFormat::Png).expect("written");
    fs::write(folder.path().join("set/train/cat/gray.jpg"), fixture("large_grey.jpg")).expect("written");
    let packed = folder.path().join("packed");
    succeeded(&pack(folder.path(), &packed, &["--max-side", "60"]).output().expect("byol runs"));
    let set = open_train(&shards(&packed)).expect("opened");
    let mut pixels = Pixels::default();
    let mut shape = |index: usize| {
        set.load(index, &mut pixels).expect("decoded");
        let name = set.describe(index).rsplit('/').next().unwrap_or_default().to_string();
        (name, pixels.width, pixels.height)
    };
    let name = |name: &str, width, height| (name.to_string(), width, height);
    // 83 x 70 pixels become 60 wide; what is small stays, also if it is turned by its EXIF, and what PNG and JPEG of
    // bytes would not hold.
    assert_eq!(shape(0), name("a.jpg", 60, 51));
    assert_eq!(bytes_of(&*set, 1), fixture("rgb.png"));
    assert_eq!(bytes_of(&*set, 2), fixture("exif6.jpg"));
    assert_eq!(shape(4), name("deep.png", 120, 60));
    assert_eq!(bytes_of(&*set, 4), fs::read(folder.path().join("set/train/cat/deep.png")).expect("read"));
    // Gray stays gray.
    let gray = image::load_from_memory(&bytes_of(&*set, 5)).expect("decoded");
    assert_eq!((gray.color(), gray.width()), (image::ColorType::L8, 60));
    // A ramp stays a ramp.
    assert_eq!(shape(3), name("big.png", 60, 30));
    let middle = &pixels.data[(15 * 60 + 30) * 3..][..3];
    assert!(middle.iter().zip([121, 122, 90]).all(|(found, wanted)| found.abs_diff(wanted) <= 2), "{middle:?}");
}

#[test]
fn pixels_become_png_without_loss_and_without_the_range_of_the_run() {
    let folder = folder();
    let set = "format: synthetic, synthetic: {images: 30, eval_images: 6, classes: 2, size: 16, seed: 0}";
    fs::write(folder.path().join("c.yaml"), format!("data: {{{set}, value_range: [0, 128]}}")).expect("written");
    let packed = folder.path().join("packed");
    succeeded(&pack(folder.path(), &packed, &[]).output().expect("byol runs"));
    let mut original = DataConfig { format: Format::Synthetic, path: None, ..DataConfig::default() };
    let synthetic = &mut original.synthetic;
    (synthetic.images, synthetic.eval_images, synthetic.classes, synthetic.size) = (30, 6, 2, 16);
    let sets = [original, shards(&packed)].map(|config| open_train(&config).expect("opened"));
    assert_eq!(sets[0].len(), sets[1].len());
    for index in 0..sets[0].len() {
        let [was, is] = sets.each_ref().map(|set| {
            let mut pixels = Pixels::default();
            set.load(index, &mut pixels).expect("decoded");
            (pixels, set.class_names()[set.label(index).expect("a label") as usize].clone())
        });
        assert!(was == is, "{index}: {} and {}", was.1, is.1);
    }
}

#[test]
fn what_cannot_be_packed_is_said() {
    let folder = folder();
    let stop = ["--set", "data.on_bad_image=fail"];
    let output = pack(folder.path(), &folder.path().join("packed"), &stop).output().expect("byol runs");
    failed(&output, &["bad image", "empty.jpg"]);
    let output = pack(folder.path(), &folder.path().join("packed"), &["--max-side", "9", "--short-side", "9"]).output();
    assert_eq!(output.expect("byol runs").status.code(), Some(2));
    let one = ["--set", "data.limit=1"];
    let output = pack(folder.path(), &folder.path().join("one"), &one).output().expect("byol runs");
    failed(&output, &["held-out images of class dog", "data.limit"]);
    assert!(!folder.path().join("one").exists());
    fs::write(folder.path().join("file"), "x").expect("written");
    failed(
        &pack(folder.path(), &folder.path().join("file"), &[]).output().expect("byol runs"),
        &["--output: cannot create"],
    );
}

/// With the keys that are printed, the held-out images come from the shards, not from where the config has them.
#[test]
fn printed_keys_replace_the_held_out_images_of_the_config() {
    let folder = folder();
    let (val, packed) = (folder.path().join("set/val"), folder.path().join("packed"));
    let named = format!("data.eval_path={}", val.display());
    let output = pack(folder.path(), &packed, &["--set", &named]).output().expect("byol runs");
    succeeded(&output);
    let line = text(&output.stdout);
    assert!(line.trim_end().ends_with(&format!("data.path: {}, data.eval_path: null", packed.display())), "{line}");
    assert!(open_eval(&DataConfig { eval_path: Some(val.as_path().into()), ..shards(&packed) }).is_err());
    assert_eq!(open_eval(&shards(&packed)).expect("opened").expect("held out").len(), 1);
}
