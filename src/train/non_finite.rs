//! NaN and Inf: detected in the step where they first occur, reported, and kept out of the weights.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::byol::{Byol, Numbers, Rates, StepOutput, Views};
use crate::model::Named;

/// `train.on_non_finite`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnNonFinite {
    /// Stop the run; the last valid checkpoint stays.
    #[default]
    Stop,
    /// Skip the step and restore the state before it.
    SkipStep,
}

/// Checks loss and gradient of each step for NaN and Inf.
pub struct Guard {
    policy: OnNonFinite,
    max_in_a_row: u64,
    in_a_row: u64,
    /// Steps skipped so far.
    pub skipped: u64,
}

/// The outcome of a step.
pub enum Stepped {
    /// Done. The executor does the update before loss and gradient are checked.
    Taken(StepOutput),
    /// Skipped, for this reason; the state before the step is restored.
    Skipped(StepOutput, String),
    /// What is not finite; the run must stop.
    NotFinite(String),
}

impl Guard {
    /// No skipped steps.
    pub fn new(policy: OnNonFinite, max_in_a_row: u64) -> Self {
        Self { policy, max_in_a_row, in_a_row: 0, skipped: 0 }
    }

    /// Whether to run the steps with [`Self::step`]: on the CPU, and wherever steps may be skipped. Otherwise the
    /// executor runs a step, and its loss and gradient are read when the next one is queued.
    pub fn checks_before_update(&self, device: Device) -> bool {
        self.policy == OnNonFinite::SkipStep || device == Device::Cpu
    }

    /// One step of BYOL; loss and gradient are checked before anything is updated.
    pub fn step(
        &mut self,
        byol: &mut Byol,
        micro_batches: impl ExactSizeIterator<Item = Result<Views>>,
        rates: Rates,
    ) -> Result<Stepped> {
        let before = (self.policy == OnNonFinite::SkipStep).then(|| byol.snapshot_buffers());
        byol.set_rates(rates)?;
        let output = byol.gradients(micro_batches)?;
        let Some(what) = Numbers::of(&output.fetch()?)?.not_finite() else {
            byol.update()?;
            self.in_a_row = 0;
            return Ok(Stepped::Taken(output));
        };
        // Skipping does not help if a parameter is not finite.
        let (culprit, skippable) = match bad_parameter(byol) {
            Some(name) => (format!("{name} is not finite"), false),
            None => (bad_gradients(byol), true),
        };
        let what = format!("{what} ({culprit})");
        match before {
            Some(before) if skippable && self.in_a_row < self.max_in_a_row => {
                byol.restore(&before)?;
                self.in_a_row += 1;
                self.skipped += 1;
                let max = self.max_in_a_row;
                Ok(Stepped::Skipped(output, format!("{what}; {} in a row, at most {max}", self.in_a_row)))
            }
            Some(_) if skippable => Ok(Stepped::NotFinite(format!(
                "{what}, after {} skipped steps in a row (train.max_skipped_steps)",
                self.in_a_row
            ))),
            _ => Ok(Stepped::NotFinite(what)),
        }
    }
}

impl Numbers {
    /// What of loss and gradient norm is not finite.
    pub fn not_finite(&self) -> Option<String> {
        let (loss, norm) = (self.loss, self.grad_norm);
        match (loss.is_finite(), norm.is_finite()) {
            (true, true) => None,
            (false, _) => Some(format!("the loss is {loss}")),
            (true, false) => Some(format!("the gradient's norm is {norm}")),
        }
    }
}

/// Name of the first parameter or buffer of either network with a value that is not finite.
pub(super) fn bad_tensor(byol: &Byol) -> Option<String> {
    not_finite(&byol.model_tensors()).into_iter().next()
}

/// The same of the parameters alone.
pub(super) fn bad_parameter(byol: &Byol) -> Option<String> {
    not_finite(&byol.parameters()).into_iter().next()
}

/// Which gradients are not finite. The backward pass runs from the loss to the first layer, so the one built last is
/// where it began.
fn bad_gradients(byol: &Byol) -> String {
    let gradient = |n: &Named| {
        let tensor = n.tensor.grad();
        tensor.defined().then(|| Named { name: n.name.clone(), tensor })
    };
    let named: Vec<Named> = byol.online.params.parameters.iter().filter_map(gradient).collect();
    let bad = not_finite(&named);
    match &bad[..] {
        [] => "every gradient is finite".into(),
        [.., last] => {
            format!("{} of {} gradients are not finite, nearest to the loss {last}'s", bad.len(), named.len())
        }
    }
}

/// Names of the tensors with a value that is not finite.
fn not_finite(tensors: &[Named]) -> Vec<String> {
    let _no_grad = tch::no_grad_guard();
    // A sum in f64 is finite only where every value is. First one sum over all of them, read once.
    let sums: Vec<Tensor> = tensors.iter().map(|named| named.tensor.sum(Kind::Double)).collect();
    if sums.is_empty() || Tensor::stack(&sums, 0).sum(Kind::Double).double_value(&[]).is_finite() {
        return Vec::new();
    }
    let bad = tensors.iter().zip(&sums).filter(|(_, sum)| !sum.double_value(&[]).is_finite());
    bad.map(|(named, _)| named.name.clone()).collect()
}
