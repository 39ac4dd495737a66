//! Bytes of images to a network's input: `(x / 255 - mean) / std`.
use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

use crate::simd::widest;

/// A common multiple of the usual numbers of channels and of a vector's lanes.
const CHUNK: usize = 48;
/// For other numbers of channels, so many times that.
const LANES: usize = 16;

/// Memory format and type of a network's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageLayout {
    /// Channels innermost in memory (`torch.channels_last`).
    pub channels_last: bool,
    /// bf16, rounded from fp32 as autocast would, in place of fp32.
    pub bf16: bool,
}

/// Mean and deviation of each channel, and the layout of a network's input.
#[derive(Debug)]
pub struct Normalizer {
    scale: Vec<f32>,
    shift: Vec<f32>,
    /// The same on the device, unless that is the CPU.
    there: Option<(Tensor, Tensor)>,
    device: Device,
    layout: ImageLayout,
}

impl Normalizer {
    /// `mean` and `std`, one of each channel, are of values in 0 to 1. Images come out on `device`.
    pub fn new(mean: &[f64], std: &[f64], device: Device, layout: ImageLayout) -> Result<Self> {
        let (means, stds) = (mean.len(), std.len());
        ensure!(means > 0 && means == stds, "found {means} means and {stds} standard deviations, expected as many");
        let scale: Vec<f32> = std.iter().map(|s| (1.0 / (255.0 * s)) as f32).collect();
        let shift: Vec<f32> = mean.iter().zip(std).map(|(mean, std)| (-mean / std) as f32).collect();
        let there = |values: &[f32]| Tensor::from_slice(values).f_to_device(device);
        let there = device.is_cuda().then(|| Ok::<_, tch::TchError>((there(&scale)?, there(&shift)?))).transpose()?;
        Ok(Self { scale, shift, there, device, layout })
    }

    fn kind(&self) -> Kind {
        if self.layout.bf16 { Kind::BFloat16 } else { Kind::Float }
    }

    /// `[N, H, W, C]` bytes to `[N, C, H, W]`. They are copied to a GPU as bytes.
    pub fn bytes(&self, bytes: &[u8], shape: [i64; 4]) -> Result<Tensor> {
        if self.there.is_some() {
            return self.tensor(&Tensor::f_from_data_size(bytes, &shape, Kind::Uint8)?.f_to_device(self.device)?);
        }
        let out = Tensor::f_empty(shape, (self.kind(), Device::Cpu))?;
        let right = out.numel() == bytes.len() && shape[3] as usize == self.scale.len();
        ensure!(right, "found {} bytes for {shape:?}, {} channels", bytes.len(), self.scale.len());
        if self.layout.bf16 {
            // SAFETY: a fresh, contiguous CPU tensor of as many bf16 values, which nothing else refers to.
            let out = unsafe { std::slice::from_raw_parts_mut(out.data_ptr().cast(), bytes.len()) };
            self.fill(bytes, out, rounded);
        } else {
            // SAFETY: the same with fp32 values.
            let out = unsafe { std::slice::from_raw_parts_mut(out.data_ptr().cast(), bytes.len()) };
            self.fill(bytes, out, |value: f32| value);
        }
        self.laid_out(out)
    }

    /// The same for bytes that are a tensor on the device, `[N, H, W, C]`.
    pub fn tensor(&self, bytes: &Tensor) -> Result<Tensor> {
        let floats = match &self.there {
            Some((scale, shift)) => bytes.f_mul(scale)?.f_add_(shift)?.f_to_kind(self.kind())?,
            None => {
                let (scale, shift) = (Tensor::from_slice(&self.scale), Tensor::from_slice(&self.shift));
                bytes.f_mul(&scale)?.f_add_(&shift)?.f_to_kind(self.kind())?
            }
        };
        self.laid_out(floats)
    }

    fn laid_out(&self, pixels: Tensor) -> Result<Tensor> {
        let planes = pixels.f_permute([0, 3, 1, 2])?;
        Ok(if self.layout.channels_last { planes } else { planes.f_contiguous()? })
    }

    /// One pass over the bytes; a multiplication and an addition, each rounded, as libtorch does it.
    fn fill<T>(&self, bytes: &[u8], out: &mut [T], to: impl Fn(f32) -> T) {
        let channels = self.scale.len();
        if !CHUNK.is_multiple_of(channels) {
            return self.fill_any(bytes, out, to);
        }
        let scale: [f32; CHUNK] = std::array::from_fn(|at| self.scale[at % channels]);
        let shift: [f32; CHUNK] = std::array::from_fn(|at| self.shift[at % channels]);
        let (mut bytes, mut out) = (bytes.chunks_exact(CHUNK), out.chunks_exact_mut(CHUNK));
        widest(
            #[inline(always)]
            || {
                for (bytes, out) in (&mut bytes).zip(&mut out) {
                    for at in 0..CHUNK {
                        out[at] = to(f32::from(bytes[at]) * scale[at] + shift[at]);
                    }
                }
            },
        );
        for (at, (&byte, out)) in bytes.remainder().iter().zip(out.into_remainder()).enumerate() {
            *out = to(f32::from(byte) * scale[at] + shift[at]);
        }
    }

