//! The names of images within a set, which do not depend on where the set is.

use std::fs;
use std::path::{Path, PathBuf};

use byol::data::{DataConfig, Dataset, Format, open_eval, open_train};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data")
}

fn config(format: Format, paths: &[&Path]) -> DataConfig {
    let paths: Vec<&Path> = paths.to_vec();
    let paths = serde_json::from_value(serde_json::json!(paths)).expect("paths");
    DataConfig { format, path: (format != Format::Synthetic).then_some(paths), ..DataConfig::default() }
}

fn names(set: &dyn Dataset) -> Vec<String> {
    (0..set.len()).map(|index| set.name(index)).collect()
}

fn train(config: &DataConfig) -> Vec<String> {
    names(&*open_train(config).expect("opened"))
}

fn held_out(config: &DataConfig) -> Vec<String> {
    names(&*open_eval(config).expect("opened").expect("held-out images"))
}

#[test]
fn files_have_the_path_below_the_root() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for name in ["one/train/cat/1.png", "one/train/dog/x/2.png", "one/val/cat/3.png", "two/cat/1.png", "two/4.png"] {
        fs::create_dir_all(at(name).parent().expect("a folder")).expect("made");
        fs::copy(fixtures().join("images/rgb.png"), at(name)).expect("copied");
    }
    let one = config(Format::ImageFolder, &[&at("one")]);
    assert_eq!(train(&one), ["cat/1.png", "dog/x/2.png"]);
    assert_eq!(held_out(&one), ["cat/3.png"]);
    assert_eq!(train(&DataConfig { limit: Some(1), ..one }), ["cat/1.png"]);
    let both = config(Format::ImageFolder, &[&at("one/train"), &at("two")]);
    assert_eq!(train(&both), ["one/train/cat/1.png", "one/train/dog/x/2.png", "two/4.png", "two/cat/1.png"]);
    // A list: below its folder or data.root; what lies elsewhere has its whole path.
    let elsewhere = at("two/4.png").display().to_string();
    fs::write(at("one/list.txt"), format!("train/cat/1.png 0\n{elsewhere} 1\n")).expect("written");
    let list = config(Format::ImageFolder, &[&at("one/list.txt")]);
    assert_eq!(train(&list), ["train/cat/1.png", &elsewhere]);
    let rooted = DataConfig { root: Some(folder.path().into()), ..list };
    fs::write(at("one/list.txt"), "one/train/cat/1.png\n").expect("written");
    assert_eq!(train(&rooted), ["one/train/cat/1.png"]);
}

#[test]
fn shards_have_the_file_and_the_row_or_member() {
    let shards = config(Format::Parquet, &[&fixtures().join("shards")]);
    let found = train(&shards);
    assert_eq!((found.len(), &*found[0]), (12, "train-00000-of-00002.parquet/0"));
    assert_eq!((&*found[6], &*found[7]), ("train-00000-of-00002.parquet/6", "train-00001-of-00002.parquet/0"));
    assert_eq!(held_out(&shards)[3], "test-00000-of-00001.parquet/3");
    // Copies, as an index is written beside shards.
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["train-000000.tar", "train-000001.tar", "val-000000.tar"] {
        fs::copy(fixtures().join("webdataset").join(name), folder.path().join(name)).expect("copied");
    }
    let tars = config(Format::Webdataset, &[folder.path()]);
    let found = train(&tars);
    assert_eq!(found[..2], ["train-000000.tar/000000.png", "train-000000.tar/000001.jpg"]);
    assert!(held_out(&tars)[0].starts_with("val-000000.tar/"), "{:?}", held_out(&tars));
    // Shards of one name in several folders.
    let folder = tempfile::tempdir().expect("a folder");
    for part in ["de", "en/more"] {
        fs::create_dir_all(folder.path().join(part)).expect("made");
        let from = fixtures().join("shards/train-00001-of-00002.parquet");
        fs::copy(from, folder.path().join(part).join("train.parquet")).expect("copied");
    }
    let parts = ["de/train.parquet", "en/more/train.parquet"].map(|name| folder.path().join(name));
    let found = train(&config(Format::Parquet, &[&parts[0], &parts[1]]));
    assert_eq!((&*found[4], &*found[5]), ("de/train.parquet/4", "en/more/train.parquet/0"));
    // A shard that has changed since it was opened still gives a name.
    let tar = folder.path().join("train.tar");
    fs::copy(fixtures().join("webdataset/train-000000.tar"), &tar).expect("copied");
    let set = open_train(&config(Format::Webdataset, &[&tar])).expect("opened");
    fs::write(&tar, [0; 4096]).expect("written");
    assert_eq!(set.name(0), "train.tar/1536"); // the byte at which it began
}

#[test]
fn records_have_the_file_and_their_number() {
    let cifar = config(Format::Cifar10, &[&fixtures().join("cifar/cifar-10-binary.tar.gz")]);
    let found = train(&cifar);
    assert_eq!(found[0], "data_batch_1.bin/0");
    assert!(found.iter().any(|name| name == "data_batch_2.bin/0"), "{found:?}");
    assert_eq!(held_out(&cifar)[1], "test_batch.bin/1");
    let cifar = config(Format::Cifar100, &[&fixtures().join("cifar/cifar-100-binary.tar.gz")]);
    assert_eq!(train(&cifar)[1], "train.bin/1");
    let folder = tempfile::tempdir().expect("a folder");
    let archive = fs::File::open(fixtures().join("stl10/stl10_binary.tar.gz")).expect("opened");
    tar::Archive::new(flate2::read::GzDecoder::new(archive)).unpack(folder.path()).expect("unpacked");
    let stl = config(Format::Stl10, &[folder.path()]);
    assert_eq!(
        train(&stl),
        ["train_X.bin/0", "train_X.bin/1", "train_X.bin/2", "unlabeled_X.bin/0", "unlabeled_X.bin/1"]
    );
    assert_eq!(held_out(&stl), ["test_X.bin/0", "test_X.bin/1"]);
    let synthetic = config(Format::Synthetic, &[]);
    assert_eq!((&*train(&synthetic)[3999], &*held_out(&synthetic)[0]), ("train/3999", "eval/0"));
}
