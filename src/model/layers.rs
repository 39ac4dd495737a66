//! The three layers of BYOL's networks, initialized as PyTorch and torchvision do (tch's own defaults
//! differ: BatchNorm weights uniform in 0..1, linear weights 2.4 times too large).

use tch::Tensor;

use super::params::{Init, Scope, SharedGroup};

/// `torch.nn.Conv2d` without bias, square kernel.
#[derive(Debug)]
pub struct Conv2d {
    weight: Tensor, // [out, in / groups, k, k]
    stride: i64,
    padding: i64,
    groups: i64,
}

impl Conv2d {
    /// Kaiming-normal weights over fan-out for ReLU, as `torchvision.models.resnet` initializes them:
    /// standard deviation `sqrt(2 / (out * k * k))`.
    pub fn new(mut scope: Scope, input: i64, output: i64, kernel: i64, stride: i64, padding: i64, groups: i64) -> Self {
        let std = (2.0 / (output * kernel * kernel) as f64).sqrt();
        let shape = [output, input / groups, kernel, kernel];
        Self { weight: scope.parameter("weight", &shape, Init::Normal(std)), stride, padding, groups }
    }

    /// `[N, in, H, W]` to `[N, out, H', W']`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.conv2d(&self.weight, None::<Tensor>, self.stride, self.padding, 1, self.groups)
    }
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
}

/// `torch.nn.Linear`.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor, // [out, in]
    bias: Option<Tensor>,
}

impl Linear {
    /// Weights and bias uniform within `1 / sqrt(in)`, PyTorch's default.
    pub fn new(mut scope: Scope, input: i64, output: i64, bias: bool) -> Self {
        let bound = 1.0 / (input as f64).sqrt();
        Self {
            weight: scope.parameter("weight", &[output, input], Init::Uniform(bound)),
            bias: bias.then(|| scope.parameter("bias", &[output], Init::Uniform(bound))),
        }
    }

    /// `[N, in]` to `[N, out]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}
