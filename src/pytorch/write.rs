//! Writes what `torch.save(state_dict, ...)` does: `torch.load(..., weights_only=True)` reads it.

use std::io::{Cursor, Write};

use anyhow::{Result, bail};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use zip::write::FileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Values begin at multiples of this, as `torch.save` aligns them.
const ALIGNMENT: u16 = 64;

/// A dictionary of tensors by name.
/// # Errors
/// A type other than fp32 and int64.
pub fn from_tensors(tensors: &[(&str, TensorView)]) -> Result<Vec<u8>> {
    let most = tensors.iter().any(|(_, tensor)| tensor.data().len() >= u32::MAX as usize);
    let stored = FileOptions::default().compression_method(CompressionMethod::Stored).large_file(most);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut member = |name: &str, bytes: &[u8]| -> Result<()> {
        zip.start_file_aligned(format!("archive/{name}"), stored, ALIGNMENT)?;
        Ok(zip.write_all(bytes)?)
    };
    member("data.pkl", &pickle(tensors)?)?;
    member("byteorder", b"little")?;
    for (number, (_, tensor)) in tensors.iter().enumerate() {
        member(&format!("data/{number}"), tensor.data())?;
    }
    member("version", b"3\n")?;
    Ok(zip.finish()?.into_inner())
}

/// The dictionary, in protocol 2; tensor `i` has storage `i`.
fn pickle(tensors: &[(&str, TensorView)]) -> Result<Vec<u8>> {
    let mut out = b"\x80\x02}(".to_vec(); // an empty dictionary, and a mark before its items
    for (number, (name, tensor)) in tensors.iter().enumerate() {
        let class = match tensor.dtype() {
            Dtype::F32 => "FloatStorage",
            Dtype::I64 => "LongStorage",
            other => bail!("{name}: found type {other:?}, expected F32 or I64"),
        };
        let shape = tensor.shape();
        text(&mut out, name);
        // _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(format!("ctorch\n{class}\n").bytes());
        text(&mut out, &number.to_string());
        text(&mut out, "cpu");
        integer(&mut out, shape.iter().product());
        out.extend(b"tQ"); // the storage is known by this tuple
        integer(&mut out, 0);
        tuple(&mut out, shape.iter().copied());
        tuple(&mut out, (1..=shape.len()).map(|axis| shape[axis..].iter().product()));
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    Ok(out)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
}

fn tuple(out: &mut Vec<u8>, values: impl Iterator<Item = usize>) {
    out.push(b'(');
    values.for_each(|value| integer(out, value));
    out.push(b't');
}

fn integer(out: &mut Vec<u8>, value: usize) {
    out.extend(b"\x8a\x08");
    out.extend((value as i64).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let floats: Vec<u8> = [1.5f32, -2.0, 0.0, 3.25, 1e-20, 7.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let count = 12i64.to_le_bytes();
        let tensors = [
            ("layer.weight", TensorView::new(Dtype::F32, vec![2, 3], &floats).unwrap()),
            ("layer.empty", TensorView::new(Dtype::F32, vec![0, 5], &[]).unwrap()),
            ("layer.num_batches_tracked", TensorView::new(Dtype::I64, vec![], &count).unwrap()),
        ];
        let bytes = from_tensors(&tensors).unwrap();
        assert!(crate::pytorch::is_pytorch(&bytes));
        let read = crate::pytorch::tensors(&bytes).unwrap();
        assert_eq!(read.len(), 3);
        for (name, tensor) in &tensors {
            let found = read[*name].view().unwrap();
            assert_eq!((found.dtype(), found.shape(), found.data()), (tensor.dtype(), tensor.shape(), tensor.data()));
        }
        let half = [("half", TensorView::new(Dtype::F16, vec![1], &[0, 0]).unwrap())];
        assert!(from_tensors(&half).unwrap_err().to_string().contains("half: found type F16"));
    }
}
