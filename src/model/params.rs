//! Named parameters and buffers, under the names that `torch.nn.Module.state_dict` gives them.
//! tch's `VarStore` is not used: it renames duplicates silently, casts and broadcasts on load, and gives its
//! variables in hash order.

use std::sync::{Arc, OnceLock};

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::rng::{Purpose, Stream};
use native::{self, ProcessGroup, resize};

/// A tensor and its name, such as `encoder.layer1.0.conv1.weight`.
#[derive(Debug)]
pub struct Named {
    /// The name in PyTorch's notation.
    pub name: String,
    /// A shallow handle: it shares memory with the layer that uses it.
    pub tensor: Tensor,
}

impl Named {
    /// Whether a parameter is subject to weight decay: not a bias, a normalization's, LayerScale's, nor the class token
    /// or a position embedding.
    pub fn decays(&self) -> bool {
        let last = self.name.rsplit('.').next().unwrap_or_default();
        self.tensor.dim() > 1 && !UNDECAYED.contains(&last)
    }
}

/// Parameters of more than one axis without weight decay, in the names of torchvision and timm.
const UNDECAYED: [&str; 5] = ["layer_scale", "class_token", "pos_embedding", "cls_token", "pos_embed"];

/// All tensors of one network, in the order in which its layers were built.
#[derive(Debug)]
pub struct Params {
    /// What the optimizer or the EMA moves: weights and biases, fp32.
    pub parameters: Vec<Named>,
    /// BatchNorm's running mean and variance, fp32.
    pub buffers: Vec<Named>,
    device: Device,
    seed: Option<u64>,
    group: SharedGroup,
}

/// The processes whose batches count as one for BatchNorm; each layer holds the same cell, empty for this process
/// alone.
pub(super) type SharedGroup = Arc<OnceLock<Arc<ProcessGroup>>>;

/// How a new parameter is filled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform in plus or minus this bound.
    Uniform(f64),
    /// One value everywhere.
    Constant(f64),
}

impl Params {
    /// No tensors yet. `seed` fixes the initial values whatever the device. Without one the network is not
    /// trained: its parameters are zeros, to be copied into, and never carry gradients.
    pub fn new(device: Device, seed: Option<u64>) -> Self {
        Self { parameters: Vec::new(), buffers: Vec::new(), device, seed, group: SharedGroup::default() }
    }

    /// Where the tensors are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// From now on every BatchNorm computes its statistics over the batches of all these processes
    /// (`torch.nn.SyncBatchNorm.convert_sync_batchnorm`).
    pub fn synchronize(&self, group: &Arc<ProcessGroup>) {
        self.group.get_or_init(|| group.clone());
    }

    /// The root of the tree of names.
    pub fn root(&mut self) -> Scope<'_> {
        Scope { params: self, prefix: String::new() }
    }

    /// Casts every tensor in place (`torch.nn.Module.to(dtype)`).
    pub fn to_kind(&mut self, kind: Kind) {
        let _no_grad = tch::no_grad_guard();
        for named in self.parameters.iter_mut().chain(&mut self.buffers) {
            // The layer holds the same tensor: exchange its data, keep the handle.
            let data = named.tensor.detach().to_kind(kind);
            named.tensor.set_data(&data);
        }
    }

    /// Stores the convolution weights as channels-last (`module.to(memory_format=torch.channels_last)`).
    pub fn to_channels_last(&mut self) {
        let _no_grad = tch::no_grad_guard();
        for parameter in &mut self.parameters {
            if parameter.tensor.dim() == 4 {
                // The layer holds the same tensor, so its data is exchanged, not the handle.
                let data = native::channels_last(&parameter.tensor.detach());
                parameter.tensor.set_data(&data);
            }
        }
    }

    /// Everything that `torch.nn.Module.state_dict` would hold, `num_batches_tracked` (the same for every
    /// BatchNorm) too. Shallow handles, except for that count.
    pub fn state_dict(&self, batches_tracked: i64) -> Vec<Named> {
        let handle = |n: &Named| Named { name: n.name.clone(), tensor: n.tensor.shallow_clone() };
        let mut named: Vec<Named> = self.parameters.iter().chain(&self.buffers).map(handle).collect();
        for buffer in &self.buffers {
            if let Some(layer) = buffer.name.strip_suffix("running_mean") {
                let tensor = Tensor::full([], batches_tracked, (Kind::Int64, Device::Cpu));
                named.push(Named { name: format!("{layer}num_batches_tracked"), tensor });
            }
        }
        named
    }

    /// Number of trainable values.
    pub fn count(&self) -> i64 {
        self.parameters.iter().map(|p| p.tensor.numel() as i64).sum()
    }
}

