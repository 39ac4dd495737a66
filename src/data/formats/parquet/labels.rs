//! The label column of parquet files: numbers as they are, text numbered in sorted order.

use anyhow::{Result, bail, ensure};
use parquet::column::reader::ColumnReader;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::FileReader;

use super::super::labels::{Known, Labels};
use super::columns;
use super::reading::read;

/// The labels of the files read so far.
#[derive(Default)]
pub(super) struct LabelColumn {
    numbers: Vec<i64>,
    texts: Option<Labels>,
    /// Class names in the first file's metadata.
    names: Vec<String>,
}

impl LabelColumn {
    /// Adds the labels of a file, if it has a label column.
    pub fn add_file(&mut self, reader: &dyn FileReader, wanted: Option<&str>) -> Result<()> {
        let metadata = reader.metadata();
        let columns = metadata.file_metadata().schema_descr().columns();
        let Some(at) = columns::label_column(columns, wanted)? else { return Ok(()) };
        if self.numbers.is_empty() && self.texts.is_none() {
            self.names = class_names(metadata, columns[at].name());
        }
        for group in 0..metadata.num_row_groups() {
            let rows = metadata.row_group(group).num_rows().max(0) as usize;
            columns::ensure_readable(metadata.row_group(group).column(at))?;
            let column = &columns[at];
            let numbers: Vec<Option<i64>> = match reader.get_row_group(group)?.get_column_reader(at)? {
                ColumnReader::BoolColumnReader(mut values) => whole(read(&mut values, column, rows)?),
                ColumnReader::Int32ColumnReader(mut values) => whole(read(&mut values, column, rows)?),
                ColumnReader::Int64ColumnReader(mut values) => read(&mut values, column, rows)?,
                ColumnReader::ByteArrayColumnReader(mut values) => {
                    let texts = self.texts.get_or_insert_with(Labels::names);
                    for text in read(&mut values, column, rows)? {
                        texts.push(text.map(|text| String::from_utf8_lossy(text.data()).into_owned()).as_deref());
                    }
                    Vec::new()
                }
                _ => bail!("label column changed its type"),
            };
            self.numbers.extend(numbers.into_iter().map(|value| value.unwrap_or(-1)));
        }
        let mixed = !self.numbers.is_empty() && self.texts.is_some();
        ensure!(!mixed, "found text and numbers in the label columns of different files, expected one of them");
        Ok(())
    }

    /// Number of labels.
    pub fn len(&self) -> usize {
        self.texts.as_ref().map_or(self.numbers.len(), Labels::len)
    }

    /// Whether they are text.
    pub fn is_text(&self) -> bool {
        self.texts.is_some()
    }

    /// How text labels are numbered.
    pub fn known(&self) -> Result<Known> {
        self.texts.as_ref().map_or(Ok(Known::Nothing), Labels::known)
    }

    /// The label of every row, -1 for none, and the class names.
    pub fn finish(self, known: &Known, place: &str) -> Result<(Vec<i64>, Vec<String>)> {
        match self.texts {
            Some(texts) => texts.finish(known, place),
            None => Ok((self.numbers, self.names)),
        }
    }
}

fn whole<T: Into<i64>>(values: Vec<Option<T>>) -> Vec<Option<i64>> {
    values.into_iter().map(|value| value.map(Into::into)).collect()
}

/// Class names that Hugging Face datasets keep in the footer; empty if there are none.
fn class_names(metadata: &ParquetMetaData, label: &str) -> Vec<String> {
    let pairs = metadata.file_metadata().key_value_metadata();
    let pair = pairs.and_then(|pairs| pairs.iter().find(|pair| pair.key == "huggingface"));
    let json = pair.and_then(|pair| pair.value.as_deref()).unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let names = json["info"]["features"][label]["names"].as_array().cloned().unwrap_or_default();
    names.iter().filter_map(|name| name.as_str().map(str::to_string)).collect()
}
