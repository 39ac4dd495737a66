//! Batches of the loader as views on the device.

use anyhow::Result;
use tch::{Device, Tensor};

use crate::augment::AugmentConfig;
use crate::byol::Views;
use crate::byol::timing::{Part, lap};
use crate::data::loader::Batch;
use native::stream::Ring;
use native::{ImageLayout, Normalizer};

/// Buffers for copies to a GPU: one in use, one being copied, one being filled.
const SLOTS: usize = 3;

/// Copies micro-batches to the device as bytes and normalizes them there, without synchronizing with a GPU.
pub struct Feed {
    normalizer: Normalizer,
    device: Device,
    /// Height, width and channels of a view.
    shape: [i64; 3],
    /// For a GPU, made for the first batch.
    ring: Option<Ring>,
}

impl Feed {
    /// `layout` is in bf16 if forward passes are, so that autocast has nothing to cast.
    pub fn new(augment: &AugmentConfig, device: Device, layout: ImageLayout) -> Result<Self> {
        let normalizer = Normalizer::new(augment.mean.values(), augment.std.values(), device, layout)?;
        let [height, width] = augment.size.shape();
        let shape = [height, width, augment.channels() as i64];
        Ok(Self { normalizer, device, shape, ring: None })
    }

    /// Both views of a micro-batch.
    pub fn views(&mut self, batch: &Batch) -> Result<Views> {
        let [height, width, channels] = self.shape;
        if !self.device.is_cuda() {
            let shape = [batch.indices.len() as i64, height, width, channels];
            let view = |bytes: &[u8]| self.normalizer.bytes(bytes, shape);
            let views = [view(&batch.views[0])?, view(&batch.views[1])?];
            lap(Part::Normalize);
            return Ok(views);
        }
        let (normalizer, shape) = (&self.normalizer, self.shape);
        Self::send(&mut self.ring, self.device, batch, |bytes| normalized(normalizer, bytes, shape))
    }

    /// The bytes of a micro-batch's views to `to`, `[2 N, H, W, channels]` on the device, for [`Self::normalized`] to read.
    pub fn copy(&mut self, batch: &Batch, to: &Tensor) -> Result<()> {
        if !self.device.is_cuda() {
            let halves = to.view([2, -1]);
            let put = |(at, bytes): (i64, &Vec<u8>)| halves.get(at).f_copy_(&Tensor::f_from_slice(bytes)?);
            return (0..).zip(&batch.views).try_for_each(|half| put(half).map(drop)).map_err(Into::into);
        }
        Self::send(&mut self.ring, self.device, batch, |bytes| Ok(to.view([-1]).f_copy_(bytes)?))
    }

    /// An input for [`Self::copy`] to fill with a micro-batch of `images`.
    pub fn input(&self, images: usize) -> Result<Tensor> {
        let [height, width, channels] = self.shape;
        let shape = [2 * images as i64, height, width, channels];
        Ok(Tensor::f_empty(shape, (tch::Kind::Uint8, self.device))?)
    }

    /// Views from such an input.
    pub fn normalized(&self, input: &Tensor) -> Result<Views> {
        normalized(&self.normalizer, input, self.shape)
    }

    fn send<T>(
        ring: &mut Option<Ring>,
        device: Device,
        batch: &Batch,
        work: impl FnOnce(&Tensor) -> Result<T>,
    ) -> Result<T> {
        let [first, second] = &batch.views;
        let ring = match (ring, device) {
            (Some(ring), _) => ring,
            (none, Device::Cuda(index)) => none.insert(Ring::new(index, SLOTS, 2 * first.len())?),
            _ => unreachable!("the CPU needs no copies"),
        };
        ring.put([first, second], |bytes| {
            lap(Part::Copy);
            work(bytes)
        })
    }
}

/// Bytes of both views, one after the other, as two tensors.
fn normalized(normalizer: &Normalizer, bytes: &Tensor, [height, width, channels]: [i64; 3]) -> Result<Views> {
    let both = bytes.view([2, -1, height, width, channels]);
    let views = [normalizer.tensor(&both.get(0))?, normalizer.tensor(&both.get(1))?];
    lap(Part::Normalize);
    Ok(views)
}
