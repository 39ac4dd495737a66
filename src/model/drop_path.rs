//! The draws of stochastic depth (arXiv 1603.09382; `torchvision.ops.StochasticDepth` with `mode="row"`): which images
//! of a batch skip which residual branches. They are a function of the seed, the step, the view and the image's place
//! in the batch of all processes: a resumed run repeats them, and the number of processes makes no difference.

use std::cell::{Cell, RefCell};

use tch::{Device, Tensor};

use super::graph::{Layer, Op};
use crate::rng::{Purpose, Stream};

/// The draws of one network.
#[derive(Debug)]
pub struct DropPath {
    /// Probability of each branch to be skipped.
    rates: Vec<f64>,
    seed: u64,
    device: Device,
    step: Cell<u64>,
    /// Rank of this process among those that share each batch, and their number.
    rank: Cell<[usize; 2]>,
    /// Forward passes in this step so far.
    passes: Cell<usize>,
    /// Those of each forward pass of a step: 1 for the branches that stay, `[branches, N]`. They keep their memory from
    /// step to step, so that a recorded step reads what [`Self::start`] wrote.
    kept: RefCell<Vec<Tensor>>,
}

impl DropPath {
    /// For these layers; none where nothing is dropped.
    pub(super) fn new(layers: &[Layer], seed: u64, device: Device) -> Option<Self> {
        let rate = |layer: &Layer| if let Op::DropPath { rate, .. } = layer.op { Some(rate) } else { None };
        let count = |layer: &Layer| if let Op::DropPath { index, .. } = layer.op { index + 1 } else { 0 };
        let mut rates = vec![0.0; layers.iter().map(count).max().unwrap_or(0)];
        for layer in layers {
            if let (Op::DropPath { index, .. }, Some(rate)) = (layer.op, rate(layer)) {
                rates[index] = rate;
            }
        }
        let (step, rank, passes, kept) = (Cell::new(0), Cell::new([0, 1]), Cell::new(0), RefCell::default());
        let some = rates.iter().any(|&rate| rate > 0.0);
        some.then_some(Self { rates, seed, device, step, rank, passes, kept })
    }

    /// From now on the batch is shared by `world` processes.
    pub fn share(&self, rank: usize, world: usize) {
        self.rank.set([rank, world]);
    }

    /// Draws for a step.
    pub fn start(&self, step: u64) {
        self.step.set(step);
        let _no_grad = tch::no_grad_guard();
        for (pass, kept) in self.kept.borrow().iter().enumerate() {
            kept.shallow_clone().copy_(&self.drawn(pass, kept.size()[1] as usize));
        }
    }

    /// The next forward pass is a step's first.
    pub fn rewind(&self) {
        self.passes.set(0);
    }

    /// Draws for the next forward pass, on `images`: `[branches, images]`.
    pub(super) fn next(&self, images: i64) -> Tensor {
        let pass = self.passes.replace(self.passes.get() + 1);
        let mut kept = self.kept.borrow_mut();
        if kept.get(pass).is_none_or(|kept| kept.size()[1] != images) {
            let _no_grad = tch::no_grad_guard();
            kept.truncate(pass);
            kept.push(self.drawn(pass, images as usize).to_device(self.device));
        }
        kept[pass].shallow_clone()
    }

    /// The two views of a micro-batch are two passes. Each image draws for all branches from its own stream.
    fn drawn(&self, pass: usize, images: usize) -> Tensor {
        let ([rank, world], branches) = (self.rank.get(), self.rates.len());
        let mut values = vec![0f32; branches * images];
        for image in 0..images {
            let place = (pass / 2 * world + rank) * images + image;
            let mut stream =
                Stream::new(self.seed, Purpose::DropPath, self.step.get(), place as u64, (pass % 2) as u64);
            for (branch, &rate) in self.rates.iter().enumerate() {
                values[branch * images + image] = f32::from(u8::from(!stream.chance(rate)));
            }
        }
        Tensor::from_slice(&values).reshape([branches as i64, images as i64])
    }
}

/// `x` with the images that are not kept set to 0, the others scaled up to the same mean. `kept` is `[N]`.
pub(super) fn drop_path(x: &Tensor, kept: &Tensor, rate: f64) -> Tensor {
    let mut shape = vec![1; x.dim()];
    shape[0] = -1;
    x * (kept.to_kind(x.kind()) / (1.0 - rate)).reshape(shape)
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::super::{Arch, EncoderConfig};
    use super::*;

    fn draws(seed: u64) -> DropPath {
        let config = EncoderConfig { arch: Arch::ConvnextTiny, patch_size: 4, drop_path: 0.5, ..Default::default() };
        DropPath::new(&config.layers(), seed, Device::Cpu).expect("some rate is above 0")
    }

    #[test]
    fn rates_grow_with_depth_and_are_kept_on_average() {
        let draws = draws(0);
        assert_eq!((draws.rates.len(), draws.rates[0], draws.rates[17]), (18, 0.0, 0.5));
        let kept = Vec::<f64>::try_from(draws.next(4000).mean_dim(1, false, Kind::Double)).expect("numbers");
        for (rate, kept) in draws.rates.iter().zip(kept) {
            assert!((1.0 - rate - kept).abs() < 5.0 * (0.25f64 / 4000.0).sqrt(), "{rate} {kept}");
        }
        let none = EncoderConfig { arch: Arch::ConvnextTiny, patch_size: 4, ..Default::default() };
        assert!(DropPath::new(&none.layers(), 0, Device::Cpu).is_none());
    }

    #[test]
    fn draws_repeat_with_the_step_and_differ_in_all_else() {
        let (one, other) = (draws(3), draws(3));
        let step = |draws: &DropPath, step| {
            draws.start(step);
            draws.rewind();
            Tensor::cat(&[draws.next(64), draws.next(64)], 1)
        };
        let (first, second) = (step(&one, 7).copy(), step(&one, 8).copy());
        assert!(!first.equal(&second) && step(&one, 7).equal(&first) && step(&other, 7).equal(&first));
        assert!(!first.narrow(1, 0, 64).equal(&first.narrow(1, 64, 64)), "two views");
        assert!(!step(&draws(4), 7).equal(&first), "seeds");
    }

    /// Two processes draw together what one draws: each for its part of each micro-batch.
    #[test]
    fn processes_draw_for_their_own_images() {
        let whole = draws(1);
        let all: Vec<Tensor> = (0..4).map(|_| whole.next(8)).collect();
        let parts: Vec<Vec<Tensor>> = (0..2)
            .map(|rank| {
                let part = draws(1);
                part.share(rank, 2);
                (0..4).map(|_| part.next(4)).collect()
            })
            .collect();
        for pass in 0..4 {
            assert!(Tensor::cat(&[&parts[0][pass], &parts[1][pass]], 1).equal(&all[pass]), "pass {pass}");
        }
    }

    #[test]
    fn what_is_kept_is_scaled_up() {
        let x = Tensor::from_slice(&[1.0f64, 2.0, 3.0, 4.0]).reshape([2, 1, 1, 2]);
        let dropped = drop_path(&x, &Tensor::from_slice(&[0.0f32, 1.0]), 0.2);
        assert_eq!(Vec::<f64>::try_from(dropped.flatten(0, -1)).expect("numbers"), [0.0, 0.0, 3.75, 5.0]);
    }
}
