//! Optimizers with their state as named tensors, for checkpoints. A file for each; a new one is also added to
//! [`Algorithm`]. Steps run under `no_grad` and copy nothing to the host.

mod adamw;
mod lars;
mod schedule;
mod sgd;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::model::{Named, Params};
use crate::section::{Problems, Section};
use native::{self, foreach};

pub use schedule::{EmaConfig, ScheduleConfig, TauSchedule, learning_rate, tau};

/// `optimizer.name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Layer-wise adaptive rates (arXiv 1708.03888) in DeepMind's form.
    Lars,
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// Adam with decoupled weight decay.
    Adamw,
}

/// The interface of optimizers.
struct Rule {
    /// Names of the tensors that it keeps for each parameter, all of the parameter's shape and 0 at first.
    state: &'static [&'static str],
    /// Updates a group of parameters.
    update: fn(&Group, &Rate, &OptimizerConfig) -> Result<()>,
}

impl Algorithm {
    fn rule(self) -> Rule {
        match self {
            Self::Lars => lars::RULE,
            Self::Sgd => sgd::RULE,
            Self::Adamw => adamw::RULE,
        }
    }

    /// Tensors that the optimizer keeps for each parameter.
    pub fn states(self) -> usize {
        self.rule().state.len()
    }
}

/// Section `optimizer` of a config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// lars, sgd or adamw. Default lars.
    pub name: Algorithm,
    /// Learning rate for 256 images a step; scaled by `train.batch_size / 256` unless `scale_lr` is false. Default 0.2.
    pub base_lr: f64,
    /// Linear scaling of the learning rate with the batch. Default true.
    pub scale_lr: bool,
    /// L2 penalty (lars, sgd) or decoupled decay (adamw). Default 1.5e-6.
    pub weight_decay: f64,
    /// Exclude biases, the parameters of normalizations, LayerScale, class token and position embeddings from weight
    /// decay and LARS adaptation. Default true.
    pub exclude_bias_and_norm: bool,
    /// Momentum of lars and sgd, 0 to below 1. Default 0.9.
    pub momentum: f64,
    /// Nesterov momentum (sgd). Default false.
    pub nesterov: bool,
    /// LARS trust coefficient eta. Default 0.001.
    pub eta: f64,
    /// LARS with the layer-wise rate capped at the learning rate, as in solo-learn. Default false.
    #[serde(alias = "clip")]
    pub clip_lr: bool,
    /// Maximum L2 norm of the gradient, as `torch.nn.utils.clip_grad_norm_`. Default null: no clipping.
    pub clip_grad_norm: Option<f64>,
    /// AdamW's decay rates of the two moments. Default [0.9, 0.999].
    pub betas: [f64; 2],
    /// AdamW's epsilon. Default 1e-8.
    pub eps: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            name: Algorithm::Lars,
            base_lr: 0.2,
            scale_lr: true,
            weight_decay: 1.5e-6,
            exclude_bias_and_norm: true,
            momentum: 0.9,
            nesterov: false,
            eta: 1e-3,
            clip_lr: false,
            clip_grad_norm: None,
            betas: [0.9, 0.999],
            eps: 1e-8,
        }
    }
}

impl OptimizerConfig {
    /// The learning rate at the end of warmup: `base_lr * images / 256`, or `base_lr` without scaling.
    pub fn peak_lr(&self, images_per_step: usize) -> f64 {
        if self.scale_lr { self.base_lr * images_per_step as f64 / 256.0 } else { self.base_lr }
    }
}

impl Section for OptimizerConfig {
    fn check(&self, problems: &mut Problems) {
        let part = |value: f64| value > 0.0 && value <= 1.0;
        problems.require(self.base_lr > 0.0 && self.base_lr <= 1e4, "base_lr", self.base_lr, "above 0, at most 10000");
        problems.range("weight_decay", self.weight_decay, 0.0..=1.0);
        problems.require((0.0..1.0).contains(&self.momentum), "momentum", self.momentum, "0 to below 1");
        problems.require(part(self.eta), "eta", self.eta, "above 0, at most 1");
        problems.require(part(self.eps), "eps", self.eps, "above 0, at most 1");
        let norm = self.clip_grad_norm.unwrap_or(1.0);
        problems.require(norm > 0.0 && norm.is_finite(), "clip_grad_norm", norm, "null or a number above 0");
        let right = self.betas.iter().all(|beta| (0.0..1.0).contains(beta));
        problems.require(right, "betas", self.betas, "two numbers from 0 to below 1");
        let possible = !self.nesterov || self.name == Algorithm::Sgd && self.momentum > 0.0;
        problems.require(possible, "nesterov", true, "false unless name is sgd and momentum above 0");
        let possible = !self.clip_lr || self.name == Algorithm::Lars;
        problems.require(possible, "clip_lr", true, "false unless name is lars");
    }

