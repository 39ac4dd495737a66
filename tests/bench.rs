//! `byol bench` from end to end, and what it shows: in the steady state the loader takes nothing from the heap per
//! image, and memory does not grow.

use std::process::{Command, Output};

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
