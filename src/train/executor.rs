//! How steps are run: operation by operation, or on a GPU as one recorded graph. A step of a small network is
//! thousands of launches, which take the host longer than the GPU needs to compute; a graph is one.

use anyhow::{Result, bail};
use tch::{Cuda, Device, Tensor};

use super::{CudaGraph, Feed};
use crate::byol::{Byol, StepOutput};
use crate::data::loader::Batch;
use native::graph::{self, Graph};
use native::{caught, foreach, stream};

/// Steps before the recording: cuDNN chooses its kernels, libraries make their workspaces.
const WARM_UP: u32 = 3;

/// Replays that are compared with the same step run operation by operation. The second one has other images: it
/// finds out a graph that does not read its input.
const COMPARED: u32 = 2;

/// Most relative difference of loss and momentum between the two. Both run the same kernels; atomic additions come in
/// another order.
const MAX_DIFFERENCE: f64 = 0.05;

/// Runs the steps of a run, which all have the same shapes.
pub struct Executor {
    mode: Mode,
    /// `train.cuda_graph` is `on`: without a graph there is no run.
    demanded: bool,
}

enum Mode {
    /// Operation by operation.
    Eager,
    /// The same; after so many steps a graph.
    WarmUp(u32),
    /// Replays; so many still to be compared.
    Graph(Box<Recorded>, u32),
}

/// A recorded step and the tensors that it reads and writes.
struct Recorded {
    graph: Graph,
    /// Bytes of each micro-batch's views.
    places: Vec<Tensor>,
    output: StepOutput,
    /// Train-mode forward passes of a step, online and target.
    tracked: [i64; 2],
}

impl Executor {
    /// As `train.cuda_graph` says for steps on `device`. `obstacle` is what in the config keeps a step from being
    /// recorded. A GPU's work goes to a stream of its own from here on.
    /// # Errors
    /// `on`, but there is an obstacle, no GPU, or this build cannot record.
    pub fn new(choice: CudaGraph, device: Device, obstacle: Option<&str>) -> Result<Self> {
        let demanded = choice == CudaGraph::On;
        let Device::Cuda(index) = device else {
            if demanded {
                bail!("train.cuda_graph: found on, expected auto or off on the CPU");
            }
            return Ok(Self { mode: Mode::Eager, demanded });
        };
        stream::own_stream(index)?;
        let possible = obstacle.map_or_else(graph::available, |obstacle| bail!("{obstacle}"));
        let mode = match (choice, possible) {
            (CudaGraph::Off, _) => Mode::Eager,
            (_, Ok(())) => Mode::WarmUp(WARM_UP),
            (CudaGraph::On, Err(why)) => return Err(why.context("train.cuda_graph: found on, but it cannot be")),
            (CudaGraph::Auto, Err(why)) => {
                log::info!("no CUDA graph: {why:#}");
                Mode::Eager
            }
        };
        Ok(Self { mode, demanded })
    }

    /// Whether steps are replayed by now.
    pub fn replays(&self) -> bool {
        matches!(self.mode, Mode::Graph(..))
    }

    /// From here on operation by operation.
    pub fn stop_replaying(&mut self) {
        self.mode = Mode::Eager;
    }

    /// [`Byol::step`] on batches of the loader. What it gives is overwritten by the next step.
    /// # Errors
    /// What libtorch says; a graph that is demanded and cannot be had.
    pub fn step(
        &mut self,
        byol: &mut Byol,
        feed: &mut Feed,
        batches: &[&Batch],
        rates: (f64, f64, u64),
    ) -> Result<StepOutput> {
        if let Mode::WarmUp(0) = self.mode {
            match Recorded::new(byol, feed, batches) {
                Ok(recorded) => self.mode = Mode::Graph(Box::new(recorded), COMPARED),
                Err(why) => self.give_up(&format!("a step cannot be recorded ({why:#})"))?,
            }
        }
        match &mut self.mode {
            Mode::Eager => {}
            Mode::WarmUp(left) => *left -= 1,
            Mode::Graph(recorded, 0) => return recorded.replay(byol, feed, batches, rates),
            Mode::Graph(recorded, left) => {
                *left -= 1;
                match recorded.try_compared(byol, feed, batches, rates) {
                    Ok((output, Some(apart))) if apart.is_nan() || apart > MAX_DIFFERENCE => {
                        self.give_up(&format!("the recorded step differs from the plain one by {apart:.1e}"))?;
                        return Ok(output);
                    }
                    Ok((output, _)) => return Ok(output),
                    Err(why) => self.give_up(&format!("a recorded step cannot be compared ({why:#})"))?,
                }
            }
        }
        eager(byol, feed, batches, rates)
    }

