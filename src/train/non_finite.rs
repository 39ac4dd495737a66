//! Numbers that are no longer numbers: found at the step that makes them, named, and kept out of the weights.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::byol::{Byol, Numbers, StepOutput, Views};
use crate::model::{Named, Network};

/// `train.on_non_finite`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNonFinite {
    /// End the run; the last good checkpoint stays.
    #[default]
    Stop,
    /// Leave everything as it was before the step, and go on with the next one.
    SkipStep,
}

/// Takes the steps of a run and looks at their numbers.
pub struct Guard {
    policy: OnNonFinite,
    most_in_a_row: u64,
    in_a_row: u64,
    /// Steps left out so far.
    pub skipped: u64,
}

/// What became of a step.
pub enum Stepped {
    /// Taken. By the executor: before its numbers were looked at.
    Taken(StepOutput),
    /// Left out, for this reason; the state is that before the step.
    Skipped(StepOutput, String),
    /// What is not finite; the run cannot go on.
    NotFinite(String),
}

impl Guard {
    /// Nothing skipped yet.
    pub fn new(policy: OnNonFinite, most_in_a_row: u64) -> Self {
        Self { policy, most_in_a_row, in_a_row: 0, skipped: 0 }
    }

    /// Whether [`Self::step`] is to take the steps: on the CPU, and wherever steps may be skipped. Else a step is run
    /// by the executor and its numbers are read when the next one is queued.
    pub fn checks_before_update(&self, device: Device) -> bool {
        self.policy == OnNonFinite::SkipStep || device == Device::Cpu
    }

    /// One step of BYOL; loss and gradient are looked at before anything is updated.
    /// # Errors
    /// What libtorch says.
    pub fn step(
        &mut self,
        byol: &mut Byol,
        micro_batches: impl ExactSizeIterator<Item = Result<Views>>,
        lr: f64,
        tau: f64,
        step: u64,
    ) -> Result<Stepped> {
        let before = (self.policy == OnNonFinite::SkipStep).then(|| Buffers::of(byol));
        byol.set_rates(lr, tau, step)?;
        let output = byol.gradients(micro_batches)?;
        let Some(what) = Numbers::of(&output.fetch()?)?.not_finite() else {
            byol.update()?;
            self.in_a_row = 0;
            return Ok(Stepped::Taken(output));
        };
        // A parameter that is not finite stays so, whatever is skipped.
        let (culprit, mended) = match bad_parameter(byol) {
            Some(name) => (format!("{name} is not finite"), false),
            None => (bad_gradients(byol), true),
        };
        let what = format!("{what} ({culprit})");
        match before {
            Some(before) if mended && self.in_a_row < self.most_in_a_row => {
                before.restore(byol);
                self.in_a_row += 1;
                self.skipped += 1;
                let most = self.most_in_a_row;
                Ok(Stepped::Skipped(output, format!("{what}; {} in a row, at most {most}", self.in_a_row)))
            }
            Some(_) if mended => Ok(Stepped::NotFinite(format!(
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

/// BatchNorm's running statistics, which a forward pass moves.
struct Buffers {
    values: Vec<Tensor>,
    tracked: [i64; 2],
}

fn buffers(byol: &Byol) -> impl Iterator<Item = &Named> {
    [&byol.online, &byol.target].into_iter().flat_map(|network| &network.params.buffers)
}

impl Buffers {
    fn of(byol: &Byol) -> Self {
        let _no_grad = tch::no_grad_guard();
        let tracked = [&byol.online, &byol.target].map(|network| network.batches_tracked.get());
        Self { values: buffers(byol).map(|named| named.tensor.copy()).collect(), tracked }
    }

    fn restore(&self, byol: &Byol) {
        let _no_grad = tch::no_grad_guard();
        for (named, value) in buffers(byol).zip(&self.values) {
            named.tensor.shallow_clone().copy_(value);
        }
        byol.online.batches_tracked.set(self.tracked[0]);
        byol.target.batches_tracked.set(self.tracked[1]);
    }
}

/// Name of the first parameter or buffer of either network with a value that is not finite.
pub(super) fn bad_tensor(byol: &Byol) -> Option<String> {
    first_bad(byol, |network| network.params.parameters.iter().chain(&network.params.buffers).collect())
}

/// The same of the parameters alone.
pub(super) fn bad_parameter(byol: &Byol) -> Option<String> {
    first_bad(byol, |network| network.params.parameters.iter().collect())
}

fn first_bad(byol: &Byol, of: impl Fn(&Network) -> Vec<&Named>) -> Option<String> {
    let networks = [("online", of(&byol.online)), ("target", of(&byol.target))];
    let named: Vec<(String, Tensor)> = networks
        .into_iter()
        .flat_map(|(prefix, tensors)| tensors.into_iter().map(move |n| (prefix, n)))
        .map(|(prefix, n)| (format!("{prefix}.{}", n.name), n.tensor.shallow_clone()))
        .collect();
    not_finite(&named).into_iter().next()
}

/// Which gradients are not finite. The backward pass runs from the loss to the first layer, so the one built last is
/// where it began.
fn bad_gradients(byol: &Byol) -> String {
    let gradient = |n: &Named| Some((n.name.clone(), n.tensor.grad())).filter(|(_, grad)| grad.defined());
    let named: Vec<(String, Tensor)> = byol.online.params.parameters.iter().filter_map(gradient).collect();
    let bad = not_finite(&named);
    match &bad[..] {
        [] => "every gradient is finite".into(),
        [.., last] => {
            format!("{} of {} gradients are not finite, nearest to the loss {last}'s", bad.len(), named.len())
        }
    }
}

/// Names of the tensors with a value that is not finite.
fn not_finite(tensors: &[(String, Tensor)]) -> Vec<String> {
    let _no_grad = tch::no_grad_guard();
    // A sum in f64 is finite only where every part is. One look at all of them first.
    let sums: Vec<Tensor> = tensors.iter().map(|(_, tensor)| tensor.sum(Kind::Double)).collect();
    if sums.is_empty() || Tensor::stack(&sums, 0).sum(Kind::Double).double_value(&[]).is_finite() {
        return Vec::new();
    }
    let bad = tensors.iter().zip(&sums).filter(|(_, sum)| !sum.double_value(&[]).is_finite());
    bad.map(|((name, _), _)| name.clone()).collect()
}
