//! Runs of the encoders beyond ResNet with BatchNorm: stopped and resumed to the same bits, and what stays frozen.

use std::fs;

use crate::support::run::{Run, succeeded};
use safetensors::SafeTensors;

const CONVNEXT: &str = "arch: convnext_tiny, width: 0.25, patch_size: 2, drop_path: 0.3";
const VIT: &str = "arch: vit_tiny, width: 0.25, patch_size: 4, drop_path: 0.3, freeze_patch_projection: true";
const GROUP_NORM: &str = "arch: resnet18, width: 0.25, stem: cifar, norm: group_ws";

fn run_of(model: &str) -> Run {
    let run = Run::new();
    let path = run.folder.path().join("config.yaml");
    let config = fs::read_to_string(&path).expect("read");
    let config = config.replace("arch: resnet18, width: 0.25, stem: cifar", model);
    fs::write(&path, config.replace("name: lars, base_lr: 2.0", "name: adamw, base_lr: 0.01")).expect("written");
    run
}

fn settings(steps: &str) -> [&str; 6] {
    ["--set", steps, "--set", "schedule.epochs=1", "--set", "monitor.knn_every=0"]
}

#[test]
fn a_resumed_run_ends_with_the_same_bits() {
    for model in [CONVNEXT, VIT, GROUP_NORM] {
        let (whole, parts) = (run_of(model), run_of(model));
        succeeded(&whole.train(&settings("train.max_steps=4")));
        succeeded(&parts.train(&settings("train.max_steps=2")));
        succeeded(&parts.train(&[&settings("train.max_steps=4")[..], &["--resume", "auto"]].concat()));
        assert!(whole.weights(4) == parts.weights(4), "{model}");
        if model == VIT {
            frozen(&whole);
        } else if model == CONVNEXT {
            // Without stochastic depth the same run ends elsewhere: the draws had an effect.
            let still = run_of(&model.replace("drop_path: 0.3", "drop_path: 0"));
            succeeded(&still.train(&settings("train.max_steps=4")));
            assert!(whole.weights(4) != still.weights(4));
        }
    }
}

/// The patch projection of the online network is still the target's, which started as its copy; the class token moved.
fn frozen(run: &Run) {
    let bytes = fs::read(run.checkpoint(4).join("model.safetensors")).expect("weights");
    let file = SafeTensors::deserialize(&bytes).expect("a file");
    let equal = |name: &str| {
        let of = |network: &str| file.tensor(&format!("{network}.encoder.{name}")).expect("there").data().to_vec();
        of("online") == of("target")
    };
    assert!(equal("patch_embed.proj.weight") && equal("patch_embed.proj.bias") && !equal("cls_token"));
}
