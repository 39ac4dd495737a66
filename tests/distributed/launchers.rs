//! Runs started by other launchers, and across two network namespaces as two machines. What is not installed or not
//! allowed here is said and skipped.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::support::ranks::*;

/// `byol train` behind another command's arguments.
fn behind(launcher: &mut Command, runs: &Runs, name: &str, args: &str) -> std::process::Output {
    let byol = runs.command(name, args);
    launcher.arg(byol.get_program()).args(byol.get_args());
    launcher.stdin(Stdio::null()).output().expect("the launcher runs")
}

/// Whether a launcher is installed and works.
fn there(launcher: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> bool {
    Command::new(launcher).args(args).output().is_ok_and(|done| done.status.success())
}

fn same_as_one_process(runs: &Runs, name: &str, output: &std::process::Output) {
    succeeded(output);
    let stdout = text(&output.stdout);
    assert_eq!(stdout.matches("stopped at train.max_steps: step 6 of 20").count(), 1, "{stdout}");
    succeeded(&runs.train("one", "train.max_steps=6"));
    let (one, two) = (runs.tensors("one", 6), runs.tensors(name, 6));
    let key = "online.encoder.conv1.weight";
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let error = norm(&mut one[key].iter().zip(&two[key]).map(|(a, b)| a - b)) / norm(&mut one[key].iter().copied());
    assert!(error < 1e-4, "{error:e}");
}

#[test]
fn torchrun_starts_a_run() {
    let torchrun = std::env::var_os("BYOL_TORCHRUN").unwrap_or("torchrun".into());
    if !there(&torchrun, &["--help"]) {
        println!("skipped: {} is missing; BYOL_TORCHRUN may name another one", torchrun.display());
        return;
    }
    let runs = Runs::new();
    let mut launcher = Command::new(torchrun);
    launcher.args(["--no-python", "--nproc-per-node", "2", "--master-port", &port().to_string()]);
    let output = behind(&mut launcher, &runs, "two", "train.max_steps=6");
    same_as_one_process(&runs, "two", &output);
}

#[test]
fn mpirun_starts_a_run() {
    if !there("mpirun", &["--version"]) {
        println!("skipped: mpirun is missing");
        return;
    }
    let runs = Runs::new();
    let mut launcher = Command::new("mpirun");
    launcher.args(["--allow-run-as-root", "--oversubscribe", "-np", "2"]);
    let output = behind(&mut launcher, &runs, "two", "train.max_steps=6");
    same_as_one_process(&runs, "two", &output);
}

#[test]
fn srun_starts_a_run_and_shares_the_cores() {
    if !there("srun", &["-n", "2", "--immediate=10", "true"]) {
        println!("skipped: there is no Slurm, or nothing of it is free");
        return;
    }
    let runs = Runs::new();
    let mut launcher = Command::new("srun");
    launcher.args(["-n", "2"]);
    let output = behind(&mut launcher, &runs, "two", "train.max_steps=6");
    same_as_one_process(&runs, "two", &output);
    let mut launcher = Command::new("srun");
    launcher.args(["-n", "2"]);
    let output = behind(&mut launcher, &runs, "shared", "train.max_steps=1 train.threads=0");
    let each = (std::thread::available_parallelism().map_or(1, usize::from) / 2).max(1);
    assert!(succeeded(&output).contains(&format!(" {each} threads in ")), "{}", text(&output.stderr));
}

/// Two network namespaces with a link between them, removed at the end.
struct TwoMachines([String; 2]);

impl TwoMachines {
    fn new() -> Option<Self> {
        let id = std::process::id();
        let names = [format!("byol-a-{id}"), format!("byol-b-{id}")];
        let this = Self(names);
        let [a, b] = &this.0;
        let made = [
            format!("netns add {a}"),
            format!("netns add {b}"),
            format!("link add va netns {a} type veth peer name vb netns {b}"),
            format!("-n {a} addr add 10.77.0.1/24 dev va"),
            format!("-n {b} addr add 10.77.0.2/24 dev vb"),
            format!("-n {a} link set va up"),
            format!("-n {b} link set vb up"),
            format!("-n {a} link set lo up"), // rank 0 talks to itself, too
        ];
        made.iter().all(|args| Self::ip(args)).then_some(this)
    }

    fn ip(args: &str) -> bool {
        let done = Command::new("ip").args(args.split(' ')).stderr(Stdio::null()).status();
        done.is_ok_and(|status| status.success())
    }

    /// `byol train` as rank 0 on the first machine or rank 1 on the second.
    fn start(&self, runs: &Runs, rank: usize, args: &str) -> std::process::Child {
        let byol = runs.command("run", args);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0[rank], "unshare", "--uts", "sh", "-c"]);
        command
            .arg(format!("hostname machine{rank} && exec \"$0\" \"$@\""))
            .arg(byol.get_program())
            .args(byol.get_args());
        for (name, value) in
            [("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "10.77.0.1"), ("MASTER_PORT", "29517")]
        {
            command.env(name, value);
        }
        command.env("RANK", rank.to_string()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("ip starts")
    }
}

impl Drop for TwoMachines {
    fn drop(&mut self) {
        for name in &self.0 {
            Self::ip(&format!("netns del {name}"));
        }
    }
}

#[test]
fn a_cut_link_between_two_machines_ends_both_and_one_goes_on() {
    let Some(machines) = TwoMachines::new() else {
        println!("skipped: no network namespaces here (they need root and iproute2)");
        return;
    };
    let runs = Runs::new();
    let args =
        "dist.timeout=10 schedule.epochs=100000 output.checkpoint_every_epochs=0 output.checkpoint_every_steps=5";
    let ranks = [0, 1].map(|rank| machines.start(&runs, rank, args));
    wait_for(&runs.checkpoint("run", 5));
    let cut = Instant::now();
    assert!(TwoMachines::ip(&format!("-n {} link set vb down", machines.0[1])));
    let outputs = ranks.map(|child| child.wait_with_output().expect("ended"));
    assert!(cut.elapsed() < PATIENCE, "ended after {:?}", cut.elapsed());
    // Neither can hear of the other: each names it, in one line.
    failed(&outputs[0], &["rank 1 on machine1 exited or cannot be reached", "--resume auto"]);
    failed(&outputs[1], &["rank 0 on machine0 exited or cannot be reached", "--resume auto"]);
    let folder = fs::read_dir(runs.dir("run").join("checkpoints")).expect("listed");
    let steps = folder.flatten().filter_map(|e| e.file_name().to_str()?.strip_prefix("step-")?.parse::<u64>().ok());
    let last = steps.max().expect("a checkpoint");
    let more = format!("{args} --resume auto train.max_steps={}", last + 2);
    let stderr = succeeded(&runs.train("run", &more));
    assert!(stderr.contains(&format!("step {last} of")), "{stderr}");
}
