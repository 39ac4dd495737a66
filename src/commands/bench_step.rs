//! `byol bench step`: throughput of training steps, and where their time goes.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use crate::augment::Size;
use crate::byol::timing::{self, Part, Times};
use crate::cli::BenchStepArgs;
use crate::config::Config;
use crate::distributed::Group;
use crate::run::machine::Machine;
use crate::run::ranks::{self, Shared};
use crate::run::trial::Trial;
use crate::run::{gpu_peaks, images};
use native::stream;
use tch::Device;

/// Steps before the measured ones: buffers are allocated, kernels chosen, on a GPU a graph is captured and compared.
const WARM_UP: u64 = 8;

/// Steps whose parts are timed, at most.
const TIMED_BY_PART: u64 = 10;

/// The line of JSON on stdout.
#[derive(Serialize)]
struct Report {
    bench: &'static str,
    /// Images per second, two views of each, in all processes; the fields below are rank 0's unless they say otherwise.
    images_per_second: f64,
    batch: usize,
    micro_batches: usize,
    /// Side of a view, pixels, or height and width.
    size: Size,
    steps: usize,
    /// Without a loader.
    synthetic: bool,
    step_ms: Spread,
    /// Of a step, waiting for the loader.
    data_wait_ms: f64,
    /// Of a step, in a second measurement that synchronizes after each part.
    parts_ms: Parts,
    device: String,
    precision: &'static str,
    /// Of libtorch and of the loader.
    threads: [usize; 2],
    /// Resident memory before and after the measured steps, and its peak, megabytes.
    resident_mb: [f64; 2],
    peak_resident_mb: f64,
    /// Peak GPU memory allocated to tensors, and reserved for them, megabytes, by the end of the measured
    /// steps.
    peak_device_mb: Option<f64>,
    reserved_device_mb: Option<f64>,
    /// Steps were replayed as a CUDA graph.
    cuda_graph: bool,
    /// Processes that share each batch.
    processes: usize,
    /// Of a step, waiting for other processes ([`native::ProcessGroup::waited`]); the mean over the processes;
    /// none on a GPU.
    communication_ms: Option<f64>,
    /// The same as a share of the step, 0 to 1.
    communication_share: Option<f64>,
    /// 10^12 FLOP/s in convolutions and linear layers.
    tflops: f64,
    /// The GPU's data sheet value for dense products in this precision, if known.
    peak_tflops: Option<f64>,
    share_of_peak: Option<f64>,
}

#[derive(Serialize)]
struct Spread {
    median: f64,
    p10: f64,
    p90: f64,
}

#[derive(Serialize)]
struct Parts {
    copy: f64,
    normalize: f64,
    online_forward: f64,
    target_forward: f64,
    loss: f64,
    backward: f64,
    optimizer: f64,
    ema: f64,
}

impl Parts {
    /// Per step, from the times of `steps` steps.
    fn of(times: &Times, steps: u64) -> Self {
        let each = |part: Part| times[part as usize].as_secs_f64() * 1e3 / steps as f64;
        Self {
            copy: each(Part::Copy),
            normalize: each(Part::Normalize),
            online_forward: each(Part::OnlineForward),
            target_forward: each(Part::TargetForward),
            loss: each(Part::Loss),
            backward: each(Part::Backward),
            optimizer: each(Part::Optimizer),
            ema: each(Part::Ema),
        }
    }
}

/// Measurements of a series of steps.
struct Measured {
    /// Of each step, sorted.
    seconds: Vec<f64>,
    /// Of all steps, until the device was synchronized.
    total: f64,
    /// Waiting for data.
    waited: f64,
    /// Waiting for other processes.
    communicated: f64,
}

impl Measured {
    fn steps(&self) -> usize {
        self.seconds.len()
    }

    /// Milliseconds of a step.
    fn quantile(&self, q: f64) -> f64 {
        self.seconds[(q * (self.steps() - 1) as f64).round() as usize] * 1e3
    }
}

/// Steps `first` and those after it.
fn measure_steps(trial: &mut Trial, first: u64, steps: u64, group: &Group) -> Result<Measured> {
    let (mut seconds, mut waited) = (Vec::with_capacity(steps as usize), 0.0);
    let communicated = group.waited();
    let (whole, mut started) = (Instant::now(), Instant::now());
    for step in first..first + steps {
        waited += trial.step(step)?;
        seconds.push(started.elapsed().as_secs_f64());
        started = Instant::now();
    }
    trial.wait()?;
    let total = whole.elapsed().as_secs_f64();
    seconds.sort_by(f64::total_cmp);
    Ok(Measured { seconds, total, waited, communicated: (group.waited() - communicated).as_secs_f64() })
}

