//! A checkpoint on disk: a folder `step-00001234` with `model.safetensors`, `optimizer.safetensors`,
//! `manifest.json` and `SHA256SUMS` (which `sha256sum -c` reads too). It is written under a temporary name, synced
//! and renamed, so a folder with the final name is complete; later damage is detected by the checksums.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};

const SUMS: &str = "SHA256SUMS";
/// Prefix of folders that are being written or deleted; a killed run may leave one.
const TEMPORARY: &str = crate::files::UNFINISHED;
/// Prefix of checkpoints of an abandoned branch of the run, see [`set_aside`].
const ABANDONED: &str = "abandoned-";

/// SHA-256 of `bytes` in hex.
pub fn sha256(bytes: &[u8]) -> String {
    crate::files::hex(&Sha256::digest(bytes))
}

/// `root/step-00001234`.
pub fn path_of(root: &Path, step: u64) -> PathBuf {
    root.join(format!("step-{step:08}"))
}

fn sync_folder(path: &Path) -> Result<()> {
    File::open(path)?.sync_all().with_context(|| format!("syncing {}", path.display()))
}

/// Writes a folder of files atomically, replacing one of the same step.
/// # Errors
/// Which file could not be written, why, and how much space the checkpoint needs.
pub fn write(root: &Path, step: u64, files: &[(&str, Vec<u8>)]) -> Result<PathBuf> {
    let target = path_of(root, step);
    let partial = root.join(format!("{TEMPORARY}{step:08}"));
    let write_all = || -> Result<()> {
        remove_if_there(&partial)?;
        fs::create_dir_all(&partial)?;
        let mut sums = String::new();
        for (name, bytes) in files {
            write_synced(&partial.join(name), bytes)?;
            sums += &format!("{}  {name}\n", sha256(bytes));
        }
        write_synced(&partial.join(SUMS), sums.as_bytes())?;
        sync_folder(&partial)?;
        set_aside(root, step)?;
        fs::rename(&partial, &target)?;
        sync_folder(root)
    };
    let bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    let written = write_all();
    if written.is_err() {
        // Frees its space if the disk is full.
        let _ = fs::remove_dir_all(&partial);
    }
    written.with_context(|| {
        let free = free_bytes(root).map_or("unknown".to_string(), |free| format!("{:.1} MB", free as f64 / 1e6));
        format!("writing checkpoint {} (needs {:.1} MB, free: {free})", target.display(), bytes as f64 / 1e6)
    })?;
    Ok(target)
}

/// Free bytes for this user on the file system of `path`, or of its nearest parent that exists.
fn free_bytes(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|folder| folder.is_dir())?;
    let found = rustix::fs::statvfs(there).ok()?;
    Some(found.f_bavail * found.f_frsize)
}

/// Renames the checkpoints of step `from` and later to `abandoned-...`: a run that continues from before them is
/// another branch, which must neither count them as its latest nor delete them. [`clean`] keeps the latest of them
/// too.
pub fn set_aside(root: &Path, from: u64) -> Result<()> {
    for path in list(root).into_iter().take_while(|path| *path >= path_of(root, from)) {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let aside = root.join(format!("{ABANDONED}{name}"));
        remove_if_there(&aside)?;
        fs::rename(&path, &aside).with_context(|| format!("renaming {}", path.display()))?;
        log::warn!("renamed to {}: the run continues from an earlier step", aside.display());
    }
    Ok(())
}

/// Checks before any work that `output` can be written.
/// # Errors
/// It exists (even as a dangling link) and `force` is not set; it is not a regular file but a folder, device or the
/// like, which a rename would replace; its folder does not exist or cannot be written.
pub fn check_output(output: &Path, force: bool) -> Result<()> {
    check_file("--output", output, force)
}

