//! Features on disk, written as they are computed: `.npy` files in a folder, or one safetensors file. The number of
//! rows is known only at the end (unreadable images are skipped), so space for the header is reserved and filled in
//! then.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tch::{Device, Tensor};

use crate::checkpoint::check_output;
use crate::files::{self, Unfinished};

/// Bytes of an `.npy` header: a multiple of 64, with room for any shape.
const NPY_HEADER: usize = 128;
/// Bytes of a safetensors header without its metadata: room for three tensors of any shape.
const SAFETENSORS_HEADER: usize = 512;
const NPY_FILES: [&str; 3] = ["features.npy", "labels.npy", "indices.npy"];

/// Writes features, labels (-1: none) and positions in the data set, row by row.
pub struct FeatureWriter {
    features: Unfinished,
    /// The folder of `.npy` files; `None` for a safetensors file.
    folder: Option<PathBuf>,
    metadata: serde_json::Value,
    header: usize,
    dim: i64,
    labels: Vec<i64>,
    indices: Vec<i64>,
}

impl FeatureWriter {
    /// Creates `output`: a file if its name ends in `.safetensors`, else a folder. `metadata` (texts by name) goes
    /// into the former's header. `dim` is the length of a feature, a multiple of 8 for every encoder here, so
    /// that the int64 rows behind the features are aligned.
    /// # Errors
    /// `output` exists and `force` is not set; its extension is that of another format.
    pub fn create(output: &Path, dim: i64, metadata: serde_json::Value, force: bool) -> Result<Self> {
        let extension = output.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let single = extension == "safetensors";
        // `features.npz` is not meant as a folder, `run-1.5` or `features.npz/` may be.
        let named_folder = output.is_dir() || output.as_os_str().as_encoded_bytes().ends_with(b"/");
        let ending = extension.starts_with(|c: char| c.is_ascii_alphabetic());
        if !single && (output.is_file() || (ending && !named_folder)) {
            bail!(
                "--output: found the file name {}, expected FILE.safetensors or a folder, which gets {} (a name that \
                 ends in / is a folder's)",
                output.display(),
                NPY_FILES.join(", ")
            );
        }
        let targets = if single { vec![output.to_path_buf()] } else { NPY_FILES.map(|n| output.join(n)).to_vec() };
        let parent = if single { output.parent().unwrap_or(Path::new("")) } else { output };
        if !parent.as_os_str().is_empty() {
            fs::create_dir_all(parent).with_context(|| format!("--output: cannot create {}", parent.display()))?;
        }
        targets.iter().try_for_each(|path| check_output(path, force))?;
        targets.iter().for_each(|path| files::remove_stale(path));
        let header = match single {
            true => (8 + SAFETENSORS_HEADER + metadata.to_string().len()).next_multiple_of(8),
            false => NPY_HEADER,
        };
        let mut features = Unfinished::create(&targets[0])?;
        features.write(&vec![b' '; header])?;
        let folder = (!single).then(|| output.to_path_buf());
        Ok(Self { features, folder, metadata, header, dim, labels: Vec::new(), indices: Vec::new() })
    }

    /// Appends features `[N, dim]` (fp32, on any device) with their labels and positions.
    pub fn write(&mut self, features: &Tensor, labels: &[i64], indices: &[u32]) -> Result<()> {
        let features = features.f_to_device(Device::Cpu)?.f_contiguous()?;
        let mut bytes = vec![0; features.numel() * 4];
        features.f_copy_data_u8(&mut bytes, features.numel())?;
        self.features.write(&bytes)?;
        self.labels.extend(labels);
        self.indices.extend(indices.iter().map(|&index| i64::from(index)));
        Ok(())
    }

    /// Writes headers, labels and positions, and gives the files their names. Returns the number of rows.
    pub fn finish(mut self) -> Result<usize> {
        let (rows, dim) = (self.labels.len(), self.dim);
        ensure!(rows > 0, "none of the images could be read, see the warnings; nothing was written");
        let [labels, indices] =
            [&self.labels, &self.indices].map(|v| v.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>());
        if let Some(folder) = &self.folder {
            for (name, bytes) in NPY_FILES[1..].iter().zip([labels, indices]) {
                let header = npy_header("<i8", &format!("({rows},)"));
                files::write_atomic(&folder.join(name), &[header.as_slice(), &bytes].concat())?;
            }
            self.features.write_start(&npy_header("<f4", &format!("({rows}, {dim})")))?;
        } else {
            self.features.write(&labels)?;
            self.features.write(&indices)?;
            let ends = [rows * dim as usize * 4, labels.len(), indices.len()];
            let [a, b, c] = [ends[0], ends[0] + ends[1], ends.iter().sum()];
            let header = json!({
                "__metadata__": self.metadata,
                "features": {"dtype": "F32", "shape": [rows, dim], "data_offsets": [0, a]},
                "labels": {"dtype": "I64", "shape": [rows], "data_offsets": [a, b]},
                "indices": {"dtype": "I64", "shape": [rows], "data_offsets": [b, c]},
            });
            let length = self.header - 8;
            let text = format!("{:length$}", header.to_string());
            self.features.write_start(&[&(length as u64).to_le_bytes(), text.as_bytes()].concat())?;
        }
        self.features.finish()?;
        Ok(rows)
    }
}

