//! The unnamed temporary file that holds the encoded images of a set too large for memory.
//!
//! It grows as row groups are first requested, one at a time, and is deleted when the process exits, even if it is
//! killed. The operating system keeps hot parts of it in the page cache while memory allows.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, ensure};

/// Write buffer size.
const WRITE_AT_ONCE: usize = 1 << 20;

/// Where the rows of a row group are in the file; possibly only the first rows.
pub(super) struct Unpacked {
    start: u64,
    ends: Vec<u64>,
}

impl Unpacked {
    /// Location of a row, unless it could not be unpacked.
    pub(super) fn place(&self, row: usize) -> Option<Range<u64>> {
        let end = *self.ends.get(row)?;
        Some(if row == 0 { self.start } else { self.ends[row - 1] }..end)
    }
}

/// See the module.
pub(super) struct Spill {
    file: File,
    folder: PathBuf,
    state: Mutex<State>,
}

struct State {
    end: u64,
    full: bool,
}

impl Spill {
    /// An empty file in `folder` (the system's for temporary files if `None`) that will hold about
    /// `bytes`, which is logged. Fails if the folder cannot be written or lacks the space.
    pub(super) fn create(folder: Option<&Path>, bytes: u64) -> Result<Self> {
        let folder = folder.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let advice = "set data.spill_dir or TMPDIR to a folder with room on a disk, or raise data.cache_bytes";
        let file = tempfile::tempfile_in(&folder)
            .with_context(|| format!("cannot create a temporary file in {} ({advice})", folder.display()))?;
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        if let Ok(system) = rustix::fs::fstatvfs(&file) {
            let free = system.f_bavail.saturating_mul(system.f_frsize);
            ensure!(
                free >= bytes,
                "found {:.2} GB free in {}, expected {:.2} GB for the unpacked images ({advice})",
                gigabytes(free),
                folder.display(),
                gigabytes(bytes)
            );
        }
        log::info!(
            "parquet images larger than data.cache_bytes: up to {:.2} GB will be unpacked to an unnamed temporary \
             file in {} as they are first read (data.spill_dir, or TMPDIR)",
            gigabytes(bytes),
            folder.display()
        );
        Ok(Self { file, folder, state: Mutex::new(State { end: 0, full: false }) })
    }

    /// The unpacked rows of a row group: those that `unpack` passes to its argument, on the first call. Neither a
    /// failure nor a full disk is an error: the rows concerned are omitted, and the caller reads them directly, which
    /// reports what is wrong with them.
    pub(super) fn unpacked<'a>(
        &self,
        group: &'a OnceLock<Unpacked>,
        unpack: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<bool>) -> Result<()>,
    ) -> &'a Unpacked {
        if let Some(unpacked) = group.get() {
            return unpacked;
        }
        // One row group at a time, so that memory use does not depend on the number of threads.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        group.get_or_init(|| self.write(&mut state, unpack))
    }

    fn write(
        &self,
        state: &mut State,
        unpack: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<bool>) -> Result<()>,
    ) -> Unpacked {
        let mut unpacked = Unpacked { start: state.end, ends: Vec::new() };
        if state.full {
            return unpacked;
        }
        let (mut buffer, mut written) = (Vec::new(), state.end);
        let mut failure = None;
        let mut flush = |buffer: &mut Vec<u8>| {
            match self.file.write_all_at(buffer, written) {
                Ok(()) => written += buffer.len() as u64,
                Err(error) => failure = Some(error),
            }
            buffer.clear();
            failure.is_none()
        };
        let mut end = state.end;
        let result = unpack(&mut |image| {
            buffer.extend_from_slice(image);
            end += image.len() as u64;
            unpacked.ends.push(end);
            Ok(buffer.len() < WRITE_AT_ONCE || flush(&mut buffer))
        });
        flush(&mut buffer);
        if let Err(error) = result {
            log::debug!("row group unpacked up to row {}: {error:#}", unpacked.ends.len());
        }
        if let Some(error) = failure {
            state.full = true;
            log::warn!(
                "cannot write the temporary file in {}: {error}; the images that are not in it are read from the \
                 parquet files, which may be slow (start again with data.spill_dir or TMPDIR set to a folder with \
                 room)",
                self.folder.display()
            );
        }
        unpacked.ends.retain(|&end| end <= written);
        state.end = written;
        unpacked
    }

    /// Reads the bytes of a row into an empty buffer.
    pub(super) fn read(&self, place: Range<u64>, encoded: &mut Vec<u8>) -> Result<()> {
        encoded.resize((place.end - place.start) as usize, 0);
        self.file
            .read_exact_at(encoded, place.start)
            .with_context(|| format!("cannot read the temporary file in {}", self.folder.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_until_the_disk_is_full() {
        // /dev/full in place of a file.
        let full = File::options().read(true).write(true).open("/dev/full").unwrap();
        let state = || Mutex::new(State { end: 0, full: false });
        let spill = Spill { file: full, folder: "/dev".into(), state: state() };
        let rows = |each: &mut dyn FnMut(&[u8]) -> Result<bool>| {
            for row in 0..5_u8 {
                if !each(&[row; 700_000])? {
                    break;
                }
            }
            Ok(())
        };
        let group = OnceLock::new();
        assert!(spill.unpacked(&group, rows).place(0).is_none());
        // It is not tried again.
        let other = OnceLock::new();
        assert!(spill.unpacked(&other, |_| panic!("the disk is full")).place(0).is_none());

        let spill = Spill { file: tempfile::tempfile().unwrap(), folder: "tmp".into(), state: state() };
        let (first, second) = (OnceLock::new(), OnceLock::new());
        // A row group that fails midway keeps the rows before.
        let broken = spill.unpacked(&first, |each| {
            each(b"one")?;
            each(b"")?;
            anyhow::bail!("damaged")
        });
        assert_eq!((broken.place(0), broken.place(1), broken.place(2)), (Some(0..3), Some(3..3), None));
        let whole = spill.unpacked(&second, rows);
        let mut bytes = Vec::new();
        spill.read(whole.place(4).unwrap(), &mut bytes).unwrap();
        assert!(bytes.len() == 700_000 && bytes.iter().all(|&byte| byte == 4));
        assert!(whole.place(5).is_none());
    }

    #[test]
    fn folders_without_room_are_named() {
        let error = |folder: &str, bytes| format!("{:#}", Spill::create(Some(Path::new(folder)), bytes).err().unwrap());
        let text = error("/no/such/folder", 1);
        assert!(text.starts_with("cannot create a temporary file in /no/such/folder (set data.spill_dir"), "{text}");
        let folder = tempfile::tempdir().unwrap();
        let text = error(folder.path().to_str().unwrap(), u64::MAX);
        assert!(text.contains("GB free in") && text.contains("set data.spill_dir or TMPDIR"), "{text}");
    }
}
