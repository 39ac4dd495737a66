//! What an exported file says about the encoder's inputs.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use crate::augment::AugmentConfig;
use crate::data::values::ValueRange;
use crate::model::EncoderConfig;
use crate::section::Section;

/// Size, mean, std and resize of an export of this program; `None` for a file of another.
/// # Errors
/// A value is missing or out of range.
pub(super) fn inputs(metadata: &HashMap<String, String>) -> Result<Option<AugmentConfig>> {
    if !metadata.contains_key("byol") {
        return Ok(None);
    }
    let value = |key| metadata.get(key).with_context(|| format!("metadata: found no {key}"));
    let augment = AugmentConfig {
        size: parsed("image_size", value("image_size")?)?,
        mean: parsed("mean", value("mean")?)?,
        std: parsed("std", value("std")?)?,
        eval_resize: parsed("eval_resize", value("eval_resize")?)?,
        ..AugmentConfig::default()
    };
    if let Some((key, problem)) = augment.problems().into_iter().find(|(key, _)| !key.starts_with("view")) {
        bail!("metadata {key}: {problem}");
    }
    Ok(Some(augment))
}

/// The encoder of an export of this program, as far as shapes do not tell what it is: two of a family may have the same
/// ones at different widths.
/// # Errors
/// A value is not one of the key.
pub(super) fn encoder(metadata: &HashMap<String, String>) -> Result<Option<EncoderConfig>> {
    let text = |key: &str| metadata.get(key).cloned().map(serde_json::Value::String);
    let place = |key: &str| format!("metadata {key}: found {:?}", metadata.get(key));
    if !metadata.contains_key("byol") {
        return Ok(None);
    }
    let mut config = EncoderConfig::default();
    if let Some(arch) = text("arch") {
        config.arch = serde_json::from_value(arch).with_context(|| place("arch"))?;
    }
    if let Some(Ok(width)) = metadata.get("width").map(|width| width.parse()) {
        config.width = width;
    }
    if let Some(pool) = text("pool") {
        config.pool = serde_json::from_value(pool).with_context(|| place("pool"))?;
    }
    if let Some(size) = metadata.get("positions") {
        config.image_size = parsed("positions", size)?;
    }
    Ok(Some(config))
}

/// Which values of an image become 0 and 255; `Auto` if the file does not say it.
/// # Errors
/// Not such values.
pub(super) fn value_range(metadata: &HashMap<String, String>) -> Result<ValueRange> {
    Ok(metadata.get("value_range").map(|text| parsed("value_range", text)).transpose()?.unwrap_or_default())
}

fn parsed<T: DeserializeOwned>(key: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).with_context(|| format!("metadata {key}: found {text:?}"))
}
