//! Which columns hold the images and the labels, and what the labels are called.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use parquet::basic::{Compression, ConvertedType, Type as Physical};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::schema::types::ColumnDescriptor;

const IMAGE_COLUMNS: [&str; 2] = ["image", "img"];
const LABEL_COLUMNS: [&str; 3] = ["label", "labels", "fine_label"];

/// The binary column with the images: `wanted` (dotted where groups are nested, with or without the
/// last part `bytes`), or else the one named image or img, or the only one that is plain binary or
/// the part `bytes` of a group.
pub(super) fn image_column(columns: &[Arc<ColumnDescriptor>], wanted: Option<&str>) -> Result<usize> {
    let name = |column: &ColumnDescriptor| {
        let path = column.path().string();
        path.strip_suffix(".bytes").map_or(path.clone(), str::to_string)
    };
    if let Some(wanted) = wanted {
        let named = |column: &Arc<ColumnDescriptor>| name(column) == wanted || column.path().string() == wanted;
        let below = |column: &Arc<ColumnDescriptor>| column.path().string().starts_with(&format!("{wanted}."));
        if let Some(at) = columns.iter().position(|column| named(column) && is_binary(column)) {
            return Ok(at);
        }
        let lists = columns.iter().any(|column| (named(column) || below(column)) && column.max_rep_level() > 0);
        ensure!(!lists, "found a list in column {wanted}, expected one image a row (data.image_column)");
    }
    let candidates: Vec<usize> = (0..columns.len())
        .filter(|&at| {
            let parts = columns[at].path().parts();
            is_binary(&columns[at]) && (parts.len() == 1 || parts.last().is_some_and(|part| part == "bytes"))
        })
        .collect();
    let found = match (wanted, candidates.as_slice()) {
        (Some(_), _) => None,
        (None, [only]) => Some(*only),
        (None, _) => {
            IMAGE_COLUMNS.iter().find_map(|wanted| candidates.iter().copied().find(|&at| name(&columns[at]) == *wanted))
        }
    };
    found.with_context(|| {
        let names = |columns: &mut dyn Iterator<Item = String>| columns.collect::<Vec<_>>().join(", ");
        let found = match candidates.as_slice() {
            [] => format!("no image column among [{}]", names(&mut columns.iter().map(|c| c.path().string()))),
            some => format!("image columns [{}]", names(&mut some.iter().map(|&at| name(&columns[at])))),
        };
        let wanted = wanted.unwrap_or("one, or one named image or img");
        format!("found {found}, expected {wanted} (data.image_column)")
    })
}

/// One value a row, of bytes that are no text.
fn is_binary(column: &ColumnDescriptor) -> bool {
    column.physical_type() == Physical::BYTE_ARRAY
        && column.converted_type() == ConvertedType::NONE
        && column.max_rep_level() == 0
}

/// The integer column with the labels; without `wanted`, `None` if none has one of the usual names.
pub(super) fn label_column(columns: &[Arc<ColumnDescriptor>], wanted: Option<&str>) -> Result<Option<usize>> {
    let is_label = |column: &ColumnDescriptor| {
        matches!(column.physical_type(), Physical::INT32 | Physical::INT64) && column.max_rep_level() == 0
    };
    let path = |at: usize| columns[at].path().string();
    let named = |name: &str| (0..columns.len()).find(|&at| is_label(&columns[at]) && path(at) == name);
    // Also what lies in a group or a list of the name.
    let other = |name: &str| {
        let below = format!("{name}.");
        let at = (0..columns.len()).find(|&at| path(at) == name || path(at).starts_with(&below))?;
        Some(format!("column {name} of {}", kind(&columns[at], name)))
    };
    match wanted {
        None => {
            let found = LABEL_COLUMNS.iter().find_map(|name| named(name));
            if let (None, Some(other)) = (found, LABEL_COLUMNS.iter().find_map(|name| other(name))) {
                log::warn!("found {other}, expected class numbers: the images count as unlabelled (data.label_column)");
            }
            Ok(found)
        }
        Some(name) if named(name).is_none() && other(name).is_some() => {
            let other = other(name).unwrap_or_default();
            bail!("found {other}, expected a column of whole numbers (data.label_column)")
        }
        Some(name) => named(name).map(Some).with_context(|| {
            let names: Vec<String> = columns.iter().map(|column| column.path().string()).collect();
            format!("found columns [{}], expected an integer column {name} (data.label_column)", names.join(", "))
        }),
    }
}

/// What the values of a column are, in the words of a user.
fn kind(column: &ColumnDescriptor, name: &str) -> &'static str {
    match column.physical_type() {
        _ if column.max_rep_level() > 0 => "lists",
        _ if column.path().string() != name => "groups",
        Physical::BYTE_ARRAY if column.converted_type() == ConvertedType::UTF8 => "text",
        Physical::BYTE_ARRAY | Physical::FIXED_LEN_BYTE_ARRAY => "bytes",
        Physical::FLOAT | Physical::DOUBLE => "fractions (floating point)",
        Physical::BOOLEAN => "truth values",
        _ => "dates (INT96)",
    }
}

/// Fails for a compression that is not built in.
pub(super) fn ensure_readable(column: &ColumnChunkMetaData) -> Result<()> {
    let readable =
        matches!(column.compression(), Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_));
    let name = column.column_path().string();
    let found = format!("{:?}", column.compression());
    let codec = found.split('(').next().unwrap_or_default();
    ensure!(
        readable,
        "found {codec} compression in column {name}, expected snappy, zstd or none (write the file again, in \
         Python with pyarrow.parquet.write_table(pyarrow.parquet.read_table(OLD), NEW))"
    );
    Ok(())
}

/// Class names that Hugging Face datasets keep in the footer; empty where there are none.
pub(super) fn class_names(metadata: &ParquetMetaData, label: &str) -> Vec<String> {
    let pairs = metadata.file_metadata().key_value_metadata();
    let pair = pairs.and_then(|pairs| pairs.iter().find(|pair| pair.key == "huggingface"));
    let json = pair.and_then(|pair| pair.value.as_deref()).unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let names = json["info"]["features"][label]["names"].as_array().cloned().unwrap_or_default();
    names.iter().filter_map(|name| name.as_str().map(str::to_string)).collect()
}