/// A prefix of names, passed to the constructor of a layer.
pub struct Scope<'a> {
    params: &'a mut Params,
    prefix: String,
}

impl Scope<'_> {
    /// The prefix `name` below this one.
    pub fn sub(&mut self, name: impl std::fmt::Display) -> Scope<'_> {
        self.sub_by(name, '.')
    }

    /// The same with another separator between `name` and what follows.
    pub fn sub_by(&mut self, name: impl std::fmt::Display, separator: char) -> Scope<'_> {
        let prefix = format!("{}{name}{separator}", self.prefix);
        Scope { params: self.params, prefix }
    }

    /// Seed of the initial values; none in a network that is not trained.
    pub(super) fn seed(&self) -> Option<u64> {
        self.params.seed
    }

    /// Device of the tensors.
    pub(super) fn device(&self) -> Device {
        self.params.device
    }

    /// The processes set by [`Params::synchronize`].
    pub(super) fn group(&self) -> SharedGroup {
        self.params.group.clone()
    }

    /// A new fp32 parameter of this shape.
    pub fn parameter(&mut self, name: &str, shape: &[i64], init: Init) -> Tensor {
        let index = self.params.parameters.len() as u64;
        let constant = |value: f64| Tensor::full(shape, value, (Kind::Float, Device::Cpu));
        let tensor = match (self.params.seed, init) {
            (None, _) => constant(0.0),
            (_, Init::Constant(value)) => constant(value),
            (Some(seed), Init::Uniform(bound)) => {
                drawn(shape, seed, index, |stream| [(); 2].map(|()| stream.uniform(-bound, bound) as f32))
            }
            (Some(seed), Init::Normal(std)) => drawn(shape, seed, index, |stream| {
                let (a, b) = stream.normal_pair();
                [(a * std) as f32, (b * std) as f32]
            }),
        };
        let tensor = tensor.to_device(self.params.device).set_requires_grad(self.params.seed.is_some());
        let named = Named { name: format!("{}{name}", self.prefix), tensor: tensor.shallow_clone() };
        self.params.parameters.push(named);
        tensor
    }

    /// A new fp32 buffer of this length, every value the same.
    pub fn buffer(&mut self, name: &str, length: i64, value: f64) -> Tensor {
        let tensor = Tensor::full([length], value, (Kind::Float, self.params.device));
        let named = Named { name: format!("{}{name}", self.prefix), tensor: tensor.shallow_clone() };
        self.params.buffers.push(named);
        tensor
    }
}

/// A tensor of random values, in pairs from `draw`. Every block has its own random stream, so that all cores can
/// draw and the result does not depend on their number.
fn drawn(shape: &[i64], seed: u64, index: u64, draw: impl Fn(&mut Stream) -> [f32; 2] + Sync) -> Tensor {
    let (mut values, length) = (Vec::new(), shape.iter().product::<i64>() as usize);
    // A panic, as in tch's operators.
    resize(&mut values, length, 0.0).unwrap_or_else(|error| panic!("weights {shape:?}: {error}"));
    values.par_chunks_mut(1 << 14).enumerate().for_each(|(block, values)| {
        let mut stream = Stream::new(seed, Purpose::Init, block as u64, index, 0);
        for pair in values.chunks_mut(2) {
            pair.copy_from_slice(&draw(&mut stream)[..pair.len()]);
        }
    });
    let mut tensor = Tensor::from_slice(&values);
    // In place: `reshape` gives a view, and autocast casts a view each time that it is used.
    let _ = tensor.resize_(shape);
    tensor
}
