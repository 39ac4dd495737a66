//! Runs of earlier versions are resumed and their checkpoints read. `tests/fixtures/runs/run-0.1.0.tar.gz` is a run
//! that version 0.1.0 stopped after 4 of 8 steps (AdamW, 16 px); so that it is small, every float tensor was then
//! filled with one value and `SHA256SUMS` written anew.

use std::fs;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::support::run::{byol, succeeded};

fn unpacked(folder: &Path) -> PathBuf {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/runs/run-0.1.0.tar.gz");
    let file = fs::File::open(packed).expect("the fixture");
    tar::Archive::new(GzDecoder::new(file)).unpack(folder).expect("unpacked");
    folder.join("run")
}

#[test]
fn a_run_of_version_0_1_0_is_resumed_as_the_same_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = unpacked(folder.path());
    let config = run.join("config.yaml").display().to_string();
    let dir = format!("output.dir={}", run.display());
    let arguments = ["train", "--config", &config, "--set", &dir, "--set", "train.max_steps=null", "--resume", "auto"];
    let stderr = succeeded(&byol(&arguments).output().expect("byol runs"));
    assert!(stderr.contains("step-00000004 (step 4 of 8)") && !stderr.contains("differs"), "{stderr}");
    // The fingerprint that 0.1.0 gave its config.
    assert!(stderr.contains("config e5cd4d8e0bf4"), "{stderr}");
    let summary: Value = serde_json::from_slice(&fs::read(run.join("summary.json")).expect("read")).expect("JSON");
    assert_eq!((&summary["ending"], &summary["step"]), (&"finished".into(), &8.into()), "{summary}");
}

#[test]
fn a_checkpoint_of_version_0_1_0_is_exported_value_by_value() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = unpacked(folder.path());
    let (from, to) = (run.display().to_string(), folder.path().join("encoder.safetensors"));
    let arguments =
        ["export-encoder", "--checkpoint", &from, "--format", "safetensors", "--output", &to.display().to_string()];
    succeeded(&byol(&arguments).output().expect("byol runs"));
    let [kept, exported] =
        [run.join("checkpoints/step-00000004/model.safetensors"), to].map(|path| fs::read(path).expect("read"));
    let [kept, exported] = [&kept, &exported].map(|bytes| SafeTensors::deserialize(bytes).expect("safetensors"));
    assert_eq!(exported.len(), 120);
    for (name, tensor) in exported.tensors() {
        let there = kept.tensor(&format!("online.encoder.{name}")).expect("the checkpoint has it");
        assert!((tensor.shape(), tensor.data()) == (there.shape(), there.data()), "{name}");
    }
}
