//! The encoder f of BYOL: one description of its layers ([`EncoderConfig::layers`]), and the network built from it.
//! To add a family of encoders, put a file next to [`super::resnet`], and new operations here and in `export/onnx.rs`.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use serde::Serialize;
use tch::Tensor;

use super::graph::{Layer, Op, Shape, shapes};
use super::layers::{BatchNorm, Conv2d};
use super::params::Scope;
use super::{Arch, EncoderConfig, Stem, resnet};

impl EncoderConfig {
    /// The first weight of each family: its name in a file shows the common prefix of all names.
    pub const MARKERS: [&str; 1] = [resnet::MARKER];

    /// The layers, in the order of execution.
    pub fn layers(&self) -> Vec<Layer> {
        resnet::layers(self)
    }

    /// The encoder whose tensors have these names and shapes, or the one that differs least from them.
    /// # Errors
    /// The first layers match no supported encoder.
    pub fn recognize(found: &BTreeMap<&str, Vec<i64>>) -> Result<Self> {
        let differences = |config: &Self| {
            let expected: Vec<_> = config.layers().iter().flat_map(Layer::tensors).collect();
            let equal = expected.iter().filter(|(name, shape)| found.get(name.as_str()) == Some(shape)).count();
            expected.len() + found.len() - 2 * equal
        };
        resnet::candidates(found)?.into_iter().min_by_key(differences).context("found no encoder")
    }
}

impl fmt::Display for EncoderConfig {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} of width {} with stem {}", self.arch, self.width, self.stem)?;
        if self.channels == 3 { Ok(()) } else { write!(f, " for images of {} channels", self.channels) }
    }
}

/// As in a config.
impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.serialize(f)
    }
}

/// As in a config.
impl fmt::Display for Stem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.serialize(f)
    }
}

/// An encoder with its weights, without a classifier.
#[derive(Debug)]
pub struct Encoder {
    /// The description it was built from.
    pub layers: Vec<Layer>,
    steps: Vec<Step>,
    /// Length of a representation.
    pub feature_dim: i64,
}

/// A layer ready to run.
#[derive(Debug)]
struct Step {
    weights: Weights,
    /// For each input, whether no later layer uses it.
    last_use: Vec<bool>,
    /// Whether to run in place on the first input: nothing else needs it, not even the backward pass.
    in_place: bool,
}

#[derive(Debug)]
enum Weights {
    None,
    Conv(Conv2d),
    BatchNorm(BatchNorm),
}

impl Encoder {
    /// Builds it under the names of its layers.
    pub fn new(mut scope: Scope, config: &EncoderConfig) -> Self {
        let layers = config.layers();
        let steps = (0..layers.len()).map(|at| Step::new(&mut scope, &layers, at)).collect();
        let feature_dim = shapes(&layers, 64).last().map_or(0, |Shape { channels, .. }| *channels);
        Self { layers, steps, feature_dim }
    }

    /// Images `[N, C, H, W]` to representations `[N, feature_dim]`. In training BatchNorm normalizes by the batch's
    /// statistics, otherwise by the running ones.
    pub fn forward(&self, images: &Tensor, train: bool) -> Tensor {
        let mut values = vec![Some(images.shallow_clone())];
        for (layer, step) in self.layers.iter().zip(&self.steps) {
            // A value is dropped after its last use, to free its memory.
            let inputs = layer.inputs.iter().zip(&step.last_use).map(|(&input, &last)| {
                let value = if last { values[input].take() } else { values[input].as_ref().map(Tensor::shallow_clone) };
                value.expect("a value is there until its last use")
            });
            let inputs = inputs.collect();
            values.push(Some(step.run(layer.op, inputs, train)));
        }
        values.pop().flatten().expect("the last layer's output has no other use")
    }
}

impl Step {
    fn new(scope: &mut Scope, layers: &[Layer], at: usize) -> Self {
        let layer = &layers[at];
        let weights = match layer.op {
            Op::Conv { input, output, kernel, stride, padding, groups } => {
                let scope = scope.sub(&layer.name);
                Weights::Conv(Conv2d::new(scope, input, output, kernel, stride, padding, groups))
            }
            Op::BatchNorm { channels, weight } => {
                Weights::BatchNorm(BatchNorm::new(scope.sub(&layer.name), channels, weight))
            }
            Op::Relu | Op::MaxPool { .. } | Op::Add | Op::GlobalAvgPool => Weights::None,
        };
        // The images are the caller's.
        let later = |value: &usize| *value == 0 || layers[at + 1..].iter().any(|layer| layer.inputs.contains(value));
        let last_use: Vec<bool> = layer.inputs.iter().map(|value| !later(value)).collect();
        let unsaved = |op: Op| matches!(op, Op::Conv { .. } | Op::BatchNorm { .. } | Op::Add);
        let in_place = last_use[0] && unsaved(layers[layer.inputs[0] - 1].op);
        Self { weights, last_use, in_place }
    }

    fn run(&self, op: Op, inputs: Vec<Tensor>, train: bool) -> Tensor {
        let mut x = inputs[0].shallow_clone();
        match (&self.weights, op) {
            (Weights::Conv(conv), _) => conv.forward(&x),
            (Weights::BatchNorm(norm), _) => norm.forward(&x, train),
            (Weights::None, Op::Relu) if self.in_place => x.relu_(),
            (Weights::None, Op::Relu) => x.relu(),
            (Weights::None, Op::Add) if self.in_place => x.g_add_(&inputs[1]),
            (Weights::None, Op::Add) => x.g_add(&inputs[1]),
            (Weights::None, Op::MaxPool { kernel, stride, padding }) => x.max_pool2d(kernel, stride, padding, 1, false),
            (Weights::None, Op::GlobalAvgPool) => x.adaptive_avg_pool2d([1, 1]).flatten(1, -1),
            (Weights::None, Op::Conv { .. } | Op::BatchNorm { .. }) => unreachable!("built with its weights"),
        }
    }
}
