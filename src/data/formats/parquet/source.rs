//! The bytes of a parquet file. The parquet crate skips the fields of a page header that it does not know without
//! noticing the end of the file: where a damaged header promises two billion of them, it would try to read every one.
//! Here reading at the end is an error.

use std::fs::File;
use std::io::{BufReader, Error, ErrorKind, Read, Result};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::Result as ParquetResult;
use parquet::file::reader::{ChunkReader, Length};

/// A file that any number of readers share.
#[derive(Clone)]
pub(super) struct Source {
    file: Arc<File>,
    length: u64,
}

/// Reads on from its own place.
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
        // Before anything of that size is reserved.
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
    Error::new(ErrorKind::UnexpectedEof, "found the end of the file, expected more of it; is it cut off or damaged?")
}
