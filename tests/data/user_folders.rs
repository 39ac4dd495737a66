//! Image folders, lists and archives as people have them: what is used is right, and what is not is said.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use byol::data::{DataConfig, Dataset, Format, KeyRule, Paths, fingerprint, open_eval, open_train, same, short};
use byol::pixels::Pixels;
use log::{Log, Metadata, Record};

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Lines;

impl Log for Lines {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }
    fn log(&self, record: &Record) {
        LINES.with_borrow_mut(|lines| lines.push(format!("{}: {}", record.level(), record.args())));
    }
    fn flush(&self) {}
}

/// What `work` returns, and the lines that this thread logged meanwhile.
pub fn logged<T>(work: impl FnOnce() -> T) -> (T, Vec<String>) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Lines).expect("the only logger");
        log::set_max_level(log::LevelFilter::Info);
    });
    LINES.take();
    let result = work();
    (result, LINES.take())
}

pub fn config(format: Format, path: impl Into<Paths>) -> DataConfig {
    DataConfig { format, path: Some(path.into()), ..Default::default() }
}

/// A folder of one's own, to fill.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn at(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.0.path().into() } else { self.0.path().join(name) }
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        fs::write(self.at(name), bytes).unwrap();
    }

    fn images(&self, names: &[&str]) {
        names.iter().for_each(|name| self.write(name, &image(7)));
    }

    /// A tar file of these members.
    fn tar(&self, name: &str, members: &[(&str, &[u8])]) {
        let mut builder = tar::Builder::new(fs::File::create(self.at(name)).unwrap());
        for (member, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, member, *bytes).unwrap();
        }
        builder.finish().unwrap();
    }
}

/// A gray image of one pixel.
pub fn image(gray: u8) -> Vec<u8> {
    [b"P6 1 1 255\n".as_slice(), &[gray; 3]].concat()
}

pub fn gray(set: &Arc<dyn Dataset>, index: usize) -> u8 {
    let mut out = Pixels::default();
    set.load(index, &mut out).unwrap();
    out.data[0]
}

pub fn labels(set: &Arc<dyn Dataset>) -> Vec<i64> {
    (0..set.len()).map(|index| set.label(index).unwrap_or(-1)).collect()
}

fn names(set: &Arc<dyn Dataset>, below: &Path) -> Vec<String> {
    let name = |index| set.describe(index).strip_prefix(&format!("{}/", below.display())).unwrap().to_string();
    (0..set.len()).map(name).collect()
}

/// A sample of `../shared/cases`, where there is one.
pub fn case(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/cases").join(name);
    let found = path.exists().then(|| path.clone());
    if found.is_none() {
        println!("skipped: {} is missing", path.display());
    }
    found
}

#[test]
fn sets_in_folders_are_told_apart_and_named_in_the_log() {
    for (folders, train, held_out, line) in [
        (
            &["train", "valid", "test"][..],
            "train",
            Some("valid"),
            "training on R/train, held out: valid, left out: test",
        ),
        (&["Train", "Val"], "Train", Some("Val"), "training on R/Train, held out: Val"),
        (&["training", "dev", "extra"], "training", Some("dev"), "held out: dev, left out: extra"),
        (&["train", "eval", "test"], "train", Some("eval"), "held out: eval, left out: test"),
        (&["train"], "train", None, "training on R/train"),
    ] {
        let scratch = Scratch::new();
        for folder in folders {
            scratch
                .images(&["ant/0.ppm", "bee/1.ppm"].map(|name| format!("{folder}/{name}")).each_ref().map(|n| &n[..]));
        }
        let config = config(Format::ImageFolder, scratch.at(""));
        let (set, lines) = logged(|| open_train(&config).unwrap());
        assert_eq!((labels(&set), set.class_names()), (vec![0, 1], vec!["ant".to_string(), "bee".to_string()]));
        assert!(names(&set, &scratch.at(""))[0].ends_with(&format!("{train}/ant/0.ppm")));
        let text = lines.join("; ").replace(scratch.at("").to_str().unwrap(), "R");
        assert!(text.ends_with(line), "{text}");
        let eval = open_eval(&config).unwrap();
        let found = eval.map(|set| (labels(&set), set.describe(0).contains(&format!("/{}/ant/", held_out.unwrap()))));
        assert_eq!(found, held_out.map(|_| (vec![0, 1], true)));
    }
    let scratch = Scratch::new();
    scratch.images(&["train2017/a.ppm", "val2017/b.ppm", "bus/c.ppm"]);
    let (set, lines) = logged(|| open_train(&config(Format::ImageFolder, scratch.at(""))).unwrap());
    assert_eq!(set.len(), 3);
    assert!(
        lines[0].contains("WARN") && lines[0].contains("folders train2017, val2017 are taken as classes"),
        "{lines:?}"
    );
    let scratch = Scratch::new();
    scratch.images(&["images/train/a.ppm", "images/val/b.ppm"]);
    let (_, lines) = logged(|| open_train(&config(Format::ImageFolder, scratch.at(""))).unwrap());
    assert!(lines[0].contains("have folders train, val in them"), "{lines:?}");
    if let Some(path) = case("split_names") {
        let config = config(Format::ImageFolder, path);
        let (train, eval) = (open_train(&config).unwrap(), open_eval(&config).unwrap().unwrap());
        assert_eq!((train.class_names(), eval.class_names()), (vec!["cat".into(), "dog".into()], train.class_names()));
        assert!(train.describe(0).contains("/train/cat/") && eval.describe(0).contains("/valid/cat/"));
    }
}

