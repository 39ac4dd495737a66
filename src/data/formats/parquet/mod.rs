//! Parquet files with encoded images, as Hugging Face datasets publish them: a column that is a group with the
//! children `bytes` and `path` (or a plain binary column), and a label column of numbers or text.
//!
//! A shuffled epoch requests rows in random order, but a file can only be decompressed page by page, and
//! a page may hold a whole row group: pyarrow writes pages of at least 1024 rows. A cache of decompressed
//! row groups would nearly always miss, as the next image can be in any of them. Every row is therefore
//! unpacked once. Sets up to `data.cache_bytes` are kept encoded in one block of memory (CIFAR-10:
//! 46 MB). Of a larger set, each row group goes to an unnamed temporary file when its first image is
//! requested ([`spill`]), and an image is then one `pread`. Memory holds the labels, the ends
//! of the images (8 bytes each) and, while a row group is unpacked, its largest page.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, ensure};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{FileReader, SerializedPageReader};
use parquet::schema::types::ColumnDescriptor;

use super::labels::Known;
use super::shards;
use super::splits::Set;
use crate::augment::Part;
use crate::data::decode::{DecodeOptions, caught, concise, decode_of, ensure_size, with_bytes_of, with_read};
use crate::data::{DataConfig, Dataset, PartFor, digest};
use crate::files;
use crate::pixels::Pixels;
use columns::image_columns;
use labels::LabelColumn;
use reading::{State, read, state, with_file};
use source::Source;
use spill::{Spill, Unpacked};

mod columns;
mod labels;
mod linked;
mod reading;
mod source;
mod spill;

const ENDINGS: [&str; 1] = [".parquet"];

/// Rows read from a page at once.
const ROWS_AT_ONCE: usize = 64;

/// The rows of one or more parquet files, in the order of the file names.
pub struct Parquet {
    files: Vec<Shard>,
    /// The folder of all files.
    folder: PathBuf,
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
    /// Folders that the paths of images without bytes may be relative to.
    folders: Vec<PathBuf>,
    /// State when it was opened.
    state: State,
}

struct RowGroup {
    file: usize,
    first_row: usize,
    /// Index of the file's first row.
    file_row: usize,
    rows: usize,
    /// Encoded images, if there are any.
    image: Option<ColumnChunkMetaData>,
    /// Paths of images without bytes; empty if all have bytes.
    paths: Vec<Option<Box<str>>>,
    unpacked: OnceLock<Unpacked>,
}

enum Store {
    /// All encoded images, concatenated, and the end of each.
    Memory {
        bytes: Vec<u8>,
        ends: Vec<usize>,
    },
    Disk(Spill),
}

impl Parquet {
    /// Opens `data.path`: a file, or the shards of a folder named `train*`, or all of them.
    pub fn open_train(config: &DataConfig) -> Result<Self> {
        shards::announce(config, &ENDINGS)?;
        // Other rows are never requested.
        let most = if config.fraction.is_none() { config.limit } else { None };
        Self::open(shards::train(config, &ENDINGS)?, Set::Train, config, most.unwrap_or(usize::MAX))
    }

    /// Opens `data.eval_path` (of a folder, the held-out shards or else all), or else the held-out
    /// shards next to the training shards. Text labels have the numbers of the training set.
    pub fn open_eval(config: &DataConfig) -> Result<Option<Self>> {
        let files = shards::held_out(config, &ENDINGS)?;
        if files.is_empty() { Ok(None) } else { Self::open(files, Set::HeldOut, config, usize::MAX).map(Some) }
    }

    /// Opens the files of a set; held-out text labels are numbered as those of the training set.
    fn open(files: Vec<PathBuf>, which: Set, config: &DataConfig, most_rows: usize) -> Result<Self> {
        let mut set = Self {
            folder: shards::common_folder(files.iter().filter_map(|file| file.parent())),
            files: Vec::new(),
            row_groups: Vec::new(),
            rows: 0,
            labels: Vec::new(),
            classes: Vec::new(),
            store: Store::Memory { bytes: Vec::new(), ends: Vec::new() },
            options: config.decode_options(),
        };
        let mut labels = LabelColumn::default();
        for path in files {
            with_file(&path, |reader, state| {
                set.add_file(&path, reader, state, config)?;
                labels.add_file(reader, config.label_column.as_deref())
            })?;
        }
        let names = set.files.iter().map(|file| file.path.display().to_string()).collect::<Vec<_>>().join(", ");
        ensure!(set.rows > 0, "no rows in {names}");
        let count = labels.len();
        ensure!(
            [0, set.rows].contains(&count),
            "found labels for {count} of {} rows, expected all shards with a label column or none",
            set.rows
        );
        let mut known = Known::Nothing;
        if labels.is_text() && which == Set::HeldOut {
            let mut all = LabelColumn::default();
            for path in shards::train(config, &ENDINGS)? {
                with_file(&path, |reader, _| all.add_file(reader, config.label_column.as_deref()))?;
            }
            known = all.known()?;
        }
        (set.labels, set.classes) = labels.finish(&known, &names)?;
        set.fill(config, most_rows)?;
        Ok(set)
    }

