//! What makes steps fast changes nothing: 20 steps with and without each, to the same bits where the arithmetic is the
//! same, within its rounding where it is not.

use crate::support::CPU;
use crate::support::run::Run;
use byol::augment::AugmentConfig;
use byol::byol::{Byol, Rates, Views};
use byol::data::loader::Batch;
use byol::model::{Arch, ModelConfig, Network, Stem};
use byol::optim::{Algorithm, OptimizerConfig};
use byol::train::{CudaGraph, Executor, Feed};
use native::{ImageLayout, Normalizer};
use tch::{Kind, Tensor};

const STEPS: u64 = 20;
const IMAGES: usize = 8;
const SIZE: usize = 16;

fn sgd() -> OptimizerConfig {
    OptimizerConfig { name: Algorithm::Sgd, weight_decay: 5e-4, ..OptimizerConfig::default() }
}

fn byol(bf16: bool, kind: Kind) -> Byol {
    tch::set_num_threads(1);
    let heads = ModelConfig { projector_hidden: 32, projection_dim: 16, predictor_hidden: 32, ..Default::default() };
    let config = ModelConfig { arch: Arch::Resnet18, width: 0.25, stem: Stem::Cifar, ..heads };
    let mut online = Network::online(&config, CPU, 0);
    let mut target = Network::target_of(&online, &config, CPU);
    for params in [&mut online.params, &mut target.params] {
        params.to_kind(kind);
        params.to_channels_last();
    }
    let mut byol = Byol::new(online, target, &sgd());
    byol.bf16 = bf16;
    byol
}

/// Bytes of step `step`.
fn batch(step: u64) -> Batch {
    let bytes = |view: u64| {
        let mut state = step * 2 + view + 1;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        (0..IMAGES * SIZE * SIZE * 3).map(|_| next()).collect::<Vec<u8>>()
    };
    Batch { views: [bytes(0), bytes(1)], indices: vec![0; IMAGES], labels: vec![-1; IMAGES], ..Batch::default() }
}

fn augment() -> AugmentConfig {
    AugmentConfig { size: SIZE.into(), ..AugmentConfig::default() }
}

const LAYOUT: ImageLayout = ImageLayout { channels_last: true, bf16: false };

fn rates(step: u64) -> Rates {
    Rates { lr: 0.1 * (1.0 - step as f64 / STEPS as f64), tau: 0.9 + 0.005 * step as f64, step }
}

/// Losses of the steps and the weights of both networks after them.
fn train(byol: &mut Byol, mut step: impl FnMut(&mut Byol, &Batch, Rates) -> Tensor) -> (Vec<f64>, Tensor) {
    let losses = (0..STEPS).map(|number| step(byol, &batch(number), rates(number)).double_value(&[])).collect();
    let all = byol.model_tensors();
    (losses, Tensor::cat(&all.iter().map(|n| n.tensor.detach().flatten(0, -1)).collect::<Vec<_>>(), 0))
}

/// The step as the binary runs it on the CPU.
fn fast(bf16: bool) -> (Vec<f64>, Tensor) {
    let mut feed = Feed::new(&augment(), CPU, ImageLayout { bf16, ..LAYOUT }).expect("a feed");
    let mut executor = Executor::new(CudaGraph::Auto, CPU, None).expect("an executor");
    train(&mut byol(bf16, Kind::Float), |byol, batch, rates| {
        executor.step(byol, &mut feed, &[batch], rates).expect("a step").loss.shallow_clone()
    })
}

fn fp32_views(batch: &Batch) -> Views {
    let augment = augment();
    let normalizer = Normalizer::new(augment.mean.values(), augment.std.values(), CPU, LAYOUT).expect("a normalizer");
    let shape = [IMAGES as i64, SIZE as i64, SIZE as i64, 3];
    [0, 1].map(|view| normalizer.bytes(&batch.views[view], shape).expect("a view"))
}

#[test]
fn views_straight_in_bf16_give_the_same_bits() {
    let (losses, weights) = train(&mut byol(true, Kind::Float), |byol, batch, rates| {
        byol.step([Ok(fp32_views(batch))].into_iter(), rates).expect("a step").loss
    });
    let (fast_losses, fast_weights) = fast(true);
    assert_eq!(losses, fast_losses);
    assert!(weights.equal(&fast_weights));
}

/// SGD and the moving average tensor by tensor, as Algorithm 1 is written. In f64: in fp32 a ReLU's input within
/// rounding of 0 makes more of a difference than any of these.
#[test]
fn many_tensors_at_once_give_the_same_weights() {
    let views = |batch: &Batch| Ok(fp32_views(batch).map(|view| view.to_kind(Kind::Double)));
    let mut momenta: Vec<Tensor> = Vec::new();
    let config = sgd();
    let (losses, weights) = train(&mut byol(false, Kind::Double), |byol, batch, Rates { lr, tau, .. }| {
        let output = byol.gradients([views(batch)].into_iter()).expect("gradients");
        let _no_grad = tch::no_grad_guard();
        for (at, parameter) in byol.online.params.parameters.iter().enumerate() {
            let mut weight = parameter.tensor.shallow_clone();
            let decay = if weight.dim() > 1 { config.weight_decay } else { 0.0 };
            let direction = weight.grad() + &weight * decay;
            if momenta.len() == at {
                momenta.push(direction.zeros_like());
            }
            momenta[at] = &momenta[at] * config.momentum + direction;
            let _ = weight.g_sub_(&(&momenta[at] * lr));
        }
        for (target, online) in byol.target.params.parameters.iter().zip(&byol.online.params.parameters) {
            let mut target = target.tensor.shallow_clone();
            target.copy_(&(&target * tau + &online.tensor * (1.0 - tau)));
        }
        output.loss
    });
    let (fast_losses, fast_weights) = train(&mut byol(false, Kind::Double), |byol, batch, rates| {
        byol.step([views(batch)].into_iter(), rates).expect("a step").loss
    });
    let apart = (&weights - &fast_weights).norm().double_value(&[]) / weights.norm().double_value(&[]);
    assert!(apart < 1e-9, "{apart}"); // another rounding of the same formulas, over 20 steps
    for (slow, fast) in losses.iter().zip(&fast_losses) {
        assert!((slow - fast).abs() < 1e-9 * slow, "{losses:?} {fast_losses:?}");
    }
    assert_eq!((weights.kind(), losses.len()), (Kind::Double, STEPS as usize));
}

#[test]
fn batches_made_ahead_give_the_same_bits() {
    let weights = |prefetch: &str, workers: &str| {
        let run = Run::new();
        let settings = ["--set", prefetch, "--set", workers, "--set", "train.max_steps=8"];
        assert!(run.train(&settings).status.success());
        run.weights(8)
    };
    let ahead = weights("data.prefetch_batches=8", "data.workers=3");
    assert!(ahead == weights("data.prefetch_batches=1", "data.workers=1"));
}