/// The same for the file of another option.
/// # Errors
/// As above.
pub fn check_file(option: &str, output: &Path, force: bool) -> Result<()> {
    let name = output.display();
    if output.is_dir() {
        bail!("{option}: found the folder {name}, expected the name of a file");
    }
    let there = fs::symlink_metadata(output).is_ok();
    if there && output.exists() && !output.is_file() {
        bail!("{option}: {name} is not a regular file and will not be replaced; choose another name");
    }
    if there && !force {
        bail!("{option}: {name} already exists; add --force to replace it, or choose another name");
    }
    let folder = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        bail!("{option}: found no folder {}, expected one that exists; create it, or choose another", folder.display());
    }
    let trial = tempfile::NamedTempFile::new_in(folder);
    trial.map(drop).with_context(|| format!("{option}: folder {} cannot be written", folder.display()))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let place = || format!("writing {}", path.display());
    let mut file = File::create(path).with_context(place)?;
    file.write_all(bytes).with_context(place)?;
    file.sync_all().with_context(place)
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// One file of a checkpoint folder, of `most` bytes at most, its checksum verified.
/// # Errors
/// The file is missing, unreadable, too large, or its checksum does not match.
pub fn read(folder: &Path, name: &str, most: u64) -> Result<Vec<u8>> {
    let sums = String::from_utf8(read_at_most(&folder.join(SUMS), 1 << 16)?)
        .with_context(|| format!("{}: damaged", folder.join(SUMS).display()))?;
    let expected = sums
        .lines()
        .find_map(|line| line.split_once("  ").filter(|(_, file)| *file == name).map(|(sum, _)| sum.to_string()))
        .ok_or_else(|| anyhow!("{}: {SUMS} does not list {name}", folder.display()))?;
    let path = folder.join(name);
    let bytes = read_at_most(&path, most)?;
    let found = sha256(&bytes);
    if found != expected {
        bail!(
            "{}: damaged: its {} bytes have SHA-256 {}..., expected {}...",
            path.display(),
            bytes.len(),
            &found[..12],
            expected.get(..12).unwrap_or(&expected)
        );
    }
    Ok(bytes)
}

/// A file's bytes; one that is larger than allowed is refused before memory is allocated.
fn read_at_most(path: &Path, most: u64) -> Result<Vec<u8>> {
    let reading = || format!("reading {}", path.display());
    let file = File::open(path).with_context(reading)?;
    let length = file.metadata().with_context(reading)?.len();
    if length > most {
        bail!("{}: damaged: it holds {length} bytes, expected at most {most}", path.display());
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(most).read_to_end(&mut bytes).with_context(reading)?;
    Ok(bytes)
}

/// The checkpoints of a run, latest first.
pub fn list(root: &Path) -> Vec<PathBuf> {
    numbered(root, "step-")
}

/// Folders named `prefix` and a step, latest step first.
fn numbered(root: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut steps: Vec<(u64, PathBuf)> = entries(root)
        .into_iter()
        .filter_map(|path| {
            let step = path.file_name()?.to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((step, path))
        })
        .collect();
    steps.sort();
    steps.into_iter().rev().map(|(_, path)| path).collect()
}

/// Removes the unfinished files of a killed run, all but the latest `keep` checkpoints, and all but the latest `keep`
/// of those that were set aside.
pub fn clean(root: &Path, keep: usize) {
    let leftovers = entries(root)
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY)));
    let surplus = [list(root), numbered(root, &format!("{ABANDONED}step-"))].into_iter();
    for path in leftovers.chain(surplus.flat_map(|paths| paths.into_iter().skip(keep))) {
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        if let Err(error) = removed {
            log::warn!("could not remove {}: {error}", path.display());
        }
    }
}

fn entries(root: &Path) -> Vec<PathBuf> {
    fs::read_dir(root).map(|entries| entries.flatten().map(|e| e.path()).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_and_leftovers_removed() -> Result<()> {
        let root = tempfile::tempdir()?;
        for step in [5, 20, 100] {
            write(root.path(), step, &[("a", vec![step as u8])])?;
            fs::create_dir(root.path().join(format!("abandoned-step-{step:08}")))?;
        }
        fs::create_dir(root.path().join(".partial-00000200"))?;
        fs::write(root.path().join(".partial-summary.json"), "{")?;
        clean(root.path(), 2);
        assert_eq!(list(root.path()), [path_of(root.path(), 100), path_of(root.path(), 20)]);
        assert!(!root.path().join("abandoned-step-00000005").exists());
        assert_eq!(fs::read_dir(root.path())?.count(), 4);
        Ok(())
    }

    #[test]
    fn any_flipped_byte_and_any_truncation_is_found() -> Result<()> {
        let root = tempfile::tempdir()?;
        let files = [("model.safetensors", b"0123456789".to_vec()), ("manifest.json", b"{}".to_vec())];
        let folder = write(root.path(), 1, &files)?;
        let readable =
            || files.iter().all(|(name, bytes)| read(&folder, name, 1 << 16).is_ok_and(|found| found == *bytes));
        assert!(readable());
        for name in ["model.safetensors", "manifest.json", SUMS] {
            let path = folder.join(name);
            let good = fs::read(&path)?;
            for at in 0..good.len() {
                let mut flipped = good.clone();
                flipped[at] ^= 1;
                fs::write(&path, &flipped)?;
                assert!(!readable(), "{name}: byte {at} flipped");
                fs::write(&path, &good[..at])?;
                // The final newline of the checksums is redundant.
                assert!(!readable() || (name == SUMS && at + 1 == good.len()), "{name}: cut to {at}");
            }
            fs::write(&path, &good)?;
        }
        write(root.path(), 1, &files)?;
        assert!(readable());
        Ok(())
    }
}