    fn give_up(&mut self, why: &str) -> Result<()> {
        if self.demanded {
            bail!("train.cuda_graph: {why}; set it to off");
        }
        log::warn!("no CUDA graph, steps will be slower: {why}");
        self.mode = Mode::Eager;
        Ok(())
    }
}

fn eager(byol: &mut Byol, feed: &mut Feed, batches: &[&Batch], (lr, tau, step): (f64, f64, u64)) -> Result<StepOutput> {
    byol.step(batches.iter().map(|batch| feed.views(batch)), lr, tau, step)
}

impl Recorded {
    /// Records a step on such batches. Nothing is computed.
    fn new(byol: &mut Byol, feed: &mut Feed, batches: &[&Batch]) -> Result<Self> {
        let places = batches.iter().map(|batch| feed.place(batch.indices.len())).collect::<Result<Vec<_>>>()?;
        if let Device::Cuda(index) = byol.device {
            Cuda::synchronize(index as i64);
        }
        let before = tracked(byol);
        let result = Graph::record(|| byol.run(places.iter().map(|place| feed.normalized(place))));
        let after = tracked(byol);
        track(byol, before); // recording was no forward pass
        let (graph, output) = result?;
        Ok(Self { graph, places, output, tracked: [after[0] - before[0], after[1] - before[1]] })
    }

    fn replay(
        &self,
        byol: &mut Byol,
        feed: &mut Feed,
        batches: &[&Batch],
        (lr, tau, step): (f64, f64, u64),
    ) -> Result<StepOutput> {
        for (batch, place) in batches.iter().zip(&self.places) {
            feed.copy(batch, place)?;
        }
        byol.set_rates(lr, tau, step)?;
        self.graph.replay()?;
        let before = tracked(byol);
        track(byol, [before[0] + self.tracked[0], before[1] + self.tracked[1]]);
        Ok(self.output.handles())
    }

    /// [`Self::compare`]; where that fails, the state is what it was before.
    fn try_compared(
        &self,
        byol: &mut Byol,
        feed: &mut Feed,
        batches: &[&Batch],
        rates: (f64, f64, u64),
    ) -> Result<(StepOutput, Option<f64>)> {
        let start = caught(|| Ok(State::of(byol)))?;
        let compared = caught(|| self.compare(&start, byol, feed, batches, rates));
        if compared.is_err() {
            start.restore(byol)?;
        }
        compared
    }

    /// The same step twice from the same state, replayed and operation by operation; the latter counts. Gives the larger of
    /// the differences of loss and momentum, relative; none where the plain step itself is not finite.
    fn compare(
        &self,
        start: &State,
        byol: &mut Byol,
        feed: &mut Feed,
        batches: &[&Batch],
        rates: (f64, f64, u64),
    ) -> Result<(StepOutput, Option<f64>)> {
        let output = self.replay(byol, feed, batches, rates)?;
        let (replayed_loss, replayed) = (output.loss.double_value(&[]), copies(&momenta(byol)));
        start.restore(byol)?;
        // The graph goes on writing into its own gradients.
        let gradients = byol.optimizer.take_gradients()?;
        let output = eager(byol, feed, batches, rates)?;
        byol.optimizer.restore_gradients(&gradients)?;
        let loss = output.loss.double_value(&[]);
        let apart = relative((loss - replayed_loss).abs(), loss.abs()).max(distance(&momenta(byol), &replayed)?);
        let sound = loss.is_finite() && distance(&momenta(byol), &momenta(byol))? == 0.0;
        Ok((output, sound.then_some(apart)))
    }
}

/// A copy of everything that a step changes.
struct State {
    values: Vec<Tensor>,
    tracked: [i64; 2],
}

impl State {
    fn of(byol: &Byol) -> Self {
        Self { values: copies(&state(byol)), tracked: tracked(byol) }
    }

    fn restore(&self, byol: &Byol) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for (tensor, value) in state(byol).iter_mut().zip(&self.values) {
            tensor.f_copy_(value)?;
        }
        track(byol, self.tracked);
        Ok(())
    }
}

