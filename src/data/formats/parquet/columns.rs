//! Which columns hold the images and the labels, and what the labels are called.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use parquet::basic::{Compression, ConvertedType, Type as Physical};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::schema::types::ColumnDescriptor;

const IMAGE_COLUMNS: [&str; 2] = ["image", "img"];
/// Names of text columns with paths instead of images.
const PATH_COLUMNS: [&str; 8] =
    ["image", "img", "file_name", "filename", "image_path", "file_path", "path", "image_file"];
const LABEL_COLUMNS: [&str; 7] = ["label", "labels", "fine_label", "class", "category", "cls", "target"];

/// Maximum columns named in a message.
const MAX_NAMED: usize = 12;

/// Where the images are: encoded in the file, in files of their own, or a mix of both.
#[derive(Clone, Copy)]
pub(super) struct ImageColumns {
    pub bytes: Option<usize>,
    pub path: Option<usize>,
}

/// The columns with the images: `wanted` (dotted if groups are nested, with or without the last part `bytes`), or
/// else the one named image or img, or the only one. Images are plain binary or the field `bytes` of a group; the field
/// `path` of the group, or a text column, has the path of an image without bytes.
pub(super) fn image_columns(columns: &[Arc<ColumnDescriptor>], wanted: Option<&str>) -> Result<ImageColumns> {
    let text = |path: &str| (0..columns.len()).find(|&at| is_text(&columns[at]) && columns[at].path().string() == path);
    let bytes = bytes_column(columns, wanted);
    if let Ok(at) = bytes {
        let path = columns[at].path().string();
        let group = path.strip_suffix(".bytes");
        return Ok(ImageColumns { bytes: Some(at), path: group.and_then(|group| text(&format!("{group}.path"))) });
    }
    let names: Vec<&str> = wanted.map_or(PATH_COLUMNS.to_vec(), |wanted| vec![wanted]);
    let paths = names.iter().find_map(|name| text(&format!("{name}.path")).or_else(|| text(name)));
    match paths {
        // If several columns have images, the user has to choose; that is not a set of images without bytes.
        Some(at) if wanted.is_some() || bytes_candidates(columns).is_empty() => {
            Ok(ImageColumns { bytes: None, path: Some(at) })
        }
        _ => bytes.map(|at| ImageColumns { bytes: Some(at), path: None }),
    }
}

fn name(column: &ColumnDescriptor) -> String {
    let path = column.path().string();
    path.strip_suffix(".bytes").map_or(path.clone(), str::to_string)
}

/// Binary columns: plain ones and the field `bytes` of a group.
fn bytes_candidates(columns: &[Arc<ColumnDescriptor>]) -> Vec<usize> {
    let is_candidate = |column: &ColumnDescriptor| {
        let parts = column.path().parts();
        is_binary(column) && (parts.len() == 1 || parts.last().is_some_and(|part| part == "bytes"))
    };
    (0..columns.len()).filter(|&at| is_candidate(&columns[at])).collect()
}

fn bytes_column(columns: &[Arc<ColumnDescriptor>], wanted: Option<&str>) -> Result<usize> {
    if let Some(wanted) = wanted {
        let named = |column: &Arc<ColumnDescriptor>| name(column) == wanted || column.path().string() == wanted;
        let below = |column: &Arc<ColumnDescriptor>| column.path().string().starts_with(&format!("{wanted}."));
        if let Some(at) = columns.iter().position(|column| named(column) && is_binary(column)) {
            return Ok(at);
        }
        let lists = columns.iter().any(|column| (named(column) || below(column)) && column.max_rep_level() > 0);
        ensure!(!lists, "found a list in column {wanted}, expected one image a row (data.image_column)");
    }
    let candidates = bytes_candidates(columns);
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

pub(super) fn is_text(column: &ColumnDescriptor) -> bool {
    column.physical_type() == Physical::BYTE_ARRAY
        && matches!(column.converted_type(), ConvertedType::UTF8 | ConvertedType::ENUM)
        && column.max_rep_level() == 0
}

/// Whether it has one value per row, of bytes that are not text.
fn is_binary(column: &ColumnDescriptor) -> bool {
    column.physical_type() == Physical::BYTE_ARRAY
        && column.converted_type() == ConvertedType::NONE
        && column.max_rep_level() == 0
}

/// The column with the labels: integers, booleans or text; without `wanted`, `None` if none has one of the usual
/// names. Logs which one is used if that is not obvious.
pub(super) fn label_column(columns: &[Arc<ColumnDescriptor>], wanted: Option<&str>) -> Result<Option<usize>> {
    let path = |at: usize| columns[at].path().string();
    let named = |name: &str| (0..columns.len()).find(|&at| is_label(&columns[at]) && path(at) == name);
    // Also a column inside a group or list of that name.
    let other = |name: &str| {
        let below = format!("{name}.");
        let at = (0..columns.len()).find(|&at| path(at) == name || path(at).starts_with(&below))?;
        Some(format!("column {name} of {}", kind(&columns[at], name)))
    };
    if let Some(name) = wanted {
        if let (None, Some(other)) = (named(name), other(name)) {
            bail!("found {other}, expected a column of whole numbers or text (data.label_column)")
        }
        return named(name).map(Some).with_context(|| {
            let names: Vec<String> = columns.iter().map(|column| column.path().string()).collect();
            format!("found columns [{}], expected a label column {name} (data.label_column)", names.join(", "))
        });
    }
    let usual: Vec<&str> = LABEL_COLUMNS.iter().copied().filter(|name| named(name).is_some()).collect();
    if let Some(first) = usual.first() {
        if usual.len() > 1 {
            let others = usual[1..].join(", ");
            log::info!("using the labels of column {first}, not {others} (data.label_column)");
        }
        return Ok(named(first));
    }
    if let Some(other) = LABEL_COLUMNS.iter().find_map(|name| other(name)) {
        log::warn!("found {other}, expected classes: the images count as unlabeled (data.label_column)");
        return Ok(None);
    }
    let possible = (0..columns.len()).filter(|&at| is_label(&columns[at]) && !path(at).ends_with(".path")).map(path);
    let possible: Vec<String> = possible.filter(|name| !PATH_COLUMNS.contains(&name.as_str())).collect();
    if !possible.is_empty() {
        let named = possible[..possible.len().min(MAX_NAMED)].join(", ");
        log::info!(
            "no column has the name of a label, so the images count as unlabeled; set data.label_column if it is one \
             of: {named}"
        );
    }
    Ok(None)
}

fn is_label(column: &ColumnDescriptor) -> bool {
    let numbers = matches!(column.physical_type(), Physical::INT32 | Physical::INT64 | Physical::BOOLEAN);
    (numbers && column.max_rep_level() == 0) || is_text(column)
}

/// A column's type in plain words.
fn kind(column: &ColumnDescriptor, name: &str) -> &'static str {
    match column.physical_type() {
        _ if column.max_rep_level() > 0 => "lists",
        _ if column.path().string() != name => "groups",
        Physical::BYTE_ARRAY | Physical::FIXED_LEN_BYTE_ARRAY => "bytes",
        Physical::FLOAT | Physical::DOUBLE => "fractions (floating point)",
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
