//! A folder of `.npy` files, and the names of the images in a text file, one per line.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Rows, Sink, Table, push_lines};
use crate::files::{self, Unfinished};

pub(super) const NAMES: [&str; 4] = ["features.npy", "labels.npy", "indices.npy", "names.txt"];

/// Bytes of a header: a multiple of 64, with room for any shape.
const HEADER: usize = 128;

struct Npy {
    folder: PathBuf,
    features: Unfinished,
    dim: usize,
    labels: Vec<u8>,
    indices: Vec<u8>,
    names: String,
}

pub(super) fn create(folder: &Path, table: Table) -> Result<Box<dyn Sink>> {
    let mut features = Unfinished::create(&folder.join(NAMES[0]))?;
    features.write(&[b' '; HEADER])?;
    let (labels, indices, names) = (Vec::new(), Vec::new(), String::new());
    Ok(Box::new(Npy { folder: folder.into(), features, dim: table.dim, labels, indices, names }))
}

impl Sink for Npy {
    fn write(&mut self, rows: &Rows) -> Result<()> {
        self.features.write(rows.features)?;
        self.labels.extend(rows.labels.iter().flat_map(|label| label.to_le_bytes()));
        self.indices.extend(rows.indices.iter().flat_map(|&index| i64::from(index).to_le_bytes()));
        push_lines(&mut self.names, rows.names);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        let rows = self.labels.len() / 8;
        for (name, bytes) in NAMES[1..].iter().zip([&self.labels, &self.indices]) {
            let header = header("<i8", &format!("({rows},)"));
            files::write_atomic(&self.folder.join(name), &[header.as_slice(), bytes].concat())?;
        }
        files::write_atomic(&self.folder.join(NAMES[3]), self.names.as_bytes())?;
        self.features.write_start(&header("<f4", &format!("({rows}, {})", self.dim)))?;
        self.features.finish()
    }
}

/// Version 1.0 of numpy's format.
fn header(descr: &str, shape: &str) -> Vec<u8> {
    let length = HEADER - 10;
    let dictionary = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    let width = length - 1;
    let text = format!("{dictionary:width$}\n");
    [b"\x93NUMPY\x01\x00", &(length as u16).to_le_bytes()[..], text.as_bytes()].concat()
}
