//! Communication of a step with the other processes of its run.

use std::cell::Cell;
use std::sync::Arc;

use anyhow::Result;
use tch::{Kind, Tensor};

use native::{ProcessGroup, Reducer};

use super::StepOutput;
use super::loss::{moments, z_std_of_moments};
use crate::model::Params;
use crate::signals::Signals;

/// The processes that share each batch, as [`super::Byol`] sees them. By default this process is the only one
/// and does not communicate.
#[derive(Default)]
pub struct Ranks(Option<Connected>);

struct Connected {
    group: Arc<ProcessGroup>,
    reducer: Reducer,
    /// SIGINT, SIGTERM, a request for a checkpoint: 1 if it has arrived.
    arrived: Cell<[f32; 3]>,
}

/// What signals request. Signals to any process count: all processes must act on them at the same step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StopRequest {
    /// The exit code of a SIGINT or SIGTERM; SIGTERM's if both came.
    pub end: Option<i32>,
    /// A checkpoint.
    pub checkpoint: bool,
}

impl StopRequest {
    /// From the number of processes that received SIGINT, SIGTERM and a request for a checkpoint.
    pub fn of(counts: &[f64]) -> Self {
        let [int, term, checkpoint] = [0, 1, 2].map(|index| counts.get(index).is_some_and(|&count| count > 0.0));
        Self { end: term.then_some(143).or(int.then_some(130)), checkpoint }
    }

    /// From the signals of this process.
    fn from_signals(signals: &Signals) -> Self {
        Self { end: signals.exit_code(), checkpoint: signals.take_checkpoint_request() }
    }

    /// What either requests.
    pub fn or(self, other: Self) -> Self {
        Self { end: self.end.or(other.end), checkpoint: self.checkpoint || other.checkpoint }
    }
}

impl Ranks {
    /// For several processes, and the parameters that are trained.
    pub fn new(group: &Arc<ProcessGroup>, online: &Params) -> Result<Self> {
        let weights = online.parameters.iter().map(|p| &p.tensor).filter(|tensor| tensor.requires_grad());
        let weights: Vec<&Tensor> = weights.collect();
        let reducer = Reducer::new(group, &weights)?;
        Ok(Self(Some(Connected { group: group.clone(), reducer, arrived: Cell::default() })))
    }

    /// Before a step: the signals that have arrived here are sent to the others with the step's output.
    pub fn share_signals(&self, signals: &Signals) {
        if let Some(Connected { arrived, .. }) = &self.0 {
            let request = StopRequest::from_signals(signals);
            let flags = [request.end == Some(130), request.end == Some(143), request.checkpoint];
            arrived.set(flags.map(|flag| f32::from(u8::from(flag))));
        }
    }

    /// After a step: what a single process's signals request. Empty with several processes, for which
    /// [`super::Numbers::request`] has it.
    pub fn own_request(&self, signals: &Signals) -> StopRequest {
        if self.0.is_some() { StopRequest::default() } else { StopRequest::from_signals(signals) }
    }

    /// The next backward pass averages the gradients over all processes.
    pub fn prepare(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |connected| connected.reducer.prepare())
    }

    /// A step's output over all processes, with the signals that they received: one small all-reduce, which blocks on
    /// the CPU only. `projections` `[N, D]` are those that [`StepOutput::z_std`] is of.
    /// # Errors
    /// Another process was lost or timed out.
    pub fn averaged(&self, output: StepOutput, projections: &Tensor) -> Result<StepOutput> {
        let Some(Connected { group, arrived, .. }) = &self.0 else { return Ok(output) };
        let (kind, device) = (output.loss.kind(), output.loss.device());
        // Zeros are created on the device; other values need a synchronizing copy, but signals are rare.
        let arrived = match arrived.get() {
            [0.0, 0.0, 0.0] => Tensor::f_zeros([3], (Kind::Double, device))?,
            flags => Tensor::from_slice(&flags).f_to_device(device)?.f_to_kind(Kind::Double)?,
        };
        let moments = moments(projections);
        let sums = Tensor::f_cat(&[&output.loss.to_kind(Kind::Double).reshape([1]), &arrived, &moments], 0)?;
        group.all_reduce(&sums)?;
        let rows = projections.size()[0] * group.world as i64;
        let z_std = z_std_of_moments(&sums.narrow(0, 4, moments.size()[0]), rows);
        Ok(StepOutput {
            loss: (sums.get(0) / group.world as f64).f_to_kind(kind)?,
            z_std: z_std.f_to_kind(kind)?,
            signals: Some(sums.narrow(0, 1, 3).f_to_kind(kind)?),
            ..output
        })
    }
}
