//! Named tensors to and from safetensors, strictly: the same names, shapes and types, or an error that lists
//! every difference, and nothing is loaded partially. (tch's own loader casts, broadcasts and ignores extra tensors.)

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use tch::{Kind, Tensor};

use crate::model::Named;

/// A valid file with other tensors than expected: of another model or optimizer.
#[derive(Debug)]
pub struct Mismatch(String);

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mismatch {}

fn dtype(kind: Kind) -> Result<Dtype> {
    Ok(match kind {
        Kind::Float => Dtype::F32,
        Kind::Int64 => Dtype::I64,
        other => bail!("{other:?} tensors are not part of a checkpoint"),
    })
}

/// The file's bytes: every tensor on the CPU, rows contiguous (PyTorch's default layout).
/// # Errors
/// A tensor that is neither fp32 nor int64.
pub fn serialize(tensors: &[Named], metadata: HashMap<String, String>) -> Result<Vec<u8>> {
    let _no_grad = tch::no_grad_guard();
    let mut copies = Vec::with_capacity(tensors.len());
    for Named { name, tensor } in tensors {
        let tensor = tensor.detach().f_to_device(tch::Device::Cpu)?.f_contiguous()?;
        let kind = tensor.f_kind()?;
        let mut bytes = vec![0; tensor.numel() * kind.elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
        copies.push((name, dtype(kind)?, shape, bytes));
    }
    let views = copies
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    in_order(safetensors::serialize(views, Some(metadata))?)
}

/// The same file with the keys of its header sorted. The library writes them in an order that differs from process to
/// process, and equal encoders should be equal files.
fn in_order(mut file: Vec<u8>) -> Result<Vec<u8>> {
    let (length, rest) = file.split_first_chunk().context("a file without a header")?;
    let header = &rest[..u64::from_le_bytes(*length) as usize];
    let mut entries: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header)?;
    if let Some(metadata) = entries.get_mut("__metadata__") {
        let sorted: BTreeMap<String, String> = serde_json::from_value(metadata.take())?;
        *metadata = serde_json::to_value(sorted)?;
    }
    let (mut text, length) = (serde_json::to_vec(&entries)?, header.len());
    text.resize(length, b' '); // not longer: at most as many spaces
    file[8..8 + length].copy_from_slice(&text);
    Ok(file)
}

/// The length of a file according to its header; nothing else is read.
pub fn length_by_header(path: &Path) -> Result<u64> {
    let place = || format!("{}: damaged: not a valid safetensors file", path.display());
    let mut file = File::open(path).with_context(|| format!("reading {}", path.display()))?;
    let mut length = [0; 8];
    file.read_exact(&mut length).with_context(place)?;
    let length = u64::from_le_bytes(length);
    if length > file.metadata().with_context(place)?.len().min(100_000_000) {
        bail!("{}: its header claims {length} bytes", place());
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).with_context(place)?;
    let header: HashMap<String, serde_json::Value> = serde_json::from_slice(&header).with_context(place)?;
    let ends = header.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64());
    Ok((8 + length).saturating_add(ends.max().unwrap_or(0)))
}

/// A file's tensors by name.
/// # Errors
/// Not a safetensors file, or truncated.
pub fn views(bytes: &[u8]) -> Result<BTreeMap<String, TensorView<'_>>> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| anyhow!("not a valid safetensors file ({e})"))?;
    Ok(file.tensors().into_iter().collect())
}

/// Copies a file's tensors into existing ones; nothing is changed unless everything fits. `cast` accepts other
/// floating-point types too.
/// # Errors
/// Missing or extra names, other shapes or types, all listed.
pub fn load_views(found: BTreeMap<String, TensorView>, tensors: &[Named], cast: bool) -> Result<()> {
    copy(fitting(found, tensors, cast)?)
}

/// A tensor, its new values, and their type.
type Fitting<'a> = (Tensor, TensorView<'a>, Kind);