/// Runs the command.
pub fn run(args: &BenchStepArgs) -> Result<u8> {
    let config = Config::load(&args.source.config, &args.source.set)?;
    let arguments = json!({"command": "bench step", "--steps": args.steps, "--synthetic": args.synthetic});
    let shared = Shared { arguments, advice: "run the command again" };
    ranks::run(&args.ranks, &config, &shared, |machine, group| {
        let report = measure(args, &config, &machine, &group)?;
        if group.is_first() {
            writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?).context("cannot write to stdout")?;
        }
        Ok(0)
    })
}

/// Prepares training steps on the config's images, or with `--synthetic` on noise.
fn trial(args: &BenchStepArgs, config: &mut Config, machine: &Machine, group: &Group) -> Result<Trial> {
    let source_of = |key: &str| Config::place(&args.source.config, &args.source.set, key);
    let dataset = if args.synthetic {
        images::assume_noise(config);
        None
    } else {
        let opened = images::open_train(config, group, true);
        Some(opened.with_context(|| format!("{}: data.path", source_of("data.path")))?)
    };
    Trial::new(config, machine, dataset, group, &source_of)
}

fn measure(args: &BenchStepArgs, config: &Config, machine: &Machine, group: &Group) -> Result<Report> {
    let mut config = config.clone();
    let mut trial = trial(args, &mut config, machine, group)?;
    (0..WARM_UP).try_for_each(|step| trial.step(step).map(drop))?;
    trial.wait()?;
    let cuda_graph = trial.executor.replays();
    let resident = native::resident_bytes();
    let measured = measure_steps(&mut trial, WARM_UP, args.steps.into(), group)?;
    let device_mb = device_mb(machine.device)?;
    let resident_mb = [resident, native::resident_bytes()].map(|bytes| bytes as f64 / 1e6);
    trial.executor.stop_replaying();
    let (first, by_part) = (WARM_UP + u64::from(args.steps), TIMED_BY_PART.min(args.steps.into()));
    let by_parts = || (first..first + by_part).try_for_each(|step| trial.step(step).map(drop));
    let (result, times) = timing::measure(machine.device, by_parts);
    result?;

    let (steps, processes) = (measured.steps(), group.world());
    let communicated = measured.communicated;
    let sums = group.sum(&[communicated / steps as f64, communicated / measured.total])?;
    // With a GPU the host does not block in collectives.
    let known = machine.device == Device::Cpu;
    let [communication_seconds, communication_share] = [0, 1].map(|at| known.then(|| sums[at] / processes as f64));
    let images_per_second = (steps * config.train.batch_size) as f64 / measured.total;
    let tflops = trial.byol.online.step_flops(config.augment.size.shape()) * images_per_second / 1e12;
    let peak_tflops = gpu_peaks::tflops(machine.device, machine.bf16, config.train.allow_tf32);
    Ok(Report {
        bench: "step",
        images_per_second,
        batch: config.train.batch_size,
        micro_batches: config.train.accumulation_steps,
        size: config.augment.size,
        steps,
        synthetic: args.synthetic,
        step_ms: Spread { median: measured.quantile(0.5), p10: measured.quantile(0.1), p90: measured.quantile(0.9) },
        data_wait_ms: measured.waited * 1e3 / steps as f64,
        parts_ms: Parts::of(&times, by_part),
        device: native::describe_device(machine.device),
        precision: machine.precision(),
        threads: [machine.threads, if args.synthetic { 0 } else { machine.loader.workers }],
        resident_mb,
        peak_resident_mb: native::peak_resident_bytes() as f64 / 1e6,
        peak_device_mb: device_mb.map(|[tensors, _]| tensors),
        reserved_device_mb: device_mb.map(|[_, taken]| taken),
        cuda_graph,
        processes,
        communication_ms: communication_seconds.map(|seconds| seconds * 1e3),
        communication_share,
        peak_tflops,
        share_of_peak: peak_tflops.map(|peak| tflops / (peak * processes as f64)),
        tflops,
    })
}

fn device_mb(device: Device) -> Result<Option<[f64; 2]>> {
    let Device::Cuda(index) = device else { return Ok(None) };
    Ok(Some(stream::peak_device_bytes(index)?.map(|bytes| bytes as f64 / 1e6)))
}
