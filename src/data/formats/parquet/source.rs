//! The bytes of a parquet file. The parquet crate skips unknown fields of a page header without noticing the end of
//! the file: if a damaged header declares two billion of them, it would try to read every one. Here reading past the
//! end is an error.

use std::fs::File;
use std::io::{BufReader, Error, ErrorKind, Read, Result};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::Result as ParquetResult;
use parquet::file::reader::{ChunkReader, Length};

/// A file shared by any number of readers.
#[derive(Clone)]
pub(super) struct Source {
    file: Arc<File>,
    length: u64,
}

/// A reader with a position of its own.
pub(super) struct Reader {
    file: Arc<File>,
    at: u64,
}

impl Source {
    pub fn new(file: File) -> Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), length })
    }
}

impl Length for Source {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Source {
    type T = BufReader<Reader>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(BufReader::new(Reader { file: self.file.clone(), at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        // Checked before allocating that size.
        if start.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return Err(end_of_file().into());
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let read = self.file.read_at(out, self.at)?;
        if read == 0 && !out.is_empty() {
            return Err(end_of_file());
        }
        self.at += read as u64;
        Ok(read)
    }
}

fn end_of_file() -> Error {
    Error::new(ErrorKind::UnexpectedEof, "found the end of the file, expected more of it; is it truncated or damaged?")
}
