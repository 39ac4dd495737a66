//! Images that parquet files name by path instead of holding their bytes.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use parquet::column::reader::ColumnReader;
use parquet::file::reader::FileReader;

use super::columns::ImageColumns;
use super::reading::read;

/// One of the first so many rows of a file must name an existing file; else the paths are relative to another folder.
const MAX_MISSING: usize = 100;

/// The paths of a row group's rows, if any of its images may have no bytes; else empty.
pub(super) fn paths(reader: &dyn FileReader, group: usize, image: ImageColumns) -> Result<Vec<Option<Box<str>>>> {
    let metadata = reader.metadata().row_group(group);
    let nulls = image.bytes.map_or(Some(u64::MAX), |at| metadata.column(at).statistics()?.null_count_opt());
    let (Some(at), true) = (image.path, nulls != Some(0)) else { return Ok(Vec::new()) };
    super::columns::ensure_readable(metadata.column(at))?;
    let column = &reader.metadata().file_metadata().schema_descr().columns()[at];
    let ColumnReader::ByteArrayColumnReader(mut values) = reader.get_row_group(group)?.get_column_reader(at)? else {
        bail!("path column changed its type")
    };
    let values = read(&mut values, column, metadata.num_rows().max(0) as usize)?;
    Ok(values.into_iter().map(|path| path.map(|path| String::from_utf8_lossy(path.data()).into())).collect())
}

/// Folders that paths may be relative to: `data.root`, that of the parquet file, and `images` in it.
pub(super) fn folders(file: &Path, root: Option<&Path>) -> Vec<PathBuf> {
    let folder = file.parent().unwrap_or(Path::new("")).to_path_buf();
    root.map(Path::to_path_buf).into_iter().chain([folder.clone(), folder.join("images")]).collect()
}

/// The image file of a path. For an absolute path of another machine only the file name is used.
pub(super) fn locate(path: &str, folders: &[PathBuf]) -> Result<PathBuf> {
    let names = [Some(Path::new(path)), Path::new(path).file_name().map(Path::new)];
    let names = names.into_iter().flatten().take(if Path::new(path).is_absolute() { 2 } else { 1 });
    let mut candidates = names.flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    match candidates.find(|candidate| candidate.exists()) {
        Some(found) => Ok(found),
        None => {
            let looked: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
            bail!(
                "no such file: {path} (the row holds this path and no bytes; set data.root to the folder that paths start \
                 at; looked in {})",
                looked.join(" and ")
            )
        }
    }
}

/// Fails if none of the first images of a file with paths only exists.
pub(super) fn ensure_any<'a>(paths: impl Iterator<Item = &'a str>, folders: &[PathBuf]) -> Result<()> {
    let mut missing = None;
    for path in paths.take(MAX_MISSING) {
        match locate(path, folders) {
            Ok(_) => return Ok(()),
            Err(error) => missing = missing.or(Some(error)),
        }
    }
    ensure!(missing.is_some(), "found neither bytes nor paths of images");
    missing.map_or(Ok(()), Err)
}
