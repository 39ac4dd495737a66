//! mmpretrain moves its target inside the loss, before the target's forward pass, with the online weights that the
//! last optimizer step left; the paper (and this project) right after that step. Both orders walk through the
//! same weights, mmpretrain's tau being one step later.

use crate::support::CPU;
use byol::byol::loss::l2_normalize;
use byol::byol::{Byol, Rates, Views};
use byol::model::{Arch, ModelConfig, Network, Stem};
use byol::optim::OptimizerConfig;
use tch::{Kind, Tensor};

const STEPS: u64 = 6;

fn start() -> Byol {
    let config = ModelConfig {
        arch: Arch::Resnet18,
        width: 0.25,
        stem: Stem::Cifar,
        projector_hidden: 32,
        projection_dim: 16,
        predictor_hidden: 32,
        ..ModelConfig::default()
    };
    let mut online = Network::online(&config, CPU, 5);
    online.params.to_kind(Kind::Double);
    let mut target = Network::target_of(&online, &config, CPU);
    target.params.to_kind(Kind::Double);
    let byol = Byol::new(online, target, &OptimizerConfig::default());
    move_target(&byol, 0.0); // an exact copy in f64
    byol
}

fn move_target(byol: &Byol, tau: f64) {
    byol.ema.set(tau).and_then(|()| byol.ema.update(&byol.target, &byol.online)).expect("moved");
}

fn views(step: u64) -> Views {
    [0, 1].map(|view| {
        let phase = (step * 2 + view) as f64;
        (Tensor::arange(8 * 3 * 12 * 12, (Kind::Double, CPU)) * (0.37 + 0.01 * phase) + phase)
            .sin()
            .reshape([8, 3, 12, 12])
    })
}

fn lr(step: u64) -> f64 {
    2.0 - 0.2 * step as f64
}

/// tau after the update of `step`.
fn tau(step: u64) -> f64 {
    0.9 + 0.01 * step as f64
}

/// mmpretrain/models/selfsup/byol.py `loss`, then the optimizer of its runner.
fn mmpretrain_step(byol: &mut Byol, [v1, v2]: &Views, step: u64) {
    byol.optimizer.zero_grad().expect("cleared");
    let (p1, p2) = (byol.online.predict(&byol.online.project(v1)), byol.online.predict(&byol.online.project(v2)));
    if step > 0 {
        move_target(byol, tau(step - 1));
    } // its first update copies the online network, which the target is a copy of
    let (t1, t2) = {
        let _no_grad = tch::no_grad_guard();
        (byol.target.project(v1), byol.target.project(v2))
    };
    let head = |p: &Tensor, t: &Tensor| -> Tensor {
        -(l2_normalize(p) * l2_normalize(t)).sum_dim_intlist([1].as_slice(), false, None).mean(None)
    };
    let loss = (head(&p1, &t2) + head(&p2, &t1)) * 2.0;
    loss.backward();
    byol.optimizer.step(lr(step), step).expect("a step");
}

fn difference(a: &Network, b: &Network) -> f64 {
    let pairs = a.params.parameters.iter().zip(&b.params.parameters);
    pairs
        .map(|(a, b)| ((&a.tensor - &b.tensor).norm() / (b.tensor.norm() + 1e-3)).double_value(&[]))
        .fold(0.0, f64::max)
}

#[test]
fn both_orders_walk_through_the_same_weights() {
    let (mut ours, mut theirs) = (start(), start());
    let before = start();
    for step in 0..STEPS {
        mmpretrain_step(&mut theirs, &views(step), step);
        // Their target now is what our loss of this step saw.
        assert!(difference(&theirs.target, &ours.target) < 1e-9, "target seen at step {step}");
        let rates = Rates { lr: lr(step), tau: tau(step), step };
        ours.step([Ok(views(step))].into_iter(), rates).expect("a step");
        assert!(difference(&theirs.online, &ours.online) < 1e-9, "online after step {step}");
    }
    assert!(difference(&ours.online, &before.online) > 1e-3, "the weights moved");
    assert!(difference(&ours.target, &before.target) > 1e-5, "the target moved");
    // Ours has made the update that theirs makes at the start of its next step.
    assert!(difference(&theirs.target, &ours.target) > 1e-6);
    move_target(&theirs, tau(STEPS - 1));
    assert!(difference(&theirs.target, &ours.target) < 1e-9);
}