#[test]
fn a_stray_image_costs_no_other_its_label() {
    let scratch = Scratch::new();
    scratch.images(&["ant/0.ppm", "bee/1.ppm", "sample.ppm"]);
    let (set, lines) = logged(|| open_train(&config(Format::ImageFolder, scratch.at(""))).unwrap());
    assert_eq!((labels(&set), set.class_names().len()), (vec![0, 1, -1], 2));
    let line = "1 of 3 images, such as sample.ppm, are next to the class folders and count as unlabeled";
    assert!(lines.len() == 1 && lines[0].ends_with(line), "{lines:?}");
    if let Some(path) = case("stray_image") {
        let set = open_train(&config(Format::ImageFolder, path)).unwrap();
        let mut found = labels(&set);
        found.sort_unstable();
        assert_eq!(found, [&[-1][..], &[0; 16], &[1; 16]].concat());
    }
}

#[test]
fn what_is_not_read_is_counted_and_system_folders_are_skipped() {
    let scratch = Scratch::new();
    scratch.images(&[
        "a/0.PPM",
        "a/1.jfif",
        "@eaDir/x.ppm",
        "__MACOSX/a/0.ppm",
        ".thumbnails/0.ppm",
        "lost+found/y.ppm",
    ]);
    scratch.images(&["a/2.HEIC", "b/3.heic", "b/4.avif", "a/notes.txt", "b/Thumbs.db"]);
    let (set, lines) = logged(|| open_train(&config(Format::ImageFolder, scratch.at(""))).unwrap());
    assert_eq!((names(&set, &scratch.at("")).len(), set.class_names()), (2, vec!["a".into(), "b".into()]));
    let command = |ending, name| {
        format!("{ending} ({name}; convert them: find . -iname '*{ending}' -exec mogrify -format jpg {{}} +)")
    };
    let expected = format!("3 files are not read: 2 {}, 1 {}", command(".heic", "HEIC"), command(".avif", "AVIF"));
    assert!(lines.len() == 1 && lines[0].ends_with(&expected), "{lines:?}");
    let only = Scratch::new();
    only.write("x.nef", b"raw");
    let message = format!("{:#}", open_train(&config(Format::ImageFolder, only.at(""))).err().unwrap());
    assert!(
        message.contains("; found 1 .nef (camera raw; convert them: find . -iname '*.nef' -exec dcraw_emu"),
        "{message}"
    );
}

#[test]
fn portable_anymaps_and_qoi_are_read() {
    let scratch = Scratch::new();
    let qoi = [b"qoif\0\0\0\x01\0\0\0\x01\x03\0".as_slice(), &[0xfe, 10, 20, 30], &[0, 0, 0, 0, 0, 0, 0, 1]].concat();
    for (name, bytes, rgb) in [
        ("a.ppm", b"P6 1 1 255\n\x0a\x14\x1e".as_slice(), [10, 20, 30]),
        ("b.ppm", b"P3 # text\n1 1 15 15 0 5\n", [255, 0, 85]),
        ("c.pgm", b"P5 1 1 255\n\x28", [40; 3]),
        ("d.pgm", b"P5 1 1 4095\n\x0f\xff", [255; 3]),
        ("e.pbm", b"P4 1 1\n\x80", [0; 3]),
        ("f.pnm", b"P1 1 1 0", [255; 3]),
        ("g.qoi", &qoi, [10, 20, 30]),
    ] {
        scratch.write(name, bytes);
        let set = open_train(&config(Format::ImageFolder, scratch.at(""))).unwrap();
        let mut out = Pixels::default();
        set.load(set.len() - 1, &mut out).unwrap();
        assert_eq!((out.width, out.height, &out.data[..]), (1, 1, &rgb[..]), "{name}");
    }
    if let Some(path) = case("pnm/img") {
        let set = open_train(&config(Format::ImageFolder, path)).unwrap();
        let mut out = Pixels::default();
        assert_eq!(set.len(), 32);
        (0..32).for_each(|index| set.load(index, &mut out).unwrap());
    }
}

