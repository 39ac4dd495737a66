//! `byol train` as a user runs it: whole runs of a few steps, stopped, killed, damaged and resumed.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::run::{Run, draw_images, failed, succeeded, text};

/// The run all others are compared with.
fn uninterrupted() -> Run {
    let run = Run::new();
    succeeded(&run.train(&[]));
    run
}

#[test]
fn a_run_leaves_checkpoints_metrics_and_a_summary() {
    let run = Run::new();
    let output = run.train(&[]);
    let stderr = succeeded(&output);
    let stdout = text(&output.stdout);
    assert!(stdout.starts_with("finished: step 12 of 12, loss "), "{stdout}");
    assert!(stdout.contains("k-NN top-1") && stdout.contains("random encoder"), "{stdout}");
    assert!(stderr.contains("step 12/12") && stderr.contains("epoch 3: k-NN"), "{stderr}");
    let metrics = fs::read_to_string(run.dir().join("metrics.jsonl")).expect("metrics");
    let steps: Vec<serde_json::Value> = metrics.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    let logged: Vec<u64> = steps.iter().filter(|r| r["loss"].is_f64()).map(|r| r["step"].as_u64().unwrap()).collect();
    assert_eq!(logged, [1, 2, 4, 6, 8, 10, 12]);
    for record in steps.iter().filter(|r| r["loss"].is_f64()) {
        assert!((0.0..=8.0).contains(&record["loss"].as_f64().unwrap()), "{record}");
        assert!(record["z_std"].as_f64().unwrap() > 0.0 && record["grad_norm"].as_f64().unwrap() > 0.0, "{record}");
    }
    assert_eq!(steps.iter().filter(|r| r["knn_top1"].is_f64()).count(), 4);
    let summary = run.summary();
    assert_eq!((summary["ending"].as_str(), summary["step"].as_u64()), (Some("finished"), Some(12)));
    // The resolved config, with every key, is a config.
    let resolved = run.dir().join("config.yaml");
    let config = byol::config::Config::load(&resolved, &[]).expect("the resolved config loads");
    assert_eq!((config.train.batch_size, config.ema.base_tau), (16, 0.9));
    // The sums are those that `sha256sum -c` checks.
    let check = Command::new("sha256sum").arg("-c").arg("SHA256SUMS").current_dir(run.checkpoint(12)).output();
    assert!(check.expect("sha256sum").status.success());
}

#[test]
fn a_stopped_and_resumed_run_ends_with_the_same_bits() {
    let (whole, parts) = (uninterrupted(), Run::new());
    // In the middle of the second epoch, then in the middle of the third.
    succeeded(&parts.train(&["--set", "train.max_steps=5", "--resume", "auto"]));
    assert!(parts.checkpoint(5).exists());
    let stderr = succeeded(&parts.train(&["--set", "train.max_steps=10", "--resume", "auto"]));
    assert!(stderr.contains("resuming from") && stderr.contains("step 5 of 12"), "{stderr}");
    let from = parts.checkpoint(10).display().to_string();
    succeeded(&parts.train(&["--resume", &from, "--set", "data.workers=1"]));
    assert!(whole.weights(12) == parts.weights(12), "weights or optimizer state differ");
    // The log reads as one run's, and the random encoder's accuracy is remembered.
    let steps = |run: &Run| {
        let metrics = fs::read_to_string(run.dir().join("metrics.jsonl")).expect("metrics");
        metrics.lines().map(|l| l.split(',').next().unwrap_or_default().to_string()).collect::<Vec<_>>()
    };
    let of_parts = steps(&parts);
    assert!(steps(&whole).iter().all(|step| of_parts.contains(step)), "{of_parts:?}");
    assert_eq!(whole.summary()["knn_top1_random"], parts.summary()["knn_top1_random"]);
    assert_eq!(whole.summary()["knn_top1"], parts.summary()["knn_top1"]);
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let (whole, killed) = (uninterrupted(), Run::new());
    let every = ["--set", "output.checkpoint_every_steps=1"];
    for step in [2, 7] {
        let mut child = killed.spawn(&[&every[..], &["--resume", "auto"]].concat());
        killed.wait_for(&killed.checkpoint(step));
        child.kill().expect("kill -9");
        assert!(!child.wait().expect("ended").success());
    }
    // What a kill in the middle of a write leaves is cleaned up.
    fs::create_dir(killed.dir().join("checkpoints/.partial-00000099")).expect("made");
    succeeded(&killed.train(&["--resume", "auto"]));
    assert!(whole.weights(12) == killed.weights(12), "weights or optimizer state differ");
    let left = fs::read_dir(killed.dir().join("checkpoints")).expect("listed").count();
    assert_eq!(left, 3, "the last three, nothing half-written");
}

