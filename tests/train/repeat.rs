//! What a run says of itself is enough to repeat it; what changed around it is said when it is resumed.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::run::{Run, draw_images, ended, failed, send, succeeded, text};

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON")
}

#[test]
fn a_run_is_repeated_from_what_it_left() {
    let first = Run::new();
    let stderr = succeeded(&first.train(&["--set", "train.precision=auto"]));
    let manifest = json(&first.dir().join("manifest.json"));
    let said = |key: &str| manifest[key].as_str().unwrap_or_else(|| panic!("{key} in {manifest}")).to_string();
    // The line on stderr says the same as the file.
    let line = stderr.lines().find(|line| line.starts_with("byol ")).expect("the manifest's line");
    for part in [said("byol"), said("commit"), said("libtorch"), said("device"), said("precision"), "seed 7".into()] {
        assert!(line.contains(&part), "{part:?} is not in {line}");
    }
    assert!(line.contains(&said("config_sha256")[..12]) && line.contains(&said("data")[..12]), "{line}");
    let commit = said("commit");
    let hex = commit.trim_end_matches("-changed");
    assert!(hex == "unknown" || hex.len() == 12 && hex.chars().all(|c| c.is_ascii_hexdigit()), "{commit}");
    assert!(said("libtorch").split('.').count() == 3, "{manifest}");

    let again = Run::new();
    fs::copy(first.dir().join("config.yaml"), again.folder.path().join("config.yaml")).expect("copied");
    let threads = format!("train.threads={}", manifest["threads"]);
    let (device, precision) =
        (format!("train.device={}", said("device")), format!("train.precision={}", said("precision")));
    succeeded(&again.train(&["--set", &threads, "--set", &device, "--set", &precision]));
    assert!(first.weights(12) == again.weights(12), "weights or optimizer state differ");
    let repeated = json(&again.dir().join("manifest.json"));
    for key in
        ["byol", "commit", "libtorch", "device", "threads", "precision", "data", "images", "seed", "deterministic"]
    {
        assert_eq!(manifest[key], repeated[key], "{key}");
    }
    // Precision was a choice, and is a number's: the config's hash tells auto from what it came to.
    assert_ne!(manifest["config_sha256"], repeated["config_sha256"]);
    let checkpoint = json(&again.checkpoint(12).join("manifest.json"));
    assert_eq!(checkpoint["config_sha256"], repeated["config_sha256"]);
}

#[test]
fn the_configs_hash_is_that_of_what_matters_and_determinism_is_said() {
    let hash = |extra: &[&str]| {
        let run = Run::new();
        let one = ["--set", "train.max_steps=1", "--set", "monitor.knn_every=0"];
        let stderr = succeeded(&run.train(&[&one[..], extra].concat()));
        let manifest = json(&run.dir().join("manifest.json"));
        assert_eq!(stderr.contains(", deterministic, seed 7"), manifest["deterministic"] == true, "{stderr}");
        (manifest["config_sha256"].clone(), manifest["deterministic"].clone())
    };
    let plain = hash(&[]);
    let deterministic = hash(&["--set", "train.deterministic=true", "--set", "monitor.log_every=9"]);
    assert_eq!((&deterministic.0, &deterministic.1), (&plain.0, &true.into()));
    assert_ne!(plain.0, hash(&["--set", "optimizer.clip_grad_norm=3"]).0);
}

#[test]
fn changed_images_are_reported_on_resume() {
    let run = Run::new();
    let folder = run.folder.path().join("images");
    draw_images(&folder);
    let set = format!("data.path={}", folder.display());
    let images =
        ["--set", "data.format=image_folder", "--set", &set, "--set", "monitor.knn_every=0", "--resume", "auto"];
    let until = |step: u64, changed: bool| {
        let stderr = succeeded(&run.train(&[&images[..], &["--set", &format!("train.max_steps={step}")]].concat()));
        assert_eq!(stderr.contains("warning: the training images changed since the checkpoint"), changed, "{stderr}");
        stderr
    };
    until(1, false);
    until(2, false);
    fs::rename(folder.join("a/0.png"), folder.join("a/00.png")).expect("renamed");
    let stderr = until(3, true);
    assert!(stderr.matches("36 images (fingerprint ").count() == 2, "{stderr}");
    until(4, false);
    let mut bytes = fs::read(folder.join("b/1.png")).expect("read");
    bytes.push(0);
    fs::write(folder.join("b/1.png"), bytes).expect("longer");
    until(5, true);
    fs::remove_file(folder.join("b/3.png")).expect("removed");
    let stderr = until(6, true);
    assert!(stderr.contains("36 images (fingerprint ") && stderr.contains("35 images (fingerprint "), "{stderr}");
}

