//! `byol bench` from end to end, and what it shows: in the steady state the loader takes nothing from the heap per
//! image, and memory grows neither there nor over training steps. Starting is quick.

use std::process::{Command, Output};
use std::time::Instant;

use serde_json::Value;

/// Runs `byol bench loader` on ten raw 32 px images in batches of 4.
fn bench(extra: &[&str]) -> Output {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut command = Command::new(env!("CARGO_BIN_EXE_byol"));
    command.args(["bench", "loader", "--config"]).arg(format!("{root}/configs/cifar10_resnet18.yaml"));
    command.args(["--set", "data.format=cifar10", "--set", "train.batch_size=4"]);
    command.arg("--set").arg(format!("data.path={root}/tests/fixtures/data/cifar"));
    command.args(extra).output().expect("byol runs")
}

/// Runs `byol bench step` on views of 8 px with the smallest network.
fn bench_step(extra: &[&str]) -> Output {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut command = Command::new(env!("CARGO_BIN_EXE_byol"));
    command.args(["bench", "step", "--config"]).arg(format!("{root}/configs/cifar10_resnet18.yaml"));
    for key in ["model.width=0.25", "augment.size=8", "model.projector_hidden=16", "model.predictor_hidden=16"] {
        command.args(["--set", key]);
    }
    command.args(["--set", "data.format=cifar10", "--set", "train.device=cpu", "--set", "train.threads=1"]);
    command.args(["--set", "train.batch_size=4"]);
    command.arg("--set").arg(format!("data.path={root}/tests/fixtures/data/cifar"));
    command.args(extra).output().expect("byol runs")
}

fn number(report: &Value, key: &str) -> f64 {
    report.pointer(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("{key} is missing in {report}"))
}

#[test]
fn the_loader_neither_allocates_per_image_nor_grows() {
    let output = bench(&["--seconds", "2", "--workers", "2"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(text.lines().count(), 1, "{text}");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert!(number(&report, "/images_per_second") > 100.0, "{report}");
    assert_eq!((number(&report, "/workers"), number(&report, "/size")), (2.0, 32.0));
    for stage in ["decode", "resize", "color", "rest"] {
        assert!(number(&report, &format!("/stages_us/{stage}")) > 0.0, "{report}");
    }
    // The blur of 32 px views is off. What is left are a channel and a list of indices for each batch.
    assert_eq!(number(&report, "/stages_us/blur"), 0.0);
    assert!(number(&report, "/bytes_allocated_per_image") < 500.0, "{report}");
    let grown = number(&report, "/resident_mb/1") - number(&report, "/resident_mb/0");
    assert!(grown < 2.0, "{report}");
}

#[test]
fn what_cannot_be_measured_is_refused_in_one_line() {
    for (extra, part) in [
        (["--seconds", "0"], "expected 0.1 to 86400"),
        (["--workers", "0"], "0 is not in 1..=1024"),
        (["--set", "data.path=/nowhere"], "/nowhere"),
    ] {
        let output = bench(&extra);
        let message = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(!output.status.success() && message.contains(part), "{extra:?}: {message}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_step_is_its_parts_and_memory_does_not_grow() {
    // Steps with a loader do all that steps without one do, so a leak of either shows in the longer run.
    for (synthetic, steps) in [(true, 20.0), (false, 300.0)] {
        let count = steps.to_string();
        let mut arguments =
            vec!["--set", "train.batch_size=4", "--set", "train.accumulation_steps=2", "--steps", &count];
        arguments.extend(synthetic.then_some("--synthetic"));
        let output = bench_step(&arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(text.lines().count(), 1, "{text}");
        let report: Value = serde_json::from_str(&text).expect("JSON");
        let counts = ["batch", "micro_batches", "size", "steps"].map(|key| number(&report, &format!("/{key}")));
        assert_eq!(counts, [4.0, 2.0, 8.0, steps]);
        let busy = ["normalize", "online_forward", "target_forward", "loss", "backward", "optimizer", "ema"];
        let parts = busy.map(|part| number(&report, &format!("/parts_ms/{part}")));
        assert!(parts.iter().all(|&part| part > 0.0), "{report}");
        // The median of whole steps is measured apart from the parts; a machine may be busy with something else.
        let (sum, step) = (parts.iter().sum::<f64>(), number(&report, "/step_ms/median"));
        assert!(sum > 0.2 * step && sum < 5.0 * step, "{report}");
        assert_eq!((number(&report, "/parts_ms/copy"), &report["cuda_graph"]), (0.0, &Value::Bool(false)));
        assert!((number(&report, "/data_wait_ms") > 0.001) != synthetic, "{report}");
        assert!(number(&report, "/tflops") > 0.0 && report["peak_tflops"].is_null(), "{report}");
        // libtorch and the heap settle at up to 4 MB more, whatever the number of steps: a leak is over 16 KB a step.
        let grown = number(&report, "/resident_mb/1") - number(&report, "/resident_mb/0");
        assert!(grown < 5.0, "{report}");
    }
}

#[test]
fn a_step_needs_enough_images_and_a_device_that_is_there() {
    for (extra, part) in [
        (["--steps", "0"], "0 is not in 1..=1000000"),
        (["--set", "train.batch_size=64"], "train.batch_size: found 64"),
        (["--set", "train.cuda_graph=on"], "train.cuda_graph: found on, expected auto or off on the CPU"),
    ] {
        let output = bench_step(&extra);
        let message = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(!output.status.success() && message.contains(part), "{extra:?}: {message}");
        assert!(output.stdout.is_empty() && (extra[0] == "--steps" || message.lines().count() == 1), "{message}");
    }
}

#[test]
fn two_processes_share_a_step_and_tell_how_long_they_wait_for_each_other() {
    for synthetic in [true, false] {
        let mut arguments = vec!["--nproc", "2", "--steps", "20", "--set", "train.batch_size=8"];
        arguments.extend(synthetic.then_some("--synthetic"));
        let started = Instant::now();
        let output = bench_step(&arguments);
        let elapsed = started.elapsed().as_secs_f64();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(text.lines().count(), 1, "{text}");
        let report: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(["/processes", "/batch", "/steps"].map(|key| number(&report, key)), [2.0, 8.0, 20.0]);
        let (share, each) = (number(&report, "/communication_share"), number(&report, "/communication_ms"));
        assert!(share > 0.0 && share < 1.0 && each > 0.0, "{report}");
        // Of the whole batch, and of the same time as the share: 8 images in a step.
        let step = 8.0 / number(&report, "/images_per_second");
        assert!((each / 1e3 / share / step - 1.0).abs() < 0.3 && step * 20.0 < elapsed, "{report}");
        let alone: Value = serde_json::from_slice(&bench_step(&arguments[2..]).stdout).expect("JSON");
        let communication = ["/processes", "/communication_ms", "/communication_share"];
        assert_eq!(communication.map(|key| number(&alone, key)), [1.0, 0.0, 0.0]);
    }
    let output = bench_step(&["--nproc", "3", "--set", "train.batch_size=8", "--synthetic"]);
    let message = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(!output.status.success() && output.stdout.is_empty() && message.lines().count() == 1, "{message}");
    assert!(message.contains("train.batch_size: found 8, expected a multiple of 3 processes"), "{message}");
}
