//! `model.init`: runs that start from weights that exist.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::ranks::tensors;
use crate::support::run::{Run, byol, failed, succeeded, text};

/// A trained run, the file of its encoder, and the accuracy that `knn-eval` gives for it.
struct Trained {
    run: Run,
    file: PathBuf,
    top1: f64,
}

impl Trained {
    fn new() -> Self {
        let run = Run::new();
        succeeded(&run.train(&["--set", "schedule.epochs=5"]));
        let file = run.folder.path().join("encoder.safetensors");
        let [from, to] = [run.dir(), file.clone()].map(|path| path.display().to_string());
        succeeded(
            &byol(&["export-encoder", "--checkpoint", &from, "--format", "safetensors", "--output", &to])
                .output()
                .expect("byol runs"),
        );
        let top1 = knn_eval(&run, &file, &[]);
        Self { run, file, top1 }
    }

    fn set(&self) -> String {
        format!("model.init={}", self.file.display())
    }
}

/// Top-1 of a file on the images of a run.
fn knn_eval(run: &Run, file: &Path, extra: &[&str]) -> f64 {
    let (file, config) = (file.display().to_string(), run.folder.path().join("config.yaml").display().to_string());
    let mut command = byol(&["knn-eval", "--checkpoint", &file, "--config", &config, "--k", "5", "--json"]);
    let output = command.args(extra).output().expect("byol runs");
    succeeded(&output);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    report["results"][0]["top1"].as_f64().expect("an accuracy")
}

/// SHA-256 in hex.
fn sha256(path: &Path) -> String {
    Sha256::digest(fs::read(path).expect("read")).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn manifest(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path.join("manifest.json")).expect("a manifest")).expect("JSON")
}

/// What a run says of its start, one line.
fn said(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().filter(|line| line.contains("model.init: ")).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    lines[0].to_string()
}

fn losses(run: &Run) -> Vec<f64> {
    run.records().iter().filter_map(|record| record["loss"].as_f64()).collect()
}

#[test]
fn a_run_begins_with_the_accuracy_of_the_encoder_and_its_loss_goes_down() {
    let trained = Trained::new();
    let fresh = Run::new();
    succeeded(&fresh.train(&["--set", "train.max_steps=1"]));
    let (random, sum) = (fresh.summary()["knn_top1_random"].as_f64().expect("measured"), sha256(&trained.file));
    assert_ne!(random, trained.top1, "the trained encoder differs from the random one");
    let mut ends = Vec::new();
    for nproc in [None, Some("2")] {
        let run = Run::new();
        let (init, processes) = (trained.set(), nproc.map_or(vec![], |count| vec!["--nproc", count]));
        let args = [&["--set", &init, "--set", "schedule.epochs=6", "--set", "optimizer.base_lr=0.5"][..], &processes]
            .concat();
        let stderr = succeeded(&run.train(&args));
        let line = said(&stderr);
        let loaded = "resnet18 of width 0.25 with stem cifar, SHA-256";
        assert!(line.contains(loaded) && line.contains(&sum[..12]), "{line}");
        assert!(line.contains(": 100 tensors loaded (encoder), 0 ignored, 14 new (projector, predictor)"), "{line}");
        let first = run.records().into_iter().find_map(|record| record["knn_top1"].as_f64());
        assert_eq!(first, Some(trained.top1), "{nproc:?}: to the digit that of knn-eval");
        assert_eq!(run.summary()["knn_top1_init"].as_f64(), first);
        assert!(run.summary()["knn_top1_random"].is_null());
        let losses = losses(&run);
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let third = losses.len() / 3;
        assert!(mean(&losses[2 * third..]) < mean(&losses[..third]), "{nproc:?}: {losses:?}");
        let record = manifest(&run.dir());
        assert_eq!(record["init"]["sha256"], sum.as_str());
        assert_ne!(record["config_sha256"], manifest(&fresh.dir())["config_sha256"]);
        ends.push(losses);
    }
    // Rounding differs between one process and two, and training amplifies it: the first steps are alike.
    let differences = ends[0].iter().zip(&ends[1]).take(3).map(|(one, two)| (one - two).abs());
    assert!(differences.fold(0.0, f64::max) < 1e-3, "{ends:?}");
}

#[test]
fn a_resumed_run_needs_the_file_no_more_and_its_place_does_not_matter() {
    let trained = Trained::new();
    let copy = trained.run.folder.path().join("copy.safetensors");
    fs::copy(&trained.file, &copy).expect("copied");
    let (whole, parts) = (Run::new(), Run::new());
    succeeded(&whole.train(&["--set", &trained.set()]));
    let init = format!("model.init={}", copy.display());
    succeeded(&parts.train(&["--set", &init, "--set", "train.max_steps=5", "--resume", "auto"]));
    fs::remove_file(&copy).expect("removed");
    let stderr = succeeded(&parts.train(&["--set", &init, "--resume", "auto"]));
    assert!(!stderr.contains("model.init: "), "{stderr}");
    assert!(whole.weights(12) == parts.weights(12), "weights or optimizer state differ");
    let [one, other] = [&whole, &parts].map(|run| manifest(&run.checkpoint(12)));
    assert_eq!((&one["config_sha256"], &one["init"]["sha256"]), (&other["config_sha256"], &other["init"]["sha256"]));
    assert_eq!(whole.summary()["knn_top1_init"], parts.summary()["knn_top1_init"]);
    // Another start would be another run.
    failed(
        &parts.train(&["--set", &trained.set(), "--resume", "auto"]),
        &["--resume: the config differs from the checkpoint's (model.init: "],
    );
}

