//! A file of weights in memory.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::pytorch::Stored;
use crate::{checkpoint, files, pytorch};

/// A file's tensors by the names that they have there.
pub type Tensors<'a> = BTreeMap<String, Stored<'a>>;

/// A safetensors file, or one of PyTorch.
#[derive(Debug)]
pub struct WeightFile {
    /// Where it was read: the file, or the checkpoint's folder.
    pub path: PathBuf,
    bytes: Vec<u8>,
}

impl WeightFile {
    /// Reads a file.
    /// # Errors
    /// No such file; no regular file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = files::read_regular(path, u64::MAX).with_context(|| format!("reading {}", path.display()))?;
        Ok(Self { path: path.into(), bytes })
    }

    /// Reads both networks of a checkpoint of this program.
    /// # Errors
    /// Damaged: its checksum is another.
    pub fn of_checkpoint(folder: &Path) -> Result<Self> {
        Ok(Self { path: folder.into(), bytes: checkpoint::read_model(folder)? })
    }

    /// SHA-256 in hex.
    pub fn sha256(&self) -> String {
        checkpoint::sha256(&self.bytes)
    }

    /// Its tensors.
    /// # Errors
    /// Neither a safetensors file nor one of PyTorch since 1.6; damaged.
    pub fn tensors(&self) -> Result<Tensors<'_>> {
        let found = if pytorch::is_pytorch(&self.bytes) {
            pytorch::tensors(&self.bytes)
        } else if self.bytes.get(8) == Some(&b'{') {
            checkpoint::views(&self.bytes).map(|views| views.into_iter().map(stored).collect())
        } else {
            Err(self.is_other())
        };
        found.with_context(|| self.path.display().to_string())
    }

    /// The error for a file that does not begin as weights do.
    fn is_other(&self) -> Error {
        if self.path.as_os_str().as_encoded_bytes().ends_with(b".index.json") {
            return anyhow!("found the index of several files; {}", super::locate::JOIN);
        }
        let start: String = self.bytes.iter().take(8).map(|byte| byte.escape_ascii().to_string()).collect();
        let found =
            if start.is_empty() { "an empty file".into() } else { format!("a file that begins with \"{start}\"") };
        anyhow!("found {found}, expected one of safetensors or of torch.save")
    }

    /// The texts in a safetensors file's header; none in a file of PyTorch.
    /// # Errors
    /// Not a safetensors file.
    pub fn metadata(&self) -> Result<Option<HashMap<String, String>>> {
        if pytorch::is_pytorch(&self.bytes) {
            return Ok(None);
        }
        let (_, metadata) = SafeTensors::read_metadata(&self.bytes).map_err(|e| anyhow!("reading its header: {e}"))?;
        Ok(metadata.metadata().clone())
    }
}

fn stored<'a>((name, view): (String, TensorView<'a>)) -> (String, Stored<'a>) {
    let (dtype, shape) = (view.dtype(), view.shape().to_vec());
    (name, Stored { dtype, shape, data: view.data().into() })
}
