//! CIFAR, STL-10 and webdataset against what torchvision, webdataset and Pillow read (scripts/reference/formats.py).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use byol::data::formats::stl10::Split;
use byol::data::{DataConfig, Dataset, Format, open_eval, open_train, subset};
use byol::pixels::Pixels;
use serde_json::Value;
use sha2::{Digest, Sha256};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data").join(name)
}

fn expected(format: &str) -> Value {
    let all: Value = serde_json::from_slice(&fs::read(fixture("formats.json")).unwrap()).unwrap();
    all[format].clone()
}

fn config(format: Format, path: &Path) -> DataConfig {
    DataConfig { format, path: Some(path.into()), ..Default::default() }
}

fn failure<T>(result: anyhow::Result<T>) -> String {
    let message = format!("{:#}", result.err().expect("an error"));
    assert!(!message.contains('\n'), "{message}");
    message
}

fn unpack(archive: &Path, folder: &Path) {
    tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(archive).unwrap())).unpack(folder).unwrap();
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Against a torchvision set: order, labels, class names and every pixel.
fn assert_as_in_torchvision(set: &dyn Dataset, expected: &Value, side: usize) {
    let labels: Vec<i64> = (0..set.len()).map(|index| set.label(index).unwrap_or(-1)).collect();
    assert_eq!(serde_json::json!(labels), expected["labels"]);
    assert_eq!(serde_json::json!(set.class_names()), expected["classes"]);
    let mut out = Pixels::default();
    for (index, sum) in expected["sha256"].as_array().unwrap().iter().enumerate() {
        set.load(index, &mut out).unwrap();
        assert_eq!((out.width, out.height), (side, side));
        assert_eq!(hex(&Sha256::digest(&out.data)), sum.as_str().unwrap(), "{}", set.describe(index));
    }
}

#[test]
fn cifar_is_read_as_torchvision_reads_it_packed_or_not() {
    for (format, name, folder, archive, last) in [
        (Format::Cifar10, "cifar10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz", "data_batch_5.bin record 1"),
        (Format::Cifar100, "cifar100", "cifar-100-binary", "cifar-100-binary.tar.gz", "train.bin record 1"),
    ] {
        let expected = expected(name);
        let scratch = tempfile::tempdir().unwrap();
        let packed = fixture("cifar").join(archive);
        unpack(&packed, scratch.path());
        let mut prints = Vec::new();
        for path in [packed, fixture("cifar"), scratch.path().into(), scratch.path().join(folder)] {
            let config = config(format, &path);
            let (train, test) = (open_train(&config).unwrap(), open_eval(&config).unwrap().unwrap());
            assert_as_in_torchvision(&*train, &expected[0], 32);
            assert_as_in_torchvision(&*test, &expected[1], 32);
            let described = train.describe(train.len() - 1);
            assert!(described.starts_with(path.to_str().unwrap()) && described.ends_with(last), "{described}");
            assert_ne!(train.fingerprint(), test.fingerprint());
            prints.push(train.fingerprint());
            let first = open_train(&DataConfig { limit: Some(1), ..config }).unwrap();
            assert_eq!((first.len(), first.label(0)), (1, train.label(0)));
        }
        assert!(prints.iter().all(|print| *print == prints[0]));
    }
}