#[test]
fn signals_end_the_run_with_a_checkpoint_and_their_exit_code() {
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let run = Run::new();
        // Long enough not to end by itself.
        let long = [
            "--set",
            "schedule.epochs=10000",
            "--set",
            "output.checkpoint_every_epochs=0",
            "--set",
            "monitor.knn_every=0",
        ];
        let child = run.spawn(&long);
        run.wait_for(&run.dir().join("metrics.jsonl"));
        std::thread::sleep(Duration::from_millis(300));
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status();
        assert!(sent.expect("kill").success());
        let output = child.wait_with_output().expect("ended");
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
        assert!(text(&output.stdout).starts_with("stopped by a signal"), "{}", text(&output.stdout));
        let step = run.summary()["step"].as_u64().expect("a step");
        assert!(run.checkpoint(step).join("SHA256SUMS").exists());
        let more = format!("train.max_steps={}", step + 2);
        let stderr = succeeded(&run.train(&[&long[..], &["--resume", "auto", "--set", &more]].concat()));
        assert!(stderr.contains(&format!("(step {step} of 40000)")), "{stderr}");
    }
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_used() {
    let (whole, run) = (uninterrupted(), Run::new());
    succeeded(&run.train(&["--set", "train.max_steps=8"]));
    let path = run.checkpoint(8).join("model.safetensors");
    let bytes = fs::read(&path).expect("read");
    fs::write(&path, &bytes[..bytes.len() / 2]).expect("truncated");
    let stderr = succeeded(&run.train(&["--resume", "auto"]));
    assert!(
        stderr.contains("warning: skipping a checkpoint")
            && stderr.contains("step-00000008/model.safetensors: damaged"),
        "{stderr}"
    );
    assert!(stderr.contains("resuming from") && stderr.contains("step 4 of 12"), "{stderr}");
    assert!(whole.weights(12) == run.weights(12), "weights or optimizer state differ");
    // With every checkpoint damaged the run does not start again unasked.
    for step in [4, 8, 12] {
        fs::write(run.checkpoint(step).join("manifest.json"), "{}").expect("damaged");
    }
    failed(&run.train(&["--resume", "auto"]), &["none of its 3 checkpoints can be used"]);
}

#[test]
fn a_good_checkpoint_is_never_the_one_that_goes() {
    let run = Run::new();
    succeeded(&run.train(&["--set", "train.max_steps=8"]));
    fs::write(run.checkpoint(8).join("model.safetensors"), "damaged").expect("damaged");
    let one = ["--resume", "auto", "--set", "output.keep_checkpoints=1", "--set", "output.checkpoint_every_steps=1"];
    let stderr = succeeded(&run.train(&[&one[..], &["--set", "train.max_steps=6"]].concat()));
    assert!(stderr.contains("renamed to") && stderr.contains("abandoned-step-00000008"), "{stderr}");
    assert!(run.checkpoint(6).exists() && !run.checkpoint(8).exists());
    // Going on from an older one opens a branch; the checkpoints of the other are neither lost nor resumed.
    succeeded(&run.train(&[
        "--resume",
        "auto",
        "--set",
        "train.max_steps=9",
        "--set",
        "output.checkpoint_every_steps=1",
    ]));
    let from = run.checkpoint(7).display().to_string();
    succeeded(&run.train(&["--resume", &from, "--set", "output.keep_checkpoints=1", "--set", "train.max_steps=8"]));
    assert!(run.checkpoint(8).exists() && run.dir().join("checkpoints/abandoned-step-00000009").exists());
    let stderr = succeeded(&run.train(&["--resume", "auto"]));
    assert!(stderr.contains("step 8 of 12"), "{stderr}");
}

