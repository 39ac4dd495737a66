//! A run of a few steps, and what commands print of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use safetensors::SafeTensors;
use serde_json::Value;

/// 200 drawn images of 16 px in 4 classes, 60 held out; two epochs.
pub const CONFIG: &str = "
data:
  format: synthetic
  workers: 1
  synthetic: {images: 200, eval_images: 60, classes: 4, size: 16}
augment:
  size: 16
  view1: {blur_prob: 0}
  view2: {blur_prob: 0}
model: {arch: resnet18, width: 0.25, stem: cifar, projector_hidden: 32, projection_dim: 16, predictor_hidden: 32}
optimizer: {name: sgd, base_lr: 0.3}
schedule: {epochs: 2, warmup_epochs: 0}
train: {batch_size: 20, precision: fp32, device: cpu, threads: 1, seed: 7}
monitor: {knn_every: 0, tensorboard: false}
";

pub fn byol(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byol"));
    command.args(arguments);
    command
}

pub fn output(arguments: &[&str]) -> Output {
    byol(arguments).output().expect("byol runs")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn stdout(arguments: &[&str]) -> String {
    let output = output(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

pub fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout(arguments)).expect("one JSON report")
}

/// One line that says `error: ` and all of `parts`; exit code 1 and nothing on stdout.
pub fn failed(arguments: &[&str], parts: &[&str]) {
    let output = output(arguments);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    let errors: Vec<&str> = stderr.lines().skip_while(|line| !line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    for part in parts {
        assert!(errors[0].contains(part), "{part:?} is not in {}", errors[0]);
    }
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
}

/// A copy of one trained run, made once, in a folder of its own.
pub struct Run {
    pub folder: tempfile::TempDir,
}

impl Run {
    pub fn new() -> Self {
        static TRAINED: OnceLock<tempfile::TempDir> = OnceLock::new();
        let trained = TRAINED.get_or_init(|| {
            let folder = tempfile::tempdir().expect("a folder");
            let config = folder.path().join("config.yaml");
            fs::write(&config, CONFIG).expect("written");
            let set = format!("output.dir={}", folder.path().join("run").display());
            stdout(&["train", "--config", &config.display().to_string(), "--set", &set]);
            folder
        });
        let run = Self { folder: tempfile::tempdir().expect("a folder") };
        fs::create_dir_all(run.checkpoint()).expect("made");
        for name in ["model.safetensors", "optimizer.safetensors", "manifest.json", "SHA256SUMS"] {
            let from = trained.path().join("run/checkpoints/step-00000020").join(name);
            fs::copy(from, run.checkpoint().join(name)).expect("copied");
        }
        run
    }

    pub fn checkpoint(&self) -> PathBuf {
        self.dir().join("checkpoints/step-00000020")
    }

    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    pub fn arguments<'a>(&self, command: &'a str, extra: &[&'a str]) -> Vec<String> {
        let own = [command, "--checkpoint", &self.path("run")].map(str::to_string);
        own.into_iter().chain(extra.iter().map(|s| s.to_string())).collect()
    }

    pub fn stdout(&self, command: &str, extra: &[&str]) -> String {
        let arguments = self.arguments(command, extra);
        stdout(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub fn json(&self, command: &str, extra: &[&str]) -> Value {
        serde_json::from_str(&self.stdout(command, &[extra, &["--json"]].concat())).expect("one JSON report")
    }

    pub fn failed(&self, command: &str, extra: &[&str], parts: &[&str]) {
        let arguments = self.arguments(command, extra);
        failed(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), parts);
    }

    /// The encoder alone, as anyone might hand it on.
    pub fn foreign(&self) -> String {
        let bytes = fs::read(self.checkpoint().join("model.safetensors")).expect("read");
        let file = SafeTensors::deserialize(&bytes).expect("whole");
        let own =
            file.iter().filter_map(|(name, view)| Some((name.strip_prefix("online.encoder.")?.to_string(), view)));
        let path = self.path("encoder.safetensors");
        fs::write(&path, safetensors::serialize(own, None).expect("serialized")).expect("written");
        path
    }
}

/// Images in folders `a` and `b`, which differ in brightness; labels of no other kind.
pub fn draw_images(folder: &Path, classes: &[&str], each: usize) {
    for (class, name) in classes.iter().enumerate() {
        fs::create_dir_all(folder.join(name)).expect("made");
        for i in 0..each {
            let value = (class * 100 + i * 3) as u8;
            let image = image::RgbImage::from_fn(20, 20, |x, _| image::Rgb([value, x as u8, value / 2]));
            image.save(folder.join(name).join(format!("{i}.png"))).expect("saved");
        }
    }
}

pub const QUICK: [&str; 2] = ["--set", "linear_eval.epochs=20"];
