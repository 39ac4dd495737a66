//! Projector and predictor: Linear, BatchNorm, ReLU, Linear; no BatchNorm on the output (paper, section 3.3). With
//! `model.norm: group_ws` GroupNorm instead, after a Linear with standardized weights.

use tch::Tensor;

use super::Norm;
use super::layers::{BatchNorm, GroupNorm, Linear};
use super::params::Scope;

/// A two-layer MLP under the names of
/// `nn.Sequential(Linear(in, hidden), BatchNorm1d(hidden), ReLU(), Linear(hidden, out, bias=False))`.
#[derive(Debug)]
pub struct Mlp {
    first: Linear,
    norm: Normalization,
    last: Linear,
}

#[derive(Debug)]
enum Normalization {
    Batch(BatchNorm),
    Group(GroupNorm),
}

impl Mlp {
    /// The first layer has a bias; the last one only where `output_bias` asks for it (the paper's has none).
    pub fn new(mut scope: Scope, input: i64, hidden: i64, output: i64, output_bias: bool, norm: Norm) -> Self {
        Self {
            first: Linear::new(scope.sub(0), input, hidden, true).standardize(norm == Norm::GroupWs),
            norm: match norm {
                Norm::Batch => Normalization::Batch(BatchNorm::new(scope.sub(1), hidden, 1.0)),
                Norm::GroupWs => Normalization::Group(GroupNorm::new(scope.sub(1), hidden, 1.0)),
            },
            last: Linear::new(scope.sub(3), hidden, output, output_bias),
        }
    }

    /// `[N, in]` to `[N, out]`.
    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let hidden = self.first.forward(x);
        let fused = match &self.norm {
            Normalization::Batch(norm) if train => norm.fused(&hidden, None, true),
            _ => None,
        };
        let activated = fused.unwrap_or_else(|| match &self.norm {
            Normalization::Batch(norm) => norm.forward(&hidden, train).relu_(),
            Normalization::Group(norm) => norm.forward(&hidden).relu_(),
        });
        self.last.forward(&activated)
    }
}
