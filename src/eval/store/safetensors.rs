//! One safetensors file. Its header comes first but says how many rows there are, so space for it is reserved.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Rows, Sink, Table, push_lines};
use crate::files::Unfinished;

/// Bytes of a header without its metadata: room for four tensors of any shape.
const HEADER: usize = 768;

struct Safetensors {
    file: Unfinished,
    header: usize,
    dim: usize,
    metadata: Value,
    labels: Vec<u8>,
    indices: Vec<u8>,
    /// One per line: the format has no texts.
    names: String,
}

pub(super) fn create(mut file: Unfinished, table: Table) -> Result<Box<dyn Sink>> {
    let mut metadata = table.metadata;
    metadata["class_names"] = json!(serde_json::to_string(&table.classes)?);
    let header = (8 + HEADER + metadata.to_string().len()).next_multiple_of(8);
    file.write(&vec![b' '; header])?;
    let (labels, indices, names) = (Vec::new(), Vec::new(), String::new());
    Ok(Box::new(Safetensors { file, header, dim: table.dim, metadata, labels, indices, names }))
}

impl Sink for Safetensors {
    fn write(&mut self, rows: &Rows) -> Result<()> {
        self.file.write(rows.features)?;
        self.labels.extend(rows.labels.iter().flat_map(|label| label.to_le_bytes()));
        self.indices.extend(rows.indices.iter().flat_map(|&index| i64::from(index).to_le_bytes()));
        push_lines(&mut self.names, rows.names);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        let rows = self.labels.len() / 8;
        let parts = [&self.labels, &self.indices, self.names.as_bytes()];
        let mut ends = vec![rows * self.dim * 4];
        for part in parts {
            self.file.write(part)?;
            ends.push(ends[ends.len() - 1] + part.len());
        }
        let header = json!({
            "__metadata__": self.metadata,
            "features": {"dtype": "F32", "shape": [rows, self.dim], "data_offsets": [0, ends[0]]},
            "labels": {"dtype": "I64", "shape": [rows], "data_offsets": [ends[0], ends[1]]},
            "indices": {"dtype": "I64", "shape": [rows], "data_offsets": [ends[1], ends[2]]},
            "names": {"dtype": "U8", "shape": [self.names.len()], "data_offsets": [ends[2], ends[3]]},
        });
        let length = self.header - 8;
        let text = format!("{:length$}", header.to_string());
        self.file.write_start(&[&(length as u64).to_le_bytes(), text.as_bytes()].concat())?;
        self.file.finish()
    }
}