    /// Reads the encoded images into memory if they fit, or creates the temporary file.
    fn fill(&mut self, config: &DataConfig, most_rows: usize) -> Result<()> {
        let needed = self.row_groups.iter().filter(|group| group.first_row < most_rows);
        let bytes = |group: &RowGroup| group.image.as_ref().map_or(0, |image| image.uncompressed_size().max(0) as u64);
        let size = needed.map(bytes).fold(0, u64::saturating_add);
        if size <= config.cache_bytes as u64 && self.read_all(size as usize, config.cache_bytes)? {
            return Ok(());
        }
        self.store = Store::Disk(Spill::create(config.spill_dir.as_deref(), size)?);
        Ok(())
    }

    fn add_file(&mut self, path: &Path, reader: &dyn FileReader, state: State, config: &DataConfig) -> Result<()> {
        let number = self.files.len();
        let folders = linked::folders(path, config.root.as_deref());
        let metadata = reader.metadata();
        let columns = metadata.file_metadata().schema_descr().columns();
        let image = image_columns(columns, config.image_column.as_deref())?;
        let (first_row, first_group) = (self.rows, self.row_groups.len());
        for group in 0..metadata.num_row_groups() {
            let rows = metadata.row_group(group).num_rows();
            // Positions in a set have 32 bits; a damaged footer may have any number, even a negative one.
            let total = usize::try_from(rows).ok().and_then(|rows| rows.checked_add(self.rows));
            let fits = total.is_some_and(|total| total <= u32::MAX as usize);
            ensure!(fits, "found {rows} rows in row group {group}, expected 0 or more, at most {} in all", u32::MAX);
            let rows = rows as usize;
            if let Some(at) = image.bytes {
                columns::ensure_readable(metadata.row_group(group).column(at))?;
            }
            let paths = linked::paths(reader, group, image)?;
            let image = image.bytes.map(|at| metadata.row_group(group).column(at).clone());
            let (file_row, file, unpacked) = (self.rows - first_row, number, OnceLock::new());
            self.row_groups.push(RowGroup { file, first_row: self.rows, file_row, rows, image, paths, unpacked });
            self.rows += rows;
        }
        let all = &self.row_groups[first_group..];
        let empty = |image: &ColumnChunkMetaData| {
            let nulls = image.statistics().and_then(|statistics| statistics.null_count_opt());
            nulls == Some(image.num_values().max(0) as u64)
        };
        let linked = |group: &RowGroup| !group.paths.is_empty() && group.image.as_ref().is_none_or(empty);
        if self.rows > first_row && all.iter().all(|group| group.rows == 0 || linked(group)) {
            linked::ensure_any(all.iter().flat_map(|group| group.paths.iter().flatten().map(AsRef::as_ref)), &folders)?;
        }
        self.files.push(Shard { path: path.to_path_buf(), folders, state });
        Ok(())
    }

    /// Reads all images, about `size` bytes, into memory, or returns `false` if they turn out to be more than
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

