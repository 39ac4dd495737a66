//! How steps are run: eagerly, or on a GPU as one CUDA graph. A step of a small network is thousands of launches, which
//! take the host longer than the GPU needs to compute; a graph is one launch.

use anyhow::{Result, bail};
use tch::{Cuda, Device, Tensor};

use super::{CudaGraph, Feed};
use crate::byol::{Byol, Rates, StepOutput};
use crate::data::loader::Batch;
use native::graph::{self, Graph};
use native::{caught, foreach, stream};

/// Warmup steps before the capture: cuDNN chooses its kernels, libraries allocate their workspaces.
const WARM_UP: u32 = 3;

/// Maximum relative difference of loss and momentum between a replay and the same step run eagerly. Both run the same
/// kernels; atomic additions come in another order.
const MAX_DIFFERENCE: f64 = 0.05;

/// Runs the steps of a run, which all have the same shapes.
pub struct Executor {
    mode: Mode,
    /// `train.cuda_graph` is `on`: no graph is an error.
    required: bool,
    /// Makes what captures a step.
    capture: fn() -> Box<dyn Capture>,
}

enum Mode {
    /// Eagerly.
    Eager,
    /// Eagerly; a graph is captured after this many steps.
    WarmUp(u32),
    /// By replaying a graph, whose first replay was compared with the eager step.
    Captured(CapturedStep),
    /// The same; a second replay, on other images, was compared, too.
    Trusted(CapturedStep),
}

/// A step as a function of its inputs, which stay at the same place.
type Step<'a> = dyn Fn(&mut Byol) -> Result<StepOutput> + 'a;

/// What captures a step and replays it.
trait Capture {
    /// Captures `step`; its output is where each replay writes.
    fn capture(&mut self, byol: &mut Byol, step: &Step) -> Result<StepOutput>;

    /// Runs what was captured, which is `step`.
    fn replay(&self, byol: &mut Byol, step: &Step) -> Result<()>;
}

/// A CUDA graph, which needs neither networks nor step to be replayed.
#[derive(Default)]
struct OnGpu(Option<Graph>);

impl Capture for OnGpu {
    fn capture(&mut self, byol: &mut Byol, step: &Step) -> Result<StepOutput> {
        if let Device::Cuda(index) = byol.device {
            Cuda::synchronize(index as i64);
        }
        let (graph, output) = Graph::capture(|| step(byol))?;
        self.0 = Some(graph);
        Ok(output)
    }

    fn replay(&self, _: &mut Byol, _: &Step) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), Graph::replay)
    }
}

/// A captured step and the tensors that it reads and writes.
struct CapturedStep {
    captured: Box<dyn Capture>,
    /// Bytes of each micro-batch's views.
    inputs: Vec<Tensor>,
    output: StepOutput,
    /// Train-mode forward passes of a step, online and target.
    tracked: [i64; 2],
}