#[test]
fn a_finished_run_is_left_alone() {
    let run = uninterrupted();
    let before = run.summary();
    let stderr = succeeded(&run.train(&["--resume", "auto"]));
    assert!(stderr.contains("nothing left to do"), "{stderr}");
    assert_eq!(run.summary(), before);
    // Without its summary it was killed before the last evaluation, which is made up for.
    fs::remove_file(run.dir().join("summary.json")).expect("removed");
    succeeded(&run.train(&["--resume", "auto"]));
    assert_eq!(run.summary()["knn_top1"], before["knn_top1"]);
    let shorter = ["--resume", "auto", "--allow-config-change", "--set", "schedule.epochs=2"];
    failed(&run.train(&shorter), &["step 12, but the run now ends at step 8"]);
}

#[test]
fn a_second_run_in_the_same_folder_is_refused_and_a_second_signal_leaves_at_once() {
    let run = Run::new();
    let long =
        ["--set", "schedule.epochs=10000", "--set", "output.checkpoint_every_epochs=0", "--set", "monitor.knn_every=0"];
    // A step of seconds, so that the first signal is still waiting for its end.
    let slow = ["--set", "train.batch_size=2048", "--set", "data.synthetic.images=2048"];
    let mut child = run.spawn(&[&long[..], &slow].concat());
    run.wait_for(&run.dir().join("metrics.jsonl"));
    let owner = format!("is in use by process {}", child.id());
    failed(&run.train(&["--resume", "auto"]), &[&owner]);
    let send = |signal: &str| Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill");
    std::thread::sleep(Duration::from_millis(300));
    send("-INT");
    std::thread::sleep(Duration::from_millis(100));
    send("-TERM");
    let status = child.wait().expect("ended");
    assert_eq!(status.code(), Some(143));
    assert!(
        fs::read_dir(run.dir().join("checkpoints")).expect("listed").next().is_none(),
        "left before the step's end"
    );
}

