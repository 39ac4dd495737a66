//! What an exported file says about the encoder's inputs.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};

use crate::augment::AugmentConfig;
use crate::section::Section;

/// Size, mean, std and resize of an export of this program; `None` for a file of another.
/// # Errors
/// A value is missing or out of range.
pub(super) fn inputs(metadata: &HashMap<String, String>) -> Result<Option<AugmentConfig>> {
    if !metadata.contains_key("byol") {
        return Ok(None);
    }
    fn value<T: serde::de::DeserializeOwned>(metadata: &HashMap<String, String>, key: &str) -> Result<T> {
        let text = metadata.get(key).with_context(|| format!("metadata: found no {key}"))?;
        serde_json::from_str(text).with_context(|| format!("metadata {key}: found {text:?}"))
    }
    let augment = AugmentConfig {
        size: value(metadata, "image_size")?,
        mean: value(metadata, "mean")?,
        std: value(metadata, "std")?,
        eval_resize: value(metadata, "eval_resize")?,
        ..AugmentConfig::default()
    };
    if let Some((key, problem)) = augment.problems().into_iter().find(|(key, _)| !key.starts_with("view")) {
        bail!("metadata {key}: {problem}");
    }
    Ok(Some(augment))
}
