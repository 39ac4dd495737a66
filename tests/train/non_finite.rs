//! Steps with NaN or Inf: found at once and named; the state is restored where they are skipped.

use crate::support::CPU;
use crate::support::run::{Run, failed, text};
use byol::byol::{Byol, Numbers, Rates, Views};
use byol::model::{Arch, ModelConfig, Named, Network, Stem};
use byol::optim::OptimizerConfig;
use byol::train::{Guard, OnNonFinite, Stepped};
use tch::{Kind, Tensor};

fn byol() -> Byol {
    tch::set_num_threads(1);
    let config = ModelConfig {
        arch: Arch::Resnet18,
        width: 0.25,
        stem: Stem::Cifar,
        projector_hidden: 16,
        projection_dim: 8,
        predictor_hidden: 16,
        ..ModelConfig::default()
    };
    let online = Network::online(&config, CPU, 0);
    let target = Network::target_of(&online, &config, CPU);
    Byol::new(online, target, &OptimizerConfig::default())
}

const RATES: Rates = Rates { lr: 0.1, tau: 0.9, step: 0 };

/// Views of four images; `bad` puts one infinite value into the second micro-batch.
fn micro_batches(step: i64, bad: bool) -> impl ExactSizeIterator<Item = anyhow::Result<Views>> {
    [0, 1].into_iter().map(move |part: i64| {
        let view = |v: i64| {
            let values =
                Tensor::arange(4 * 3 * 8 * 8, (Kind::Float, CPU)) * (0.37 * (1 + v + 2 * part + 5 * step) as f64);
            values.sin().reshape([4, 3, 8, 8])
        };
        let views = [view(0), view(1)];
        if bad && part == 1 {
            let _ = views[0].get(0).get(0).get(0).get(0).fill_(f64::INFINITY);
        }
        Ok(views)
    })
}

/// Every number that a step may change.
fn state(byol: &Byol) -> Vec<(String, Vec<f32>)> {
    let named: Vec<Named> = byol.state_dict().into_iter().chain(byol.optimizer.state()).collect();
    let values = |t: &Tensor| Vec::<f32>::try_from(t.detach().to_kind(Kind::Float).contiguous().flatten(0, -1));
    named.into_iter().map(|n| (n.name, values(&n.tensor).expect("values"))).collect()
}

#[test]
fn a_skipped_step_restores_the_state() {
    let (mut skipping, mut spared) = (byol(), byol());
    let mut guard = Guard::new(OnNonFinite::SkipStep, 2);
    for step in 0..4 {
        let bad = step == 1 || step == 2;
        let before = state(&skipping);
        match guard.step(&mut skipping, micro_batches(step, bad), RATES).expect("libtorch is content") {
            Stepped::Skipped(_, why) => {
                assert!(bad && why.contains("the loss is NaN") && why.contains("gradients are not finite"), "{why}");
                assert!(why.ends_with(&format!("; {step} in a row, at most 2")), "{why}");
                assert!(state(&skipping) == before, "step {step} changed the state");
            }
            Stepped::Taken(output) => {
                let numbers = output.fetch().and_then(|fetched| Numbers::of(&fetched)).expect("numbers");
                assert!(!bad && numbers.not_finite().is_none());
                spared.step(micro_batches(step, false), RATES).expect("a step");
            }
            Stepped::NotFinite(what) => panic!("{what}"),
        }
        assert!(state(&skipping) == state(&spared), "after step {step}");
    }
    assert_eq!(guard.skipped, 2);
    // A good step begins the count anew; a third bad one in a row is too many.
    for (step, skipped) in [(4, true), (5, true), (6, false)] {
        let stepped = guard.step(&mut skipping, micro_batches(step, true), RATES).expect("a step");
        match stepped {
            Stepped::Skipped(..) => assert!(skipped),
            Stepped::NotFinite(what) => assert!(!skipped && what.contains("after 2 skipped steps in a row"), "{what}"),
            Stepped::Taken(_) => panic!("step {step} was taken"),
        }
    }
}

