//! Parquet files with encoded images, as Hugging Face datasets publish them: a column that is a
//! group with a child `bytes` (or a plain binary column) and an integer label column.
//!
//! A shuffled epoch asks for rows in random order, but a file can only be unpacked page by page, and
//! a page may hold a whole row group: pyarrow makes pages of at least 1024 rows. A cache of unpacked
//! row groups would miss nearly always, as the next image is in any of them. Every row is therefore
//! unpacked once. Sets up to `data.cache_bytes` are kept encoded in one block of memory (CIFAR-10:
//! 46 MB). Of a larger set, each row group goes to an unnamed temporary file when its first image is
//! asked for ([`spill`]), and an image is then one positioned read. Memory holds the labels, the ends
//! of the images (8 bytes each) and, while a row group is unpacked, its largest page.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType, DataType};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader, SerializedPageReader};
use parquet::schema::types::ColumnDescriptor;

use super::shards;
use crate::augment::Crop;
use crate::data::decode::{DecodeOptions, caught, concise, decode_part, decode_read, ensure_size};
use crate::data::{CropFor, DataConfig, Dataset, digest};
use crate::files;
use crate::pixels::Pixels;
use columns::{class_names, image_column, label_column};
use source::Source;
use spill::{Spill, Unpacked};

mod columns;
mod source;
mod spill;

/// Rows that are read from a page at once.
const ROWS_AT_ONCE: usize = 64;

/// The rows of one or more parquet files, in the order of the file names.
pub struct Parquet {
    files: Vec<Shard>,
    row_groups: Vec<RowGroup>,
    rows: usize,
    /// -1 for none; empty without a label column.
    labels: Vec<i64>,
    classes: Vec<String>,
    store: Store,
    options: DecodeOptions,
}

struct Shard {
    path: PathBuf,
    /// Length and time of the last change when it was opened.
    state: (u64, Option<SystemTime>),
}

struct RowGroup {
    file: usize,
    first_row: usize,
    /// Of the file's first row.
    file_row: usize,
    rows: usize,
    image: ColumnChunkMetaData,
    unpacked: OnceLock<Unpacked>,
}

enum Store {
    /// All encoded images, one after the other, and where each ends.
    Memory {
        bytes: Vec<u8>,
        ends: Vec<usize>,
    },
    Disk(Spill),
}

impl Parquet {
    /// Opens `data.path`: a file, or the shards of a folder named `train*`, or all of them.
    pub fn open_train(config: &DataConfig) -> Result<Self> {
        // Only these are ever asked for.
        let most = if config.fraction.is_none() { config.limit } else { None };
        Self::open(shards::train(config, &[".parquet"])?, config, most.unwrap_or(usize::MAX))
    }

    /// Opens `data.eval_path` (of a folder, the held-out shards or else all), or else the held-out
    /// shards next to the training shards.
    pub fn open_eval(config: &DataConfig) -> Result<Option<Self>> {
        let files = shards::held_out(config, &[".parquet"])?;
        if files.is_empty() { Ok(None) } else { Self::open(files, config, usize::MAX).map(Some) }
    }

    fn open(files: Vec<PathBuf>, config: &DataConfig, most_rows: usize) -> Result<Self> {
        let mut set = Self {
            files: Vec::new(),
            row_groups: Vec::new(),
            rows: 0,
            labels: Vec::new(),
            classes: Vec::new(),
            store: Store::Memory { bytes: Vec::new(), ends: Vec::new() },
            options: config.decode_options(),
        };
        for path in files {
            caught(|| set.add_file(&path, config))
                .map_err(concise)
                .with_context(|| format!("cannot use {}", path.display()))?;
        }
        let names = || set.files.iter().map(|file| file.path.display().to_string()).collect::<Vec<_>>().join(", ");
        ensure!(set.rows > 0, "no rows in {}", names());
        ensure!(
            set.labels.is_empty() || set.labels.len() == set.rows,
            "found labels for {} of {} rows, expected all shards with a label column or none",
            set.labels.len(),
            set.rows
        );
        let needed = set.row_groups.iter().filter(|group| group.first_row < most_rows);
        let sizes = needed.map(|group| group.image.uncompressed_size().max(0) as u64);
        let size = sizes.fold(0, u64::saturating_add);
        if size <= config.cache_bytes as u64 && set.read_all(size as usize, config.cache_bytes)? {
            return Ok(set);
        }
        set.store = Store::Disk(Spill::create(config.spill_dir.as_deref(), size)?);
        Ok(set)
    }