    /// The same for a number of channels that does not divide [`CHUNK`].
    fn fill_any<T>(&self, bytes: &[u8], out: &mut [T], to: impl Fn(f32) -> T) {
        let length = LANES * self.scale.len();
        let [scale, shift] = [&self.scale, &self.shift].map(|values| values.repeat(LANES));
        widest(
            #[inline(always)]
            || {
                for (bytes, out) in bytes.chunks(length).zip(out.chunks_mut(length)) {
                    for (((out, &byte), scale), shift) in out.iter_mut().zip(bytes).zip(&scale).zip(&shift) {
                        *out = to(f32::from(byte) * scale + shift);
                    }
                }
            },
        );
    }
}

/// The bits of the nearest bf16, ties to even. Finite values only.
#[inline(always)]
fn rounded(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
    const STD: [f64; 3] = [0.229, 0.224, 0.225];

    #[test]
    fn normalized_bytes_are_the_formula_in_channels_first_order() -> Result<()> {
        let bytes: Vec<u8> = (0..2 * 4 * 5 * 3).map(|v| (v * 2) as u8).collect();
        let layout = ImageLayout { channels_last: true, bf16: false };
        let x = Normalizer::new(&MEAN, &STD, Device::Cpu, layout)?.bytes(&bytes, [2, 4, 5, 3])?;
        assert_eq!(x.size(), [2, 3, 4, 5]);
        assert_eq!(x.stride(), [60, 1, 15, 3]);
        for (n, c, row, column) in [(0, 0, 0, 0), (1, 2, 3, 4), (0, 1, 2, 3)] {
            let byte = bytes[((n * 4 + row) * 5 + column) * 3 + c];
            let expected = (byte as f64 / 255.0 - MEAN[c]) / STD[c];
            let found = x.double_value(&[n as i64, c as i64, row as i64, column as i64]);
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        Ok(())
    }

    #[test]
    fn any_number_of_channels_is_normalized_as_by_libtorch() -> Result<()> {
        for channels in [1, 2, 4, 5, 13, 64] {
            let bytes: Vec<u8> = (0..2 * 3 * 7 * channels).map(|v| (v * 37 % 251) as u8).collect();
            let [mean, std]: [Vec<f64>; 2] =
                [0.1, 0.3].map(|v| (0..channels).map(|c| v + 0.5 * c as f64 / channels as f64).collect());
            let shape = [2, 3, 7, channels as i64];
            for bf16 in [true, false] {
                let layout = ImageLayout { channels_last: true, bf16 };
                let normalizer = Normalizer::new(&mean, &std, Device::Cpu, layout)?;
                let ours = normalizer.bytes(&bytes, shape)?;
                let torchs = normalizer.tensor(&Tensor::from_data_size(&bytes, &shape, Kind::Uint8))?;
                assert!(ours.equal(&torchs), "{channels} channels");
            }
        }
        Ok(())
    }

    #[test]
    fn our_pass_and_libtorchs_operators_give_the_same_bits() -> Result<()> {
        let bytes: Vec<u8> = (0..256 * 3).map(|v| (v / 3) as u8).collect();
        let shape = [1, 16, 16, 3];
        for (channels_last, bf16) in [(true, true), (true, false), (false, true), (false, false)] {
            let layout = ImageLayout { channels_last, bf16 };
            let normalizer = Normalizer::new(&MEAN, &STD, Device::Cpu, layout)?;
            let ours = normalizer.bytes(&bytes, shape)?;
            let torchs = normalizer.tensor(&Tensor::from_data_size(&bytes, &shape, Kind::Uint8))?;
            let fp32 = Normalizer::new(&MEAN, &STD, Device::Cpu, ImageLayout { bf16: false, ..layout })?
                .bytes(&bytes, shape)?;
            assert!(ours.equal(&torchs) && ours.equal(&fp32.to_kind(ours.kind())), "{layout:?}");
            assert_eq!((ours.kind(), ours.stride()), (normalizer.kind(), torchs.stride()));
        }
        assert!(
            Normalizer::new(&MEAN, &STD, Device::Cpu, ImageLayout::default())?.bytes(&bytes, [1, 16, 15, 3]).is_err()
        );
        Ok(())
    }
}
