//! Files of `torch.save` (`.pth`, `.pt`, `.ckpt`, `.bin`): their tensors by name, without Python and without running
//! anything that a file says. Since PyTorch 1.6 such a file is a zip archive of a pickle and one member for the values
//! of each storage.

mod pickle;
mod write;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::io::Cursor;

use anyhow::{Context, Result, bail, ensure};
use flate2::Crc;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use zip::{CompressionMethod, ZipArchive};

use pickle::{Id, Object, Pickle};
pub use write::from_tensors;

/// Longest pickle read; the values of tensors are not part of it.
const MAX_PICKLE: u64 = 32 << 20;
/// Deepest nesting of dictionaries that is looked into.
const MAX_DEPTH: usize = 16;

/// Whether a file begins as `torch.save` begins one, of any age.
pub fn is_pytorch(bytes: &[u8]) -> bool {
    // A safetensors file begins with a length, which may be any bytes, and then a brace.
    bytes.get(8) != Some(&b'{') && (bytes.starts_with(b"PK\x03\x04") || is_legacy(bytes))
}

/// A bare pickle, as before PyTorch 1.6, or a tar archive, as before 0.1.10.
fn is_legacy(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x80") || bytes.get(257..262) == Some(b"ustar")
}

/// A tensor as it is in a file: its values row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<'a> {
    /// Type of its values.
    pub dtype: Dtype,
    /// Lengths of its axes.
    pub shape: Vec<usize>,
    /// Its values; a copy only where the file has them in another order.
    pub data: Cow<'a, [u8]>,
}

impl Stored<'_> {
    /// The same as safetensors has it.
    /// # Errors
    /// The values are more or fewer than the shape says.
    pub fn view(&self) -> Result<TensorView<'_>> {
        Ok(TensorView::new(self.dtype, self.shape.clone(), &self.data)?)
    }
}

/// The tensors of a file by their names. A tensor in dictionaries of dictionaries has their keys before its name, with
/// dots, such as `state_dict.conv1.weight`.
/// # Errors
/// Damaged, of PyTorch before 1.6, a TorchScript module; or without tensors.
pub fn tensors(bytes: &[u8]) -> Result<BTreeMap<String, Stored<'_>>> {
    if is_legacy(bytes) {
        bail!(
            "found a PyTorch file in the format before 1.6, expected the zip format; convert it with: python -c \"import \
             torch; torch.save(torch.load('OLD', map_location='cpu', weights_only=True), 'NEW')\""
        );
    }
    let mut archive = Archive::open(bytes)?;
    let pickle = archive.member("data.pkl", MAX_PICKLE);
    let pickle = pickle.context("expected a state_dict of tensors, without numpy arrays")?;
    let pickle = Pickle::read(pickle)?;
    let mut names = BTreeMap::new();
    collect(&pickle, pickle.root, "", 0, &mut HashSet::new(), &mut names);
    ensure!(!names.is_empty(), "found no tensors in dictionaries, expected the file of a state_dict");
    let mut room = bytes.len().saturating_mul(2);
    let mut tensors = BTreeMap::new();
    let mut left_out = Vec::new();
    for (name, id) in names {
        match archive.tensor(&pickle, id, &mut room).with_context(|| name.clone())? {
            Some(tensor) => drop(tensors.insert(name, tensor)),
            None => left_out.push(name),
        }
    }
    if let Some(first) = left_out.first() {
        log::warn!("left out {} tensors of types that are not read: {}, ...", left_out.len(), first.escape_debug());
    }
    Ok(tensors)
}

/// The tensors in a dictionary and those in it, by their names. Every dictionary is looked into once.
fn collect(
    pickle: &Pickle,
    id: Id,
    prefix: &str,
    depth: usize,
    seen: &mut HashSet<Id>,
    tensors: &mut BTreeMap<String, Id>,
) {
    let Object::Dict(items) = pickle.get(id) else { return };
    if depth == MAX_DEPTH || !seen.insert(id) {
        return;
    }
    for &(key, value) in items {
        let Some(key) = pickle.name(key) else { continue };
        match pickle.get(value) {
            Object::Tensor { .. } | Object::OtherTensor => drop(tensors.insert(format!("{prefix}{key}"), value)),
            _ => collect(pickle, value, &format!("{prefix}{key}."), depth + 1, seen, tensors),
        }
    }
}

/// The zip archive; its members lie in `bytes` as they are.
struct Archive<'a> {
    bytes: &'a [u8],
    zip: ZipArchive<Cursor<&'a [u8]>>,
    /// What all members' names begin with.
    folder: String,
    /// Members whose checksum was found right.
    checked: HashSet<String>,
    /// Whether there are checksums (`torch.serialization.set_crc32_options`).
    checksums: bool,
}

