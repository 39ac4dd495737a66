//! How steps are run: eagerly, or on a GPU as one CUDA graph. A step of a small network is thousands of launches, which
//! take the host longer than the GPU needs to compute; a graph is one launch.

use anyhow::{Result, bail};
use tch::{Cuda, Device, Tensor};

use super::{CudaGraph, Feed};
use crate::byol::{Byol, Rates, Snapshot, StepOutput};
use crate::data::loader::Batch;
use native::graph::{self, Graph};
use native::{caught, foreach, stream};

/// Warmup steps before the capture: cuDNN chooses its kernels, libraries allocate their workspaces.
const WARM_UP: u32 = 3;

/// Replays that are compared with the same step run eagerly. The second one has other images: it
/// detects a graph that does not read its input.
const COMPARED: u32 = 2;

/// Maximum relative difference of loss and momentum between the two. Both run the same kernels; atomic additions come
/// in another order.
const MAX_DIFFERENCE: f64 = 0.05;

/// Runs the steps of a run, which all have the same shapes.
pub struct Executor {
    mode: Mode,
    /// `train.cuda_graph` is `on`: no graph is an error.
    required: bool,
}

enum Mode {
    /// Eagerly.
    Eager,
    /// Eagerly; a graph is captured after this many steps.
    WarmUp(u32),
    /// By replaying a graph; this many replays are still to be compared.
    Graph(Box<Recorded>, u32),
}

/// A captured step and the tensors that it reads and writes.
struct Recorded {
    graph: Graph,
    /// Bytes of each micro-batch's views.
    inputs: Vec<Tensor>,
    output: StepOutput,
    /// Train-mode forward passes of a step, online and target.
    tracked: [i64; 2],
}

impl Executor {
    /// For `train.cuda_graph` and steps on `device`. `obstacle` says what in the config prevents recording. From here
    /// on a GPU's work goes to a stream of its own.
    /// # Errors
    /// `on`, but there is an obstacle, no GPU, or this build cannot capture graphs.
    pub fn new(choice: CudaGraph, device: Device, obstacle: Option<&str>) -> Result<Self> {
        let required = choice == CudaGraph::On;
        let Device::Cuda(index) = device else {
            if required {
                bail!("train.cuda_graph: found on, expected auto or off on the CPU");
            }
            return Ok(Self { mode: Mode::Eager, required });
        };
        stream::own_stream(index)?;
        let possible = obstacle.map_or_else(graph::available, |obstacle| bail!("{obstacle}"));
        let mode = match (choice, possible) {
            (CudaGraph::Off, _) => Mode::Eager,
            (_, Ok(())) => Mode::WarmUp(WARM_UP),
            (CudaGraph::On, Err(why)) => {
                return Err(why.context("train.cuda_graph: found on, but a step cannot be captured"));
            }
            (CudaGraph::Auto, Err(why)) => {
                log::info!("no CUDA graph: {why:#}");
                Mode::Eager
            }
        };
        Ok(Self { mode, required })
    }

    /// Whether steps are replayed from a graph.
    pub fn replays(&self) -> bool {
        matches!(self.mode, Mode::Graph(..))
    }

    /// Runs all later steps eagerly.
    pub fn stop_replaying(&mut self) {
        self.mode = Mode::Eager;
    }

    /// [`Byol::step`] on batches of the loader. Its output is overwritten by the next step.
    pub fn step(&mut self, byol: &mut Byol, feed: &mut Feed, batches: &[&Batch], rates: Rates) -> Result<StepOutput> {
        if let Mode::WarmUp(0) = self.mode {
            match Recorded::new(byol, feed, batches) {
                Ok(recorded) => self.mode = Mode::Graph(Box::new(recorded), COMPARED),
                Err(why) => self.give_up(&format!("a step cannot be captured ({why:#})"))?,
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
                        self.give_up(&format!("the captured step differs from the eager one by {apart:.1e}"))?;
                        return Ok(output);
                    }
                    Ok((output, _)) => return Ok(output),
                    Err(why) => self.give_up(&format!("a captured step cannot be compared ({why:#})"))?,
                }
            }
        }
        eager(byol, feed, batches, rates)
    }

    fn give_up(&mut self, why: &str) -> Result<()> {
        if self.required {
            bail!("train.cuda_graph: {why}; set it to off");
        }
        log::warn!("no CUDA graph, steps will be slower: {why}");
        self.mode = Mode::Eager;
        Ok(())
    }
}

