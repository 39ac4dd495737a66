//! Parquet files as pyarrow can write them (scripts/reference/parquet.py), in memory and unpacked to
//! disk alike.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use byol::data::{DataConfig, Dataset, Format, open_train};
use byol::pixels::Pixels;

const ROWS: usize = 7;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data/parquet").join(name)
}

/// Configurations that keep the set in memory and on disk.
fn both(name: &str) -> [DataConfig; 2] {
    let path = Some(fixture(&format!("{name}.parquet")).into());
    [1 << 20, 0].map(|cache_bytes| DataConfig {
        format: Format::Parquet,
        path: path.clone(),
        cache_bytes,
        ..Default::default()
    })
}

fn error(config: &DataConfig) -> String {
    let text = format!("{:#}", open_train(config).err().expect("an error"));
    assert!(!text.contains('\n'), "{text}");
    text
}

fn expected() -> Vec<Vec<u8>> {
    serde_json::from_slice(&std::fs::read(fixture("pixels.json")).unwrap()).unwrap()
}

/// The pixels of a row, or why there are none.
fn row(set: &Arc<dyn Dataset>, index: usize) -> Result<Vec<u8>, String> {
    let mut out = Pixels::default();
    set.load(index, &mut out).map_err(|error| format!("{error:#}"))?;
    Ok(out.data)
}

fn check_rows(config: &DataConfig) {
    let set = open_train(config).unwrap();
    assert_eq!(set.len(), ROWS, "{config:?}");
    // From the end: row groups may be asked for in any order.
    for (index, expected) in expected().iter().enumerate().rev() {
        assert_eq!(row(&set, index).as_ref(), Ok(expected), "row {index} of {config:?}");
    }
}

#[test]
fn every_encoding_is_read() {
    for name in [
        "none",
        "snappy",
        "zstd",
        "version1",
        "version2",
        "plain_pages",
        "delta_length_byte_array",
        "delta_byte_array",
        "page_index",
        "large_binary",
        "binary_view",
        "empty_groups",
    ] {
        both(name).iter().for_each(check_rows);
    }
    for config in both("large_binary") {
        let set = open_train(&config).unwrap();
        assert_eq!((0..ROWS).map(|index| set.label(index)).collect::<Vec<_>>(), (0..7).map(Some).collect::<Vec<_>>());
        assert_eq!(open_train(&both("version1")[0]).unwrap().label(0), None);
    }
}

#[test]
fn unsupported_compressions_are_named() {
    for (name, codec) in [("gzip", "GZIP"), ("brotli", "BROTLI"), ("lz4", "LZ4")] {
        let text = error(&both(name)[0]);
        let part = format!("found {codec}");
        assert!(text.contains(&part) && text.contains("compression in column image.bytes, expected snappy"), "{text}");
        assert!(text.contains(&format!("{name}.parquet")), "{text}");
    }
}

#[test]
fn nested_columns_are_found_by_their_dotted_names() {
    for config in both("nested") {
        let config = |image: &str| DataConfig {
            image_column: Some(image.into()),
            label_column: Some("sample.class".into()),
            ..config.clone()
        };
        for image in ["sample.picture", "sample.picture.bytes", "thumbnail"] {
            check_rows(&config(image));
            assert_eq!(open_train(&config(image)).unwrap().label(5), Some(5));
        }
        let text = error(&config("sample"));
        let end = "found image columns [sample.picture, thumbnail], expected sample (data.image_column)";
        assert!(text.ends_with(end), "{text}");
    }
    let text = error(&both("many")[0]);
    assert!(
        text.contains("found image columns [left, right]") && text.contains("expected one, or one named"),
        "{text}"
    );
    check_rows(&DataConfig { image_column: Some("left".into()), ..both("many")[0].clone() });
}

#[test]
fn columns_without_one_image_a_row_are_refused() {
    let text = error(&both("list")[0]);
    assert!(text.contains("found no image column among [image.list.element], expected one"), "{text}");
    let named = |name: &str| DataConfig { image_column: Some("image".into()), ..both(name)[0].clone() };
    let text = error(&named("list"));
    assert!(text.contains("found a list in column image, expected one image a row"), "{text}");
    // Text in place of images is a path.
    let text = error(&named("text"));
    assert!(
        text.contains("no such file: ") && text.contains("set data.root to the folder that paths start at"),
        "{text}"
    );
    assert!(error(&both("no_rows")[0]).starts_with("no rows in "));
}

#[test]
fn nulls_are_bad_images_and_unknown_labels() {
    for name in ["nulls", "null_groups"] {
        for config in both(name) {
            let set = open_train(&config).unwrap();
            for (index, expected) in expected().into_iter().enumerate() {
                let null = Err("found no bytes, expected an image".to_string());
                assert_eq!(row(&set, index), if [0, 4].contains(&index) { null } else { Ok(expected) });
            }
        }
    }
    let set = open_train(&both("nulls")[0]).unwrap();
    assert_eq!((set.label(0), set.label(1), set.label(3)), (None, Some(1), None));
}

/// A file that changes or goes away makes bad images of what is not unpacked yet, and of nothing else.
#[test]
fn files_may_change_while_they_are_read() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("train.parquet");
    let config = DataConfig { path: Some(path.clone().into()), ..both("page_index")[1].clone() };
    let copy = |name: &str| std::fs::copy(fixture(name), &path).unwrap();
    copy("page_index.parquet");
    let set = open_train(&config).unwrap();
    assert!(row(&set, 0).is_ok());
    copy("version1.parquet");
    // Rows 0 to 2 are one row group.
    assert_eq!(row(&set, 2).as_ref(), Ok(&expected()[2]));
    let text = row(&set, 3).unwrap_err();
    assert_eq!(text, format!("cannot read {}: the file has changed since it was opened", path.display()));
    std::fs::remove_file(&path).unwrap();
    assert!(row(&set, 0).is_ok());
    let text = row(&set, 6).unwrap_err();
    assert!(text.starts_with("cannot read ") && text.ends_with("no such file"), "{text}");
}

#[test]
fn the_temporary_file_goes_where_it_is_told_to() {
    let scratch = tempfile::tempdir().unwrap();
    let config = |folder: &Path| DataConfig { spill_dir: Some(folder.into()), ..both("zstd")[1].clone() };
    check_rows(&config(scratch.path()));
    // Unnamed: nothing is left, and nothing to be seen.
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    let text = error(&config(&scratch.path().join("none")));
    assert!(text.starts_with("cannot create a temporary file in ") && text.contains("set data.spill_dir"), "{text}");
}
