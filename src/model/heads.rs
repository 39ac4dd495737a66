//! Projector and predictor: Linear, BatchNorm, ReLU, Linear; no BatchNorm on the output (paper, section 3.3).

use tch::Tensor;

use super::layers::{BatchNorm, Linear};
use super::params::Scope;

/// A two-layer MLP under the names of
/// `nn.Sequential(Linear(in, hidden), BatchNorm1d(hidden), ReLU(), Linear(hidden, out, bias=False))`.
#[derive(Debug)]
pub struct Mlp {
    first: Linear,
    norm: BatchNorm,
    last: Linear,
}

impl Mlp {
    /// The first layer has a bias; the last one only where `output_bias` asks for it (the paper's has none).
    pub fn new(mut scope: Scope, input: i64, hidden: i64, output: i64, output_bias: bool) -> Self {
        Self {
            first: Linear::new(scope.sub(0), input, hidden, true),
            norm: BatchNorm::new(scope.sub(1), hidden, 1.0),
            last: Linear::new(scope.sub(3), hidden, output, output_bias),
        }
    }

    /// `[N, in]` to `[N, out]`.
    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        self.last.forward(&self.norm.forward(&self.first.forward(x), train).relu_())
    }
}
