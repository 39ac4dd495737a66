//! One parquet file with the columns name, label, class and vector, a list of fixed size. Without a label the fields are
//! null.

use std::io::{self, Write};
use std::sync::Arc;

use anyhow::{Context, Error, Result};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, FloatType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

use super::{Rows, Sink, Table, arrow};
use crate::files::Unfinished;

/// Bytes of the vectors of a row group, which is in memory until it is written.
const GROUP_BYTES: usize = 32 << 20;
/// Values passed to the writer at once, about.
const AT_ONCE: usize = 1 << 16;

const SCHEMA: &str = "
message features {
  required binary name (STRING);
  optional int64 label;
  optional binary class (STRING);
  required group vector (LIST) { repeated group list { required float element; } }
}";

struct Parquet {
    writer: SerializedFileWriter<Out>,
    table: Table,
    names: Vec<ByteArray>,
    labels: Vec<i64>,
    values: Vec<f32>,
}

pub(super) fn create(file: Unfinished, table: Table) -> Result<Box<dyn Sink>> {
    let texts = table.metadata.as_object().into_iter().flatten();
    let texts = texts.map(|(key, text)| KeyValue::new(key.clone(), text.as_str().map(str::to_string)));
    let arrow = KeyValue::new("ARROW:schema".to_string(), arrow::schema(table.dim));
    let vector = ColumnPath::from(["vector", "list", "element"].map(str::to_string).to_vec());
    let properties = WriterProperties::builder()
        .set_created_by(concat!("byol ", env!("CARGO_PKG_VERSION")).into())
        .set_key_value_metadata(Some(texts.chain([arrow]).collect()))
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        // Floats neither repeat nor shrink.
        .set_column_compression(vector.clone(), Compression::UNCOMPRESSED)
        .set_column_dictionary_enabled(vector.clone(), false)
        .set_column_statistics_enabled(vector, EnabledStatistics::None);
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let writer =
        SerializedFileWriter::new(Out { file: Some(file), failed: None }, schema, Arc::new(properties.build()))?;
    Ok(Box::new(Parquet { writer, table, names: Vec::new(), labels: Vec::new(), values: Vec::new() }))
}

impl Sink for Parquet {
    fn write(&mut self, rows: &Rows) -> Result<()> {
        self.names.extend(rows.names.iter().map(|name| ByteArray::from(name.as_str())));
        self.labels.extend(rows.labels);
        self.values.extend(rows.values());
        if self.values.len() * 4 >= GROUP_BYTES { self.write_group().map_err(|e| self.cause(e)) } else { Ok(()) }
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        let last = if self.labels.is_empty() { Ok(()) } else { self.write_group() };
        let written = last.and_then(|()| Ok(self.writer.finish().map(drop)?));
        written.map_err(|error| self.cause(error))?;
        self.writer.inner_mut().file.take().context("a file")?.finish()
    }
}

impl Parquet {
    /// Why the file could not be written, if that is why the writer failed.
    fn cause(&mut self, error: Error) -> Error {
        self.writer.inner_mut().failed.take().unwrap_or(error)
    }

    /// Writes what there is as a row group.
    fn write_group(&mut self) -> Result<()> {
        let mut group = self.writer.next_row_group()?;
        column::<ByteArrayType>(&mut group, &self.names, None, None)?;
        let there: Vec<i16> = self.labels.iter().map(|&label| i16::from(label >= 0)).collect();
        let labels: Vec<i64> = self.labels.iter().copied().filter(|&label| label >= 0).collect();
        column::<Int64Type>(&mut group, &labels, Some(&there), None)?;
        let classes = self.labels.iter().map(|&label| self.table.class(label));
        let there: Vec<i16> = classes.clone().map(|class| i16::from(class.is_some())).collect();
        let classes: Vec<ByteArray> = classes.flatten().map(ByteArray::from).collect();
        column::<ByteArrayType>(&mut group, &classes, Some(&there), None)?;
        vectors(&mut group, &self.values, self.table.dim)?;
        group.close()?;
        self.names.clear();
        self.labels.clear();
        self.values.clear();
        Ok(())
    }
}

/// Writes the column of vectors: each one's first value begins a row, the others are repeated.
fn vectors(group: &mut SerializedRowGroupWriter<'_, Out>, values: &[f32], dim: usize) -> Result<()> {
    let rows = (AT_ONCE / dim).max(1);
    let present = vec![1; rows * dim];
    let repeated: Vec<i16> = (0..rows * dim).map(|at| i16::from(at % dim > 0)).collect();
    let mut column = group.next_column()?.context("a column")?;
    for values in values.chunks(rows * dim) {
        let (present, repeated) = (&present[..values.len()], &repeated[..values.len()]);
        column.typed::<FloatType>().write_batch(values, Some(present), Some(repeated))?;
    }
    Ok(column.close()?)
}

/// Writes the next column.
fn column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, Out>,
    values: &[T::T],
    present: Option<&[i16]>,
    repeated: Option<&[i16]>,
) -> Result<()> {
    let mut column = group.next_column()?.context("a column")?;
    column.typed::<T>().write_batch(values, present, repeated)?;
    Ok(column.close()?)
}

/// The file for parquet's writer, and why it could not be written.
struct Out {
    file: Option<Unfinished>,
    failed: Option<Error>,
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.as_mut().map_or(Ok(()), |file| file.write(bytes));
        written.map_err(|error| {
            self.failed = Some(error);
            io::Error::other("the file cannot be written")
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use parquet::column::reader::get_typed_column_reader;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_of_several_groups_are_whole() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("f.parquet");
        let dim = 1 << 16;
        let table = Table { dim, classes: Vec::new(), metadata: json!({}) };
        let mut sink = create(Unfinished::create(&path)?, table)?;
        for row in 0..150u32 {
            let features: Vec<u8> =
                (0..dim).flat_map(|at| ((row * 100_000) as f32 + at as f32).to_le_bytes()).collect();
            sink.write(&Rows { features: &features, labels: &[-1], indices: &[row], names: &[row.to_string()] })?;
        }
        sink.finish()?;
        let reader = SerializedFileReader::new(fs::File::open(path)?)?;
        let groups: Vec<i64> = reader.metadata().row_groups().iter().map(|group| group.num_rows()).collect();
        assert_eq!(groups, [128, 22]);
        for (group, first) in [(0, 0), (1, 128)] {
            let (group, rows) = (reader.get_row_group(group)?, groups[group] as usize);
            let (mut names, mut values, mut starts) = (Vec::new(), Vec::new(), Vec::new());
            let mut column = get_typed_column_reader::<ByteArrayType>(group.get_column_reader(0)?);
            column.read_records(rows, None, None, &mut names)?;
            let mut column = get_typed_column_reader::<FloatType>(group.get_column_reader(3)?);
            column.read_records(rows, Some(&mut Vec::new()), Some(&mut starts), &mut values)?;
            assert_eq!((names.len(), values.len(), starts.len()), (rows, rows * dim, rows * dim));
            for (at, (vector, starts)) in values.chunks(dim).zip(starts.chunks(dim)).enumerate() {
                assert_eq!(names[at].as_utf8()?, (first + at).to_string());
                assert!(starts[0] == 0 && starts[1..].iter().all(|&start| start == 1), "{at}");
                let expected = |i: usize| ((first + at) * 100_000) as f32 + i as f32;
                assert!(vector.iter().enumerate().all(|(i, &value)| value == expected(i)), "{at}");
            }
        }
        Ok(())
    }
}