/// Version 1.0 of numpy's format.
fn npy_header(descr: &str, shape: &str) -> Vec<u8> {
    let length = NPY_HEADER - 10;
    let dictionary = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    let width = length - 1;
    let text = format!("{dictionary:width$}\n");
    [b"\x93NUMPY\x01\x00", &(length as u16).to_le_bytes()[..], text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::{Dtype, SafeTensors};
    use tch::Kind;

    fn rows(writer: &mut FeatureWriter) -> Result<()> {
        for start in [0, 3] {
            let features = Tensor::arange_start(start * 8, start * 8 + 24, (Kind::Float, Device::Cpu)).reshape([3, 8]);
            let index = start as u32;
            writer.write(&features, &[start, 7, -1], &[index, index + 1, index + 2])?;
        }
        Ok(())
    }

    fn numbers<const N: usize, T>(bytes: &[u8], from: fn([u8; N]) -> T) -> Vec<T> {
        bytes.chunks_exact(N).map(|chunk| from(chunk.try_into().expect("a chunk"))).collect()
    }

    #[test]
    fn a_safetensors_file_holds_what_was_written() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("new/f.safetensors");
        let mut writer = FeatureWriter::create(&path, 8, json!({"split": "train"}), false)?;
        rows(&mut writer)?;
        assert!(!path.exists());
        assert_eq!(writer.finish()?, 6);
        let bytes = fs::read(&path)?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        assert_eq!(header.metadata().as_ref().and_then(|m| m.get("split")).map(String::as_str), Some("train"));
        let file = SafeTensors::deserialize(&bytes)?;
        let features = file.tensor("features")?;
        assert_eq!((features.dtype(), features.shape()), (Dtype::F32, &[6, 8][..]));
        assert_eq!(numbers(features.data(), f32::from_le_bytes), (0..48).map(|v| v as f32).collect::<Vec<_>>());
        assert_eq!(numbers(file.tensor("labels")?.data(), i64::from_le_bytes), [0, 7, -1, 3, 7, -1]);
        assert_eq!(numbers(file.tensor("indices")?.data(), i64::from_le_bytes), [0, 1, 2, 3, 4, 5]);
        Ok(())
    }

    #[test]
    fn npy_files_have_numpys_header() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut writer = FeatureWriter::create(folder.path(), 8, json!({}), false)?;
        rows(&mut writer)?;
        writer.finish()?;
        let features = fs::read(folder.path().join("features.npy"))?;
        // The header that numpy.save writes for such an array, with more padding.
        let head = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (6, 8), }";
        assert_eq!(&features[..head.len()], head);
        assert_eq!((features[NPY_HEADER - 1], features.len()), (b'\n', NPY_HEADER + 6 * 8 * 4));
        assert_eq!(numbers(&features[NPY_HEADER..], f32::from_le_bytes)[47], 47.0);
        let labels = fs::read(folder.path().join("labels.npy"))?;
        assert!(
            String::from_utf8_lossy(&labels[..NPY_HEADER]).contains("'<i8', 'fortran_order': False, 'shape': (6,)")
        );
        assert_eq!(numbers(&labels[NPY_HEADER..], i64::from_le_bytes), [0, 7, -1, 3, 7, -1]);
        Ok(())
    }

    #[test]
    fn what_is_there_stays_and_what_is_not_finished_goes() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("f.safetensors");
        for output in [file.clone(), folder.path().join("npy")] {
            let target = if output == file { file.clone() } else { output.join("features.npy") };
            let mut writer = FeatureWriter::create(&output, 8, json!({}), false)?;
            rows(&mut writer)?;
            writer.finish()?;
            let before = fs::read(&target)?;
            let refused = FeatureWriter::create(&output, 8, json!({}), false).map(drop).expect_err("there").to_string();
            assert!(refused.contains("already exists; add --force"), "{refused}");
            let mut dropped = FeatureWriter::create(&output, 8, json!({}), true)?;
            rows(&mut dropped)?;
            drop(dropped);
            assert_eq!(fs::read(&target)?, before);
            let left: Vec<_> = fs::read_dir(target.parent().expect("a folder"))?.flatten().collect();
            assert!(left.iter().all(|e| !e.file_name().to_string_lossy().starts_with(".partial")), "{left:?}");
            assert!(FeatureWriter::create(&output, 8, json!({}), true)?.finish().is_err(), "no rows");
            assert_eq!(fs::read(&target)?, before);
            let mut twice = FeatureWriter::create(&output, 8, json!({}), true)?;
            rows(&mut twice)?;
            rows(&mut twice)?;
            twice.finish()?;
            assert_ne!(fs::read(&target)?, before);
        }
        fs::write(folder.path().join("file"), "")?;
        for name in ["x.npy", "file", "x.npz", "x.h5", "x.Parquet", "new/x.csv"] {
            let refused = FeatureWriter::create(&folder.path().join(name), 8, json!({}), true).map(drop);
            let refused = refused.expect_err(name).to_string();
            assert!(refused.contains("expected FILE.safetensors or a folder, which gets features.npy"), "{refused}");
            assert!(name == "file" || !folder.path().join(name).exists(), "{name}");
        }
        for name in ["run-1.5", "x.d/"] {
            FeatureWriter::create(&folder.path().join(name), 8, json!({}), false)?;
        }
        Ok(())
    }
}