/// Pairs every tensor with the file's.
/// # Errors
/// Missing or extra names, other shapes or types, all listed.
pub(super) fn fitting<'a>(
    mut found: BTreeMap<String, TensorView<'a>>,
    tensors: &[Named],
    cast: bool,
) -> Result<Vec<Fitting<'a>>> {
    let mut differences = Vec::new();
    let mut matched = Vec::with_capacity(tensors.len());
    for Named { name, tensor } in tensors {
        let Some(view) = found.remove(name) else {
            differences.push(format!("{name} is missing"));
            continue;
        };
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        let kind = match view.dtype() {
            Dtype::F16 if cast => Some(Kind::Half),
            Dtype::BF16 if cast => Some(Kind::BFloat16),
            Dtype::F64 if cast => Some(Kind::Double),
            found => [Kind::Float, Kind::Int64].into_iter().find(|&kind| dtype(kind).is_ok_and(|d| d == found)),
        };
        let floats = |kind: Kind| matches!(kind, Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double);
        let fits = |found: Kind| found == tensor.kind() || (cast && floats(found) && floats(tensor.kind()));
        match kind.filter(|&kind| fits(kind) && shape == tensor.size()) {
            Some(kind) => matched.push((tensor.shallow_clone(), view, kind)),
            None => {
                let expected = format!("{:?} {:?}", dtype(tensor.kind())?, tensor.size());
                differences.push(format!("{name}: found {:?} {shape:?}, expected {expected}", view.dtype()));
            }
        }
    }
    differences.extend(found.keys().map(|name| format!("{name} is not part of this model")));
    if !differences.is_empty() {
        let shown = differences.iter().take(8).cloned().collect::<Vec<_>>().join("; ");
        let more = if differences.len() > 8 { format!("; and {} more", differences.len() - 8) } else { String::new() };
        bail!(Mismatch(format!("{} differences: {shown}{more}", differences.len())));
    }
    Ok(matched)
}

/// Fills the tensors.
pub(super) fn copy(matched: Vec<Fitting>) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    for (mut tensor, view, kind) in matched {
        let values = Tensor::f_from_data_size(view.data(), &tensor.size(), kind)?;
        tensor.f_copy_(&values).context("copying a tensor")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_into(bytes: &[u8], tensors: &[Named]) -> Result<()> {
        load_views(views(bytes)?, tensors, false)
    }

    fn named(name: &str, tensor: Tensor) -> Named {
        Named { name: name.into(), tensor }
    }

    fn file() -> Vec<u8> {
        let a = native::channels_last(&Tensor::arange(24, (Kind::Float, tch::Device::Cpu)).reshape([2, 3, 2, 2]));
        let n = Tensor::from_slice(&[7i64]);
        serialize(&[named("a", a), named("n", n)], HashMap::new()).expect("serialized")
    }

    fn zeros(shape: &[i64], kind: Kind) -> Tensor {
        Tensor::zeros(shape, (kind, tch::Device::Cpu))
    }

    #[test]
    fn tensors_come_back_in_any_memory_layout() -> Result<()> {
        let a = native::channels_last(&zeros(&[2, 3, 2, 2], Kind::Float));
        let n = zeros(&[1], Kind::Int64);
        load_into(&file(), &[named("a", a.shallow_clone()), named("n", n.shallow_clone())])?;
        assert_eq!(Vec::<f32>::try_from(a.flatten(0, -1))?, (0..24).map(|v| v as f32).collect::<Vec<_>>());
        assert_eq!(n.int64_value(&[0]), 7);
        Ok(())
    }

    #[test]
    fn every_difference_is_listed_and_nothing_is_loaded() {
        let n = zeros(&[1], Kind::Int64);
        let error = load_into(&file(), &[named("n", n.shallow_clone()), named("b", zeros(&[1], Kind::Float))]);
        assert_eq!(
            error.expect_err("a is extra, b is missing").to_string(),
            "2 differences: b is missing; a is not part of this model"
        );
        assert_eq!(n.int64_value(&[0]), 0);
        let error = load_into(&file(), &[named("n", n), named("a", zeros(&[1, 3, 2, 2], Kind::Float))]);
        assert_eq!(
            error.expect_err("no broadcasting").to_string(),
            "1 differences: a: found F32 [2, 3, 2, 2], expected F32 [1, 3, 2, 2]"
        );
    }

    #[test]
    fn every_truncation_is_an_error() {
        let file = file();
        for length in 0..file.len() {
            let tensors = [named("a", zeros(&[2, 3, 2, 2], Kind::Float)), named("n", zeros(&[1], Kind::Int64))];
            assert!(load_into(&file[..length], &tensors).is_err(), "{length} of {} bytes", file.len());
        }
    }
}
