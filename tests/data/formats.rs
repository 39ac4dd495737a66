//! Every set format against what Pillow and pyarrow read (scripts/reference/data.py).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use byol::data::{DataConfig, Dataset, Format, open_eval, open_train};
use byol::pixels::Pixels;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data")
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join(name)).unwrap()).unwrap()
}

fn image_bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join("images").join(name)).unwrap()
}

fn bytes_of(list: &Value) -> Vec<u8> {
    list.as_array().unwrap().iter().map(|value| value.as_u64().unwrap() as u8).collect()
}

fn parquet(path: PathBuf) -> DataConfig {
    DataConfig { format: Format::Parquet, path: Some(path.into()), ..Default::default() }
}

fn folder(path: &Path) -> DataConfig {
    DataConfig { format: Format::ImageFolder, path: Some(path.into()), ..Default::default() }
}

fn train_error(config: &DataConfig) -> String {
    let error = open_train(config).err().expect("an error");
    let message = format!("{error:#}");
    assert!(!message.contains('\n'), "{message}");
    message
}

fn names(set: &dyn Dataset) -> Vec<String> {
    (0..set.len()).map(|index| set.describe(index)).collect()
}

/// Labels, pixels and file rows of the shards must be those that were written, in memory and
/// paged alike.
#[test]
fn parquet_shards_hold_what_was_written() {
    let expected = json("shards.json");
    let expected = expected.as_array().unwrap();
    for cache_bytes in [1 << 20, 0] {
        let config = DataConfig { cache_bytes, ..parquet(fixtures().join("shards")) };
        let (train, test) = (open_train(&config).unwrap(), open_eval(&config).unwrap().unwrap());
        assert_eq!((train.len(), test.len()), (12, 4));
        assert_eq!(train.class_names(), ["ant", "bee", "cat"]);
        let mut out = Pixels::default();
        for (at, row) in expected.iter().enumerate() {
            let (set, index) = if at < 12 { (&train, at) } else { (&test, at - 12) };
            let (file, number) = (row["file"].as_str().unwrap(), &row["row"]);
            assert!(set.describe(index).ends_with(&format!("shards/{file} row {number}")));
            assert_eq!(set.label(index), row["label"].as_i64());
            match row.get("pixels") {
                Some(pixels) => {
                    set.load(index, &mut out).unwrap();
                    assert_eq!(out.data, bytes_of(pixels), "{}", set.describe(index));
                }
                None => assert!(set.load(index, &mut out).is_err()),
            }
        }
        assert_ne!(train.fingerprint(), test.fingerprint());
    }
}

#[test]
fn parquet_columns_are_found_or_named_in_the_error() {
    let flat = parquet(fixtures().join("flat.parquet"));
    for cache_bytes in [1 << 20, 0] {
        let set = open_train(&DataConfig { cache_bytes, label_column: Some("kind".into()), ..flat.clone() });
        let (set, shards) = (set.unwrap(), json("shards.json"));
        let mut out = Pixels::default();
        // From the end: every page must be found without those before it.
        for index in (0..7).rev() {
            set.load(index, &mut out).unwrap();
            assert_eq!(out.data, bytes_of(&shards[index]["pixels"]));
            assert_eq!(set.label(index), shards[index]["label"].as_i64());
        }
    }
    assert_eq!(open_train(&flat).unwrap().label(0), None);
    assert!(open_eval(&flat).unwrap().is_none());
    let named = DataConfig { image_column: Some("photo".into()), ..flat.clone() };
    let message = train_error(&named);
    assert!(message.contains("found image columns [picture], expected photo"), "{message}");
    let named = DataConfig { label_column: Some("class".into()), ..flat.clone() };
    let message = train_error(&named);
    assert!(message.contains("[title, picture, kind], expected a label column class"), "{message}");
}

#[test]
fn parquet_splits_come_from_file_names() {
    let shards = fixtures().join("shards");
    let one = parquet(shards.join("train-00001-of-00002.parquet"));
    assert_eq!(open_train(&one).unwrap().len(), 5);
    assert_eq!(open_eval(&one).unwrap().unwrap().len(), 4);
    let explicit = DataConfig { eval_path: Some(fixtures().join("flat.parquet").into()), ..one };
    assert_eq!(open_eval(&explicit).unwrap().unwrap().len(), 7);
    let scratch = tempfile::tempdir().unwrap();
    let copy =
        |name: &str| std::fs::copy(shards.join("test-00000-of-00001.parquet"), scratch.path().join(name)).unwrap();
    copy("b.parquet");
    copy("a.parquet");
    let config = parquet(scratch.path().into());
    let found = names(&*open_train(&config).unwrap());
    assert!(found.len() == 8 && found[0].ends_with("a.parquet row 0"), "{found:?}");
    assert!(open_eval(&config).unwrap().is_none());
    copy("train.parquet");
    copy("test.parquet");
    copy("validation.parquet");
    assert_eq!(open_train(&config).unwrap().len(), 4);
    assert!(open_eval(&config).unwrap().unwrap().describe(0).contains("validation.parquet"));
}