    fn renamed(&self) -> &'static [(&'static str, &'static str)] {
        &[("clip", "clip_lr")]
    }
}

/// One parameter and its optimizer state.
struct Slot {
    name: String,
    weight: Tensor,
    /// Subject to weight decay and LARS adaptation.
    adapted: bool,
    /// In the order of the rule's names.
    state: Vec<Tensor>,
}

/// The optimizer of a run.
pub struct Optimizer {
    config: OptimizerConfig,
    slots: Vec<Slot>,
    rate: Rate,
}

/// The rates of the update as scalars on the device.
struct Rate {
    lr: Tensor,
    /// Number of updates, including this one.
    count: Tensor,
}

/// A group of parameters, with their gradients and state, in the same order.
struct Group {
    adapted: bool,
    weights: Vec<Tensor>,
    gradients: Vec<Tensor>,
    /// In the order of the rule's names.
    state: Vec<Vec<Tensor>>,
}

impl Optimizer {
    /// An optimizer over all parameters of a network, its state zero.
    pub fn new(config: &OptimizerConfig, params: &Params) -> Self {
        let slots = params.parameters.iter().map(|parameter| Slot {
            name: parameter.name.clone(),
            weight: parameter.tensor.shallow_clone(),
            adapted: !config.exclude_bias_and_norm || parameter.decays(),
            // Zeros in the weight's own memory layout.
            state: (0..config.name.states()).map(|_| parameter.tensor.detach().zeros_like()).collect(),
        });
        let device = params.parameters.first().map_or(Device::Cpu, |parameter| parameter.tensor.device());
        let rate = Rate { lr: foreach::rate(device), count: foreach::rate(device) };
        Self { config: config.clone(), slots: slots.collect(), rate }
    }

    /// Sets all gradients to none.
    pub fn zero_grad(&self) -> Result<()> {
        self.slots.iter().try_for_each(|slot| native::clear_grad(&slot.weight))
    }

    /// Updates every parameter. `step` counts the updates from 0 (Adam's bias correction).
    /// A parameter without gradient stays as it is.
    pub fn step(&mut self, lr: f64, step: u64) -> Result<()> {
        self.set(lr, step)?;
        self.apply()
    }

    /// Sets the learning rate of the next update, and its number from 0.
    pub fn set(&self, lr: f64, step: u64) -> Result<()> {
        foreach::set_rate(&self.rate.lr, lr)?;
        foreach::set_rate(&self.rate.count, (step + 1) as f64)
    }

    /// The update itself, all of it on the device.
    pub fn apply(&mut self) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let update = self.config.name.rule().update;
        let groups = [self.group(true), self.group(false)];
        groups.iter().filter(|group| !group.weights.is_empty()).try_for_each(|g| update(g, &self.rate, &self.config))
    }

    /// The parameters that have a gradient and are subject to decay and adaptation, or those that are not.
    fn group(&self, adapted: bool) -> Group {
        let slots = || self.slots.iter().filter(|slot| slot.adapted == adapted && slot.weight.grad().defined());
        let state = |at: usize| slots().map(|slot| slot.state[at].shallow_clone()).collect();
        Group {
            adapted,
            weights: slots().map(|slot| slot.weight.shallow_clone()).collect(),
            gradients: slots().map(|slot| slot.weight.grad()).collect(),
            state: (0..self.config.name.states()).map(state).collect(),
        }
    }

    /// L2 norm over all gradients, on the device. With `clip_grad_norm` they are then scaled down as by
    /// `torch.nn.utils.clip_grad_norm_`: g <- g min(1, max_norm / (|g| + 1e-6)).
    pub fn clip_grad_norm(&self) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let gradients: Vec<_> = self.slots.iter().map(|slot| slot.weight.grad()).filter(Tensor::defined).collect();
        let norm = foreach::norms(&gradients)?.f_norm()?;
        if let Some(max_norm) = self.config.clip_grad_norm {
            let factor = ((&norm + 1e-6).f_reciprocal()? * max_norm).f_clamp_max(1.0)?;
            foreach::scale(&gradients, &factor)?;
        }
        Ok(norm)
    }

    /// The state, named `momentum.<parameter>`, `exp_avg.<parameter>` and so on.
    pub fn state(&self) -> Vec<Named> {
        let names = self.config.name.rule().state;
        let named = self.slots.iter().flat_map(|slot| {
            let tensors = names.iter().zip(&slot.state);
            tensors.map(|(name, state)| Named { name: format!("{name}.{}", slot.name), tensor: state.shallow_clone() })
        });
        named.collect()
    }
}
