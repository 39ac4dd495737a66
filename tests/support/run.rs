//! `byol train` as a user runs it, in a folder of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a test waits for what must happen before it says what never came: ten times what a slow machine beside
/// others' work needs.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// 64 drawn images of 16 px, 4 steps an epoch, 3 epochs; bit-identical to itself.
const CONFIG: &str = "
data:
  format: synthetic
  workers: 2
  synthetic: {images: 70, eval_images: 30, classes: 5, size: 16}
augment:
  size: 16
  view1: {blur_sigma: [0.1, 0.5]}
  view2: {blur_sigma: [0.1, 0.5]}
model: {arch: resnet18, width: 0.25, stem: cifar, projector_hidden: 32, projection_dim: 16, predictor_hidden: 32}
optimizer: {name: lars, base_lr: 2.0}
schedule: {epochs: 3, warmup_epochs: 1}
ema: {base_tau: 0.9}
train: {batch_size: 16, precision: fp32, device: cpu, threads: 1, seed: 7}
monitor: {log_every: 2, knn_every: 1, knn_k: 5}
output: {checkpoint_every_epochs: 1, keep_checkpoints: 3}
";

pub struct Run {
    pub folder: tempfile::TempDir,
    /// What [`Self::spawn`] started: not to outlive a test that fails.
    started: std::cell::RefCell<Vec<u32>>,
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for id in self.started.borrow().iter() {
                let _ = Command::new("kill").args(["-KILL", &id.to_string()]).status();
            }
        }
    }
}

impl Run {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("config.yaml"), CONFIG).expect("written");
        Self { folder, started: Default::default() }
    }

    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    pub fn command(&self, extra: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_byol"));
        command.arg("train").arg("--config").arg(self.folder.path().join("config.yaml"));
        command.arg("--set").arg(format!("output.dir={}", self.dir().display())).args(extra);
        command
    }

    pub fn train(&self, extra: &[&str]) -> Output {
        self.command(extra).output().expect("byol runs")
    }

    pub fn spawn(&self, extra: &[&str]) -> Child {
        self.started(self.command(extra).stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    fn started(&self, command: &mut Command) -> Child {
        let child = command.spawn().expect("byol runs");
        self.started.borrow_mut().push(child.id());
        child
    }

    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.dir().join(format!("checkpoints/step-{step:08}"))
    }

    pub fn weights(&self, step: u64) -> Vec<u8> {
        let path = self.checkpoint(step).join("model.safetensors");
        let optimizer = self.checkpoint(step).join("optimizer.safetensors");
        [fs::read(path).expect("weights"), fs::read(optimizer).expect("optimizer")].concat()
    }

    pub fn summary(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.dir().join("summary.json")).expect("a summary")).expect("JSON")
    }

    /// Starts a run that says what it says to the file `log` in the test's folder.
    pub fn spawn_logged(&self, extra: &[&str]) -> Child {
        let log = fs::File::options().create(true).append(true).open(self.log()).expect("a log");
        let err = log.try_clone().expect("a descriptor");
        self.started(self.command(extra).stdout(log).stderr(err))
    }

    /// The file of [`Self::spawn_logged`].
    pub fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Waits until the log says this.
    pub fn wait_until_said(&self, what: &str) -> String {
        let start = Instant::now();
        loop {
            let said = fs::read_to_string(self.log()).unwrap_or_default();
            if said.contains(what) {
                return said;
            }
            assert!(start.elapsed() < PATIENCE, "{what:?} was never said:\n{said}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The run's records, which must be whole lines in the order of their steps.
    pub fn records(&self) -> Vec<serde_json::Value> {
        let metrics = fs::read_to_string(self.dir().join("metrics.jsonl")).expect("metrics");
        assert!(metrics.ends_with('\n'), "{metrics}");
        let records: Vec<serde_json::Value> = metrics.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
        let steps: Vec<u64> = records.iter().map(|record| record["step"].as_u64().expect("a step")).collect();
        assert!(steps.is_sorted(), "{steps:?}");
        records
    }

    /// Nothing half-written is left, in the run's folder or below it, and this many checkpoints.
    pub fn assert_tidy(&self, checkpoints: usize) {
        let names = |folder: &Path| -> Vec<String> {
            let entries = fs::read_dir(folder).expect("listed").map(|entry| entry.expect("an entry").file_name());
            entries.map(|name| name.to_string_lossy().into_owned()).collect()
        };
        let (own, below) = (names(&self.dir()), names(&self.dir().join("checkpoints")));
        let temporary = |name: &&String| name.contains("partial") || name.contains("tmp");
        assert_eq!(own.iter().chain(&below).filter(temporary).count(), 0, "{own:?} {below:?}");
        assert_eq!(below.len(), checkpoints, "{below:?}");
    }

    pub fn wait_for(&self, path: &Path) {
        let start = Instant::now();
        while !path.exists() {
            assert!(start.elapsed() < PATIENCE, "{} never came", path.display());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The program with these arguments.
pub fn byol(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byol"));
    command.args(arguments);
    command
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stderr)
}

/// One line that says `error: ` and all of `parts`; exit code 1.
pub fn failed(output: &Output, parts: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let errors: Vec<&str> = stderr.lines().skip_while(|line| !line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    for part in parts {
        assert!(errors[0].contains(part), "{part:?} is not in {}", errors[0]);
    }
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
}

/// Sends a signal, such as `-TERM`.
pub fn send(signal: &str, child: &Child) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill").success());
}

/// Waits for the end of a run, but not for ever.
pub fn ended(child: &mut Child) -> std::process::ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("waited") {
            return status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().expect("killed");
            panic!("process {} hangs", child.id());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The number in the environment variable `name`, which `scripts/soak` sets, or this one.
pub fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// Random numbers: those of BYOL_SEED, or others every time; the seed is printed.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let seed = from_environment("BYOL_SEED", now.as_nanos() as u64);
        println!("BYOL_SEED={seed}");
        Self(seed)
    }

    /// From 0 to below 1 (SplitMix64).
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ x >> 31) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// 36 small images in folders `a` and `b` below `folder`.
pub fn draw_images(folder: &Path) {
    for i in 0..36u8 {
        let class = folder.join(["a", "b"][i as usize % 2]);
        fs::create_dir_all(&class).expect("made");
        let image = image::RgbImage::from_fn(20, 20, |x, y| image::Rgb([i * 7, (x * 12) as u8, (y * 12) as u8]));
        image.save(class.join(format!("{i}.png"))).expect("saved");
    }
}
