//! Features on disk, written as they are computed, in the format that the output's name says. To add one, write a file
//! with a [`Sink`], and add it to [`FILES`].

mod arrow;
mod csv;
mod npy;
mod parquet;
mod safetensors;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use tch::{Device, Tensor};

use crate::checkpoint::check_output;
use crate::files::{self, Unfinished};

/// What all rows have in common.
pub struct Table {
    /// Length of a vector. A multiple of 8 for every encoder here, which aligns what follows the vectors in a file.
    pub dim: usize,
    /// Names of the classes in the order of the labels; empty if they have none.
    pub classes: Vec<String>,
    /// Texts by name, for formats that have metadata.
    pub metadata: serde_json::Value,
}

impl Table {
    /// The name of a label's class, if it has one.
    fn class(&self, label: i64) -> Option<&str> {
        let name = self.classes.get(usize::try_from(label).ok()?)?;
        (!name.is_empty()).then_some(name.as_str())
    }
}

/// Features of some images, with what is known of these.
struct Rows<'a> {
    /// The vectors, one after the other, as little-endian fp32.
    features: &'a [u8],
    /// Class of each, -1 for none.
    labels: &'a [i64],
    /// Position of each in the data set.
    indices: &'a [u32],
    /// See [`crate::data::Dataset::name`].
    names: &'a [String],
}

impl Rows<'_> {
    /// The values of all vectors.
    fn values(&self) -> impl Iterator<Item = f32> + '_ {
        self.features.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}

/// A file that is being written; its number of rows is known only at the end.
trait Sink {
    /// Adds rows.
    fn write(&mut self, rows: &Rows) -> Result<()>;
    /// Writes what is missing, and gives the file its name.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Begins a file.
type Create = fn(Unfinished, Table) -> Result<Box<dyn Sink>>;

/// The formats of a single file, by the ending of its name.
const FILES: [(&str, Create); 3] =
    [("parquet", parquet::create), ("csv", csv::create), ("safetensors", safetensors::create)];

/// Writes features, labels, and the names and positions of their images, row by row.
pub struct FeatureWriter {
    sink: Box<dyn Sink>,
    dim: usize,
    rows: usize,
}

impl FeatureWriter {
    /// Creates `output`: a file of [`FILES`] if its name ends like one, else a folder of `.npy` files.
    /// # Errors
    /// `output` exists and `force` is not set; its ending is that of another format.
    pub fn create(output: &Path, table: Table, force: bool) -> Result<Self> {
        let (dim, rows) = (table.dim, 0);
        let sink = match single_file(output)? {
            Some(create) => {
                let output = [output.to_path_buf()];
                prepare(output[0].parent().unwrap_or(Path::new("")), &output, force)?;
                create(Unfinished::create(&output[0])?, table)?
            }
            None => {
                prepare(output, &npy::NAMES.map(|name| output.join(name)), force)?;
                npy::create(output, table)?
            }
        };
        Ok(Self { sink, dim, rows })
    }

    /// Appends features `[N, dim]` (fp32, on any device) with the labels (-1: none), positions and names of their
    /// images.
    pub fn write(&mut self, features: &Tensor, labels: &[i64], indices: &[u32], names: &[String]) -> Result<()> {
        let features = features.f_to_device(Device::Cpu)?.f_contiguous()?;
        ensure!(features.size() == [labels.len() as i64, self.dim as i64], "features of shape {:?}", features.size());
        let mut bytes = vec![0; features.numel() * 4];
        features.f_copy_data_u8(&mut bytes, features.numel())?;
        self.rows += labels.len();
        self.sink.write(&Rows { features: &bytes, labels, indices, names })
    }

    /// Gives the files their names. Returns the number of rows.
    pub fn finish(self) -> Result<usize> {
        ensure!(self.rows > 0, "none of the images could be read, see the warnings; nothing was written");
        self.sink.finish()?;
        Ok(self.rows)
    }
}

/// The format that a name's ending stands for; `None` for a folder.
/// # Errors
/// A file of another format.
fn single_file(output: &Path) -> Result<Option<Create>> {
    // `features.npz` is not meant as a folder, `run-1.5` or `features.npz/` may be.
    if output.is_dir() || output.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Ok(None);
    }
    let extension = output.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    if let Some((_, create)) = FILES.iter().find(|(ending, _)| *ending == extension) {
        return Ok(Some(*create));
    }
    if output.is_file() || extension.starts_with(|c: char| c.is_ascii_alphabetic()) {
        bail!(
            "--output: found the file name {}, expected {}, or a folder, which gets {} (a name that ends in / is a \
             folder's)",
            output.display(),
            FILES.map(|(ending, _)| format!("FILE.{ending}")).join(", "),
            npy::NAMES.join(", ")
        );
    }
    Ok(None)
}