#[test]
fn lists_have_class_names_and_several_paths_make_one_set() {
    let scratch = Scratch::new();
    scratch.images(&["x/a.ppm", "x/b.ppm", "x/c d.ppm", "y/cat/0.ppm", "y/emu/1.ppm"]);
    scratch.write("train.csv", b"file_name,label\nx/a.ppm,dog\nx/b.ppm,cat\nx/c d.ppm,polar bear\n");
    scratch.write("val.txt", b"x/a.ppm polar bear\nx/b.ppm\tcat\n");
    let list = config(Format::ImageFolder, scratch.at("train.csv"));
    let list = DataConfig { eval_path: Some(scratch.at("val.txt").into()), ..list };
    let (train, eval) = (open_train(&list).unwrap(), open_eval(&list).unwrap().unwrap());
    assert_eq!(
        (labels(&train), train.class_names()),
        (vec![1, 0, 2], ["cat", "dog", "polar bear"].map(String::from).to_vec())
    );
    assert_eq!((labels(&eval), eval.class_names()), (vec![2, 0], train.class_names()));
    scratch.write("val.txt", b"x/a.ppm\tcow\n");
    let message = format!("{:#}", open_eval(&list).err().unwrap());
    assert!(message.starts_with("found class cow in ") && message.contains("one of the 3 classes"), "{message}");
    // A list and a folder, whose classes have one numbering.
    let both: Paths = [scratch.at("train.csv"), scratch.at("y")].into_iter().collect();
    let set = open_train(&config(Format::ImageFolder, both)).unwrap();
    assert_eq!(labels(&set), [1, 0, 3, 0, 2]);
    assert_eq!(set.class_names(), ["cat", "dog", "emu", "polar bear"]);
    assert!(set.describe(4).ends_with("y/emu/1.ppm") && set.describe(0).ends_with("/x/a.ppm"));
    assert_eq!(gray(&set, 4), 7);
    // Paths that start elsewhere.
    scratch.write("lists/l.txt", b"a.ppm 1\n");
    let far = DataConfig { root: Some(scratch.at("x")), ..config(Format::ImageFolder, scratch.at("lists/l.txt")) };
    assert_eq!(gray(&open_train(&far).unwrap(), 0), 7);
    let message = format!("{:#}", open_train(&DataConfig { root: None, ..far }).err().unwrap());
    assert!(message.contains("unless data.root names another folder"), "{message}");
}

#[test]
fn members_of_shards_are_paired_wherever_they_are() {
    let scratch = Scratch::new();
    let [a, b, c] = [1, 2, 3].map(image);
    scratch.tar(
        "train-0.tar",
        &[
            ("0.input.ppm", &a),
            ("1.input.ppm", &b),
            ("2.input.ppm", &c),
            ("0.output.cls", b"4"),
            ("1.output.cls", b"5"),
            ("9.output.cls", b"6"),
        ],
    );
    let path = scratch.at("train-0.tar");
    let (set, lines) = logged(|| open_train(&config(Format::Webdataset, &path)).unwrap());
    assert_eq!((labels(&set), [0, 1, 2].map(|index| gray(&set, index))), (vec![4, 5, -1], [1, 2, 3]));
    assert!(lines[0].contains("1 labels belong to no image, such as 9.output.cls in train-0.tar"), "{lines:?}");
    assert!(lines[1].ends_with("1 of 3 images have no label"), "{lines:?}");
    // Dots in names, and the other rule.
    scratch.tar("dots.tar", &[("c.0.ppm", &a), ("c.0.cls", b"1"), ("c.1.ppm", &b), ("c.1.cls", b"2")]);
    let dots = config(Format::Webdataset, scratch.at("dots.tar"));
    let (set, lines) = logged(|| open_train(&dots).unwrap());
    assert_eq!(set.len(), 1);
    assert!(
        lines[0].contains("1 of 2 images are skipped, such as c.1.ppm in dots.tar, because")
            && lines[0].ends_with("set data.key=last_dot"),
        "{lines:?}"
    );
    let set = open_train(&DataConfig { key: KeyRule::LastDot, ..dots }).unwrap();
    assert_eq!((labels(&set), gray(&set, 1)), (vec![1, 2], 2));
    if let (Some(order), Some(dots)) = (case("wds_order/train-000000.tar"), case("wds_dots/train-000000.tar")) {
        let set = open_train(&config(Format::Webdataset, order)).unwrap();
        assert!(set.len() == 32 && !labels(&set).contains(&-1), "{:?}", labels(&set));
        let dotted = config(Format::Webdataset, dots);
        let all = open_train(&DataConfig { key: KeyRule::LastDot, ..dotted.clone() }).unwrap().len();
        let (set, lines) = logged(|| open_train(&dotted).unwrap());
        let count = format!("{} of {all} images are skipped", all - set.len());
        assert!(set.len() < all && lines[0].contains(&count), "{lines:?}");
    }
}