#[test]
fn unusable_cifar_files_are_named_in_one_line() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    unpack(&fixture("cifar/cifar-10-binary.tar.gz"), root);
    let folder = root.join("cifar-10-batches-bin");
    let failed = |path: &Path| failure(open_train(&config(Format::Cifar10, path)));
    let batch = folder.join("data_batch_3.bin");
    let whole = fs::read(&batch).unwrap();
    fs::write(&batch, &whole[..whole.len() - 1]).unwrap();
    let message = failed(root);
    assert!(message.starts_with("found 6145 bytes in data_batch_3.bin of "), "{message}");
    assert!(message.contains("expected a multiple of 3073"), "{message}");
    let mut wrong = whole.clone();
    wrong[3073] = 10;
    fs::write(&batch, &wrong).unwrap();
    assert!(failed(root).starts_with("found label 10 in record 1 of data_batch_3.bin of "), "{}", failed(root));
    fs::remove_file(&batch).unwrap();
    assert!(failed(&folder).starts_with("found no data_batch_3.bin in "), "{}", failed(&folder));
    fs::write(&batch, &whole).unwrap();
    assert!(open_train(&config(Format::Cifar10, root)).is_ok());
    // Held-out images are optional.
    fs::remove_file(folder.join("test_batch.bin")).unwrap();
    assert!(open_eval(&config(Format::Cifar10, root)).unwrap().is_none());
    // Archives: of the other set, truncated, and not an archive.
    let message = failed(&fixture("cifar/cifar-100-binary.tar.gz"));
    assert!(message.starts_with("found no data_batch_1.bin in "), "{message}");
    let packed = fs::read(fixture("cifar/cifar-10-binary.tar.gz")).unwrap();
    let cut = root.join("cut.tar.gz");
    for (bytes, part) in [
        (&packed[..packed.len() / 2], "download it again"),
        (b"<html>Not found, try later</html>", "download it again"),
        (b"", "empty file"),
    ] {
        fs::write(&cut, bytes).unwrap();
        let message = failed(&cut);
        assert!(message.starts_with("cannot use ") && message.contains(part), "{message}");
    }
    assert!(failed(&root.join("none")).starts_with("no such file or folder: "));
    let message = failed(&fixture("shards"));
    assert!(message.starts_with("found neither cifar-10-binary.tar.gz nor data_batch_1.bin in "), "{message}");
}

#[test]
fn the_python_version_of_cifar_is_refused_with_the_address_of_the_other() {
    let address = "get https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz";
    let scratch = tempfile::tempdir().unwrap();
    let failed = |path: &Path| failure(open_train(&config(Format::Cifar10, path)));
    let unpacked = scratch.path().join("cifar-10-batches-py");
    fs::create_dir(&unpacked).unwrap();
    fs::write(unpacked.join("data_batch_1"), b"a pickle").unwrap();
    let archive = tempfile::tempdir().unwrap();
    let packed = archive.path().join("cifar-10-python.tar.gz");
    let file = flate2::write::GzEncoder::new(fs::File::create(&packed).unwrap(), Default::default());
    let mut builder = tar::Builder::new(file);
    builder.append_dir_all("cifar-10-batches-py", &unpacked).unwrap();
    builder.into_inner().unwrap().finish().unwrap();
    for path in [scratch.path(), &unpacked, archive.path(), &packed] {
        let message = failed(path);
        assert!(message.contains(address) && message.contains("pickles"), "{}: {message}", path.display());
    }
}

#[test]
fn stl10_is_read_as_torchvision_reads_it() {
    let scratch = tempfile::tempdir().unwrap();
    unpack(&fixture("stl10/stl10_binary.tar.gz"), scratch.path());
    let expected = expected("stl10");
    let of = |split: &str| expected.as_array().unwrap().iter().find(|set| set["split"] == split).unwrap().clone();
    for path in [scratch.path().into(), scratch.path().join("stl10_binary")] {
        let default = config(Format::Stl10, &path);
        for (split, name, images) in [
            (None, "train+unlabeled", 5),
            (Some(Split::TrainUnlabeled), "train+unlabeled", 5),
            (Some(Split::Train), "train", 3),
            (Some(Split::Unlabeled), "unlabeled", 2),
        ] {
            let set = open_train(&DataConfig { split, ..default.clone() }).unwrap();
            assert_eq!(set.len(), images);
            assert_as_in_torchvision(&*set, &of(name), 96);
        }
        assert_as_in_torchvision(&*open_eval(&default).unwrap().unwrap(), &of("test"), 96);
        let set = open_train(&default).unwrap();
        assert!(set.describe(2).ends_with("stl10_binary/train_X.bin image 2"), "{}", set.describe(2));
        assert!(set.describe(4).ends_with("stl10_binary/unlabeled_X.bin image 1"), "{}", set.describe(4));
        let train = open_train(&DataConfig { split: Some(Split::Train), ..default }).unwrap();
        assert_ne!(set.fingerprint(), train.fingerprint());
        // Those with labels are what k-NN compares with.
        let labeled = subset::labeled(set.clone()).unwrap();
        assert_eq!((labeled.len(), labeled.describe(2)), (3, set.describe(2)));
        assert_eq!(subset::labeled(train.clone()).unwrap().len(), 3);
        let unlabeled = DataConfig { split: Some(Split::Unlabeled), ..config(Format::Stl10, &path) };
        assert!(subset::labeled(open_train(&unlabeled).unwrap()).is_none());
    }
}