#[test]
fn missing_or_damaged_parquet_files_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    assert!(train_error(&parquet(at("none"))).starts_with("no such file or folder: "));
    assert!(train_error(&parquet(scratch.path().into())).starts_with("no parquet files in "));
    let whole = std::fs::read(fixtures().join("flat.parquet")).unwrap();
    for (name, bytes) in [("cut.parquet", &whole[..whole.len() / 2]), ("empty.parquet", &[])] {
        std::fs::write(at(name), bytes).unwrap();
        let message = train_error(&parquet(at(name)));
        assert!(message.starts_with("cannot use ") && message.contains(name), "{message}");
    }
}

#[test]
fn damaged_parquet_files_never_panic() {
    let scratch = tempfile::tempdir().unwrap();
    let whole = std::fs::read(fixtures().join("shards/train-00000-of-00002.parquet")).unwrap();
    let mut refused = 0;
    for at in (0..whole.len()).step_by(3) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        // A new file each time: overwriting one waits for the disk on some file systems.
        let config = parquet(scratch.path().join(format!("{at}.parquet")));
        std::fs::write(&config.path.as_ref().unwrap()[0], bytes).unwrap();
        for cache_bytes in [1 << 20, 0] {
            let mut out = Pixels::default();
            let read = |set: Arc<dyn Dataset>| (0..set.len().min(8)).try_for_each(|index| set.load(index, &mut out));
            let result = open_train(&DataConfig { cache_bytes, ..config.clone() }).and_then(read);
            refused += result.is_err() as usize;
        }
    }
    assert!(refused > whole.len() / 6, "only {refused} of {} damaged files were refused", whole.len() / 3 * 2);
}

/// CIFAR-10 as pyarrow reads it, from memory and paged.
#[test]
fn cifar10_rows_match_pyarrow() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/cifar10/train.parquet");
    if !path.exists() {
        return println!("skipped: {} is missing", path.display());
    }
    let expected = json("cifar.json");
    let config = parquet(path);
    let paged = open_train(&DataConfig { cache_bytes: 0, ..config.clone() }).unwrap();
    let (train, test) = (open_train(&config).unwrap(), open_eval(&config).unwrap().unwrap());
    assert_eq!((train.len(), paged.len(), test.len()), (50_000, 50_000, 10_000));
    assert_eq!(train.class_names()[..3], ["airplane", "automobile", "bird"]);
    for (index, label) in expected["labels"].as_array().unwrap().iter().enumerate() {
        assert_eq!(train.label(index), label.as_i64());
    }
    let (mut a, mut b) = (Pixels::default(), Pixels::default());
    train.load(0, &mut a).unwrap();
    assert_eq!(a.data, bytes_of(&expected["pixels"][0]));
    for row in expected["rows"].as_array().unwrap() {
        let row = row.as_u64().unwrap() as usize;
        train.load(row, &mut a).unwrap();
        paged.load(row, &mut b).unwrap();
        assert_eq!(a, b, "row {row}");
    }
}

#[test]
fn image_folders_are_ordered_and_labeled() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let put = |path: &str, name: &str| {
        std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        std::fs::write(root.join(path), image_bytes(name)).unwrap();
    };
    put("train/bee/deep/er/2.PNG", "rgb.png");
    put("train/bee/1.jpeg", "plain.jpg");
    put("train/ant/3.webp", "lossless.webp");
    put("train/.hidden/4.png", "rgb.png");
    put("train/ant/.5.png", "rgb.png");
    put("train/ant/notes.txt", "rgb.png");
    put("val/bee/9.bmp", "rgb.bmp");
    std::os::unix::fs::symlink("../bee", root.join("train/ant/loop")).unwrap();
    std::os::unix::fs::symlink("../../train", root.join("train/bee/up")).unwrap();
    let config = folder(root);
    let (train, eval) = (open_train(&config).unwrap(), open_eval(&config).unwrap().unwrap());
    let found = names(&*train);
    let relative: Vec<&str> = found.iter().map(|name| name.split_once("/train/").unwrap().1).collect();
    assert_eq!(
        relative,
        ["ant/3.webp", "ant/loop/1.jpeg", "ant/loop/deep/er/2.PNG", "bee/1.jpeg", "bee/deep/er/2.PNG"]
    );
    let labels: Vec<_> = (0..5).map(|index| train.label(index).unwrap()).collect();
    assert_eq!(labels, [0, 0, 0, 1, 1]);
    assert_eq!(train.class_names(), ["ant", "bee"]);
    // Class 1 although it is the only one there.
    assert_eq!((eval.len(), eval.label(0)), (1, Some(1)));
    let mut out = Pixels::default();
    for index in 0..5 {
        train.load(index, &mut out).unwrap();
        assert_eq!((out.width, out.height), (24, 16));
    }
    let before = train.fingerprint();
    assert_eq!(before, open_train(&config).unwrap().fingerprint());
    put("train/top.png", "rgb.png");
    let more = open_train(&config).unwrap();
    assert_ne!(before, more.fingerprint());
    assert_eq!((more.len(), more.label(4), more.label(5)), (6, Some(1), None));
    assert_eq!(more.class_names(), ["ant", "bee"]);
    put("val/cow/1.png", "rgb.png");
    let message = format!("{:#}", open_eval(&config).err().unwrap());
    assert!(message.contains("found class cow"), "{message}");
}

