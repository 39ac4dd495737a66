//! Parquet files with encoded images, as Hugging Face datasets publish them: a column that is a
//! group with a child `bytes` (or a plain binary column) and an integer label column.
//!
//! A shuffled epoch asks for rows in random order, but a file can only be unpacked page by page.
//! Sets up to `data.cache_bytes` are therefore read once and kept encoded in one block of memory
//! (CIFAR-10: 46 MB), where a row is a slice. A larger set keeps only labels and the positions of
//! its row groups; each image then costs one page read, over the page headers before it. Memory
//! stays bounded, but pages of many megabytes make that slow: small row groups or an image folder
//! are the cure.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use parquet::basic::{ConvertedType, Type as Physical};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType, DataType};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::reader::{FileReader, SerializedFileReader, SerializedPageReader};
use parquet::schema::types::ColumnDescriptor;

use super::decode::{DecodeLimits, caught, decode};
use super::{DataConfig, Dataset, digest, shards};
use crate::pixels::Pixels;

const IMAGE_COLUMNS: [&str; 2] = ["image", "img"];
const LABEL_COLUMNS: [&str; 3] = ["label", "labels", "fine_label"];

/// The rows of one or more parquet files, in the order of the file names.
pub struct Parquet {
    files: Vec<PathBuf>,
    row_groups: Vec<RowGroup>,
    rows: usize,
    /// -1 for none; empty without a label column.
    labels: Vec<i64>,
    classes: Vec<String>,
    memory: Option<Memory>,
    limits: DecodeLimits,
}

struct RowGroup {
    file: usize,
    first_row: usize,
    /// Of the file's first row.
    file_row: usize,
    rows: usize,
    image: ColumnChunkMetaData,
}

/// All encoded images, one after the other.
struct Memory {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Parquet {
    /// Opens `data.path`: a file, or the shards of a folder named `train*`, or all of them.
    pub fn open_train(config: &DataConfig) -> Result<Self> {
        Self::open(shards::train(config, &[".parquet"])?, config)
    }

    /// Opens `data.eval_path` (of a folder, the held-out shards or else all), or else the held-out
    /// shards next to the training shards.
    pub fn open_eval(config: &DataConfig) -> Result<Option<Self>> {
        let files = shards::held_out(config, &[".parquet"])?;
        if files.is_empty() { Ok(None) } else { Self::open(files, config).map(Some) }
    }

    fn open(files: Vec<PathBuf>, config: &DataConfig) -> Result<Self> {
        let mut set = Self {
            files,
            row_groups: Vec::new(),
            rows: 0,
            labels: Vec::new(),
            classes: Vec::new(),
            memory: None,
            limits: config.decode_limits(),
        };
        for number in 0..set.files.len() {
            let path = set.files[number].clone();
            caught(|| set.add_file(number, config)).with_context(|| format!("cannot use {}", path.display()))?;
        }
        let names = set.files.iter().map(|path| path.display().to_string());
        ensure!(set.rows > 0, "no rows in {}", names.collect::<Vec<_>>().join(", "));
        ensure!(
            set.labels.is_empty() || set.labels.len() == set.rows,
            "found labels for {} of {} rows, expected all shards with a label column or none",
            set.labels.len(),
            set.rows
        );
        let size: i64 = set.row_groups.iter().map(|group| group.image.uncompressed_size()).sum();
        if size as u64 <= config.cache_bytes as u64 {
            set.memory = set.read_all(config.cache_bytes)?;
        }
        Ok(set)
    }