#[test]
fn unusable_stl10_files_are_named_in_one_line() {
    let failed = |path: &Path| failure(open_train(&config(Format::Stl10, path)));
    for path in [fixture("stl10"), fixture("stl10/stl10_binary.tar.gz")] {
        let message = failed(&path);
        let (archive, folder) = (fixture("stl10/stl10_binary.tar.gz"), fixture("stl10"));
        let command = format!("tar -xzf {} -C {}", archive.display(), folder.display());
        assert!(message.contains(&command), "{message}");
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    assert!(failed(root).starts_with("found no train_X.bin in "), "{}", failed(root));
    assert!(failed(&root.join("none")).starts_with("no such folder: "));
    unpack(&fixture("stl10/stl10_binary.tar.gz"), root);
    let at = |name: &str| root.join("stl10_binary").join(name);
    let set = open_train(&config(Format::Stl10, root)).unwrap();
    let whole = fs::read(at("unlabeled_X.bin")).unwrap();
    fs::write(at("unlabeled_X.bin"), &whole[..40_000]).unwrap();
    assert!(failed(root).starts_with("found 40000 bytes in "), "{}", failed(root));
    // Cut off while it is in use, a file makes bad images only.
    let mut out = Pixels::default();
    assert!(set.load(3, &mut out).is_ok() && set.load(4, &mut out).is_err());
    fs::write(at("unlabeled_X.bin"), whole).unwrap();
    fs::write(at("train_y.bin"), [1, 2]).unwrap();
    assert!(failed(root).starts_with("found 2 labels in "), "{}", failed(root));
    fs::write(at("train_y.bin"), [1, 11, 2]).unwrap();
    assert!(failed(root).starts_with("found label 11 at byte 1 of "), "{}", failed(root));
    fs::remove_file(at("train_X.bin")).unwrap();
    assert!(failed(root).starts_with("cannot open "), "{}", failed(root));
    let unlabeled = DataConfig { split: Some(Split::Unlabeled), ..config(Format::Stl10, root) };
    assert_eq!(open_train(&unlabeled).unwrap().len(), 2);
    fs::remove_file(at("test_X.bin")).unwrap();
    assert!(open_eval(&unlabeled).unwrap().is_none());
}

/// The shards in a folder of their own, for indices are written beside them.
fn shards() -> tempfile::TempDir {
    let scratch = tempfile::tempdir().unwrap();
    for file in fs::read_dir(fixture("webdataset")).unwrap().map(|file| file.unwrap().path()) {
        fs::copy(&file, scratch.path().join(file.file_name().unwrap())).unwrap();
    }
    scratch
}

fn webdataset(path: &Path) -> DataConfig {
    config(Format::Webdataset, path)
}

/// Against the samples of some shards as the webdataset package yields them.
fn assert_as_in_webdataset(set: &Arc<dyn Dataset>, shards: &[&str]) {
    let all = expected("webdataset");
    let expected: Vec<(&str, &Value)> =
        shards.iter().flat_map(|&name| all[name].as_array().unwrap().iter().map(move |row| (name, row))).collect();
    assert_eq!(set.len(), expected.len());
    let mut out = Pixels::default();
    for (index, (shard, row)) in expected.into_iter().enumerate() {
        let member = row["member"].as_str().unwrap();
        // The package makes suffixes lower case.
        let described = set.describe(index).replace(".PNG", ".png");
        assert!(described.ends_with(&format!("/{shard} member {member}")), "{described}");
        assert_eq!(set.label(index), row["label"].as_i64(), "{described}");
        set.load(index, &mut out).unwrap();
        assert_eq!((out.width, out.height), (8, 8));
        let byte = |at: usize| u8::from_str_radix(&row["pixels"].as_str().unwrap()[2 * at..2 * at + 2], 16).unwrap();
        assert!((0..out.data.len()).all(|at| out.data[at] == byte(at)), "{described}");
    }
}

#[test]
fn webdataset_shards_are_read_as_the_package_reads_them() {
    let scratch = shards();
    let at = |name: &str| scratch.path().join(name);
    let train = ["train-000000.tar", "train-000001.tar"];
    // The second round reads the indices that the first one left.
    for round in 0..2 {
        for path in [scratch.path().into(), at("train-{000000..000001}.tar")] {
            let config = webdataset(&path);
            assert_as_in_webdataset(&open_train(&config).unwrap(), &train);
            assert_as_in_webdataset(&open_eval(&config).unwrap().unwrap(), &["val-000000.tar"]);
        }
        for odd in ["odd-gnu.tar", "odd-pax.tar", "odd-tar.tar"] {
            assert_as_in_webdataset(&open_train(&webdataset(&at(odd))).unwrap(), &[odd]);
            assert!(open_eval(&webdataset(&at(odd))).unwrap().is_none());
            assert!(at(&format!("{odd}.byol-index")).is_file(), "round {round}");
        }
    }
    let config = DataConfig { eval_path: Some(at("odd-gnu.tar").into()), limit: Some(2), ..webdataset(scratch.path()) };
    assert_as_in_webdataset(&open_eval(&config).unwrap().unwrap(), &["odd-gnu.tar"]);
    assert_eq!(open_train(&config).unwrap().len(), 2);
}

#[test]
fn the_fingerprint_of_shards_tells_keys_and_sizes() {
    let scratch = shards();
    let at = |name: &str| scratch.path().join(name);
    let print = |path: &Path| open_train(&webdataset(path)).unwrap().fingerprint();
    let before = print(&at("train-000000.tar"));
    assert_ne!(before, print(scratch.path()));
    // The same size, but another key.
    let mut bytes = fs::read(at("train-000000.tar")).unwrap();
    for name in ["000000.png", "000000.cls"] {
        let header = bytes.windows(10).position(|part| part == name.as_bytes()).unwrap();
        bytes[header..header + 6].copy_from_slice(b"000010"); // one more,
        let sum = header + 148 + 5; // so its last digit is, too
        bytes[sum] += 1;
    }
    fs::write(at("train-000000.tar"), bytes).unwrap();
    let set = open_train(&webdataset(&at("train-000000.tar"))).unwrap();
    assert!(set.describe(0).ends_with("member 000010.png"), "{}", set.describe(0));
    assert_ne!(before, set.fingerprint());
}

#[test]
fn cut_shards_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let whole = fs::read(fixture("webdataset/odd-pax.tar")).unwrap();
    let used = whole.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    let mut unnoticed = Vec::new();
    for cut in (0..used).step_by(256) {
        let path = scratch.path().join(format!("{cut}.tar"));
        fs::write(&path, &whole[..cut]).unwrap();
        match open_train(&webdataset(&path)) {
            Ok(_) => unnoticed.push(cut),
            Err(error) => {
                let message = failure::<()>(Err(error));
                let named = message.contains(&format!("/{cut}.tar: "));
                let why = ["empty file", "truncated", "not a tar file", "no images in"]
                    .iter()
                    .any(|part| message.contains(part));
                assert!((named || message.contains("no images")) && why, "cut to {cut}: {message}");
            }
        }
    }
    // Between two members a cut shows in the missing end mark only, which some tools leave out: a warning.
    assert!(unnoticed.iter().all(|cut| cut % 512 == 0) && unnoticed.len() < 12, "{unnoticed:?}");
}