#[test]
fn a_finished_run_is_continued_in_a_new_folder_with_its_heads() {
    let trained = Trained::new();
    let from = trained.run.dir().display().to_string();
    let start = |init: &str, extra: &[&str]| {
        let run = Run::new();
        let set = format!("model.init={init}");
        let output = run.train(&[&["--set", &set, "--set", "train.max_steps=1"][..], extra].concat());
        (said(&succeeded(&output)), run)
    };
    let last = trained.run.checkpoint(20);
    for init in [from.clone(), last.display().to_string(), last.join("model.safetensors").display().to_string()] {
        let (line, run) = start(&init, &["--set", "optimizer.base_lr=1e-30", "--set", "ema.base_tau=1"]);
        let loaded = ": 114 tensors loaded (encoder, projector, predictor), 107 ignored (target), 0 new";
        assert!(line.contains("under online.encoder.*") && line.contains(loaded), "{line}");
        // A step of such a rate changes no weight: both networks are the run's online network.
        let (ours, theirs) = (tensors(&run.checkpoint(1)), tensors(&last));
        let weights = ours.iter().filter(|(name, _)| !name.contains("running") && !name.contains("tracked"));
        let mut compared = 0;
        for (name, values) in weights.filter(|(name, _)| name.starts_with("online.") || name.starts_with("target.")) {
            let theirs = &theirs[&name.replace("target.", "online.")];
            assert!(
                values.iter().zip(theirs).all(|(a, b)| (a - b).abs() < 1e-12) && values.len() == theirs.len(),
                "{name}"
            );
            compared += 1;
        }
        assert!(compared > 100, "{compared}");
        assert_eq!(manifest(&run.dir())["init"]["sha256"], sha256(&last.join("model.safetensors")).as_str());
    }
    let (line, _) = start(&from, &["--set", "model.init_heads=fresh"]);
    assert!(
        line.contains(": 100 tensors loaded (encoder), ") && line.contains("14 new (projector, predictor)"),
        "{line}"
    );
    let (_, line) = {
        let run = Run::new();
        let set = format!("model.init={from}");
        let args = ["--set", &set, "--set", "train.max_steps=1", "--set", "model.predictor_hidden=24"];
        let stderr = succeeded(&run.train(&args));
        assert!(
            stderr.contains("model.init: the file's predictor is another and is not used (7 differences: "),
            "{stderr}"
        );
        (run, stderr.lines().filter(|line| line.contains(" new (")).collect::<String>())
    };
    assert!(line.contains("107 tensors loaded (encoder, projector), ") && line.contains("7 new (predictor)"), "{line}");
    // A lone file of both networks is that of the online one, and the other is chosen by its name.
    let lone = trained.run.folder.path().join("lone.safetensors");
    fs::copy(last.join("model.safetensors"), &lone).expect("copied");
    let (line, _) = start(&lone.display().to_string(), &["--set", "model.init_prefix=target"]);
    assert!(line.contains("under target.encoder.*") && line.contains("(encoder, projector), "), "{line}");
    let target = knn_eval(&trained.run, &lone, &["--prefix", "target"]);
    assert_eq!(knn_eval(&trained.run, &lone, &["--prefix", "online"]), trained.top1);
    assert!((0.0..=1.0).contains(&target));
    let set = format!("model.init={from}");
    failed(&trained.run.train(&["--set", &set]), &["already contains a run"]);
}

#[test]
fn what_cannot_be_started_from_is_refused_before_any_step() {
    let trained = Trained::new();
    let refused = |init: &str, extra: &[&str], parts: &[&str]| {
        let (run, set) = (Run::new(), format!("model.init={init}"));
        let output = run.train(&[&["--set", &set], extra].concat());
        failed(&output, &[&[": model.init: "], parts].concat());
        assert!(!run.dir().join("metrics.jsonl").exists());
    };
    let file = trained.file.display().to_string();
    let advice = "set model.arch, model.width and model.stem to the file's, or name another";
    let held = "encoder.safetensors: found resnet18 of width 0.25 with stem cifar, the config's model is ";
    refused(&file, &["--set", "model.arch=resnet34"], &[held, "resnet34 of width 0.25", advice]);
    refused(&file, &["--set", "model.width=0.5"], &[held, "resnet18 of width 0.5", advice]);
    refused(&file, &["--set", "model.stem=imagenet", "--nproc", "2"], &[held, "with stem imagenet", advice]);
    refused(
        &file,
        &["--set", "model.init_prefix=teacher"],
        &["model.init_prefix teacher: found no encoder there, but"],
    );
    refused("/no/such/file.pth", &[], &["reading /no/such/file.pth: no such file"]);
    refused(&trained.run.folder.path().display().to_string(), &[], &["found no checkpoint in this folder"]);
    fs::write(&trained.file, b"\x80\x02}q\0.").expect("written");
    refused(&file, &[], &["found a PyTorch file in the format before 1.6, expected the zip format; convert it with"]);
    let model = trained.run.checkpoint(20).join("model.safetensors");
    let mut bytes = fs::read(&model).expect("read");
    *bytes.last_mut().expect("a byte") ^= 1;
    fs::write(&model, bytes).expect("written");
    let checkpoint = trained.run.checkpoint(20).display().to_string();
    refused(&checkpoint, &[], &["damaged: its "]);
    // Of a run the latest checkpoint that is whole.
    let (run, set) = (Run::new(), format!("model.init={}", trained.run.dir().display()));
    let output = run.train(&["--set", &set, "--set", "train.max_steps=1"]);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("skipping a checkpoint: ") && stderr.contains("step-00000016 (resnet18"), "{stderr}");
    let output = Run::new().train(&["--set", "model.init_prefix=a"]);
    failed(&output, &["model.init_prefix: found \"a\", expected null without model.init"]);
}