    /// Passes the encoded images of a row group to `each` in order, empty for nulls, until it returns `false`.
    fn unpack(&self, group: &RowGroup, mut each: impl FnMut(&[u8]) -> Result<bool>) -> Result<()> {
        let Some(image) = &group.image else {
            return (0..group.rows).try_for_each(|_| each(&[]).map(drop));
        };
        self.with_column(group, image, |column, descriptor| {
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

    /// One row, found by skipping the pages before it.
    fn read_row(&self, group: &RowGroup, row: usize) -> Result<Option<ByteArray>> {
        let Some(image) = &group.image else { return Ok(None) };
        self.with_column(group, image, |column, descriptor| {
            column.skip_records(row)?;
            Ok(read(column, descriptor, 1)?.pop().flatten())
        })
    }

    fn with_column<T>(
        &self,
        group: &RowGroup,
        image: &ColumnChunkMetaData,
        work: impl FnOnce(&mut ColumnReaderImpl<ByteArrayType>, &ColumnDescriptor) -> Result<T>,
    ) -> Result<T> {
        let shard = &self.files[group.file];
        let run = || {
            let file = files::open_regular(&shard.path)?;
            ensure!(state(&file)? == shard.state, "the file has changed since it was opened");
            let pages = SerializedPageReader::new(Arc::new(Source::new(file)?), image, group.rows, None)?;
            let descriptor = image.column_descr_ptr();
            work(&mut ColumnReaderImpl::new(descriptor.clone(), Box::new(pages)), &descriptor)
        };
        caught(run).map_err(concise).with_context(|| format!("cannot read {}", shard.path.display()))
    }

    /// Passes on the bytes of a row, or if it has none those of the file that it names.
    fn with_row(&self, index: usize, bytes: &[u8], work: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match self.linked(index).filter(|_| bytes.is_empty()) {
            Some(path) => with_bytes_of(&path?, self.options, work),
            None => work(bytes),
        }
    }

    /// Passes on the encoded bytes of an image.
    fn with_bytes(&self, index: usize, work: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let spill = match &self.store {
            Store::Memory { bytes, ends } => {
                let start = if index == 0 { 0 } else { ends[index - 1] };
                return self.with_row(index, &bytes[start..ends[index]], work);
            }
            Store::Disk(spill) => spill,
        };
        let group = self.row_group(index);
        let row = index - group.first_row;
        let unpacked = spill.unpacked(&group.unpacked, |each| self.unpack(group, each));
        if let Some(place) = unpacked.place(row) {
            if place.is_empty() {
                return self.with_row(index, &[], work);
            }
            return with_read(work, |encoded| {
                ensure_size(place.end - place.start, self.options)?;
                spill.read(place, encoded)
            });
        }
        // Rows that could not be unpacked: behind a damaged page, or on a full disk.
        let image = self.read_row(group, row)?;
        self.with_row(index, image.as_ref().map_or(&[], |image| image.data()), work)
    }

    /// The file that a row names, if it may have no bytes.
    fn linked(&self, index: usize) -> Option<Result<PathBuf>> {
        let group = self.row_group(index);
        let path = group.paths.get(index - group.first_row)?.as_ref()?;
        Some(linked::locate(path, &self.files[group.file].folders))
    }

    fn row_group(&self, index: usize) -> &RowGroup {
        let after = self.row_groups.partition_point(|group| group.first_row <= index);
        &self.row_groups[after - 1]
    }

    /// The file of a row, and its number there.
    fn file_row(&self, index: usize) -> (&Path, usize) {
        let group = self.row_group(index);
        (&self.files[group.file].path, group.file_row + index - group.first_row)
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
        self.load_part(index, &mut Part::whole, out).map(drop)
    }

    fn load_part(&self, index: usize, want: &mut PartFor, out: &mut Pixels) -> Result<Part> {
        decode_of(self, index, self.options, want, out)
    }

    fn with_encoded(&self, index: usize, work: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        self.with_bytes(index, work).map(|()| true)
    }

    fn describe(&self, index: usize) -> String {
        let (file, row) = self.file_row(index);
        format!("{} row {row}", file.display())
    }

    fn name(&self, index: usize) -> String {
        let (file, row) = self.file_row(index);
        format!("{}/{row}", file.strip_prefix(&self.folder).unwrap_or(file).display())
    }

    fn fingerprint(&self) -> String {
        let files = self.files.iter().map(|file| shards::name_and_size(&file.path));
        let linked =
            self.row_groups.iter().flat_map(|group| group.paths.iter().flatten().map(move |path| (group, path)));
        let linked = linked.map(|(group, path)| {
            let file = linked::locate(path, &self.files[group.file].folders);
            let size = file.ok().and_then(|file| file.metadata().ok()).map_or(0, |data| data.len());
            format!("{path} {size}")
        });
        digest(files.chain([self.rows.to_string()]).chain(linked))
    }
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
        let open = |config: &DataConfig| Parquet::open(vec![path.clone()], Set::Train, config, usize::MAX).unwrap();
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