impl Executor {
    /// For `train.cuda_graph` and steps on `device`. `obstacle` says what in the config prevents capturing. From here
    /// on a GPU's work goes to a stream of its own.
    /// # Errors
    /// `on`, but there is an obstacle, no GPU, or this build cannot capture graphs.
    pub fn new(choice: CudaGraph, device: Device, obstacle: Option<&str>) -> Result<Self> {
        let required = choice == CudaGraph::On;
        let on_gpu = || -> Box<dyn Capture> { Box::new(OnGpu::default()) };
        let Device::Cuda(index) = device else {
            if required {
                bail!("train.cuda_graph: found on, expected auto or off on the CPU");
            }
            return Ok(Self { mode: Mode::Eager, required, capture: on_gpu });
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
        Ok(Self { mode, required, capture: on_gpu })
    }

    /// Whether steps are replayed from a graph.
    pub fn replays(&self) -> bool {
        matches!(self.mode, Mode::Captured(_) | Mode::Trusted(_))
    }

    /// Runs all later steps eagerly.
    pub fn stop_replaying(&mut self) {
        self.mode = Mode::Eager;
    }

    /// [`Byol::step`] on batches of the loader. Its output is overwritten by the next step.
    pub fn step(&mut self, byol: &mut Byol, feed: &mut Feed, batches: &[&Batch], rates: Rates) -> Result<StepOutput> {
        match &mut self.mode {
            Mode::Eager => eager(byol, feed, batches, rates),
            Mode::WarmUp(0) => self.capture(byol, feed, batches, rates),
            Mode::WarmUp(left) => {
                *left -= 1;
                eager(byol, feed, batches, rates)
            }
            Mode::Captured(_) => self.check(byol, feed, batches, rates),
            Mode::Trusted(captured) => captured.replay(byol, feed, batches, rates),
        }
    }

    /// A step eagerly, then, from the same state, captured and replayed. The eager step's memory is free again by then:
    /// a graph has memory of its own.
    fn capture(&mut self, byol: &mut Byol, feed: &mut Feed, batches: &[&Batch], rates: Rates) -> Result<StepOutput> {
        let start = byol.snapshot();
        let output = eager(byol, feed, batches, rates)?;
        let (loss, expected) = (output.loss.double_value(&[]), copies(&momenta(byol)));
        if !loss.is_finite() || !foreach::norms(&expected)?.norm().double_value(&[]).is_finite() {
            return Ok(output); // nothing to compare with: perhaps the next step
        }
        drop(output);
        byol.restore(&start)?;
        byol.optimizer.zero_grad()?;
        let tried = caught(|| {
            let captured = CapturedStep::new((self.capture)(), byol, feed, batches)?;
            let output = captured.replay(byol, feed, batches, rates)?;
            let losses = relative((output.loss.double_value(&[]) - loss).abs(), loss.abs());
            let momenta = distance(&expected, &momenta(byol))?;
            // Not `max`, which ignores NaN.
            Ok((captured, output, if losses <= MAX_DIFFERENCE { momenta } else { losses }))
        });
        match tried {
            Ok((captured, output, apart)) if apart <= MAX_DIFFERENCE => {
                self.mode = Mode::Captured(captured);
                return Ok(output);
            }
            Ok((.., apart)) => self.give_up(&differs(apart))?,
            Err(why) => self.give_up(&format!("a step cannot be captured ({why:#})"))?,
        }
        byol.restore(&start)?;
        eager(byol, feed, batches, rates)
    }

    /// The first replay on other images than those of the capture: a graph that does not read its input ends here. Its
    /// loss is compared with that of a forward pass, which needs little memory beside the graph's.
    fn check(&mut self, byol: &mut Byol, feed: &mut Feed, batches: &[&Batch], rates: Rates) -> Result<StepOutput> {
        let Mode::Captured(captured) = std::mem::replace(&mut self.mode, Mode::Eager) else {
            unreachable!("called in this mode");
        };
        let start = byol.snapshot();
        let tried = caught(|| {
            let loss = byol.loss(batches.iter().map(|batch| feed.views(batch)))?.double_value(&[]);
            byol.restore(&start)?;
            let output = captured.replay(byol, feed, batches, rates)?;
            let replayed = output.loss.double_value(&[]);
            // NaN in both is the run's trouble, not the graph's.
            let apart =
                if loss.is_nan() && replayed.is_nan() { 0.0 } else { relative((loss - replayed).abs(), loss.abs()) };
            Ok((output, apart))
        });
        match tried {
            Ok((output, apart)) if apart <= MAX_DIFFERENCE => {
                self.mode = Mode::Trusted(captured);
                return Ok(output);
            }
            Ok((_, apart)) => self.give_up(&differs(apart))?,
            Err(why) => self.give_up(&format!("a captured step cannot be compared ({why:#})"))?,
        }
        byol.restore(&start)?;
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

fn differs(apart: f64) -> String {
    format!("the captured step differs from the eager one by {apart:.1e}")
}

fn eager(byol: &mut Byol, feed: &mut Feed, batches: &[&Batch], rates: Rates) -> Result<StepOutput> {
    byol.step(batches.iter().map(|batch| feed.views(batch)), rates)
}

impl CapturedStep {
    /// Captures a step on such batches, without running it.
    fn new(mut captured: Box<dyn Capture>, byol: &mut Byol, feed: &mut Feed, batches: &[&Batch]) -> Result<Self> {
        let inputs = batches.iter().map(|batch| feed.input(batch.indices.len())).collect::<Result<Vec<_>>>()?;
        let before = byol.batches_tracked();
        let output = captured.capture(byol, &|byol| run(byol, feed, &inputs));
        let after = byol.batches_tracked();
        byol.set_batches_tracked(before); // capturing ran no forward pass
        Ok(Self { captured, inputs, output: output?, tracked: [after[0] - before[0], after[1] - before[1]] })
    }

    fn replay(&self, byol: &mut Byol, feed: &mut Feed, batches: &[&Batch], rates: Rates) -> Result<StepOutput> {
        for (batch, input) in batches.iter().zip(&self.inputs) {
            feed.copy(batch, input)?;
        }
        byol.set_rates(rates)?;
        let before = byol.batches_tracked();
        self.captured.replay(byol, &|byol| run(byol, feed, &self.inputs))?;
        byol.set_batches_tracked([before[0] + self.tracked[0], before[1] + self.tracked[1]]);
        Ok(self.output.handles())
    }
}

/// A step on inputs that are on the device.
fn run(byol: &mut Byol, feed: &Feed, inputs: &[Tensor]) -> Result<StepOutput> {
    byol.run(inputs.iter().map(|input| feed.normalized(input)))
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
    use std::cell::Cell;

    use native::ImageLayout;

    use super::*;
    use crate::augment::AugmentConfig;

    #[test]
    fn a_graph_is_refused_on_the_cpu_only_where_it_is_required() -> Result<()> {
        for choice in [CudaGraph::Auto, CudaGraph::Off] {
            assert!(!Executor::new(choice, Device::Cpu, None)?.replays());
        }
        let error = Executor::new(CudaGraph::On, Device::Cpu, None).map(|_| ()).expect_err("no GPU");
        assert_eq!(error.to_string(), "train.cuda_graph: found on, expected auto or off on the CPU");
        Ok(())
    }

    const SIZE: usize = 8;

    /// Captures by running the step and undoing it; a replay runs it again, into the outputs of the capture.
    struct Again {
        output: Option<StepOutput>,
        /// The loss that a replay reports, of (replays so far, the loss before, the loss now).
        reported: fn(usize, f64, f64) -> f64,
        replays: Cell<usize>,
    }

    impl Again {
        fn reporting(reported: fn(usize, f64, f64) -> f64) -> Box<dyn Capture> {
            Box::new(Self { output: None, reported, replays: Cell::new(0) })
        }
    }

    impl Capture for Again {
        fn capture(&mut self, byol: &mut Byol, step: &Step) -> Result<StepOutput> {
            let start = byol.snapshot();
            let output = step(byol)?;
            let tracked = byol.batches_tracked();
            byol.restore(&start)?;
            byol.set_batches_tracked(tracked); // the host's count moves in a capture, too
            Ok(self.output.insert(output).handles())
        }

        fn replay(&self, byol: &mut Byol, step: &Step) -> Result<()> {
            let (kept, now) = (self.output.as_ref().expect("captured"), step(byol)?);
            let loss = (self.reported)(self.replays.get(), kept.loss.double_value(&[]), now.loss.double_value(&[]));
            self.replays.set(self.replays.get() + 1);
            for (kept, now) in [(&kept.z_std, now.z_std), (&kept.grad_norm, now.grad_norm)] {
                kept.shallow_clone().f_copy_(&now)?;
            }
            let _ = kept.loss.shallow_clone().f_fill_(loss)?;
            Ok(())
        }
    }

    struct OutOfMemory;

    impl Capture for OutOfMemory {
        fn capture(&mut self, byol: &mut Byol, step: &Step) -> Result<StepOutput> {
            step(byol)?; // as far as it came
            bail!("CUDA out of memory")
        }

        fn replay(&self, _: &mut Byol, _: &Step) -> Result<()> {
            unreachable!("nothing was captured")
        }
    }

    fn batch(step: usize) -> Batch {
        let byte = |at: usize, view: usize| ((at * (step * step + 3) / 7 + at % (11 + step)) * (view + 1)) as u8;
        let view = |view| (0..4 * SIZE * SIZE * 3).map(|at| byte(at, view)).collect();
        Batch { views: [view(0), view(1)], labels: vec![-1; 4], indices: vec![0; 4], ..Batch::default() }
    }

    /// Seven steps of two micro-batches: what each reported, the weights and all else at the end, the mode by then.
    fn seven_steps(mode: Mode, required: bool, capture: fn() -> Box<dyn Capture>) -> Result<(Vec<f64>, Byol, Mode)> {
        let augment = AugmentConfig { size: SIZE.into(), ..AugmentConfig::default() };
        let mut feed = Feed::new(&augment, Device::Cpu, ImageLayout::default())?;
        let mut executor = Executor { mode, required, capture };
        let mut byol = Byol::tiny();
        let mut losses = Vec::new();
        for step in 0..7 {
            let batches = [batch(2 * step), batch(2 * step + 1)];
            let rates = Rates { lr: 0.1, tau: 0.9, step: step as u64 };
            let output = executor.step(&mut byol, &mut feed, &[&batches[0], &batches[1]], rates)?;
            losses.push(output.loss.double_value(&[]));
        }
        Ok((losses, byol, executor.mode))
    }

    fn assert_same_as_eager((losses, byol, _): &(Vec<f64>, Byol, Mode)) -> Result<()> {
        let (expected, eager, _) = seven_steps(Mode::Eager, false, || unreachable!("eager"))?;
        assert!(expected.windows(2).any(|pair| relative((pair[0] - pair[1]).abs(), pair[0]) > MAX_DIFFERENCE));
        assert_eq!(*losses, expected);
        assert_eq!(byol.batches_tracked(), eager.batches_tracked());
        for (ours, theirs) in byol.tensors().iter().zip(eager.tensors()) {
            assert!(ours.tensor.equal(&theirs.tensor), "{}", ours.name);
        }
        Ok(())
    }

    #[test]
    fn captured_steps_are_the_eager_ones() -> Result<()> {
        let done = seven_steps(Mode::WarmUp(3), true, || Again::reporting(|_, _, now| now))?;
        assert!(matches!(done.2, Mode::Trusted(_)));
        assert_same_as_eager(&done)
    }

    #[test]
    fn a_capture_that_fails_or_differs_is_given_up_and_nothing_is_lost() -> Result<()> {
        let wrong: fn() -> Box<dyn Capture> = || Again::reporting(|_, _, now| now * 1.1);
        let not_a_number: fn() -> Box<dyn Capture> = || Again::reporting(|_, _, _| f64::NAN);
        let deaf: fn() -> Box<dyn Capture> =
            || Again::reporting(|replays, before, now| if replays == 0 { now } else { before * 1.2 });
        let full: fn() -> Box<dyn Capture> = || Box::new(OutOfMemory);
        for (capture, message) in [
            (wrong, "the captured step differs from the eager one by 1.0e-1"),
            (not_a_number, "the captured step differs from the eager one by NaN"),
            (deaf, "the captured step differs from the eager one by "),
            (full, "a step cannot be captured (CUDA out of memory)"),
        ] {
            let done = seven_steps(Mode::WarmUp(3), false, capture)?;
            assert!(matches!(done.2, Mode::Eager), "{message}");
            assert_same_as_eager(&done)?;
            let error = seven_steps(Mode::WarmUp(3), true, capture).map(|_| ()).expect_err(message).to_string();
            assert!(error.starts_with(&format!("train.cuda_graph: {message}")), "{error}");
            assert!(error.ends_with("; set it to off"), "{error}");
        }
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