/// Handles of it.
fn state(byol: &Byol) -> Vec<Tensor> {
    let networks = [&byol.online.params, &byol.target.params];
    let tensors = networks.into_iter().flat_map(|params| params.parameters.iter().chain(&params.buffers));
    tensors.map(|named| named.tensor.shallow_clone()).chain(momenta(byol)).collect()
}

fn momenta(byol: &Byol) -> Vec<Tensor> {
    byol.optimizer.state().into_iter().map(|named| named.tensor).collect()
}

fn tracked(byol: &Byol) -> [i64; 2] {
    [byol.online.batches_tracked.get(), byol.target.batches_tracked.get()]
}

fn track(byol: &Byol, [online, target]: [i64; 2]) {
    byol.online.batches_tracked.set(online);
    byol.target.batches_tracked.set(target);
}

fn copies(tensors: &[Tensor]) -> Vec<Tensor> {
    let _no_grad = tch::no_grad_guard();
    tensors.iter().map(Tensor::copy).collect()
}

/// Euclidean distance of two lists of tensors over the length of the first.
fn distance(a: &[Tensor], b: &[Tensor]) -> Result<f64> {
    let _no_grad = tch::no_grad_guard();
    let apart = foreach::sum(a, b, -1.0)?;
    let length = |tensors: &[Tensor]| Ok::<_, anyhow::Error>(foreach::norms(tensors)?.norm().double_value(&[]));
    Ok(relative(length(&apart)?, length(a)?))
}

fn relative(difference: f64, size: f64) -> f64 {
    if difference == 0.0 { 0.0 } else { difference / size }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::byol::ema::Ema;
    use crate::model::{Arch, ModelConfig, Network, Stem};
    use crate::optim::{Optimizer, OptimizerConfig};

    #[test]
    fn a_graph_is_refused_on_the_cpu_only_where_it_is_demanded() -> Result<()> {
        for choice in [CudaGraph::Auto, CudaGraph::Off] {
            assert!(!Executor::new(choice, Device::Cpu, None)?.replays());
        }
        let error = Executor::new(CudaGraph::On, Device::Cpu, None).map(|_| ()).expect_err("no GPU");
        assert_eq!(error.to_string(), "train.cuda_graph: found on, expected auto or off on the CPU");
        Ok(())
    }

    #[test]
    fn the_distance_is_relative_and_sees_numbers_that_are_none() -> Result<()> {
        let [a, b, bad] = [[3.0f32, 4.0], [3.0, 3.0], [f32::NAN, 0.0]].map(|values| vec![Tensor::from_slice(&values)]);
        assert_eq!((distance(&a, &a)?, distance(&a, &b)?), (0.0, 0.2));
        assert!(distance(&bad, &bad)?.is_nan() && distance(&a, &bad)?.is_nan());
        Ok(())
    }

    #[test]
    fn a_state_brings_back_all_that_a_step_changes() -> Result<()> {
        let config = ModelConfig { arch: Arch::Resnet18, width: 0.25, stem: Stem::Cifar, ..ModelConfig::default() };
        let config = ModelConfig { projector_hidden: 8, projection_dim: 4, predictor_hidden: 8, ..config };
        let online = Network::online(&config, Device::Cpu, 0);
        let target = Network::target_of(&online, &config, Device::Cpu);
        let optimizer = Optimizer::new(&OptimizerConfig::default(), &online.params);
        let ema = Ema::new(Device::Cpu);
        let mut byol = Byol { online, target, optimizer, ema, ranks: None, bf16: false, device: Device::Cpu };
        let step = |byol: &mut Byol| {
            let view =
                |at: f64| (Tensor::arange(4 * 3 * 8 * 8, (Kind::Float, Device::Cpu)) * at).sin().view([4, 3, 8, 8]);
            byol.step([Ok([view(0.3), view(0.7)])].into_iter(), 0.1, 0.5, 0).map(|output| output.loss.double_value(&[]))
        };
        let start = State::of(&byol);
        let loss = step(&mut byol)?;
        assert!(copies(&state(&byol)).iter().zip(&start.values).filter(|(a, b)| !a.equal(b)).count() > 60);
        start.restore(&byol)?;
        assert!(state(&byol).iter().zip(&start.values).all(|(a, b)| a.equal(b)));
        assert_eq!((tracked(&byol), step(&mut byol)?), ([0, 0], loss));
        Ok(())
    }
}