    fn add_file(&mut self, number: usize, config: &DataConfig) -> Result<()> {
        let reader = SerializedFileReader::new(File::open(&self.files[number])?)?;
        let metadata = reader.metadata();
        let columns = metadata.file_metadata().schema_descr().columns();
        let image = image_column(columns, config.image_column.as_deref())?;
        let label = label_column(columns, config.label_column.as_deref())?;
        if let (Some(label), 0) = (label, number) {
            self.classes = class_names(metadata, columns[label].name());
        }
        let first_row = self.rows;
        for group in 0..metadata.num_row_groups() {
            let rows = metadata.row_group(group).num_rows() as usize;
            if let Some(label) = label {
                let values = match reader.get_row_group(group)?.get_column_reader(label)? {
                    ColumnReader::Int32ColumnReader(column) => {
                        read(column, &columns[label], rows)?.into_iter().map(|value| value.map(i64::from)).collect()
                    }
                    ColumnReader::Int64ColumnReader(column) => read(column, &columns[label], rows)?,
                    _ => bail!("label column changed its type"),
                };
                self.labels.extend(values.into_iter().map(|value| value.unwrap_or(-1)));
            }
            let image = metadata.row_group(group).column(image).clone();
            let (file_row, file) = (self.rows - first_row, number);
            self.row_groups.push(RowGroup { file, first_row: self.rows, file_row, rows, image });
            self.rows += rows;
        }
        Ok(())
    }

    /// `None` if the images turn out larger than `most` bytes (their pages shared a dictionary).
    fn read_all(&self, most: usize) -> Result<Option<Memory>> {
        let mut memory = Memory { bytes: Vec::new(), ends: Vec::new() };
        for group in &self.row_groups {
            for image in self.read_rows(group, 0, group.rows)? {
                memory.bytes.extend_from_slice(image.as_ref().map_or(&[], |image| image.data()));
                memory.ends.push(memory.bytes.len());
            }
            if memory.bytes.len() > most {
                return Ok(None);
            }
        }
        memory.bytes.shrink_to_fit();
        Ok(Some(memory))
    }

    fn read_rows(&self, group: &RowGroup, row: usize, n: usize) -> Result<Vec<Option<ByteArray>>> {
        let path = &self.files[group.file];
        let read = || -> Result<_> {
            // A handle of its own: clones of one share their position, and threads would race.
            let file = Arc::new(File::open(path)?);
            let pages = SerializedPageReader::new(file, &group.image, group.rows, None)?;
            let descriptor = group.image.column_descr_ptr();
            let mut column = ColumnReaderImpl::<ByteArrayType>::new(descriptor.clone(), Box::new(pages));
            column.skip_records(row)?;
            self::read(column, &descriptor, n)
        };
        caught(read).with_context(|| format!("cannot read {}", path.display()))
    }

    fn row_group(&self, index: usize) -> &RowGroup {
        let after = self.row_groups.partition_point(|group| group.first_row <= index);
        &self.row_groups[after - 1]
    }
}

impl Dataset for Parquet {
    fn len(&self) -> usize {
        self.rows
    }

    fn label(&self, index: usize) -> Option<i64> {
        self.labels.get(index).copied().filter(|&label| label >= 0)
    }

    fn class_names(&self) -> Vec<String> {
        self.classes.clone()
    }

    fn load(&self, index: usize, out: &mut Pixels) -> Result<()> {
        if let Some(memory) = &self.memory {
            let start = if index == 0 { 0 } else { memory.ends[index - 1] };
            return decode(&memory.bytes[start..memory.ends[index]], self.limits, out);
        }
        let group = self.row_group(index);
        let images = self.read_rows(group, index - group.first_row, 1)?;
        let image = images.into_iter().next().flatten();
        decode(image.as_ref().map_or(&[], |image| image.data()), self.limits, out)
    }

    fn describe(&self, index: usize) -> String {
        let group = self.row_group(index);
        let row = group.file_row + index - group.first_row;
        format!("{} row {row}", self.files[group.file].display())
    }

    fn fingerprint(&self) -> String {
        let files = self.files.iter().map(|path| shards::name_and_size(path));
        digest(files.chain([self.rows.to_string()]))
    }
}

/// The next `rows` values of a column; `None` for nulls.
fn read<T: DataType>(
    mut column: ColumnReaderImpl<T>,
    descriptor: &ColumnDescriptor,
    rows: usize,
) -> Result<Vec<Option<T::T>>> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let (found, ..) = column.read_records(rows, Some(&mut levels), None, &mut values)?;
    ensure!(found == rows, "found {found} rows in a row group, expected {rows}");
    let mut values = values.into_iter();
    let present = descriptor.max_def_level();
    // A column without nulls has no levels.
    levels.resize(rows, present);
    Ok(levels.into_iter().map(|level| if level == present { values.next() } else { None }).collect())
}