/// Creates the folder, and checks that the files can be written.
fn prepare(folder: &Path, files: &[PathBuf], force: bool) -> Result<()> {
    if !folder.as_os_str().is_empty() {
        files::create_output_folder(folder)?;
    }
    files.iter().try_for_each(|path| check_output(path, force))?;
    files.iter().for_each(|path| files::remove_stale(path));
    Ok(())
}

/// Adds names to a text, one per line; line ends within them are written as `\n` and `\r`.
fn push_lines(text: &mut String, names: &[String]) {
    for name in names {
        text.push_str(&name.replace('\n', "\\n").replace('\r', "\\r"));
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ::parquet::file::reader::{FileReader, SerializedFileReader};
    use ::parquet::record::RowAccessor;
    use ::safetensors::{Dtype, SafeTensors};
    use serde_json::json;
    use tch::Kind;

    use super::*;

    const NAMES: [&str; 3] = ["a/1, \"x\".png", "b\nc.png", "ä.tar/2.png"];

    fn writer(output: &Path, force: bool) -> Result<FeatureWriter> {
        let classes = ["cat", "", "", "a \"dog\""].map(str::to_string).to_vec();
        FeatureWriter::create(output, Table { dim: 8, classes, metadata: json!({"split": "train"}) }, force)
    }

    /// Six rows of 0, 1, 2 and so on, a third without a label.
    fn rows(writer: &mut FeatureWriter) -> Result<()> {
        for start in [0, 3] {
            let features = Tensor::arange_start(start * 8, start * 8 + 24, (Kind::Float, Device::Cpu)).reshape([3, 8]);
            let index = start as u32;
            writer.write(&features, &[start, 7, -1], &[index, index + 1, index + 2], &NAMES.map(str::to_string))?;
        }
        Ok(())
    }

    fn written(output: &Path) -> Result<Vec<u8>> {
        let mut writer = writer(output, false)?;
        rows(&mut writer)?;
        assert!(!output.is_file());
        assert_eq!(writer.finish()?, 6);
        Ok(if output.is_file() { fs::read(output)? } else { Vec::new() })
    }

    fn numbers<const N: usize, T>(bytes: &[u8], from: fn([u8; N]) -> T) -> Vec<T> {
        bytes.chunks_exact(N).map(|chunk| from(chunk.try_into().expect("a chunk"))).collect()
    }

    #[test]
    fn a_safetensors_file_holds_what_was_written() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let bytes = written(&folder.path().join("new/f.safetensors"))?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        assert_eq!((&*metadata["split"], &*metadata["class_names"]), ("train", r#"["cat","","","a \"dog\""]"#));
        let file = SafeTensors::deserialize(&bytes)?;
        let features = file.tensor("features")?;
        assert_eq!((features.dtype(), features.shape()), (Dtype::F32, &[6, 8][..]));
        assert_eq!(numbers(features.data(), f32::from_le_bytes), (0..48).map(|v| v as f32).collect::<Vec<_>>());
        assert_eq!(numbers(file.tensor("labels")?.data(), i64::from_le_bytes), [0, 7, -1, 3, 7, -1]);
        assert_eq!(numbers(file.tensor("indices")?.data(), i64::from_le_bytes), [0, 1, 2, 3, 4, 5]);
        let names = "a/1, \"x\".png\nb\\nc.png\nä.tar/2.png\n".repeat(2);
        assert_eq!(file.tensor("names")?.data(), names.as_bytes());
        Ok(())
    }

    #[test]
    fn npy_files_have_numpys_header() -> Result<()> {
        let folder = tempfile::tempdir()?;
        written(folder.path())?;
        let features = fs::read(folder.path().join("features.npy"))?;
        // The header that numpy.save writes for such an array, with more padding.
        let head = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (6, 8), }";
        assert_eq!(&features[..head.len()], head);
        assert_eq!((features[127], features.len()), (b'\n', 128 + 6 * 8 * 4));
        assert_eq!(numbers(&features[128..], f32::from_le_bytes)[47], 47.0);
        let labels = fs::read(folder.path().join("labels.npy"))?;
        assert!(String::from_utf8_lossy(&labels[..128]).contains("'<i8', 'fortran_order': False, 'shape': (6,)"));
        assert_eq!(numbers(&labels[128..], i64::from_le_bytes), [0, 7, -1, 3, 7, -1]);
        assert_eq!(fs::read_to_string(folder.path().join("names.txt"))?.lines().nth(4), Some("b\\nc.png"));
        Ok(())
    }

    #[test]
    fn csv_has_a_column_for_each_value() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let text = String::from_utf8(written(&folder.path().join("f.CSV"))?)?;
        let expected = "name,label,class,f0,f1,f2,f3,f4,f5,f6,f7\n\
                        \"a/1, \"\"x\"\".png\",0,cat,0.0,1.0,2.0,3.0,4.0,5.0,6.0,7.0\n\
                        \"b\nc.png\",7,,8.0,9.0,10.0,11.0,12.0,13.0,14.0,15.0\n\
                        ä.tar/2.png,,,16.0,17.0,18.0,19.0,20.0,21.0,22.0,23.0\n\
                        \"a/1, \"\"x\"\".png\",3,\"a \"\"dog\"\"\",24.0,";
        assert!(text.starts_with(expected), "{text}");
        let path = folder.path().join("small.csv");
        let mut writer = writer(&path, false)?;
        let values = [1e-30f32, -0.1, f32::MAX, 1.0 / 3.0, 0.0, 1e7, 16_777_216.0, 1e16];
        writer.write(&Tensor::from_slice(&values).reshape([1, 8]), &[-1], &[0], &["x".into()])?;
        writer.finish()?;
        let text = fs::read_to_string(path)?;
        let row = text.lines().nth(1).unwrap_or_default();
        assert_eq!(row, "x,,,1e-30,-0.1,3.4028235e38,0.33333334,0.0,10000000.0,16777216.0,1e16");
        let read: Vec<f32> = row.split(',').skip(3).map(|text| text.parse().expect("a number")).collect();
        assert_eq!(read, values);
        Ok(())
    }

    #[test]
    fn a_parquet_file_has_a_vector_in_each_row() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("f.parquet");
        written(&path)?;
        let reader = SerializedFileReader::new(fs::File::open(&path)?)?;
        let texts = reader.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
        assert!(texts.iter().any(|text| text.key == "split" && text.value.as_deref() == Some("train")));
        // pyarrow 26: pa.ipc.read_schema(base64.b64decode(...)) gives name: string not null, label: int64,
        // class: string, vector: fixed_size_list<element: float not null>[8] not null.
        assert!(texts.iter().any(|text| text.key == "ARROW:schema"));
        let rows: Vec<_> = reader.get_row_iter(None)?.collect::<Result<_, _>>()?;
        assert_eq!(rows.len(), 6);
        for (at, row) in rows.iter().enumerate() {
            assert_eq!(row.get_string(0)?, NAMES[at % 3]);
            let label = [Some(0), Some(7), None, Some(3), Some(7), None][at];
            assert_eq!(row.get_long(1).ok(), label);
            assert_eq!(
                row.get_string(2).ok().map(String::as_str),
                [Some("cat"), None, None, Some("a \"dog\"")][at % 4].filter(|_| at % 3 == 0)
            );
            let vector = row.get_list(3)?;
            let values: Vec<f32> = (0..vector.len())
                .map(|i| ::parquet::record::ListAccessor::get_float(vector, i))
                .collect::<Result<_, _>>()?;
            assert_eq!(values, (at * 8..at * 8 + 8).map(|v| v as f32).collect::<Vec<_>>());
        }
        Ok(())
    }

    #[test]
    fn what_is_there_stays_and_what_is_not_finished_goes() -> Result<()> {
        let folder = tempfile::tempdir()?;
        for name in ["f.safetensors", "f.parquet", "f.csv", "npy"] {
            let output = folder.path().join(name);
            let target = if name == "npy" { output.join("features.npy") } else { output.clone() };
            written(&output)?;
            let before = fs::read(&target)?;
            let refused = writer(&output, false).map(drop).expect_err("there").to_string();
            assert!(refused.contains("already exists; add --force"), "{refused}");
            let mut dropped = writer(&output, true)?;
            rows(&mut dropped)?;
            drop(dropped);
            assert_eq!(fs::read(&target)?, before);
            let left: Vec<_> = fs::read_dir(target.parent().expect("a folder"))?.flatten().collect();
            assert!(left.iter().all(|e| !e.file_name().to_string_lossy().starts_with(".partial")), "{left:?}");
            assert!(writer(&output, true)?.finish().is_err(), "no rows");
            assert_eq!(fs::read(&target)?, before);
            let mut twice = writer(&output, true)?;
            rows(&mut twice)?;
            rows(&mut twice)?;
            twice.finish()?;
            assert_ne!(fs::read(&target)?, before);
        }
        Ok(())
    }

    #[test]
    fn other_endings_are_refused_with_the_list() -> Result<()> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("file"), "")?;
        for name in ["x.npy", "file", "x.npz", "x.h5", "new/x.json"] {
            let refused = writer(&folder.path().join(name), true).map(drop).expect_err(name).to_string();
            let list = "expected FILE.parquet, FILE.csv, FILE.safetensors, or a folder, which gets features.npy";
            assert!(refused.contains(list), "{refused}");
            assert!(name == "file" || !folder.path().join(name).exists(), "{name}");
        }
        for name in ["run-1.5", "x.d/"] {
            writer(&folder.path().join(name), false)?;
        }
        Ok(())
    }
}
