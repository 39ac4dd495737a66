//! The encoder f of BYOL: one description of its layers ([`EncoderConfig::layers`]), and the network built from it.
//! To add a family of encoders, put a file next to [`super::resnet`] and list it here; new operations go to
//! [`super::graph`], to `run` below, and to `export/onnx_layers.rs`.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use serde::Serialize;
use tch::Tensor;

use super::arch::Family;
use super::drop_path::{DropPath, drop_path};
use super::graph::{Layer, Op, Shape, shapes};
use super::layers::{BatchNorm, Conv2d, GroupNorm, LayerNorm, Linear};
use super::params::{Init, Scope};
use super::{Arch, EncoderConfig, Norm, Stem, convnext, resnet, tokens, vit};

impl EncoderConfig {
    /// The layers, in the order of execution.
    pub fn layers(&self) -> Vec<Layer> {
        match self.arch.family() {
            Family::Resnet => resnet::layers(self),
            Family::Convnext => convnext::layers(self),
            Family::Vit => vit::layers(self),
        }
    }

    /// The encoder whose tensors have these names and shapes, or the one that differs least from them. A ViT of any size
    /// may have the names of either library. What shapes do not tell is as in `known`: the heads and the pooling of a
    /// ViT, and height and width of the images that its position embeddings are for; else it is one of width 1, and a
    /// square.
    /// # Errors
    /// The first layers match no supported encoder.
    pub fn recognize(found: &BTreeMap<&str, Vec<i64>>, known: Option<&Self>) -> Result<Self> {
        let differences = |config: &Self| {
            let expected: Vec<_> = config.layers().iter().flat_map(Layer::tensors).collect();
            let equal = expected.iter().filter(|(name, shape)| found.get(name.as_str()) == Some(shape)).count();
            expected.len() + found.len() - 2 * equal
        };
        let vit = vit::library_of(found);
        let mut candidates = match vit {
            Some(library) => vit::candidates(found, library, known)?,
            None if found.contains_key(convnext::MARKER) => convnext::candidates(found)?,
            None => resnet::candidates(found)?,
        };
        let is_known =
            |config: &Self| known.is_some_and(|known| (known.arch, known.width) == (config.arch, config.width));
        let is_odd = |config: &Self| (64.0 * config.width).fract() != 0.0;
        candidates.sort_by_key(|config| (!is_known(config), config.width != 1.0, is_odd(config)));
        // All ViTs have the same layers.
        let compared = if vit.is_some() { 1 } else { candidates.len() };
        candidates.into_iter().take(compared).min_by_key(differences).context("found no encoder")
    }

    /// The name of a ViT's position embeddings, and the grid of patches that they are for.
    pub fn positions(&self) -> Option<(String, [i64; 2])> {
        self.layers().into_iter().find_map(|layer| match layer.op {
            Op::Positions { grid, .. } => Some((layer.name, grid)),
            _ => None,
        })
    }

    /// Refuses images of a height and width that it cannot take.
    /// # Errors
    /// What is expected, in words that continue "found ..., expected".
    pub fn check_size(&self, [height, width]: [i64; 2]) -> Result<(), String> {
        let patch = self.patch_size.max(1);
        match self.arch.family() {
            Family::Convnext if height.min(width) < 8 * patch => {
                Err(format!("at least 8 times model.patch_size {patch}: three layers halve the patches"))
            }
            Family::Vit if height % patch != 0 || width % patch != 0 || height * width == 0 => {
                Err(format!("a multiple of model.patch_size {patch}"))
            }
            Family::Resnet | Family::Convnext | Family::Vit => Ok(()),
        }
    }
}

impl fmt::Display for EncoderConfig {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} of width {} with ", self.arch, self.width)?;
        match self.arch.family() {
            Family::Resnet if self.norm == Norm::GroupWs => write!(f, "stem {} and GroupNorm", self.stem)?,
            Family::Resnet => write!(f, "stem {}", self.stem)?,
            Family::Convnext | Family::Vit => write!(f, "patches of {} px", self.patch_size)?,
        }
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
    /// Stochastic depth, if this network is trained with it.
    pub drop_path: Option<DropPath>,
}

/// A layer ready to run.
#[derive(Debug)]
struct Step {
    weights: Weights,
    /// For each input, whether no later layer uses it.
    last_use: Vec<bool>,
    /// Whether to run in place on the first input: nothing else needs it, not even the backward pass.
    in_place: bool,
    /// Of a BatchNorm.
    following: Following,
}

/// What a BatchNorm can be computed together with: ReLU, or the sum with a shortcut and ReLU.
#[derive(Debug, Default)]
struct Following {
    /// How many layers that is.
    layers: usize,
    /// The other term of the sum.
    shortcut: Option<usize>,
}

