//! Append-only files that survive full disks and deleted folders: a record is written completely or not at all, and
//! records that could not be written are retried with the next one.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Maximum pending bytes; beyond this the oldest records are dropped.
const MAX_WAITING: usize = 1 << 20;

/// A file of records, written one after the other.
pub struct AppendFile {
    path: PathBuf,
    file: File,
    /// Header of a new file.
    header: Vec<u8>,
    /// Length of the complete records in the file.
    whole: u64,
    waiting: VecDeque<Vec<u8>>,
    lost: usize,
}

impl AppendFile {
    /// Appends to `file`, opened for appending at `path`. `header` is written if the file has to be created again.
    pub fn new(path: &Path, file: File, header: Vec<u8>) -> Result<Self> {
        let whole = file.metadata().with_context(|| format!("reading {}", path.display()))?.len();
        Ok(Self { path: path.into(), file, header, whole, waiting: VecDeque::new(), lost: 0 })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a record, after the pending ones.
    /// # Errors
    /// Why nothing could be written; the records stay pending, and the file has complete ones only.
    pub fn append(&mut self, record: Vec<u8>) -> Result<()> {
        self.waiting.push_back(record);
        while self.waiting.len() > 1 && self.waiting.iter().map(Vec::len).sum::<usize>() > MAX_WAITING {
            self.waiting.pop_front();
            self.lost += 1;
        }
        self.flush()
    }

    /// Writes the pending records.
    pub fn flush(&mut self) -> Result<()> {
        let count = self.waiting.len();
        if count == 0 {
            return Ok(());
        }
        self.write().with_context(|| format!("writing {} ({count} records pending)", self.path.display()))?;
        self.waiting.clear();
        if self.lost > 0 {
            log::warn!("{}: {} records were dropped, the disk was full for too long", self.path.display(), self.lost);
            self.lost = 0;
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        if !self.still_there()? {
            log::warn!("{} was deleted: starting a new file", self.path.display());
            fs::create_dir_all(self.path.parent().unwrap_or(Path::new(".")))?;
            self.file = File::options().create(true).append(true).open(&self.path)?;
            self.whole = self.file.metadata()?.len();
        }
        // Left by an earlier try.
        if self.file.metadata()?.len() > self.whole {
            self.file.set_len(self.whole)?;
        }
        let header = if self.whole == 0 { &self.header[..] } else { &[] };
        let bytes = [header, &self.waiting.make_contiguous().concat()].concat();
        if let Err(error) = self.file.write_all(&bytes) {
            let _ = self.file.set_len(self.whole); // else the next try does it, or the resumed run
            return Err(error);
        }
        self.whole += bytes.len() as u64;
        Ok(())
    }

    /// Whether the path still refers to the open file.
    fn still_there(&self) -> io::Result<bool> {
        let own = self.file.metadata()?;
        match fs::metadata(&self.path) {
            Ok(found) => Ok((found.dev(), found.ino()) == (own.dev(), own.ino())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> AppendFile {
        let file = File::options().create(true).append(true).open(path).unwrap();
        AppendFile::new(path, file, b"header\n".to_vec()).unwrap()
    }

    #[test]
    fn a_deleted_file_is_created_again_with_its_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("below/file");
        fs::create_dir(dir.path().join("below")).unwrap();
        let mut file = open(&path);
        file.append(b"one\n".to_vec()).unwrap();
        fs::remove_dir_all(dir.path().join("below")).unwrap();
        file.append(b"two\n".to_vec()).unwrap();
        file.append(b"three\n".to_vec()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "header\ntwo\nthree\n");
    }

    #[test]
    fn records_that_cannot_be_written_stay_pending_and_the_file_stays_valid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut file = open(&path);
        file.append(b"one\n".to_vec()).unwrap();
        // A read-only descriptor, in place of a full disk.
        let good = std::mem::replace(&mut file.file, File::open(&path).unwrap());
        let error = format!("{:#}", file.append(b"two\n".to_vec()).unwrap_err());
        assert!(error.contains("file (1 records pending)"), "{error}");
        for _ in 0..3 {
            file.append(vec![b'x'; MAX_WAITING / 2]).unwrap_err();
        }
        // And an earlier try that got half of it through.
        fs::write(&path, "header\none\ntw").unwrap();
        file.file = good;
        file.append(b"\n".to_vec()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("header\none\nxxx") && text.ends_with("x\n"), "{}", &text[..40]);
        assert!(text.len() < MAX_WAITING + 20);
    }
}
