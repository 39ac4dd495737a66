//! Everything that a step changes, as named tensors: for checkpoints, for undoing a step, for other processes.

use anyhow::Result;
use tch::Tensor;

use super::Byol;
use crate::model::{Named, Network};

/// Copies of some of [`Byol`]'s tensors, to restore.
pub struct Snapshot {
    tensors: Vec<Tensor>,
    values: Vec<Tensor>,
    batches_tracked: [i64; 2],
}

impl Byol {
    /// Both networks and the prefix of their tensors' names.
    pub fn networks(&self) -> [(&'static str, &Network); 2] {
        [("online", &self.online), ("target", &self.target)]
    }

    /// Some tensors of both networks under names such as `online.encoder.conv1.weight`.
    fn named<'a, I: IntoIterator<Item = &'a Named>>(&'a self, of: impl Fn(&'a Network) -> I) -> Vec<Named> {
        let named = |(prefix, network): (&str, &'a Network)| -> Vec<Named> {
            let handle = |n: &Named| Named { name: format!("{prefix}.{}", n.name), tensor: n.tensor.shallow_clone() };
            of(network).into_iter().map(handle).collect()
        };
        self.networks().into_iter().flat_map(named).collect()
    }

    /// Weights and biases of both networks.
    pub fn parameters(&self) -> Vec<Named> {
        self.named(|network| &network.params.parameters)
    }

    /// BatchNorm's running statistics in both networks.
    pub fn buffers(&self) -> Vec<Named> {
        self.named(|network| &network.params.buffers)
    }

    /// Parameters and buffers of both networks.
    pub fn model_tensors(&self) -> Vec<Named> {
        self.named(|network| network.params.parameters.iter().chain(&network.params.buffers))
    }

    /// All that a step changes on the device: [`Self::model_tensors`] and the optimizer's state.
    pub fn tensors(&self) -> Vec<Named> {
        self.model_tensors().into_iter().chain(self.optimizer.state()).collect()
    }

    /// Both networks as PyTorch's `state_dict` has them, `num_batches_tracked` included.
    pub fn state_dict(&self) -> Vec<Named> {
        let named = |(prefix, network): (&str, &Network)| {
            let named = network.params.state_dict(network.batches_tracked.get()).into_iter();
            named.map(|n| Named { name: format!("{prefix}.{}", n.name), tensor: n.tensor }).collect::<Vec<_>>()
        };
        self.networks().into_iter().flat_map(named).collect()
    }

    /// Forward passes in train mode so far, online and target.
    pub fn batches_tracked(&self) -> [i64; 2] {
        self.networks().map(|(_, network)| network.batches_tracked.get())
    }

    /// Sets these counts.
    pub fn set_batches_tracked(&self, counts: [i64; 2]) {
        self.networks().iter().zip(counts).for_each(|((_, network), count)| network.batches_tracked.set(count));
    }

    /// A copy of all that a step changes.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot_of(self.tensors())
    }

    /// A copy of what a forward pass changes.
    pub fn snapshot_buffers(&self) -> Snapshot {
        self.snapshot_of(self.buffers())
    }

    fn snapshot_of(&self, named: Vec<Named>) -> Snapshot {
        let _no_grad = tch::no_grad_guard();
        let tensors: Vec<Tensor> = named.into_iter().map(|named| named.tensor).collect();
        let values = tensors.iter().map(Tensor::copy).collect();
        Snapshot { tensors, values, batches_tracked: self.batches_tracked() }
    }

    /// Restores a snapshot of this object.
    pub fn restore(&self, snapshot: &Snapshot) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for (tensor, value) in snapshot.tensors.iter().zip(&snapshot.values) {
            tensor.shallow_clone().f_copy_(value)?;
        }
        self.set_batches_tracked(snapshot.batches_tracked);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::super::Rates;
    use super::*;

    #[test]
    fn a_snapshot_restores_all_that_a_step_changes() -> Result<()> {
        let mut byol = Byol::tiny();
        let step = |byol: &mut Byol| {
            let view =
                |at: f64| (Tensor::arange(4 * 3 * 8 * 8, (Kind::Float, Device::Cpu)) * at).sin().view([4, 3, 8, 8]);
            let output = byol.step([Ok([view(0.3), view(0.7)])].into_iter(), Rates { lr: 0.1, tau: 0.5, step: 0 });
            output.map(|output| output.loss.double_value(&[]))
        };
        let start = byol.snapshot();
        let loss = step(&mut byol)?;
        let changed = byol.tensors().iter().zip(&start.values).filter(|(now, then)| !now.tensor.equal(then)).count();
        assert!(changed > 60, "{changed}");
        byol.restore(&start)?;
        assert!(byol.tensors().iter().zip(&start.values).all(|(now, then)| now.tensor.equal(then)));
        assert_eq!((byol.batches_tracked(), step(&mut byol)?), ([0, 0], loss));
        Ok(())
    }
}