impl Following {
    fn new(layers: &[Layer], at: usize) -> Self {
        let relu_of = |value: usize| {
            layers.get(value).is_some_and(|layer| matches!(layer.op, Op::Relu) && layer.inputs == [value])
                && layers.iter().filter(|layer| layer.inputs.contains(&value)).count() == 1
        };
        let output = at + 1;
        match layers.get(output) {
            _ if relu_of(output) => Self { layers: 1, shortcut: None },
            Some(Layer { op: Op::Add, inputs, .. }) if inputs.contains(&output) && relu_of(output + 1) => {
                Self { layers: 2, shortcut: inputs.iter().copied().find(|&value| value != output) }
            }
            _ => Self::default(),
        }
    }
}

#[derive(Debug)]
enum Weights {
    None,
    Conv(Conv2d),
    BatchNorm(BatchNorm),
    GroupNorm(GroupNorm),
    LayerNorm(LayerNorm),
    Linear(Linear),
    /// The one tensor of [`Op::LayerScale`], [`Op::ClassToken`] or [`Op::Positions`].
    One(Tensor),
}

impl Encoder {
    /// Builds it under the names of its layers.
    pub fn new(mut scope: Scope, config: &EncoderConfig) -> Self {
        let layers = config.layers();
        let steps = (0..layers.len()).map(|at| Step::new(&mut scope, &layers, at)).collect();
        let feature_dim = shapes(&layers, [64; 2]).last().map_or(0, |Shape { channels, .. }| *channels);
        // Only the online network drops paths, as in DINO (arXiv 2104.14294): the target's output is the goal.
        let drop_path = scope.seed().and_then(|seed| DropPath::new(&layers, seed, scope.device()));
        Self { layers, steps, feature_dim, drop_path }
    }

    /// Images `[N, C, H, W]` to representations `[N, feature_dim]`. In training BatchNorm normalizes by the batch's
    /// statistics, otherwise by the running ones.
    pub fn forward(&self, images: &Tensor, train: bool) -> Tensor {
        let mut values = vec![Some(images.shallow_clone())];
        let kept = self.drop_path.as_ref().filter(|_| train).map(|drop_path| drop_path.next(images.size()[0]));
        let mut computed = 0; // of the next layers, together with a BatchNorm
        for (at, (layer, step)) in self.layers.iter().zip(&self.steps).enumerate() {
            // A value is dropped after its last use, to free its memory.
            let inputs = layer.inputs.iter().zip(&step.last_use).map(|(&input, &last)| {
                let value = if last { values[input].take() } else { values[input].as_ref().map(Tensor::shallow_clone) };
                value.expect("a value is there until its last use")
            });
            let mut inputs: Vec<Tensor> = inputs.collect();
            if computed > 0 {
                computed -= 1;
                let own = layer.inputs.iter().position(|&value| value == at).expect("of the layer before");
                values.push(Some(inputs.swap_remove(own)));
                continue;
            }
            if let Some(output) = step.fused(&inputs[0], &values, train) {
                computed = step.following.layers;
                values.push(Some(output));
                continue;
            }
            values.push(Some(match (layer.op, &kept) {
                (Op::DropPath { index, rate }, Some(kept)) => drop_path(&inputs[0], &kept.get(index as i64), rate),
                (op, _) => step.run(op, inputs, train),
            }));
        }
        values.pop().flatten().expect("the last layer's output has no other use")
    }
}

impl Step {
    fn new(scope: &mut Scope, layers: &[Layer], at: usize) -> Self {
        let layer = &layers[at];
        let weights = Weights::new(scope, layer);
        // The images are the caller's.
        let later = |value: &usize| *value == 0 || layers[at + 1..].iter().any(|layer| layer.inputs.contains(value));
        let last_use: Vec<bool> = layer.inputs.iter().map(|value| !later(value)).collect();
        // A Linear's output is a view of its product: after a sum in place autograd would copy the gradient.
        let unsaved = |op: Op| {
            matches!(op, Op::Conv(_) | Op::BatchNorm { .. } | Op::GroupNorm { .. } | Op::Add)
                || matches!(op, Op::LayerScale { .. } | Op::DropPath { .. })
        };
        let in_place = last_use[0] && unsaved(layers[layer.inputs[0] - 1].op);
        Self { weights, last_use, in_place, following: Following::new(layers, at) }
    }

