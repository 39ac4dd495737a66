//! Starting runs of several processes and looking at how they end.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub use super::run::{PATIENCE, failed, succeeded, text};
use safetensors::SafeTensors;

/// A command with more arguments, separated by blanks; those with `=` are overrides.
pub fn with(mut command: Command, args: &str) -> Command {
    for arg in args.split_whitespace() {
        if arg.contains('=') {
            command.arg("--set");
        }
        command.arg(arg);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A folder with a config, and runs in it.
pub struct Runs {
    pub folder: tempfile::TempDir,
}

impl Runs {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = crate::support::TinyRun::CONFIG
            .replace("epochs: 3", "epochs: 5")
            .replace("name: sgd, base_lr: 0.5", "name: lars, base_lr: 0.005");
        fs::write(folder.path().join("config.yaml"), config).expect("written");
        Self { folder }
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `byol train` into the folder `name`, [`with`] arguments.
    pub fn command(&self, name: &str, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_byol"));
        command.arg("train").arg("--config").arg(self.dir("config.yaml"));
        command.arg("--set").arg(format!("output.dir={}", self.dir(name).display()));
        with(command, args)
    }

    pub fn train(&self, name: &str, args: &str) -> Output {
        self.command(name, args).output().expect("byol runs")
    }

    /// The same as one process of several, as torchrun would start it.
    pub fn rank(&self, name: &str, args: &str, rank: usize, world: usize, port: u16) -> Child {
        self.rank_command(name, args, rank, world, port).spawn().expect("byol starts")
    }

    pub fn rank_command(&self, name: &str, args: &str, rank: usize, world: usize, port: u16) -> Command {
        let mut command = self.command(name, args);
        for (name, value) in [("RANK", rank.to_string()), ("WORLD_SIZE", world.to_string())] {
            command.env(name, value);
        }
        command
            .env("LOCAL_RANK", rank.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string());
        command
    }

    pub fn checkpoint(&self, name: &str, step: u64) -> PathBuf {
        self.dir(name).join(format!("checkpoints/step-{step:08}"))
    }

    pub fn tensors(&self, name: &str, step: u64) -> BTreeMap<String, Vec<f64>> {
        tensors(&self.checkpoint(name, step))
    }

    /// Log records: those with a loss.
    pub fn records(&self, name: &str) -> Vec<serde_json::Value> {
        let metrics = fs::read_to_string(self.dir(name).join("metrics.jsonl")).expect("metrics");
        metrics.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// A run that does not end by itself, once it has logged; its processes by rank.
    pub fn started(&self, name: &str, args: &str, world: usize) -> (Child, Vec<u32>) {
        let endless = "schedule.epochs=100000 output.checkpoint_every_epochs=0 output.checkpoint_every_steps=5";
        let child = self.command(name, &format!("{args} {endless}")).spawn().expect("byol starts");
        wait_for(&self.checkpoint(name, 5));
        let ranks: Vec<u32> = (0..world).map(|rank| rank_of(child.id(), rank)).collect();
        (child, ranks)
    }
}

pub fn tensors(checkpoint: &Path) -> BTreeMap<String, Vec<f64>> {
    let mut all = BTreeMap::new();
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let bytes = fs::read(checkpoint.join(file)).expect("a checkpoint");
        for (name, view) in SafeTensors::deserialize(&bytes).expect("whole").tensors() {
            let values = match view.dtype() {
                safetensors::Dtype::F32 => {
                    view.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64).collect()
                }
                _ => view.data().chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
            };
            all.insert(name, values);
        }
    }
    all
}

pub fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < PATIENCE, "{} never came", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The process of that rank among the launcher's children.
pub fn rank_of(launcher: u32, rank: usize) -> u32 {
    let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).expect("children");
    let is = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&b| b == 0).any(|v| v == format!("RANK={rank}").as_bytes())
    };
    children.split_whitespace().map(|pid| pid.parse().expect("a number")).find(is).expect("the rank's process")
}

pub fn send(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill").success());
}

/// Whether none of the processes is left, zombies aside, within a second.
pub fn gone(pids: &[u32]) -> bool {
    let lives = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
    };
    (0..50).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        !pids.iter().any(lives)
    })
}

pub fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").expect("a name").trim().to_string()
}

/// A port that was free a moment ago.
pub fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port()
}

/// Ends of all processes: one of them has an error line, with all of `parts`, the others say nothing.
pub fn one_failed(children: Vec<Child>, parts: &[&str]) {
    let outputs: Vec<Output> = children.into_iter().map(|c| c.wait_with_output().expect("ended")).collect();
    assert!(outputs.iter().all(|o| o.status.code() == Some(1)), "{outputs:?}");
    let stderr: String = outputs.iter().map(|o| text(&o.stderr)).collect();
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    parts.iter().for_each(|part| assert!(errors[0].contains(part), "{part:?} is not in {}", errors[0]));
}
