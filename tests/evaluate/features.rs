//! `byol extract-features` in every format: the same rows, with names, with and without labels.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::sync::LazyLock;

use crate::support::TinyRun;
use crate::support::run::{byol, draw_images, failed, succeeded, text};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{ListAccessor, RowAccessor};
use safetensors::SafeTensors;

static RUN: LazyLock<TinyRun> = LazyLock::new(|| TinyRun::train_shared("features", &["train.max_steps=4"]));

fn extract(extra: &[&str]) -> Output {
    let run = RUN.dir().display().to_string();
    byol(&[&["extract-features", "--checkpoint", &run][..], extra].concat()).output().expect("byol runs")
}

/// Name, label, class and vector of each row.
type Row = (String, Option<i64>, Option<String>, Vec<f32>);

fn of_parquet(path: &Path) -> Vec<Row> {
    let reader = SerializedFileReader::new(fs::File::open(path).expect("opened")).expect("a parquet file");
    let rows = reader.get_row_iter(None).expect("rows").map(|row| row.expect("a row"));
    rows.map(|row| {
        let vector = row.get_list(3).expect("a vector");
        let vector = (0..vector.len()).map(|at| vector.get_float(at).expect("a value")).collect();
        let name = row.get_string(0).expect("a name").clone();
        (name, row.get_long(1).ok(), row.get_string(2).ok().cloned(), vector)
    })
    .collect()
}

fn of_csv(path: &Path) -> Vec<Row> {
    let text = fs::read_to_string(path).expect("text");
    let row = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        let class = Some(fields[2].to_string()).filter(|class| !class.is_empty());
        let vector = fields[3..].iter().map(|value| value.parse().expect("a value")).collect();
        (fields[0].to_string(), fields[1].parse().ok(), class, vector)
    };
    text.lines().skip(1).map(row).collect()
}

fn of_safetensors(path: &Path) -> (Vec<String>, Vec<i64>, Vec<f32>) {
    let bytes = fs::read(path).expect("read");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let data = |name: &str| file.tensor(name).expect("there").data();
    let names = String::from_utf8(data("names").to_vec()).expect("text").lines().map(str::to_string).collect();
    let labels = data("labels").chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8"))).collect();
    let values = data("features").chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4"))).collect();
    (names, labels, values)
}

#[test]
fn every_format_holds_the_same_rows() {
    let folder = tempfile::tempdir().expect("a folder");
    let images = folder.path().join("images");
    draw_images(&images);
    let at = |name: &str| folder.path().join(name);
    let data = format!("data.path={}", images.display());
    let of_folder = |output: &Path, extra: &[&str]| {
        let output = output.display().to_string();
        let fixed = ["--set", "data.format=image_folder", "--set", &data, "--output", &output];
        extract(&[&fixed[..], extra].concat())
    };
    for name in ["f.parquet", "f.csv", "f.safetensors", "npy"] {
        let done = of_folder(&at(name), &[]);
        succeeded(&done);
        assert!(text(&done.stdout).contains("36 x 128 features; "), "{}", text(&done.stdout));
    }
    let rows = of_parquet(&at("f.parquet"));
    assert_eq!(rows.len(), 36);
    // In the byte order of the paths, and with their folders as classes.
    let mut expected: Vec<String> = (0..36).map(|i| format!("{}/{i}.png", ["a", "b"][i % 2])).collect();
    expected.sort();
    for ((name, label, class, _), expected) in rows.iter().zip(&expected) {
        assert_eq!((name, class.as_deref()), (expected, Some(&expected[..1])));
        assert_eq!(*label, Some(i64::from(expected.starts_with('b'))));
    }
    assert_eq!(of_csv(&at("f.csv")), rows);
    let (names, labels, values) = of_safetensors(&at("f.safetensors"));
    assert_eq!(names, expected);
    assert_eq!(labels, rows.iter().map(|row| row.1.expect("a label")).collect::<Vec<_>>());
    assert!(values == rows.iter().flat_map(|row| row.3.clone()).collect::<Vec<_>>());
    assert_eq!(fs::read_to_string(at("npy/names.txt")).expect("text").lines().collect::<Vec<_>>(), expected);
    let npy: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert!(fs::read(at("npy/features.npy")).expect("read")[128..] == npy);

    // Each row divided by its length.
    succeeded(&of_folder(&at("unit.parquet"), &["--normalize"]));
    for (unit, plain) in of_parquet(&at("unit.parquet")).iter().zip(&rows) {
        let length = plain.3.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
        let close = |(&unit, &plain): (&f32, &f32)| (f64::from(unit) - f64::from(plain) / length).abs() < 1e-6;
        assert!(length > 0.1 && unit.3.iter().zip(&plain.3).all(close), "{}", plain.0);
    }

    // The same images without classes, in one folder.
    let flat = folder.path().join("flat");
    fs::create_dir(&flat).expect("made");
    for name in &expected {
        fs::copy(images.join(name), flat.join(&name[2..])).expect("copied");
    }
    let without = format!("data.path={}", flat.display());
    let by_name: HashMap<&str, &Vec<f32>> = rows.iter().map(|row| (&row.0[2..], &row.3)).collect();
    for name in ["none.parquet", "none.csv", "none.safetensors"] {
        let output = at(name).display().to_string();
        let done = extract(&["--set", &without, "--output", &output]); // the format is detected
        succeeded(&done);
        assert!(text(&done.stdout).contains("36 without a label"), "{}", text(&done.stdout));
    }
    let rows = of_parquet(&at("none.parquet"));
    for (name, label, class, vector) in &rows {
        assert_eq!((*label, class), (None, &None), "{name}");
        assert!(vector == by_name[name.as_str()], "{name}");
    }
    assert_eq!(of_csv(&at("none.csv")), rows);
    assert!(of_safetensors(&at("none.safetensors")).1.iter().all(|&label| label == -1));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let list = ["FILE.parquet, FILE.csv, FILE.safetensors, or a folder, which gets features.npy", "names.txt"];
    for name in ["f.json", "f.npz", "f.feather"] {
        let output = folder.path().join(name).display().to_string();
        failed(&extract(&["--output", &output]), &[&[name][..], &list].concat());
    }
    assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 0);
    failed(
        &extract(&["--set", "data.path=nowhere", "--output", "f.csv"]),
        &["data.path=nowhere: no such file or folder"],
    );
    // A limit on file sizes stands for a full disk: one line, and nothing is left.
    for name in ["f.parquet", "f.csv", "f.safetensors", "npy"] {
        let output = folder.path().join(name).display().to_string();
        let run = RUN.dir().display().to_string();
        let line = format!(
            "ulimit -f 8; exec {} -q extract-features --checkpoint {run} --output {output}",
            env!("CARGO_BIN_EXE_byol")
        );
        let done = std::process::Command::new("bash").args(["-c", &line]).output().expect("bash runs");
        failed(&done, &["writing ", name, "File too large"]);
        let inside = folder.path().join("npy");
        let left = [folder.path(), &inside].into_iter().filter_map(|at| fs::read_dir(at).ok()).flatten().flatten();
        let left: Vec<_> = left.map(|entry| entry.file_name()).filter(|name| name != "npy").collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