    /// A BatchNorm in training together with what follows it, where there is a kernel for that.
    fn fused(&self, x: &Tensor, values: &[Option<Tensor>], train: bool) -> Option<Tensor> {
        let Weights::BatchNorm(norm) = &self.weights else { return None };
        let shortcut = self.following.shortcut.and_then(|value| values[value].as_ref());
        if train { norm.fused(x, shortcut, self.following.layers > 0) } else { None }
    }

    fn run(&self, op: Op, inputs: Vec<Tensor>, train: bool) -> Tensor {
        let mut x = inputs[0].shallow_clone();
        match (&self.weights, op) {
            (Weights::Conv(conv), _) => conv.forward(&x),
            (Weights::BatchNorm(norm), _) => norm.forward(&x, train),
            (Weights::GroupNorm(norm), _) => norm.forward(&x),
            (Weights::LayerNorm(norm), _) => norm.forward(&x),
            (Weights::Linear(linear), _) => linear.forward(&x),
            (Weights::One(token), Op::ClassToken { .. }) => tokens::prepend(token, &x),
            (Weights::One(positions), Op::Positions { grid, .. }) => x + tokens::positions(positions, grid, &inputs[1]),
            (Weights::One(scale), _) => x * scale,
            (Weights::None, Op::Relu) if self.in_place => x.relu_(),
            (Weights::None, Op::Relu) => x.relu(),
            (Weights::None, Op::Gelu) => x.gelu("none"),
            // In bf16 the sum may be wider than its first term.
            (Weights::None, Op::Add) if self.in_place && x.kind() == inputs[1].kind() => x.g_add_(&inputs[1]),
            (Weights::None, Op::Add) => x.g_add(&inputs[1]),
            (Weights::None, Op::MaxPool { kernel, stride, padding }) => x.max_pool2d(kernel, stride, padding, 1, false),
            (Weights::None, Op::GlobalAvgPool) => x.adaptive_avg_pool2d([1, 1]).flatten(1, -1),
            (Weights::None, Op::ChannelsLast) => x.permute([0, 2, 3, 1]),
            (Weights::None, Op::ChannelsFirst) => x.permute([0, 3, 1, 2]),
            (Weights::None, Op::DropPath { .. }) => x,
            (Weights::None, Op::Tokens) => x.flatten(2, 3).transpose(1, 2),
            (Weights::None, Op::Attention { heads, size }) => tokens::attention(&x, heads, size),
            (Weights::None, Op::FirstToken) => x.select(1, 0),
            (Weights::None, Op::MeanToken) => tokens::mean(&x),
            (Weights::None, _) => unreachable!("built with its weights"),
        }
    }
}

impl Weights {
    fn new(scope: &mut Scope, layer: &Layer) -> Self {
        let name = &layer.name;
        let mut one = |init| {
            let (name, shape) = &layer.tensors()[0];
            Self::One(scope.parameter(name, shape, init))
        };
        match layer.op {
            Op::LayerScale { .. } => one(Init::Constant(1e-6)),
            Op::ClassToken { init, .. } => one(init),
            Op::Positions { .. } => one(Init::Normal(0.02)),
            Op::Conv(conv) => Self::Conv(Conv2d::new(scope.sub(name), conv)),
            Op::BatchNorm { channels, weight } => Self::BatchNorm(BatchNorm::new(scope.sub(name), channels, weight)),
            Op::GroupNorm { channels, weight } => Self::GroupNorm(GroupNorm::new(scope.sub(name), channels, weight)),
            Op::LayerNorm { channels } => Self::LayerNorm(LayerNorm::new(scope.sub(name), channels)),
            Op::Linear { input, output, init, bias, separator } => {
                Self::Linear(Linear::filled(scope.sub_by(name, separator), input, output, init, Some(bias)))
            }
            _ => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_norm_is_computed_with_the_relu_or_the_sum_and_relu_after_it() {
        let layers = EncoderConfig { arch: Arch::Resnet18, stem: Stem::Cifar, ..EncoderConfig::default() }.layers();
        let following = |name: &str| {
            let at = layers.iter().position(|layer| layer.name == name).expect(name);
            let Following { layers: count, shortcut } = Following::new(&layers, at);
            (count, shortcut.map(|value| layers[value - 1].name.as_str()))
        };
        assert_eq!(following("bn1"), (1, None));
        assert_eq!(following("layer1.0.bn1"), (1, None));
        assert_eq!(following("layer1.0.bn2"), (2, Some("relu")));
        assert_eq!(following("layer1.1.bn2"), (2, Some("layer1.0.relu")));
        // The shortcut's comes right before the sum.
        assert_eq!(following("layer2.0.bn2"), (0, None));
        assert_eq!(following("layer2.0.downsample.1"), (2, Some("layer2.0.bn2")));
    }
}
