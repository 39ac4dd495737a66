//! The layers of BYOL's networks, initialized as PyTorch, torchvision and timm do (tch's own defaults
//! differ: BatchNorm weights uniform in 0..1, linear weights 2.4 times too large).

use native::batch_norm::{self, Normalization};
use tch::Tensor;

use super::graph::Conv;
use super::params::{Init, Scope, SharedGroup};

/// `torch.nn.Conv2d`, square kernel.
#[derive(Debug)]
pub struct Conv2d {
    weight: Tensor, // [out, in / groups, k, k]
    bias: Option<Tensor>,
    conv: Conv,
}

impl Conv2d {
    /// New weights; frozen ones get no gradients.
    pub fn new(mut scope: Scope, conv: Conv) -> Self {
        let shape = [conv.output, conv.input / conv.groups, conv.kernel, conv.kernel];
        let weight = scope.parameter("weight", &shape, conv.init);
        let bias = conv.bias.map(|init| scope.parameter("bias", &[conv.output], init));
        if conv.frozen {
            [Some(&weight), bias.as_ref()].into_iter().flatten().for_each(|t| drop(t.set_requires_grad(false)));
        }
        Self { weight, bias, conv }
    }

    /// `[N, in, H, W]` to `[N, out, H', W']`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let Conv { stride, padding, groups, .. } = self.conv;
        let weight = if self.conv.standardized { &standardized(&self.weight) } else { &self.weight };
        x.conv2d(weight, self.bias.as_ref(), stride, padding, 1, groups)
    }
}

/// Weight standardization (arXiv 1903.10520): each output's weights get mean 0 and variance 1, as
/// `timm.layers.StdConv2d` with eps 1e-6 has it.
pub fn standardized(weight: &Tensor) -> Tensor {
    let none = None::<Tensor>;
    let flat = weight.reshape([1, weight.size()[0], -1]);
    flat.batch_norm(none.as_ref(), none.as_ref(), none.as_ref(), none.as_ref(), true, 0.0, 1e-6, true)
        .reshape(weight.size())
}

/// BatchNorm's eps.
pub const BATCH_NORM_EPS: f64 = 1e-5;

/// BatchNorm's momentum.
pub const BATCH_NORM_MOMENTUM: f64 = 0.1;

/// `torch.nn.BatchNorm1d` / `BatchNorm2d`: momentum 0.1, eps 1e-5, affine.
#[derive(Debug)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    group: SharedGroup,
}

impl BatchNorm {
    /// `weight` is the initial scale of every channel: 1, or 0 to start a residual branch at zero.
    pub fn new(mut scope: Scope, channels: i64, weight: f64) -> Self {
        Self {
            group: scope.group(),
            weight: scope.parameter("weight", &[channels], Init::Constant(weight)),
            bias: scope.parameter("bias", &[channels], Init::Constant(0.0)),
            running_mean: scope.buffer("running_mean", channels, 0.0),
            running_var: scope.buffer("running_var", channels, 1.0),
        }
    }

    /// `[N, C]` or `[N, C, H, W]`. In training the batch's own statistics normalize and the running ones
    /// advance (the variance unbiased); otherwise the running ones normalize. The batch is that of all processes
    /// after [`Params::synchronize`](super::Params::synchronize).
    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let (mean, var) = (&self.running_mean, &self.running_var);
        if let (true, Some(group)) = (train, self.group.get()) {
            let affine = [&self.weight, &self.bias];
            // A failure is a panic, as in tch's own methods.
            let y = group.batch_norm(x, affine, [mean, var], BATCH_NORM_MOMENTUM, BATCH_NORM_EPS);
            return y.unwrap_or_else(|error| panic!("{error:#}"));
        }
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        x.batch_norm(weight, bias, Some(mean), Some(var), train, BATCH_NORM_MOMENTUM, BATCH_NORM_EPS, true)
    }

    /// `relu(forward(x) + shortcut)`, the sum and ReLU as asked for, in training by the fused kernels; `None` where
    /// [`batch_norm::fused`] has none.
    pub fn fused(&self, x: &Tensor, shortcut: Option<&Tensor>, relu: bool) -> Option<Tensor> {
        if self.group.get().is_some() {
            return None;
        }
        let Self { weight, bias, running_mean, running_var, .. } = self;
        let (momentum, eps) = (BATCH_NORM_MOMENTUM, BATCH_NORM_EPS);
        let norm = Normalization { weight, bias, running_mean, running_var, momentum, eps };
        // A failure is a panic, as in tch's own methods.
        batch_norm::fused(x, shortcut, norm, relu).unwrap_or_else(|error| panic!("{error:#}"))
    }
}

/// Groups of every [`GroupNorm`] (arXiv 2010.10241).
pub const GROUPS: i64 = 16;

/// `torch.nn.GroupNorm` of [`GROUPS`] groups, eps 1e-5.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
}

impl GroupNorm {
    /// `weight` is the initial scale of every channel.
    pub fn new(mut scope: Scope, channels: i64, weight: f64) -> Self {
        let weight = scope.parameter("weight", &[channels], Init::Constant(weight));
        Self { weight, bias: scope.parameter("bias", &[channels], Init::Constant(0.0)) }
    }

    /// `[N, C]` or `[N, C, H, W]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.group_norm(GROUPS, Some(&self.weight), Some(&self.bias), GROUP_NORM_EPS, true)
    }
}

/// GroupNorm's eps.
pub const GROUP_NORM_EPS: f64 = 1e-5;

/// LayerNorm's eps in ConvNeXt and ViT.
pub const LAYER_NORM_EPS: f64 = 1e-6;

/// `torch.nn.LayerNorm` over the last axis, eps 1e-6.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    /// Weight 1, bias 0.
    pub fn new(mut scope: Scope, channels: i64) -> Self {
        let weight = scope.parameter("weight", &[channels], Init::Constant(1.0));
        Self { weight, bias: scope.parameter("bias", &[channels], Init::Constant(0.0)) }
    }

    /// `[..., C]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), LAYER_NORM_EPS, true)
    }
}

/// `torch.nn.Linear`.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor, // [out, in]
    bias: Option<Tensor>,
    standardized: bool,
}

impl Linear {
    /// Weights and bias uniform within `1 / sqrt(in)`, PyTorch's default.
    pub fn new(scope: Scope, input: i64, output: i64, bias: bool) -> Self {
        let default = Init::Uniform(1.0 / (input as f64).sqrt());
        Self::filled(scope, input, output, default, bias.then_some(default))
    }

    /// With these initial values.
    pub fn filled(mut scope: Scope, input: i64, output: i64, init: Init, bias: Option<Init>) -> Self {
        Self {
            weight: scope.parameter("weight", &[output, input], init),
            bias: bias.map(|bias| scope.parameter("bias", &[output], bias)),
            standardized: false,
        }
    }

    /// The same with its weights [`standardized`].
    pub fn standardize(self, standardized: bool) -> Self {
        Self { standardized, ..self }
    }

    /// `[..., in]` to `[..., out]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let weight = if self.standardized { &standardized(&self.weight) } else { &self.weight };
        x.linear(weight, self.bias.as_ref())
    }
}
