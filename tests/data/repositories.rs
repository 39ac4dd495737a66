//! Parquet files and data set repositories as they are published: labels of every kind, images by path, nested folders.

use std::fs::File;
use std::sync::Arc;

use byol::data::{DataConfig, Format, open_eval, open_train};
use byol::pixels::Pixels;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::user_folders::{Scratch, case, config, gray, image, labels, logged};

enum Column<'a> {
    Bytes(&'a [Option<Vec<u8>>]),
    Text(&'a [Option<&'a str>]),
    Numbers(&'a [i64]),
}

/// Writes a parquet file of one row group; the columns are those of the schema in order.
fn write(scratch: &Scratch, name: &str, schema: &str, columns: &[Column], metadata: Option<&str>) {
    scratch.write(name, b"");
    let schema = Arc::new(parse_message_type(&format!("message schema {{ {schema} }}")).unwrap());
    let pairs = metadata.map(|json| vec![KeyValue { key: "huggingface".into(), value: Some(json.into()) }]);
    let properties = Arc::new(WriterProperties::builder().set_key_value_metadata(pairs).build());
    let mut file = SerializedFileWriter::new(File::create(scratch.at(name)).unwrap(), schema, properties).unwrap();
    let mut group = file.next_row_group().unwrap();
    for column in columns {
        let mut writer = group.next_column().unwrap().unwrap();
        let mut put = |values: Vec<Option<ByteArray>>| {
            let depth = writer.typed::<ByteArrayType>().get_descriptor().max_def_level();
            let levels: Vec<i16> = values.iter().map(|value| if value.is_some() { depth } else { depth - 1 }).collect();
            let values: Vec<ByteArray> = values.into_iter().flatten().collect();
            writer.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        };
        match column {
            Column::Bytes(values) => put(values.iter().map(|value| value.clone().map(ByteArray::from)).collect()),
            Column::Text(values) => put(values.iter().map(|value| value.map(ByteArray::from)).collect()),
            Column::Numbers(values) => drop(writer.typed::<Int64Type>().write_batch(values, None, None).unwrap()),
        }
        writer.close().unwrap();
    }
    group.close().unwrap();
    file.close().unwrap();
}

const IMAGE: &str = "optional group image { optional binary bytes; optional binary path (UTF8); }";

/// A file with three images and this label column.
fn labeled(scratch: &Scratch, name: &str, schema: &str, label: Column, metadata: Option<&str>) {
    let images = [1, 2, 3].map(|gray| Some(image(gray)));
    let columns = [Column::Bytes(&images), Column::Text(&[None, None, None]), label];
    write(scratch, name, &format!("{IMAGE} {schema}"), &columns, metadata);
}

#[test]
fn label_columns_have_usual_names_and_may_be_text() {
    for name in ["label", "labels", "fine_label", "class", "category", "cls", "target"] {
        let scratch = Scratch::new();
        labeled(&scratch, "a.parquet", &format!("required int64 {name};"), Column::Numbers(&[4, 0, -1]), None);
        let set = open_train(&config(Format::Parquet, scratch.at("a.parquet"))).unwrap();
        assert_eq!((labels(&set), gray(&set, 2)), (vec![4, 0, -1], 3), "{name}");
    }
    let scratch = Scratch::new();
    let text = |name: &str, values: &[Option<&str>]| {
        labeled(&scratch, name, "optional binary category (UTF8);", Column::Text(values), None);
    };
    text("train.parquet", &[Some("dog"), Some("cat"), Some("emu")]);
    text("test.parquet", &[Some("emu"), None, Some("cat")]);
    let animals = config(Format::Parquet, scratch.at(""));
    let (train, eval) = (open_train(&animals).unwrap(), open_eval(&animals).unwrap().unwrap());
    assert_eq!(
        (labels(&train), train.class_names()),
        (vec![1, 0, 2], ["cat", "dog", "emu"].map(String::from).to_vec())
    );
    assert_eq!((labels(&eval), eval.class_names()), (vec![2, -1, 0], train.class_names()));
    text("test.parquet", &[Some("cow"), None, Some("cat")]);
    let message = format!("{:#}", open_eval(&animals).err().unwrap());
    assert!(message.starts_with("found class cow in "), "{message}");
    // Names for numbers, and a column that nobody would guess.
    let json = r#"{"info": {"features": {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}}}"#;
    labeled(&scratch, "names.parquet", "required int64 label;", Column::Numbers(&[1, 0, 1]), Some(json));
    let set = open_train(&config(Format::Parquet, scratch.at("names.parquet"))).unwrap();
    assert_eq!((labels(&set), set.class_names()), (vec![1, 0, 1], vec!["ant".into(), "bee".into()]));
    labeled(&scratch, "odd.parquet", "required int64 species;", Column::Numbers(&[1, 0, 1]), None);
    let odd = config(Format::Parquet, scratch.at("odd.parquet"));
    let (set, lines) = logged(|| open_train(&odd).unwrap());
    assert_eq!(set.label(0), None);
    assert!(lines[0].contains("set data.label_column if it is one of: species"), "{lines:?}");
    assert_eq!(labels(&open_train(&DataConfig { label_column: Some("species".into()), ..odd }).unwrap()), [1, 0, 1]);
    if let Some(path) = case("pq_other_label") {
        let (set, lines) = logged(|| open_train(&config(Format::Parquet, path)).unwrap());
        assert_eq!((set.label(0), set.label(1)), (Some(0), Some(1)));
        assert!(lines.iter().any(|line| line.contains("column class, not category")), "{lines:?}");
    }
}