#[test]
fn class_names_in_shards_have_one_numbering() {
    let scratch = Scratch::new();
    let [a, b] = [1, 2].map(image);
    scratch.tar("train-0.tar", &[("0.ppm", &a), ("0.cls", b"dog\n"), ("1.ppm", &b), ("1.cls", b"cat")]);
    scratch.tar("train-1.tar", &[("0.ppm", &a), ("0.cls", b"7"), ("1.ppm", &b), ("1.json", br#"{"label": "cat"}"#)]);
    scratch.tar("val-0.tar", &[("0.ppm", &a), ("0.cls", b"7"), ("1.ppm", &b), ("1.cls", b"dog")]);
    scratch.tar("val-1.tar", &[("0.ppm", &a), ("0.cls", b"7")]);
    let config = config(Format::Webdataset, scratch.at(""));
    for _ in 0..2 {
        let (train, eval) = (open_train(&config).unwrap(), open_eval(&config).unwrap().unwrap());
        assert_eq!(
            (labels(&train), train.class_names()),
            (vec![2, 1, 0, 1], ["7", "cat", "dog"].map(String::from).to_vec())
        );
        assert_eq!((labels(&eval), eval.class_names()), (vec![0, 2, 0], train.class_names()));
    }
}

/// Tar pads sizes and reproducible builds fix times, so both may be those of the shard before.
#[test]
fn a_rebuilt_shard_of_the_same_size_and_time_is_noticed() {
    let scratch = Scratch::new();
    let path = scratch.at("train-0.tar");
    let build = |order: [u8; 3]| {
        let samples = order.map(|n| {
            (format!("{n}.ppm"), [image(n), vec![b'#'; usize::from(n) * 600]].concat(), format!("{n}.cls"), [b'0' + n])
        });
        let members = samples
            .iter()
            .flat_map(|(image, bytes, label, class)| [(&image[..], &bytes[..]), (&label[..], &class[..])]);
        scratch.tar("train-0.tar", &members.collect::<Vec<_>>());
        fs::File::options().write(true).open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        fs::metadata(&path).unwrap().len()
    };
    let open = || open_train(&config(Format::Webdataset, &path)).unwrap();
    let size = build([1, 2, 3]);
    let first = open();
    assert_eq!((labels(&first), [0, 1, 2].map(|index| gray(&first, index))), (vec![1, 2, 3], [1, 2, 3]));
    assert_eq!(build([3, 1, 2]), size);
    let second = open();
    assert_eq!((labels(&second), [0, 1, 2].map(|index| gray(&second, index))), (vec![3, 1, 2], [3, 1, 2]));
    assert_ne!(first.fingerprint(), second.fingerprint());
    // The set that was open meanwhile finds other headers than it knows, and says so.
    let message = format!("{:#}", first.load(1, &mut Pixels::default()).unwrap_err());
    assert!(message.starts_with("the shard has changed since it was indexed"), "{message}");
}

/// Neither names nor sizes tell these sets apart: shards and lists with another label in them.
#[test]
fn other_labels_are_another_fingerprint() {
    let scratch = Scratch::new();
    scratch.images(&["a.ppm", "b.ppm"]);
    for path in ["shard.tar", "list.txt"] {
        let print = |label: u8| {
            let label = [b'0' + label];
            match path {
                "shard.tar" => scratch.tar(path, &[("a.ppm", &image(1)[..]), ("a.cls", &label[..])]),
                _ => fs::write(scratch.at(path), [&b"a.ppm\t0\nb.ppm\t"[..], &label, b"\n"].concat()).unwrap(),
            }
            let format = if path == "shard.tar" { Format::Webdataset } else { Format::ImageFolder };
            let set = open_train(&config(format, scratch.at(path))).unwrap();
            (set.fingerprint(), fingerprint(&*set))
        };
        let (one, other) = (print(1), print(2));
        assert_eq!(one, print(1));
        assert_eq!(one.0, other.0);
        assert!(one.1 != other.1 && !same(&one.1, &other.1) && same(&one.1, &one.1));
        // Runs of 0.1.0 kept the first part.
        assert!(same(&one.0, &one.1) && !same(&one.1, &one.0));
        assert!(short(&one.1).contains("..., labels "), "{}", short(&one.1));
    }
}
