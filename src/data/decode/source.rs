//! A file of which parts are read.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use super::{DecodeOptions, ensure_size};

/// A file that is read in parts.
pub(super) struct Source<'a> {
    file: &'a File,
    pub size: u64,
    pub options: DecodeOptions,
}

impl<'a> Source<'a> {
    pub fn open(file: &'a File, options: DecodeOptions) -> Result<Self> {
        Ok(Self { file, size: file.metadata().context("cannot read the file")?.len(), options })
    }

    /// Appends bytes of the file to `out`. Fails before it allocates for more than the file has or `max_bytes` allows.
    pub fn append(&self, at: u64, length: u64, out: &mut Vec<u8>) -> Result<()> {
        let (start, end) = (out.len(), at.saturating_add(length));
        ensure!(
            end <= self.size,
            "found bytes {at} to {end} named in a file of {}: it is damaged or truncated",
            self.size
        );
        ensure_size(start as u64 + length, self.options)?;
        out.resize(start + length as usize, 0);
        self.file.read_exact_at(&mut out[start..], at).context("cannot read the file")
    }

    /// Up to `length` bytes at the beginning.
    pub fn start(&self, length: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.append(0, self.size.min(length), &mut bytes)?;
        Ok(bytes)
    }
}