#[test]
fn damaged_shards_never_panic() {
    let scratch = tempfile::tempdir().unwrap();
    let whole = fs::read(fixture("webdataset/odd-gnu.tar")).unwrap();
    let mut refused = 0;
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x5a;
        let path = scratch.path().join(format!("{at}.tar"));
        fs::write(&path, bytes).unwrap();
        match open_train(&webdataset(&path)) {
            Ok(set) => {
                let mut out = Pixels::default();
                (0..set.len()).for_each(|index| drop((set.describe(index), set.load(index, &mut out))));
            }
            Err(error) => refused += failure::<()>(Err(error)).contains(&format!("/{at}.tar")) as usize,
        }
    }
    assert!(refused > whole.len() / 7 / 3, "only {refused} of {} damaged shards were refused", whole.len() / 7);
}

#[test]
fn unusable_shards_are_named_together() {
    let scratch = shards();
    let at = |name: &str| scratch.path().join(name);
    let failed = |path: &Path| failure(open_train(&webdataset(path)));
    assert!(failed(&at("none")).starts_with("no such file or folder: "));
    assert!(failed(&at("train-{000000..000002}.tar")).ends_with("train-000002.tar"));
    fs::write(at("train-000002.tar"), "<html>Not found</html>").unwrap();
    fs::write(at("train-000003.tar"), "").unwrap();
    let packed = flate2::read::GzEncoder::new(fs::File::open(at("train-000000.tar")).unwrap(), Default::default());
    std::io::copy(&mut { packed }, &mut fs::File::create(at("train-000004.tar")).unwrap()).unwrap();
    let message = failed(scratch.path());
    assert!(message.starts_with("cannot use 3 of 5 shards: "), "{message}");
    for part in
        ["000002.tar: found no valid header", "000003.tar: found an empty file", "000004.tar: found a compressed"]
    {
        assert!(message.contains(part), "{message}");
    }
    let only = tempfile::tempdir().unwrap();
    assert!(failed(only.path()).starts_with("no tar files in "), "{}", failed(only.path()));
    fs::rename(at("train-000004.tar"), only.path().join("a.tar.gz")).unwrap();
    let message = failed(only.path());
    assert!(message.ends_with(&format!("gunzip {}", only.path().join("a.tar.gz").display())), "{message}");
    // Two members of one name, and no image at all.
    let write = |names: &[&str]| {
        let mut builder = tar::Builder::new(fs::File::create(at("odd.tar")).unwrap());
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            builder.append_data(&mut header, name, &b"x"[..]).unwrap();
        }
        builder.finish().unwrap();
        failed(&at("odd.tar"))
    };
    assert!(write(&["a.png", "a.png"]).contains("found member a.png twice in a sample"));
    assert!(write(&["a.txt", "b.cls"]).starts_with("no images in "));
    assert!(write(&["a.heic", "b.cls"]).contains("; found 1 .heic (HEIC; convert them: "));
}

#[test]
fn bad_images_in_shards_are_errors_of_their_own() {
    let scratch = shards();
    let path = scratch.path().join("train-000000.tar");
    let set = open_train(&webdataset(&path)).unwrap();
    let mut out = Pixels::default();
    let small = DataConfig { max_bytes: 20, ..webdataset(&path) };
    let message = failure(open_train(&small).unwrap().load(0, &mut out));
    assert!(message.contains("expected at most 20 (data.max_bytes)"), "{message}");
    // The last image is removed while the shard is in use.
    fs::File::options().write(true).open(&path).unwrap().set_len(2000).unwrap();
    assert!(set.load(0, &mut out).is_ok());
    assert!(failure(set.load(2, &mut out)).starts_with("cannot read the shard"));
    assert!(set.describe(2).contains("train-000000.tar byte "), "{}", set.describe(2));
}