    fn add_file(&mut self, path: &Path, config: &DataConfig) -> Result<()> {
        let file = files::open_regular(path)?;
        let number = self.files.len();
        self.files.push(Shard { path: path.to_path_buf(), state: state(&file)? });
        let reader = SerializedFileReader::new(Source::new(file)?)?;
        let metadata = reader.metadata();
        let columns = metadata.file_metadata().schema_descr().columns();
        let image = image_column(columns, config.image_column.as_deref())?;
        let label = label_column(columns, config.label_column.as_deref())?;
        if let (Some(label), 0) = (label, number) {
            self.classes = class_names(metadata, columns[label].name());
        }
        let first_row = self.rows;
        for group in 0..metadata.num_row_groups() {
            let rows = metadata.row_group(group).num_rows();
            // Positions in a set have 32 bits; a damaged footer may say anything, and less than 0.
            let total = usize::try_from(rows).ok().and_then(|rows| rows.checked_add(self.rows));
            let fits = total.is_some_and(|total| total <= u32::MAX as usize);
            ensure!(fits, "found {rows} rows in row group {group}, expected 0 or more, at most {} in all", u32::MAX);
            let rows = rows as usize;
            columns::ensure_readable(metadata.row_group(group).column(image))?;
            if let Some(label) = label {
                columns::ensure_readable(metadata.row_group(group).column(label))?;
                let values = match reader.get_row_group(group)?.get_column_reader(label)? {
                    ColumnReader::Int32ColumnReader(mut column) => read(&mut column, &columns[label], rows)?
                        .into_iter()
                        .map(|value| value.map(i64::from))
                        .collect(),
                    ColumnReader::Int64ColumnReader(mut column) => read(&mut column, &columns[label], rows)?,
                    _ => bail!("label column changed its type"),
                };
                self.labels.extend(values.into_iter().map(|value| value.unwrap_or(-1)));
            }
            let image = metadata.row_group(group).column(image).clone();
            let (file_row, file, unpacked) = (self.rows - first_row, number, OnceLock::new());
            self.row_groups.push(RowGroup { file, first_row: self.rows, file_row, rows, image, unpacked });
            self.rows += rows;
        }
        Ok(())
    }

    /// Fills the memory with about `size` bytes, or gives `false` if it turns out to be more than
    /// `most` (pages may share a dictionary).
    fn read_all(&mut self, size: usize, most: usize) -> Result<bool> {
        let (mut bytes, mut ends) = (Vec::with_capacity(size), Vec::new());
        for group in &self.row_groups {
            self.unpack(group, |image| {
                bytes.extend_from_slice(image);
                ends.push(bytes.len());
                Ok(bytes.len() <= most)
            })?;
            if bytes.len() > most {
                return Ok(false);
            }
        }
        bytes.shrink_to_fit();
        ends.shrink_to_fit();
        self.store = Store::Memory { bytes, ends };
        Ok(true)
    }

