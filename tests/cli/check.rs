//! `byol check`, and the commands about configs.

use std::fs;

use crate::support::TinyRun;
use crate::support::run::{byol, failed, succeeded, text};

#[test]
fn a_config_is_checked_with_real_steps_and_leaves_nothing() {
    let root = tempfile::tempdir().expect("a folder");
    let (config, run) = (root.path().join("c.yaml"), root.path().join("run"));
    fs::write(&config, TinyRun::CONFIG).expect("written");
    let check = |more: &[&str]| {
        let (config, dir) = (config.display().to_string(), format!("output.dir={}", run.display()));
        byol(&["check", "--steps", "1", "--config", &config, "--set", &dir]).args(more).output().expect("byol runs")
    };
    let output = check(&[]);
    succeeded(&output);
    let said = text(&output.stdout);
    for part in [
        "config ",
        "images       64, 4 steps an epoch, 12 updates",
        "memory ",
        "disk ",
        "speed ",
        "time ",
        "checkpoints ",
    ] {
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
    assert!(!run.exists());
    for (set, parts) in [
        ("train.batch_size=128", &["train.batch_size: found 128, expected at most the 64 training images"][..]),
        ("model.projector_hidden=0", &["model.projector_hidden: found 0"]),
        ("output.keep_checkpoints=1000000000000", &["output.dir: ", "lower output.keep_checkpoints"]),
        ("train.cuda_graph=on", &["train.cuda_graph"]),
        ("output.dir=/proc/no", &["output.dir"]),
    ] {
        failed(&check(&["--set", set]), parts);
    }
    fs::create_dir_all(run.join("checkpoints/step-00000004")).expect("made");
    failed(&check(&[]), &["already contains a run"]);
}

#[test]
fn recipes_are_part_of_the_program() {
    let root = tempfile::tempdir().expect("a folder");
    let list = byol(&["configs"]).output().expect("byol runs");
    let said = text(&list.stdout);
    assert!(said.lines().count() >= 15 && said.contains("photos_resnet18 "), "{said}");
    let shown = byol(&["configs", "show", "quickstart.yaml"]).output().expect("byol runs");
    assert!(text(&shown.stdout).contains("format: synthetic"));
    let copy = root.path().join("my.yaml");
    let path = copy.display().to_string();
    succeeded(&byol(&["configs", "copy", "quickstart", &path]).output().expect("byol runs"));
    assert_eq!(fs::read(&copy).expect("a copy"), shown.stdout);
    failed(
        &byol(&["configs", "copy", "quickstart", &path]).output().expect("byol runs"),
        &["already exists", "--force"],
    );
    failed(
        &byol(&["configs", "show", "quick"]).output().expect("byol runs"),
        &["found no recipe quick, expected one of"],
    );
    // By name in any folder; a file of that name comes first, and a missing one in a folder gets a hint.
    let bench = |config: &str| {
        let mut command = byol(&["preview", "--output", "v.png", "--images", "1", "--draws", "1", "--config", config]);
        command.current_dir(root.path()).output().expect("byol runs")
    };
    succeeded(&bench("quickstart"));
    failed(&bench("configs/quickstart.yaml"), &["there is a built-in recipe: --config quickstart"]);
    fs::write(root.path().join("quickstart"), "train: {batch_size: 0}").expect("written");
    failed(&bench("quickstart"), &["quickstart:1: train.batch_size: found 0"]);
}

#[test]
fn keys_are_explained_and_shells_and_man_are_served() {
    let run = |arguments: &[&str]| byol(arguments).output().expect("byol runs");
    let schema = run(&["config", "schema"]);
    let json: serde_json::Value = serde_json::from_slice(&schema.stdout).expect("JSON");
    assert_eq!(json["properties"]["train"]["properties"]["batch_size"]["default"], 4096);
    assert!(text(&run(&["config", "explain", "optimizer.base_lr"]).stdout).contains("default 0.2"));
    failed(&run(&["config", "explain", "optimizer.lr"]), &["unknown key lr in optimizer"]);
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&run(&["completions", shell]).stdout).contains("linear-eval"), "{shell}");
    }
    let root = tempfile::tempdir().expect("a folder");
    let dir = root.path().join("man1");
    succeeded(&run(&["man", &dir.display().to_string()]));
    let page = fs::read_to_string(dir.join("byol-train.1")).expect("a page");
    assert!(page.contains("hours") && dir.join("byol-bench-step.1").exists(), "{page}");
}