impl<'a> Archive<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self> {
        let zip = ZipArchive::new(Cursor::new(bytes)).context("damaged: not a whole zip archive")?;
        let name = |part: &str| zip.file_names().find(|name| name.strip_suffix(part).is_some_and(|f| f.ends_with('/')));
        if name("constants.pkl").is_some() {
            bail!("found a TorchScript module, expected weights: torch.save(model.state_dict(), ...)");
        }
        let pickle = name("data.pkl").context("found a zip archive without data.pkl, expected a file of torch.save")?;
        let folder = pickle.trim_end_matches("data.pkl").to_string();
        let mut archive = Self { bytes, zip, folder, checked: HashSet::new(), checksums: true };
        archive.checksums = (0..archive.zip.len()).any(|at| archive.zip.by_index_raw(at).is_ok_and(|m| m.crc32() != 0));
        if let Ok(order) = archive.member("byteorder", 16)
            && order != b"little"
        {
            bail!("found values in byte order {}, expected little", String::from_utf8_lossy(order));
        }
        Ok(archive)
    }

    /// A member's bytes: PyTorch compresses nothing.
    fn member(&mut self, name: &str, most: u64) -> Result<&'a [u8]> {
        let name = format!("{}{name}", self.folder);
        let shown = name.escape_debug();
        let place = || format!("reading {shown}");
        let member = self.zip.by_name(&name).with_context(place)?;
        ensure!(
            member.compression() == CompressionMethod::Stored,
            "{shown} is compressed, which torch.save never does"
        );
        ensure!(member.size() <= most, "{shown}: found {} bytes, expected at most {most}", member.size());
        let (start, length) = (member.data_start() as usize, member.size() as usize);
        let found = start.checked_add(length).and_then(|end| self.bytes.get(start..end));
        let found = found.with_context(|| format!("{shown} ends behind the file"))?;
        if self.checksums && !self.checked.contains(&name) {
            let mut sum = Crc::new();
            sum.update(found);
            ensure!(sum.sum() == member.crc32(), "damaged: {shown} has another checksum than was written");
            self.checked.insert(name.clone());
        }
        Ok(found)
    }

    /// A tensor; `None` for types that no encoder has. `room` is what all copies may take together.
    fn tensor(&mut self, pickle: &Pickle, id: Id, room: &mut usize) -> Result<Option<Stored<'a>>> {
        let Object::Tensor { storage, offset, shape, strides, lazy } = pickle.get(id) else { return Ok(None) };
        let Object::Storage { class, key } = pickle.get(*storage) else { return Ok(None) };
        let Some((dtype, width)) = dtype(class) else { return Ok(None) };
        ensure!(
            !lazy,
            "found a tensor that is stored as its negative or conjugate, expected its values; save \
             tensor.resolve_conj().resolve_neg()"
        );
        let values = self.member(&format!("data/{key}"), u64::MAX)?;
        ensure!(shape.len() == strides.len(), "found shape {shape:?} with strides {strides:?}");
        let lengths: Vec<usize> = shape.iter().map(|&n| usize::try_from(n)).collect::<Result<_, _>>()?;
        let count = lengths.iter().try_fold(1usize, |count, &n| count.checked_mul(n));
        let beyond = || format!("shape {shape:?} is beyond what the file holds");
        let size = count.and_then(|count| count.checked_mul(width)).with_context(beyond)?;
        let rows = contiguous(&lengths, strides, *offset, width);
        if let Some(rows) = rows.and_then(|start| values.get(start..start.checked_add(size)?)) {
            return Ok(Some(Stored { dtype, shape: lengths, data: rows.into() }));
        }
        *room = room.checked_sub(size).with_context(beyond)?;
        let data = gathered(values, &lengths, strides, *offset, width)?.into();
        Ok(Some(Stored { dtype, shape: lengths, data }))
    }
}

/// The values of a tensor in a storage that has them in another order, or with gaps.
fn gathered(values: &[u8], lengths: &[usize], strides: &[i64], offset: i64, width: usize) -> Result<Vec<u8>> {
    let count: usize = lengths.iter().product();
    let mut out = Vec::with_capacity(count * width);
    let mut index = vec![0usize; lengths.len()];
    for _ in 0..count {
        let steps = index.iter().zip(strides).map(|(&i, &stride)| (i as i64).checked_mul(stride));
        let place = steps.into_iter().try_fold(offset, |place, step| place.checked_add(step?));
        let place = place.and_then(|place| usize::try_from(place).ok()?.checked_mul(width));
        let value = place.and_then(|place| values.get(place..place.checked_add(width)?));
        out.extend_from_slice(value.context("its values end behind their storage")?);
        for axis in (0..lengths.len()).rev() {
            index[axis] += 1;
            if index[axis] < lengths[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Ok(out)
}

/// Where the values of a tensor begin that lie row by row without gaps.
fn contiguous(lengths: &[usize], strides: &[i64], offset: i64, width: usize) -> Option<usize> {
    let mut expected = 1i64;
    for (&length, &stride) in lengths.iter().zip(strides).rev() {
        if length != 1 && stride != expected {
            return None;
        }
        expected = expected.checked_mul(i64::try_from(length).ok()?)?;
    }
    usize::try_from(offset).ok()?.checked_mul(width)
}

/// Type of a storage's values, and bytes of one.
fn dtype(class: &str) -> Option<(Dtype, usize)> {
    Some(match class {
        "FloatStorage" => (Dtype::F32, 4),
        "DoubleStorage" => (Dtype::F64, 8),
        "HalfStorage" => (Dtype::F16, 2),
        "BFloat16Storage" => (Dtype::BF16, 2),
        "LongStorage" => (Dtype::I64, 8),
        "IntStorage" => (Dtype::I32, 4),
        "ShortStorage" => (Dtype::I16, 2),
        "CharStorage" => (Dtype::I8, 1),
        "ByteStorage" => (Dtype::U8, 1),
        "BoolStorage" => (Dtype::BOOL, 1),
        _ => return None,
    })
}
