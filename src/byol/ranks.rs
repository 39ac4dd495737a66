//! What a step needs of the other processes of its run.

use std::cell::Cell;
use std::sync::Arc;

use anyhow::Result;
use tch::Tensor;

use native::{ProcessGroup, Reducer};

use super::StepOutput;
use crate::model::Params;
use crate::signals::Signals;

/// This process among those that share each batch, as [`super::Byol`] sees it.
pub struct Ranks {
    group: Arc<ProcessGroup>,
    reducer: Reducer,
    /// SIGINT, SIGTERM, SIGUSR1: 1 where it has arrived.
    arrived: Cell<[f32; 3]>,
}

/// What signals ask for. With several processes those at any of them count: all have to do the same at the same step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StopRequest {
    /// The exit code of a signal to end; SIGTERM's where both came.
    pub end: Option<i32>,
    /// A checkpoint.
    pub checkpoint: bool,
}

impl StopRequest {
    /// From how many processes got SIGINT, SIGTERM and SIGUSR1; nothing from nothing.
    pub fn of(counts: &[f64]) -> Self {
        let [int, term, checkpoint] = [0, 1, 2].map(|index| counts.get(index).is_some_and(|&count| count > 0.0));
        Self { end: term.then_some(143).or(int.then_some(130)), checkpoint }
    }

    /// Those of this process alone.
    pub fn here(signals: &Signals) -> Self {
        Self { end: signals.exit_code(), checkpoint: signals.checkpoint_asked() }
    }
}

impl Ranks {
    /// For the parameters that are trained.
    /// # Errors
    /// What libtorch says.
    pub fn new(group: &Arc<ProcessGroup>, online: &Params) -> Result<Self> {
        let weights: Vec<&Tensor> = online.parameters.iter().map(|p| &p.tensor).collect();
        Ok(Self { group: group.clone(), reducer: Reducer::new(group, &weights)?, arrived: Cell::default() })
    }

    /// Tells the others, with the next step's output, what has arrived here.
    pub fn tell(&self, signals: &Signals) {
        let asked = StopRequest::here(signals);
        let flags = [asked.end == Some(130), asked.end == Some(143), asked.checkpoint];
        self.arrived.set(flags.map(|flag| f32::from(u8::from(flag))));
    }

    /// The next backward pass averages the gradients over all processes.
    /// # Errors
    /// What libtorch says.
    pub fn prepare(&self) -> Result<()> {
        self.reducer.prepare()
    }

    /// A step's output averaged over all processes, with what they were asked for: one small reduction, which is
    /// waited for on the CPU only.
    /// # Errors
    /// A process is gone, or late.
    pub fn averaged(&self, output: StepOutput) -> Result<StepOutput> {
        let (kind, device) = (output.loss.kind(), output.loss.device());
        // Zeros are made on the device; other numbers wait for it, but signals are rare.
        let arrived = match self.arrived.get() {
            [0.0, 0.0, 0.0] => Tensor::f_zeros([3], (kind, device))?,
            flags => Tensor::from_slice(&flags).f_to_device(device)?.f_to_kind(kind)?,
        };
        let own = [output.loss.reshape([1]), output.z_std.reshape([1]), arrived];
        let sums = Tensor::f_cat(&own, 0)?;
        self.group.all_reduce(&sums)?;
        let mean = |index| sums.get(index) / self.group.world as f64;
        Ok(StepOutput { loss: mean(0), z_std: mean(1), asked: Some(sums.narrow(0, 2, 3)), ..output })
    }
}