    /// Gives the encoded images of a row group in order, empty for nulls, until told to stop.
    fn unpack(&self, group: &RowGroup, mut each: impl FnMut(&[u8]) -> Result<bool>) -> Result<()> {
        self.with_column(group, |column, descriptor| {
            for done in (0..group.rows).step_by(ROWS_AT_ONCE) {
                for image in read(column, descriptor, ROWS_AT_ONCE.min(group.rows - done))? {
                    if !each(image.as_ref().map_or(&[], |image| image.data()))? {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }

    /// One row, found by way of the headers of the pages before it.
    fn read_row(&self, group: &RowGroup, row: usize) -> Result<Option<ByteArray>> {
        self.with_column(group, |column, descriptor| {
            column.skip_records(row)?;
            Ok(read(column, descriptor, 1)?.pop().flatten())
        })
    }

    fn with_column<T>(
        &self,
        group: &RowGroup,
        work: impl FnOnce(&mut ColumnReaderImpl<ByteArrayType>, &ColumnDescriptor) -> Result<T>,
    ) -> Result<T> {
        let shard = &self.files[group.file];
        let run = || {
            let file = files::open_regular(&shard.path)?;
            ensure!(state(&file)? == shard.state, "the file has changed since it was opened");
            let pages = SerializedPageReader::new(Arc::new(Source::new(file)?), &group.image, group.rows, None)?;
            let descriptor = group.image.column_descr_ptr();
            work(&mut ColumnReaderImpl::new(descriptor.clone(), Box::new(pages)), &descriptor)
        };
        caught(run).map_err(concise).with_context(|| format!("cannot read {}", shard.path.display()))
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
        self.load_part(index, &mut Crop::whole, out).map(drop)
    }

    fn load_part(&self, index: usize, want: &mut CropFor, out: &mut Pixels) -> Result<Crop> {
        let spill = match &self.store {
            Store::Memory { bytes, ends } => {
                let start = if index == 0 { 0 } else { ends[index - 1] };
                return decode_part(&bytes[start..ends[index]], self.options, want, out);
            }
            Store::Disk(spill) => spill,
        };
        let group = self.row_group(index);
        let row = index - group.first_row;
        let unpacked = spill.unpacked(&group.unpacked, |each| self.unpack(group, each));
        if let Some(place) = unpacked.place(row) {
            return decode_read(self.options, want, out, |encoded| {
                ensure_size(place.end - place.start, self.options)?;
                spill.read(place, encoded)
            });
        }
        // What could not be unpacked: rows behind a damaged page, or the disk is full.
        let image = self.read_row(group, row)?;
        decode_part(image.as_ref().map_or(&[], |image| image.data()), self.options, want, out)
    }

    fn describe(&self, index: usize) -> String {
        let group = self.row_group(index);
        let row = group.file_row + index - group.first_row;
        format!("{} row {row}", self.files[group.file].path.display())
    }

    fn fingerprint(&self) -> String {
        let files = self.files.iter().map(|file| shards::name_and_size(&file.path));
        digest(files.chain([self.rows.to_string()]))
    }
}

fn state(file: &File) -> Result<(u64, Option<SystemTime>)> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.modified().ok()))
}

/// The next `rows` values of a column; `None` for nulls.
fn read<T: DataType>(
    column: &mut ColumnReaderImpl<T>,
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

#[cfg(test)]
mod tests {
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
        let open = |config: &DataConfig| Parquet::open(vec![path.clone()], config, usize::MAX).unwrap();
        let on_disk = open(&DataConfig { cache_bytes: 40_000_000, ..Default::default() });
        let Store::Disk(spill) = &on_disk.store else { panic!("CIFAR-10 is larger than 40 MB") };
        let in_memory = open(&DataConfig::default());
        let Store::Memory { bytes, ends } = &in_memory.store else { panic!("CIFAR-10 fits into the default cache") };
        let rows = expected["rows"].as_array().unwrap();
        for (row, digest) in rows.iter().zip(expected["sha256"].as_array().unwrap()) {
            let row = row.as_u64().unwrap() as usize;
            let kept = &bytes[if row == 0 { 0 } else { ends[row - 1] }..ends[row]];
            let group = on_disk.row_group(row);
            let row = row - group.first_row;
            let paged = on_disk.read_row(group, row).unwrap().unwrap();
            let unpacked = spill.unpacked(&group.unpacked, |each| on_disk.unpack(group, each));
            let mut spilled = Vec::new();
            spill.read(unpacked.place(row).unwrap(), &mut spilled).unwrap();
            for bytes in [kept, paged.data(), &spilled] {
                use sha2::Digest;
                assert_eq!(files::hex(&sha2::Sha256::digest(bytes)), digest.as_str().unwrap(), "row {row}");
            }
        }
    }
}