fn image_column(columns: &[Arc<ColumnDescriptor>], wanted: Option<&str>) -> Result<usize> {
    let candidates: Vec<(usize, &str)> = (0..columns.len())
        .filter(|&at| {
            let column = &columns[at];
            let binary = column.converted_type() == ConvertedType::NONE;
            column.physical_type() == Physical::BYTE_ARRAY
                && column.max_rep_level() == 0
                && match column.path().parts() {
                    [_] => binary,
                    [_, child] => child == "bytes",
                    _ => false,
                }
        })
        .map(|at| (at, columns[at].path().parts()[0].as_str()))
        .collect();
    let named = |name: &str| candidates.iter().find(|candidate| candidate.1 == name);
    let found = match (wanted, candidates.as_slice()) {
        (Some(name), _) => named(name),
        (None, [only]) => Some(only),
        (None, _) => IMAGE_COLUMNS.iter().find_map(|name| named(name)),
    };
    let names: Vec<&str> = candidates.iter().map(|candidate| candidate.1).collect();
    found.map(|candidate| candidate.0).with_context(|| {
        format!(
            "found image columns [{}], expected {} (data.image_column)",
            names.join(", "),
            wanted.unwrap_or("one, or one named image or img")
        )
    })
}

fn label_column(columns: &[Arc<ColumnDescriptor>], wanted: Option<&str>) -> Result<Option<usize>> {
    let named = |name: &str| {
        columns.iter().position(|column| {
            matches!(column.physical_type(), Physical::INT32 | Physical::INT64)
                && column.max_rep_level() == 0
                && *column.path().parts() == [name]
        })
    };
    match wanted {
        None => Ok(LABEL_COLUMNS.iter().find_map(|name| named(name))),
        Some(name) => named(name).map(Some).with_context(|| {
            let names: Vec<String> = columns.iter().map(|column| column.path().string()).collect();
            format!("found columns [{}], expected an integer column {name} (data.label_column)", names.join(", "))
        }),
    }
}

/// Class names that Hugging Face datasets keep in the footer; empty where there are none.
fn class_names(metadata: &ParquetMetaData, label: &str) -> Vec<String> {
    let pairs = metadata.file_metadata().key_value_metadata();
    let pair = pairs.and_then(|pairs| pairs.iter().find(|pair| pair.key == "huggingface"));
    let json = pair.and_then(|pair| pair.value.as_deref()).unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let names = json["info"]["features"][label]["names"].as_array().cloned().unwrap_or_default();
    names.iter().filter_map(|name| name.as_str().map(str::to_string)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The encoded bytes themselves, against SHA-256 sums from pyarrow (scripts/reference/data.py).
    #[test]
    fn cifar10_bytes_match_pyarrow() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = root.join("../shared/data/cifar10/train.parquet");
        if !path.exists() {
            return println!("skipped: {} is missing", path.display());
        }
        let json = std::fs::read(root.join("tests/fixtures/data/cifar.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let small = DataConfig { cache_bytes: 40_000_000, ..Default::default() };
        assert!(Parquet::open(vec![path.clone()], &small).unwrap().memory.is_none());
        let set = Parquet::open(vec![path], &DataConfig::default()).unwrap();
        let memory = set.memory.as_ref().expect("CIFAR-10 fits into the default cache");
        let rows = expected["rows"].as_array().unwrap();
        for (row, digest) in rows.iter().zip(expected["sha256"].as_array().unwrap()) {
            let row = row.as_u64().unwrap() as usize;
            let start = if row == 0 { 0 } else { memory.ends[row - 1] };
            let kept = &memory.bytes[start..memory.ends[row]];
            let group = set.row_group(row);
            let paged = set.read_rows(group, row - group.first_row, 1).unwrap();
            for bytes in [kept, paged[0].as_ref().unwrap().data()] {
                use sha2::Digest;
                let sum: String = sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(sum, digest.as_str().unwrap(), "row {row}");
            }
        }
    }
}