#[test]
fn unusable_image_folders_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    assert!(train_error(&folder(&scratch.path().join("none"))).starts_with("no such file or folder: "));
    std::fs::write(&file, [0xff, 0xd8, 0xff]).unwrap();
    assert!(train_error(&folder(&file)).starts_with("found no text, expected a folder of images or a text file"));
    assert!(train_error(&folder(scratch.path())).starts_with("no images in "));
}

#[test]
fn links_are_followed_on_every_way_but_not_in_circles() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, at(name)).unwrap();
    for name in ["pool/deep", "set/ant", "set/bee"] {
        std::fs::create_dir_all(at(name)).unwrap();
    }
    std::fs::write(at("pool/deep/1.png"), image_bytes("rgb.png")).unwrap();
    // A diamond: two ways to one folder, and in it one back to the top.
    link("../../pool", "set/ant/pool");
    link("../../pool/deep", "set/bee/pool");
    link("../../set", "pool/deep/top");
    link("self", "set/self");
    link("../../pool/deep/1.png", "set/ant/one.png");
    link("gone.png", "set/ant/gone.png");
    let set = open_train(&folder(&at("set"))).unwrap();
    let found = names(&*set);
    let relative: Vec<&str> = found.iter().map(|name| name.split_once("/set/").unwrap().1).collect();
    assert_eq!(relative, ["ant/gone.png", "ant/one.png", "ant/pool/deep/1.png", "bee/pool/1.png"]);
    let mut out = Pixels::default();
    let loads: Vec<bool> = (0..4).map(|index| set.load(index, &mut out).is_ok()).collect();
    assert_eq!(loads, [false, true, true, true]);
}

#[test]
fn lists_of_images_are_read_in_their_order() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    std::fs::create_dir(at("some images")).unwrap();
    for (name, image) in [("some images/b 2.png", "rgb.png"), ("a.jpg", "plain.jpg"), ("upload", "grey.png")] {
        std::fs::write(at(name), image_bytes(image)).unwrap();
    }
    let lines = format!("# made by hand\r\nsome images/b 2.png 4\r\n\r\n{}\t0\nupload\n", at("a.jpg").display());
    std::fs::write(at("train.txt"), lines).unwrap();
    std::fs::write(at("val.txt"), "a.jpg\na.jpg 1\ngone.jpg 2").unwrap();
    std::fs::write(at("plain.txt"), "a.jpg\nupload\n").unwrap();
    let config = DataConfig { eval_path: Some(at("val.txt").into()), ..folder(&at("train.txt")) };
    let (train, eval) = (open_train(&config).unwrap(), open_eval(&config).unwrap().unwrap());
    let expected = ["some images/b 2.png", "a.jpg", "upload"].map(|name| at(name).display().to_string());
    assert_eq!(names(&*train), expected);
    assert_eq!([0, 1, 2].map(|index| train.label(index)), [Some(4), Some(0), None]);
    let mut out = Pixels::default();
    for (index, image) in ["rgb.png", "plain.jpg", "grey.png"].into_iter().enumerate() {
        train.load(index, &mut out).unwrap();
        assert_eq!(out.data, image_bytes(&format!("{image}.rgb")), "{image}");
    }
    assert_eq!([0, 1, 2].map(|index| eval.label(index)), [None, Some(1), Some(2)]);
    assert!(eval.load(0, &mut out).is_ok() && eval.load(2, &mut out).is_err());
    let plain = open_train(&folder(&at("plain.txt"))).unwrap();
    assert_eq!((plain.len(), plain.label(0)), (2, None));
    assert!(open_eval(&folder(&at("plain.txt"))).unwrap().is_none());
    let first = DataConfig { limit: Some(2), ..config };
    assert_eq!(names(&*open_train(&first).unwrap()), expected[..2]);
    for (text, start) in [("# nothing\n", "no images in "), ("x/1.jpg\nx/2.jpg\n", "no such file: ")] {
        std::fs::write(at("wrong.txt"), text).unwrap();
        let message = train_error(&folder(&at("wrong.txt")));
        assert!(message.starts_with(start), "{message}");
    }
    assert!(train_error(&folder(&at("a.jpg"))).starts_with("found an image, expected a folder"));
}