#[test]
fn images_that_vanish_under_a_run_are_bad_images() {
    let run = Run::new();
    let folder = run.folder.path().join("images");
    draw_images(&folder);
    let set = format!("data.path={}", folder.display());
    let endless = ["--set", "schedule.epochs=100000", "--set", "monitor.knn_every=0", "--set", "monitor.log_every=1"];
    let mut child = run.spawn_logged(&[&["--set", "data.format=image_folder", "--set", &set][..], &endless].concat());
    run.wait_until_said("step 1/");
    for i in (0..20).step_by(2) {
        fs::remove_file(folder.join(format!("a/{i}.png"))).expect("removed");
    }
    fs::remove_file(folder.join("b/1.png")).and_then(|()| fs::create_dir(folder.join("b/1.png"))).expect("a folder");
    fs::write(folder.join("b/3.png"), "").expect("emptied");
    let removed = (0..20).step_by(2).map(|i| format!("a/{i}.png"));
    for name in removed.chain(["b/1.png".to_string(), "b/3.png".to_string()]) {
        run.wait_until_said(&format!("skipping bad image {}: ", folder.join(name).display()));
    }
    send("-TERM", &child);
    assert_eq!(ended(&mut child).code(), Some(143));
    assert_eq!(run.summary()["images_skipped"], 12);
}

#[test]
fn memory_that_is_not_there_is_one_line() {
    let sizes = ["model.projector_hidden=65536", "model.projection_dim=65536", "model.predictor_hidden=65536"];
    let heads: Vec<&str> = sizes.iter().flat_map(|size| ["--set", size]).collect();
    failed(
        &Run::new().train(&heads),
        &["the run needs about ", "GB for weights, target", "the machine has ", "lower model.projector_hidden"],
    );
    // Weights that fit, activations that do not: refused, or on request tried with a warning.
    let sizes = ["train.batch_size=4096", "data.synthetic.images=4096", "augment.size=64", "model.width=1.0"];
    let batch: Vec<&str> = sizes.iter().flat_map(|size| ["--set", size]).collect();
    let limited = |extra: &[&str]| {
        let run = Run::new();
        let common = ["--set", "monitor.knn_every=0", "--set", "train.threads=1"];
        let command = run.command(&[&batch[..], &common, extra].concat());
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -v 4000000; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
        shell.output().expect("byol runs")
    };
    failed(&limited(&[]), &["the machine has 4.1 GB in all; lower train.batch_size", "train.ignore_memory=true"]);
    let output = limited(&["--set", "train.ignore_memory=true"]);
    let said = text(&output.stderr);
    assert!(
        said.contains("warning: the run will need about ") && said.contains(" GB of the machine's memory"),
        "{said}"
    );
    failed(&output, &["out of memory: requested ", "B free; lower train.batch_size"]);
}

/// Whoever asks for memory last is told: the weights, the loader, libtorch's operators, oneDNN.
#[test]
fn memory_may_run_out_anywhere() {
    let settings = "train.batch_size=512 augment.size=64 data.synthetic.images=512 train.max_steps=1 monitor.knn_every=0 train.ignore_memory=true";
    let settings: Vec<&str> = settings.split(' ').flat_map(|key| ["--set", key]).collect();
    let limits = (600..2600).step_by(250);
    let said = limits.map(|megabytes| {
        let run = Run::new();
        let command = run.command(&settings);
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -v {megabytes}000; exec \"$@\""), "sh"]);
        let output = shell.arg(command.get_program()).args(command.get_args()).output().expect("byol runs");
        failed(&output, &["error: "]);
        text(&output.stderr)
    });
    let said: Vec<String> = said.collect();
    // With little memory it may be a thread that cannot be started.
    let memory =
        said.iter().filter(|said| said.contains("out of memory: requested ") && said.contains("; lower train."));
    assert!(memory.count() > 5, "{said:?}");
}