#[test]
fn a_gradient_or_parameter_is_found_within_the_step_and_named() {
    let mut stopping = byol();
    let before = state(&stopping);
    let mut guard = Guard::new(OnNonFinite::Stop, 10);
    match guard.step(&mut stopping, micro_batches(0, true), RATES).expect("a step") {
        Stepped::NotFinite(what) => {
            assert!(
                what.starts_with("the loss is NaN (70 of 70 gradients are not finite, nearest to the loss "),
                "{what}"
            );
            assert!(what.contains("predictor.3.weight"), "{what}");
        }
        _ => panic!("not noticed"),
    }
    let weights = |all: Vec<(String, Vec<f32>)>| -> Vec<_> {
        all.into_iter().filter(|(name, _)| !name.contains("running") && !name.contains("tracked")).collect()
    };
    assert!(weights(state(&stopping)) == weights(before), "nothing was updated");
    // One weight of one layer, finite losses until then; skipping cannot mend it.
    for policy in [OnNonFinite::Stop, OnNonFinite::SkipStep] {
        let mut broken = byol();
        let weight = broken.online.params.parameters.iter().find(|n| n.name == "encoder.layer2.0.conv1.weight");
        let _ = tch::no_grad(|| weight.expect("a layer").tensor.get(1).fill_(f64::NAN));
        match Guard::new(policy, 10).step(&mut broken, micro_batches(0, false), RATES).expect("a step") {
            Stepped::NotFinite(what) => {
                assert!(what.contains("(online.encoder.layer2.0.conv1.weight is not finite)"), "{what}");
            }
            _ => panic!("not noticed"),
        }
    }
}

#[test]
fn skipped_steps_are_said_and_limited() {
    let run = Run::new();
    // Images of infinite contrast: no step has finite numbers.
    let never = ["--set", "augment.std=[1e-42, 1e-42, 1e-42]", "--set", "monitor.knn_every=0"];
    let skip = ["--set", "train.on_non_finite=skip_step", "--set", "train.max_skipped_steps=3"];
    let every = ["--set", "output.checkpoint_every_steps=1", "--set", "train.max_steps=3"];
    let output = run.train(&[&never[..], &skip, &every].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("step 2 is skipped: the loss is NaN"), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains(", 3 steps skipped; checkpoint"), "{}", text(&output.stdout));
    assert_eq!(run.summary()["steps_skipped"], 3);
    assert!(run.weights(1) == run.weights(3), "three checkpoints of the same state");
    assert!(run.records().iter().all(|record| record["loss"].is_null()));
    let output = run.train(&[&never[..], &skip, &["--resume", "auto"]].concat());
    failed(&output, &["step 7: the loss is NaN", "after 3 skipped steps in a row", "step-00000004"]);
    let stop = Run::new();
    failed(&stop.train(&never), &["step 1: the loss is NaN", "gradients are not finite", "there is no checkpoint yet"]);
}

#[test]
fn clipping_bounds_the_updates() {
    let run = Run::new();
    let clip =
        ["--set", "optimizer.name=sgd", "--set", "optimizer.momentum=0.0", "--set", "optimizer.clip_grad_norm=1e-30"];
    let output = run.train(&[&clip[..], &["--set", "monitor.knn_every=0", "--set", "schedule.epochs=1"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    // What is logged is the norm before clipping.
    let steps: Vec<_> = run.records().into_iter().filter(|record| record["lr"].is_f64()).collect();
    assert!(!steps.is_empty());
    assert!(steps.iter().all(|record| record["grad_norm"].as_f64().is_some_and(|norm| norm > 1e-3)), "{steps:?}");
    failed(&Run::new().train(&["--set", "optimizer.clip_grad_norm=0"]), &["optimizer.clip_grad_norm", "above 0"]);
}