#[test]
fn a_run_is_not_overwritten_and_not_resumed_with_another_config() {
    let run = Run::new();
    succeeded(&run.train(&["--set", "train.max_steps=2"]));
    failed(&run.train(&[]), &["already contains a run", "--resume auto"]);
    let changed = ["--resume", "auto", "--set", "optimizer.base_lr=1.0"];
    failed(&run.train(&changed), &["optimizer.base_lr: 1.0, was 2.0", "--allow-config-change"]);
    let stderr = succeeded(&run.train(&[&changed[..], &["--allow-config-change"]].concat()));
    assert!(stderr.contains("warning: resuming with a changed config"), "{stderr}");
    let wider = ["--resume", "auto", "--allow-config-change", "--set", "model.width=0.5"];
    failed(&run.train(&wider), &["of another model or optimizer (", "model.width: 0.5, was 0.25", "output.dir="]);
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint() {
    let diverging = [
        "--set",
        "optimizer.name=sgd",
        "--set",
        "optimizer.base_lr=10000.0",
        "--set",
        "optimizer.weight_decay=1.0",
        "--set",
        "optimizer.scale_lr=false",
    ];
    let run = Run::new();
    let every =
        ["--set", "output.checkpoint_every_steps=1", "--set", "schedule.epochs=50", "--set", "monitor.knn_every=0"];
    let output = run.train(&[&diverging[..], &every].concat());
    failed(&output, &["step ", "is not finite", "the last valid checkpoint is", "optimizer.base_lr"]);
    let last = fs::read_dir(run.dir().join("checkpoints")).expect("listed").map(|e| e.expect("entry").path()).max();
    let bytes = fs::read(last.expect("a checkpoint").join("model.safetensors")).expect("read");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("whole");
    for (name, view) in file.tensors().into_iter().filter(|(_, v)| v.dtype() == safetensors::Dtype::F32) {
        let finite = view.data().chunks(4).all(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite());
        assert!(finite, "{name}");
    }
    // Without a save to notice a bad tensor first, the loss is noticed, and nothing is saved.
    let run = Run::new();
    let never =
        ["--set", "output.checkpoint_every_epochs=0", "--set", "schedule.epochs=50", "--set", "monitor.knn_every=0"];
    failed(&run.train(&[&diverging[..], &never].concat()), &["the loss is NaN", "there is no checkpoint yet"]);
    assert!(fs::read_dir(run.dir().join("checkpoints")).expect("listed").next().is_none());
}

#[test]
fn a_collapse_is_warned_of_once() {
    // A target that is the online network, moved far and decayed much: projections shrink to a seventh of their spread.
    let run = Run::new();
    let sgd = ["--set", "optimizer.name=sgd", "--set", "optimizer.base_lr=3", "--set", "optimizer.weight_decay=0.1"];
    let rest = ["--set", "ema.base_tau=0", "--set", "ema.schedule=constant", "--set", "schedule.epochs=20"];
    let watch = ["--set", "monitor.collapse_threshold=0.3", "--set", "monitor.knn_every=0"];
    let stderr = succeeded(&run.train(&[&sgd[..], &rest, &watch].concat()));
    assert_eq!(stderr.matches("the run has collapsed").count(), 1, "{stderr}");
    assert_eq!(run.summary()["collapsed"], true);
    let healthy = Run::new();
    let stderr = succeeded(&healthy.train(&[&watch[..], &["--set", "schedule.epochs=20"]].concat()));
    assert!(!stderr.contains("collapsed"), "{stderr}");
    assert_eq!(healthy.summary()["collapsed"], false);
}

#[test]
fn accumulation_is_one_update_of_averaged_gradients() {
    // The order of images is that of the whole batch; only BatchNorm sees less.
    let run = Run::new();
    succeeded(&run.train(&["--set", "train.accumulation_steps=4"]));
    assert_eq!(run.summary()["step"], 12);
    let manifest = fs::read(run.checkpoint(12).join("manifest.json")).expect("manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    assert_eq!(manifest["batches_tracked"], serde_json::json!([96, 96])); // 12 steps, 4 parts, 2 views
    let parts = Run::new();
    for max in ["train.max_steps=5", "train.max_steps=99"] {
        succeeded(&parts.train(&["--set", "train.accumulation_steps=4", "--set", max, "--resume", "auto"]));
    }
    assert!(run.weights(12) == parts.weights(12), "weights or optimizer state differ");
}

#[test]
fn bad_data_and_bad_places_are_said_before_any_work() {
    let run = Run::new();
    let folder = run.folder.path().join("images");
    let set = format!("data.path={}", folder.display());
    let images = ["--set", "data.format=image_folder", "--set", &set];
    failed(&run.train(&images), &[&folder.display().to_string()]);
    fs::create_dir(&folder).expect("made");
    failed(&run.train(&images), &[&folder.display().to_string()]);
    failed(
        &run.train(&["--set", "train.batch_size=80"]),
        &["--set train.batch_size=80: train.batch_size: found 80", "70 training images"],
    );
    failed(&run.train(&["--set", "data.synthetic.images=9"]), &["config.yaml:14: train.batch_size: found 16"]);
    let file = run.folder.path().join("file");
    fs::write(&file, "").expect("written");
    let below = format!("output.dir={}/run", file.display());
    failed(&run.train(&["--set", &below]), &["output.dir", &file.display().to_string()]);
    let missing = Command::new(env!("CARGO_BIN_EXE_byol")).args(["train", "--config", "nowhere.yaml"]).output();
    failed(&missing.expect("byol runs"), &["config nowhere.yaml: no such file"]);
}

#[test]
fn corrupt_images_are_counted_or_fatal() {
    let run = Run::new();
    let folder = run.folder.path().join("images");
    draw_images(&folder);
    fs::write(folder.join("a/2.png"), b"not an image").expect("damaged");
    let set = format!("data.path={}", folder.display());
    let images = ["--set", "data.format=image_folder", "--set", &set];
    let output = run.train(&images);
    let stderr = succeeded(&output);
    assert_eq!(stderr.matches("2.png").count(), 1, "named once: {stderr}");
    assert_eq!(run.summary()["images_skipped"], 1);
    assert!(text(&output.stdout).contains("1 unreadable images skipped"), "{}", text(&output.stdout));
    let strict = Run::new();
    let fatal = [&images[..], &["--set", "data.on_bad_image=fail", "--set", "monitor.knn_every=0"]].concat();
    failed(&strict.train(&fatal), &["2.png"]);
}

#[test]
fn steps_done_before_an_error_in_the_data_are_kept() {
    let run = Run::new();
    let folder = run.folder.path().join("images");
    draw_images(&folder);
    let set = format!("data.path={}", folder.display());
    let strict = ["--set", "data.format=image_folder", "--set", &set, "--set", "data.on_bad_image=fail"];
    let long = [
        "--set",
        "schedule.epochs=100000",
        "--set",
        "output.checkpoint_every_epochs=0",
        "--set",
        "monitor.knn_every=0",
    ];
    let child = run.spawn(&[&strict[..], &long].concat());
    run.wait_for(&run.dir().join("metrics.jsonl"));
    std::thread::sleep(Duration::from_millis(500));
    fs::remove_file(folder.join("a/2.png")).expect("removed");
    let output = child.wait_with_output().expect("ended");
    failed(&output, &["2.png"]);
    assert!(text(&output.stderr).contains("before exiting"), "{}", text(&output.stderr));
    let saved = fs::read_dir(run.dir().join("checkpoints")).expect("listed").count();
    assert_eq!(saved, 1);
}

#[test]
fn folders_named_train_and_val_are_sets_only_together() {
    let run = Run::new();
    let folder = run.folder.path().join("images");
    draw_images(&folder.join("train"));
    draw_images(&folder.join("val"));
    let set = format!("data.path={}", folder.display());
    let images = ["--set", "data.format=image_folder", "--set", &set, "--set", "train.max_steps=1"];
    let stderr = succeeded(&run.train(&images));
    assert!(stderr.contains("36 images,") && stderr.contains("36 held-out images"), "{stderr}");
    // Held-out images without labels stop nothing, unless they were asked for.
    fs::rename(folder.join("val/a/0.png"), folder.join("val/0.png")).expect("moved");
    let stderr = succeeded(&Run::new().train(&images));
    assert!(stderr.contains("have no labels and are not used"), "{stderr}");
    let named = format!("data.eval_path={}", folder.join("val").display());
    failed(&Run::new().train(&[&images[..], &["--set", &named]].concat()), &["data.eval_path", "without labels"]);
    // A class may be called train.
    fs::rename(folder.join("val"), folder.join("plane")).expect("renamed");
    let stderr = succeeded(&Run::new().train(&images));
    assert!(stderr.contains("72 images,"), "{stderr}");
}

#[test]
fn batches_beyond_the_machines_memory_are_refused() {
    let huge =
        ["--set", "train.batch_size=1048576", "--set", "data.synthetic.images=1048576", "--set", "augment.size=1024"];
    failed(&Run::new().train(&huge), &["train.batch_size", "GB"]);
}

#[test]
fn cuda_without_a_gpu_says_what_is_missing() {
    if Path::new("/dev/nvidia0").exists() {
        eprintln!("skipped: this machine has a GPU");
        return;
    }
    let output = Run::new().train(&["--set", "train.device=cuda"]);
    let stderr = text(&output.stderr);
    failed(&output, &["train.device", "cuda:0"]);
    let causes = ["the CUDA library is missing", "the NVIDIA driver is missing", "the driver reports no device"];
    assert!(causes.iter().any(|cause| stderr.contains(cause)), "{stderr}");
}

#[test]
fn nobody_listening_does_not_end_a_run() {
    let run = Run::new();
    let mut child = run.spawn(&[]);
    drop(child.stdout.take());
    drop(child.stderr.take());
    assert!(child.wait().expect("ended").success());
    assert_eq!(run.summary()["ending"], "finished");
}
