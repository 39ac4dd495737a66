//! A safetensors or PyTorch file with torchvision's names, whoever trained it. The encoder is detected from names
//! and shapes; the metadata of this program's own exports has the preprocessing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::branch::Branch;
use crate::augment::AugmentConfig;
use crate::checkpoint::{load_views, views};
use crate::data::values::ValueRange;
use crate::files;
use crate::model::{Arch, EncoderConfig, Params};
use crate::pytorch;
use crate::section::Section;

/// The file's bytes; a PyTorch file is converted to safetensors.
/// # Errors
/// No such file; a PyTorch file that cannot be read.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let bytes = files::read_regular(path, u64::MAX).with_context(|| format!("reading {name}"))?;
    if pytorch::is_pytorch(&bytes) {
        return pytorch::to_safetensors(&bytes).with_context(|| name.to_string());
    }
    Ok(bytes)
}

/// An encoder's tensors in a file, and the detected architecture.
pub(super) struct EncoderFile<'a> {
    found: BTreeMap<String, TensorView<'a>>,
    pub config: EncoderConfig,
    /// `None` if the file is not an export of this program.
    pub augment: Option<AugmentConfig>,
    /// `Auto` if the file does not say it.
    pub value_range: ValueRange,
    pub batches_tracked: i64,
}

impl<'a> EncoderFile<'a> {
    /// Finds the encoder in a file's bytes: the common prefix of its names is stripped, the classifier ignored.
    /// # Errors
    /// Not a safetensors file; no encoder, or several; an unsupported one.
    pub fn parse(bytes: &'a [u8], which: Branch) -> Result<Self> {
        let all = views(bytes)?;
        let prefix = prefix(&all, which)?;
        let (mut found, mut left_out) = (BTreeMap::new(), BTreeSet::new());
        for (name, view) in all {
            match name.strip_prefix(&prefix) {
                Some(name) if !CLASSIFIERS.iter().any(|prefix| name.starts_with(prefix)) => {
                    drop(found.insert(name.to_string(), view))
                }
                _ => drop(left_out.insert(name)),
            }
        }
        if !left_out.is_empty() {
            let heads: BTreeSet<&str> = left_out
                .iter()
                .map(|name| name.strip_prefix(&prefix).unwrap_or(name).split('.').next().unwrap_or_default())
                .collect();
            let (count, heads) = (left_out.len(), Vec::from_iter(heads).join(", "));
            let place = if prefix.is_empty() { "beside the encoder".into() } else { format!("beside {prefix}*") };
            log::info!("{count} tensors {place} are ignored ({heads})");
        }
        let batches_tracked = found.get("bn1.num_batches_tracked").filter(|view| view.dtype() == Dtype::I64);
        let batches_tracked =
            batches_tracked.and_then(|v| Some(i64::from_le_bytes(v.data().try_into().ok()?))).unwrap_or(0);
        found.retain(|name, _| !name.ends_with(".num_batches_tracked"));
        let kinds: BTreeSet<String> = found.values().map(|v| format!("{:?}", v.dtype())).collect();
        if kinds.iter().any(|kind| kind != "F32") {
            log::info!("{} tensors are converted to F32", Vec::from_iter(kinds).join(" and "));
        }
        let shape = |view: &TensorView| view.shape().iter().map(|&n| n as i64).collect();
        let shapes = found.iter().map(|(name, view)| (name.as_str(), shape(view))).collect();
        let mut config = EncoderConfig::recognize(&shapes)?;
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| anyhow!("reading its header: {e}"))?;
        let augment = metadata.metadata().as_ref().map(inputs).transpose()?.flatten();
        if let (Some(metadata), true) = (metadata.metadata(), augment.is_some()) {
            described(metadata, &mut config)?;
        }
        let value_range = metadata.metadata().as_ref().and_then(|metadata| metadata.get("value_range"));
        let value_range = value_range.map(|text| value_of("value_range", text)).transpose()?.unwrap_or_default();
        Ok(Self { found, config, augment, value_range, batches_tracked })
    }

    /// Copies the tensors into an encoder of this config.
    /// # Errors
    /// Other names or shapes, all listed.
    pub fn load_into(self, params: &Params) -> Result<()> {
        let mut tensors = params.state_dict(0);
        tensors.retain(|named| !named.name.ends_with(".num_batches_tracked"));
        load_views(self.found, &tensors, true).with_context(|| format!("as {}", self.config))
    }
}

/// The last layers in torchvision and timm, which no encoder has.
const CLASSIFIERS: [&str; 4] = ["fc.", "classifier.2.", "heads.", "head."];

/// The prefix of the encoder's names: `encoder.`, `backbone.`, `module.`, nothing, or in a checkpoint's model
/// `online.encoder.`.
fn prefix(all: &BTreeMap<String, TensorView>, which: Branch) -> Result<String> {
    let markers = EncoderConfig::MARKERS;
    let prefix = |name: &'_ String| markers.iter().find_map(|marker| name.strip_suffix(marker).map(str::to_string));
    let mut prefixes: Vec<String> = all.keys().filter_map(prefix).collect();
    if prefixes == ["online.encoder.", "target.encoder."] {
        prefixes = vec![format!("{}.encoder.", which.name())];
    }
    match &prefixes[..] {
        [one] => Ok(one.clone()),
        [] => {
            let some: Vec<&str> = all.keys().take(3).map(String::as_str).collect();
            bail!(
                "found no {} among its {} tensors ({}, ...), expected one of {} with torchvision's names",
                markers.join(" or "),
                all.len(),
                some.join(", "),
                Arch::ALL.map(|arch| arch.to_string()).join(", ")
            )
        }
        _ => bail!("found several encoders (under {prefixes:?}), expected one"),
    }
}

fn value_of<T: serde::de::DeserializeOwned>(key: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).with_context(|| format!("metadata {key}: found {text:?}"))
}

/// What shapes do not tell of an encoder, from an export of this program.
fn described(metadata: &HashMap<String, String>, config: &mut EncoderConfig) -> Result<()> {
    let text = |key: &str| metadata.get(key).cloned().map(serde_json::Value::String);
    let place = |key: &str| format!("metadata {key}: found {:?}", metadata.get(key));
    if let Some(arch) = text("arch") {
        // Two of a family may have the same shapes at different widths.
        let (arch, width) = (serde_json::from_value(arch), metadata.get("width").map(|width| width.parse()));
        let arch: Arch = arch.with_context(|| place("arch"))?;
        if let (Some(Ok(width)), true) = (width, arch.family() == config.arch.family()) {
            (config.arch, config.width) = (arch, width);
        }
    }
    if let Some(pool) = text("pool") {
        config.pool = serde_json::from_value(pool).with_context(|| place("pool"))?;
    }
    if let Some(size) = metadata.get("positions") {
        config.image_size = serde_json::from_str(size).with_context(|| place("positions"))?;
    }
    Ok(())
}

/// Size, mean, std and resize of an export of this program.
fn inputs(metadata: &HashMap<String, String>) -> Result<Option<AugmentConfig>> {
    if !metadata.contains_key("byol") {
        return Ok(None);
    }
    fn value<T: serde::de::DeserializeOwned>(metadata: &HashMap<String, String>, key: &str) -> Result<T> {
        let text = metadata.get(key).with_context(|| format!("metadata: found no {key}"))?;
        value_of(key, text)
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
