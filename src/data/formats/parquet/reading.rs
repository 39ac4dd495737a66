//! Opening parquet files and reading the values of a column.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::DataType;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;

use super::source::Source;
use crate::data::decode::unsupported::lfs_pointer;
use crate::data::decode::{caught, concise};
use crate::files;

/// Size and modification time of a file.
pub(super) type State = (u64, Option<SystemTime>);

/// Opens a parquet file for `work`; an error names it.
pub(super) fn with_file(path: &Path, work: impl FnOnce(&dyn FileReader, State) -> Result<()>) -> Result<()> {
    let open = || {
        let file = files::open_regular(path)?;
        let mut start = [0; 64];
        let read = file.read_at(&mut start, 0)?;
        lfs_pointer(&start[..read]).map_or(Ok(()), Err)?;
        let state = state(&file)?;
        work(&SerializedFileReader::new(Source::new(file)?)?, state)
    };
    caught(open).map_err(concise).with_context(|| format!("cannot use {}", path.display()))
}

/// The state of a file, by which changes are detected.
pub(super) fn state(file: &File) -> Result<State> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.modified().ok()))
}

/// The next `rows` values of a column; `None` for nulls.
pub(super) fn read<T: DataType>(
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