fn eager(byol: &mut Byol, feed: &mut Feed, batches: &[&Batch], rates: Rates) -> Result<StepOutput> {
    byol.step(batches.iter().map(|batch| feed.views(batch)), rates)
}

impl Recorded {
    /// Captures a step on such batches, without running it.
    fn new(byol: &mut Byol, feed: &mut Feed, batches: &[&Batch]) -> Result<Self> {
        let inputs = batches.iter().map(|batch| feed.input(batch.indices.len())).collect::<Result<Vec<_>>>()?;
        if let Device::Cuda(index) = byol.device {
            Cuda::synchronize(index as i64);
        }
        let before = byol.batches_tracked();
        let result = Graph::record(|| byol.run(inputs.iter().map(|input| feed.normalized(input))));
        let after = byol.batches_tracked();
        byol.set_batches_tracked(before); // capturing ran no forward pass
        let (graph, output) = result?;
        Ok(Self { graph, inputs, output, tracked: [after[0] - before[0], after[1] - before[1]] })
    }

    fn replay(&self, byol: &mut Byol, feed: &mut Feed, batches: &[&Batch], rates: Rates) -> Result<StepOutput> {
        for (batch, input) in batches.iter().zip(&self.inputs) {
            feed.copy(batch, input)?;
        }
        byol.set_rates(rates)?;
        self.graph.replay()?;
        let before = byol.batches_tracked();
        byol.set_batches_tracked([before[0] + self.tracked[0], before[1] + self.tracked[1]]);
        Ok(self.output.handles())
    }

    /// [`Self::compare`]; if that fails, the state is restored.
    fn try_compared(
        &self,
        byol: &mut Byol,
        feed: &mut Feed,
        batches: &[&Batch],
        rates: Rates,
    ) -> Result<(StepOutput, Option<f64>)> {
        let start = caught(|| Ok(byol.snapshot()))?;
        let compared = caught(|| self.compare(&start, byol, feed, batches, rates));
        if compared.is_err() {
            byol.restore(&start)?;
        }
        compared
    }

    /// The same step twice from the same state, replayed and eagerly; the result of the latter is kept. Also returns
    /// the larger of the relative differences of loss and momentum, `None` if the loss or the momentum is NaN or
    /// Inf.
    fn compare(
        &self,
        start: &Snapshot,
        byol: &mut Byol,
        feed: &mut Feed,
        batches: &[&Batch],
        rates: Rates,
    ) -> Result<(StepOutput, Option<f64>)> {
        let output = self.replay(byol, feed, batches, rates)?;
        let (replayed_loss, replayed) = (output.loss.double_value(&[]), copies(&momenta(byol)));
        byol.restore(start)?;
        // The graph keeps writing into its own gradients.
        let gradients = byol.optimizer.take_gradients()?;
        let output = eager(byol, feed, batches, rates)?;
        byol.optimizer.restore_gradients(&gradients)?;
        let loss = output.loss.double_value(&[]);
        let apart = relative((loss - replayed_loss).abs(), loss.abs()).max(distance(&momenta(byol), &replayed)?);
        let sound = loss.is_finite() && distance(&momenta(byol), &momenta(byol))? == 0.0;
        Ok((output, sound.then_some(apart)))
    }
}

fn momenta(byol: &Byol) -> Vec<Tensor> {
    byol.optimizer.state().into_iter().map(|named| named.tensor).collect()
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
    use super::*;

    #[test]
    fn a_graph_is_refused_on_the_cpu_only_where_it_is_required() -> Result<()> {
        for choice in [CudaGraph::Auto, CudaGraph::Off] {
            assert!(!Executor::new(choice, Device::Cpu, None)?.replays());
        }
        let error = Executor::new(CudaGraph::On, Device::Cpu, None).map(|_| ()).expect_err("no GPU");
        assert_eq!(error.to_string(), "train.cuda_graph: found on, expected auto or off on the CPU");
        Ok(())
    }

    #[test]
    fn the_distance_is_relative_and_nan_for_nan() -> Result<()> {
        let [a, b, bad] = [[3.0f32, 4.0], [3.0, 3.0], [f32::NAN, 0.0]].map(|values| vec![Tensor::from_slice(&values)]);
        assert_eq!((distance(&a, &a)?, distance(&a, &b)?), (0.0, 0.2));
        assert!(distance(&bad, &bad)?.is_nan() && distance(&a, &bad)?.is_nan());
        Ok(())
    }
}