#[test]
fn images_without_bytes_are_read_from_their_paths() {
    let scratch = Scratch::new();
    scratch.write("p/b.ppm", &image(20));
    scratch.write("p/images/c.ppm", &image(30));
    scratch.write("far/d.ppm", &image(40));
    let mixed = [Some(image(10)), None, None, None];
    let paths = [None, Some("b.ppm"), Some("/gone/c.ppm"), Some("d.ppm")];
    write(&scratch, "p/mixed.parquet", IMAGE, &[Column::Bytes(&mixed), Column::Text(&paths)], None);
    write(&scratch, "p/linked.parquet", "optional binary file_name (UTF8);", &[Column::Text(&paths[1..])], None);
    for cache_bytes in [1 << 20, 0] {
        let mixed = DataConfig { cache_bytes, ..config(Format::Parquet, scratch.at("p/mixed.parquet")) };
        let set = open_train(&mixed).unwrap();
        assert_eq!([0, 1, 2].map(|index| gray(&set, index)), [10, 20, 30]);
        let message = format!("{:#}", set.load(3, &mut Pixels::default()).unwrap_err());
        assert!(
            message.starts_with("no such file: d.ppm (the row holds this path and no bytes; set data.root"),
            "{message}"
        );
        let before = set.fingerprint();
        let set = open_train(&DataConfig { root: Some(scratch.at("far")), ..mixed }).unwrap();
        assert_eq!([0, 1, 2, 3].map(|index| gray(&set, index)), [10, 20, 30, 40]);
        assert_ne!(before, set.fingerprint());
        let linked = DataConfig { cache_bytes, ..config(Format::Parquet, scratch.at("p/linked.parquet")) };
        let set = open_train(&linked).unwrap();
        assert_eq!((set.len(), gray(&set, 0), gray(&set, 1)), (3, 20, 30));
    }
    std::fs::rename(scratch.at("p/linked.parquet"), scratch.at("alone.parquet")).unwrap();
    let message = format!("{:#}", open_train(&config(Format::Parquet, scratch.at("alone.parquet"))).err().unwrap());
    assert!(message.contains("alone.parquet: no such file: b.ppm") && message.contains("set data.root"), "{message}");
    if let Some(path) = case("pq_pathonly") {
        let message = format!("{:#}", open_train(&config(Format::Parquet, path)).err().unwrap());
        assert!(message.contains("no such file: /data/0.jpg") && message.contains("set data.root"), "{message}");
    }
}

#[test]
fn repositories_are_read_as_cloned() {
    let put = |scratch: &Scratch, name: &str, label: i64| {
        labeled(scratch, name, "required int64 label;", Column::Numbers(&[label; 3]), None);
    };
    for (train, held_out, other) in [
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet", "data/test-0.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet", "README.md"),
        ("default/partial-train/0000.parquet", "default/partial-validation/0000.parquet", "x/y.txt"),
        ("plain_text/train-0.parquet", "plain_text/dev-0.parquet", ".git/train-9.parquet"),
    ] {
        let scratch = Scratch::new();
        [(train, 1), (held_out, 2), (other, 3)].iter().for_each(|&(name, label)| put(&scratch, name, label));
        let root = config(Format::Parquet, scratch.at(""));
        let (set, lines) = logged(|| open_train(&root).unwrap());
        assert_eq!((labels(&set), labels(&open_eval(&root).unwrap().unwrap())), (vec![1; 3], vec![2; 3]), "{train}");
        assert!(
            lines[0].contains(&format!("training on {train}")) && lines[0].contains(&format!("held out: {held_out}")),
            "{lines:?}"
        );
        assert_eq!(lines[0].contains("left out: data/test-0.parquet"), other.ends_with("test-0.parquet"));
        // The file itself finds the set beside it, too.
        let file = config(Format::Parquet, scratch.at(train));
        assert_eq!(labels(&open_eval(&file).unwrap().unwrap()), [2; 3], "{train}");
    }
    let scratch = Scratch::new();
    for name in ["en/train-0.parquet", "en/test-0.parquet", "fr/train/0.parquet", "fr/test/0.parquet"] {
        put(&scratch, name, i64::from(name.starts_with('f')));
    }
    let message = format!("{:#}", open_train(&config(Format::Parquet, scratch.at(""))).err().unwrap());
    assert!(
        message.starts_with("found 2 sets of parquet files in ")
            && message.contains(": en (2 files), fr (2 files); expected one"),
        "{message}"
    );
    let both = [scratch.at("en"), scratch.at("fr")].into_iter().collect::<byol::data::Paths>();
    let both = config(Format::Parquet, both);
    assert_eq!(labels(&open_train(&both).unwrap()), [0, 0, 0, 1, 1, 1]);
    assert_eq!(labels(&open_eval(&both).unwrap().unwrap()), [0, 0, 0, 1, 1, 1]);
    scratch.write("lfs.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n");
    let message = format!("{:#}", open_train(&config(Format::Parquet, scratch.at("lfs.parquet"))).err().unwrap());
    assert!(message.ends_with("found a Git LFS pointer in place of the file: run git lfs pull"), "{message}");
}
