//! The folder of a run: created, locked against a second run, and created again if it is deleted.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::checkpoint;

/// A run's folder while the run writes to it.
pub struct RunFolder {
    dir: PathBuf,
    /// Locked while it is open; the system unlocks it when the process exits, so stale locks are ignored. `None` if
    /// rank 0 has it.
    lock: Option<File>,
    /// What [`Self::put`] wrote, to recreate the folder.
    files: Vec<(&'static str, Vec<u8>)>,
}

/// Another process has locked the folder: this one must no longer write to it.
#[derive(Debug)]
pub struct InUse(String);

impl std::fmt::Display for InUse {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InUse {}

impl RunFolder {
    /// Creates and locks the folder before any work, and removes unfinished files of a killed run.
    /// # Errors
    /// It cannot be created or written; another process has locked it, with its id.
    pub fn take(dir: &Path) -> Result<Self> {
        let lock = lock(dir).map_err(|error| error.context("output.dir"))?;
        let folder = Self { dir: dir.into(), lock: Some(lock), files: Vec::new() };
        checkpoint::clean(dir, usize::MAX);
        checkpoint::clean(&folder.checkpoints(), usize::MAX);
        Ok(folder)
    }

    /// The same folder in the run's other processes; only rank 0 writes to it.
    pub fn for_worker(dir: &Path) -> Self {
        Self { dir: dir.into(), lock: None, files: Vec::new() }
    }

    /// Whether this process writes there.
    pub fn is_own(&self) -> bool {
        self.lock.is_some()
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Where its checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.dir.join("checkpoints")
    }

    /// Writes a file of the run atomically.
    pub fn put(&mut self, name: &'static str, bytes: Vec<u8>) -> Result<()> {
        if !self.is_own() {
            return Ok(());
        }
        self.files.retain(|(known, _)| *known != name);
        let written = checkpoint::write_file(&self.dir.join(name), &bytes);
        self.files.push((name, bytes));
        written
    }

    /// Recreates the folder, with its lock and files, if it was deleted or moved during the run.
    /// # Errors
    /// [`InUse`] if another process has locked it.
    pub fn hold(&mut self) -> Result<()> {
        let Some(own) = &self.lock else { return Ok(()) };
        let own = own.metadata().context("reading the lock")?;
        let path = self.dir.join("lock");
        match fs::metadata(&path) {
            Ok(found) if (found.dev(), found.ino()) == (own.dev(), own.ino()) => return Ok(()),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("reading {}", path.display()));
            }
            _ => {}
        }
        log::warn!("{} was deleted or moved during the run: recreating it", self.dir.display());
        self.lock = Some(lock(&self.dir)?);
        self.files.iter().try_for_each(|(name, bytes)| checkpoint::write_file(&self.dir.join(name), bytes))
    }
}

/// Creates `dir` and takes its lock, which holds this process's id.
fn lock(dir: &Path) -> Result<File> {
    let checkpoints = dir.join("checkpoints");
    fs::create_dir_all(&checkpoints).with_context(|| format!("cannot create {}", checkpoints.display()))?;
    let path = dir.join("lock");
    let writing = || format!("cannot write {}", path.display());
    let mut lock =
        File::options().create(true).truncate(false).read(true).write(true).open(&path).with_context(writing)?;
    if lock.try_lock().is_err() {
        let mut owner = String::new();
        let _ = lock.read_to_string(&mut owner);
        let (dir, owner) = (dir.display(), owner.trim());
        bail!(InUse(format!("{dir} is in use by process {owner}; wait for it, or choose another folder")));
    }
    lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).with_context(writing)?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_is_refused_and_stale_locks_are_ignored() -> Result<()> {
        let root = tempfile::tempdir()?;
        let dir = root.path().join("run");
        fs::create_dir(&dir)?;
        fs::write(dir.join("lock"), "999999999\n")?; // left by a process that has ended
        let first = RunFolder::take(&dir)?;
        assert_eq!(fs::read_to_string(dir.join("lock"))?, format!("{}\n", std::process::id()));
        let error = format!("{:#}", RunFolder::take(&dir).err().expect("taken"));
        assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
        drop(first);
        RunFolder::take(&dir)?;
        Ok(())
    }

    #[test]
    fn a_deleted_folder_is_created_again_unless_another_run_has_it() -> Result<()> {
        let root = tempfile::tempdir()?;
        let dir = root.path().join("run");
        let mut run = RunFolder::take(&dir)?;
        run.put("config.yaml", b"a".to_vec())?;
        run.hold()?;
        fs::remove_dir_all(&dir)?;
        run.hold()?;
        assert_eq!(fs::read(dir.join("config.yaml"))?, b"a");
        fs::rename(&dir, root.path().join("moved"))?;
        let _other = RunFolder::take(&dir)?;
        let error = run.hold().expect_err("taken");
        assert!(error.is::<InUse>(), "{error:#}");
        Ok(())
    }
}
