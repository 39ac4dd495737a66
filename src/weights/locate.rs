//! What the path that a user gives for weights leads to.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::checkpoint;

/// Names of the weights in a folder of `save_pretrained` and the like.
const IN_FOLDERS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// What to do with weights in several files.
pub(super) const JOIN: &str = "join them, in Python: model.save_pretrained(DIR, max_shard_size=\"100GB\"), or \
                               safetensors.torch.save_file of the dictionaries together";

/// What is at a path.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// A run's checkpoints, latest first: some may be damaged.
    Run(Vec<PathBuf>),
    /// The folder of one checkpoint.
    Checkpoint(PathBuf),
    /// A file, of this program or any other.
    File(PathBuf),
}

/// A run's folder, its `checkpoints`, a checkpoint's folder or the `model.safetensors` in one, another folder with
/// weights, or a file, which need not exist.
/// # Errors
/// A folder without any of these.
pub fn locate(path: &Path) -> Result<Place> {
    if !path.is_dir() {
        let folder = path.parent().filter(|folder| path.ends_with(IN_FOLDERS[0]) && folder.join("SHA256SUMS").exists());
        return Ok(folder.map_or(Place::File(path.into()), |folder| Place::Checkpoint(folder.into())));
    }
    for root in [path.join("checkpoints"), path.to_path_buf()] {
        let checkpoints = checkpoint::list(&root);
        if !checkpoints.is_empty() {
            return Ok(Place::Run(checkpoints));
        }
    }
    if path.join("manifest.json").exists() {
        return Ok(Place::Checkpoint(path.into()));
    }
    let mut inside = path.read_dir().into_iter().flatten().flatten().map(|entry| entry.file_name());
    if inside.any(|name| name.as_encoded_bytes().ends_with(b".index.json")) && !path.join(IN_FOLDERS[0]).is_file() {
        bail!("{}: found weights in several files with an index, expected one; {JOIN}", path.display());
    }
    match IN_FOLDERS.iter().map(|name| path.join(name)).find(|file| file.is_file()) {
        Some(file) => Ok(Place::File(file)),
        None => bail!(
            "{}: found no checkpoint in this folder, expected a run's, a step-... of one, or {}",
            path.display(),
            IN_FOLDERS.join(" or ")
        ),
    }
}
