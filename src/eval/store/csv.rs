//! One CSV file (RFC 4180) with the columns name, label, class, and one per value of the vector. Values are written with
//! as many digits as their fp32 needs. Without a label the fields are empty.

use std::fmt::Write;

use anyhow::Result;

use super::{Rows, Sink, Table};
use crate::files::Unfinished;

struct Csv {
    file: Unfinished,
    table: Table,
}

pub(super) fn create(mut file: Unfinished, table: Table) -> Result<Box<dyn Sink>> {
    let mut header = "name,label,class".to_string();
    (0..table.dim).for_each(|at| header += &format!(",f{at}"));
    file.write((header + "\n").as_bytes())?;
    Ok(Box::new(Csv { file, table }))
}

impl Sink for Csv {
    fn write(&mut self, rows: &Rows) -> Result<()> {
        let (mut lines, mut values) = (String::new(), rows.values());
        for (name, &label) in rows.names.iter().zip(rows.labels) {
            let number = if label < 0 { String::new() } else { label.to_string() };
            let class = quoted(self.table.class(label).unwrap_or_default());
            write!(lines, "{},{number},{class}", quoted(name))?;
            // Debug has exponents, which keeps small numbers short.
            values.by_ref().take(self.table.dim).try_for_each(|value| write!(lines, ",{value:?}"))?;
            lines.push('\n');
        }
        self.file.write(lines.as_bytes())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.file.finish()
    }
}

/// A field, in quotes if it needs them.
fn quoted(text: &str) -> String {
    let plain = !text.contains(['"', ',', '\n', '\r']) && text.trim() == text;
    if plain { text.to_string() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}
