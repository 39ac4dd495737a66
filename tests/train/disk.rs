//! A run whose disk is full, read-only or missing continues, logs it, and saves once it can.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::run::{Run, ended, failed, send, succeeded, text};

/// Steps of four images without end, a checkpoint after each fifth.
const ENDLESS: [&str; 10] = [
    "--set",
    "train.batch_size=4",
    "--set",
    "schedule.epochs=10000",
    "--set",
    "monitor.knn_every=0",
    "--set",
    "output.checkpoint_every_steps=5",
    "--set",
    "monitor.log_every=1",
];
const RESUME: [&str; 2] = ["--resume", "auto"];

/// A file system of its own for `run.dir()`, of so many MB; unmounted at the end.
struct Disk(PathBuf);

impl Disk {
    /// `None`, and it is said, where this user may not mount.
    fn mount(run: &Run, megabytes: u64) -> Option<Self> {
        fs::create_dir(run.dir()).expect("made");
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(run.dir()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(run.dir()));
        }
        println!("skipped: a small tmpfs cannot be mounted here (that takes root)");
        None
    }

    /// Takes what room there is, until the run says so.
    fn fill(&self, run: &Run, until: &str) -> PathBuf {
        let ballast = self.0.join("ballast");
        let mut file = fs::File::options().create(true).append(true).open(&ballast).expect("made");
        while !fs::read_to_string(run.log()).expect("a log").contains(until) {
            while file.write_all(&[0; 4096]).is_ok() {}
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        ballast
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy"]).arg(&self.0).status();
    }
}

/// Stops the run, whose last checkpoint must then be that of a run which had room all the time.
fn assert_stops_with_the_same_bits(run: &Run, mut child: std::process::Child) {
    send("-TERM", &child);
    let status = ended(&mut child);
    let said = fs::read_to_string(run.log()).expect("a log");
    assert_eq!(status.code(), Some(143), "{said}");
    let step = run.summary()["step"].as_u64().expect("a step");
    let whole = Run::new();
    let max = format!("train.max_steps={step}");
    succeeded(&whole.train(&[&ENDLESS[..], &["--set", &max]].concat()));
    assert!(run.weights(step) == whole.weights(step), "weights or optimizer state differ");
    let steps = |run: &Run| {
        run.records().iter().filter(|r| r["lr"].is_f64()).filter_map(|r| r["step"].as_u64()).collect::<Vec<_>>()
    };
    assert_eq!(steps(run), (1..=step).collect::<Vec<_>>(), "no record is torn or lost");
}

#[test]
fn a_disk_that_fills_and_is_freed_again_costs_nothing() {
    let run = Run::new();
    let Some(disk) = Disk::mount(&run, 40) else { return };
    let child = run.spawn_logged(&ENDLESS);
    run.wait_for(&run.checkpoint(10));
    // Older checkpoints make room as long as there are any; then nothing can be written any more.
    disk.fill(&run, "removing the oldest of");
    disk.fill(&run, "trying again at the next one");
    let said = run.wait_until_said("trying again at the next one");
    assert!(said.contains("No space left on device") && said.contains("removing the oldest of"), "{said}");
    assert!(said.contains("(needs 8.5 MB, free: "), "{said}");
    // What a removed checkpoint freed is enough for records.
    let ballast = disk.fill(&run, "trying again at the next record");
    let last = said.rsplit("the last valid checkpoint is ").next().and_then(|rest| rest.split(';').next());
    assert!(Path::new(last.expect("a path")).join("SHA256SUMS").exists(), "{last:?}");
    fs::remove_file(ballast).expect("removed");
    run.wait_until_said("written after an earlier failure");
    let said = run.wait_until_said("the metrics were written after an earlier failure");
    assert!(!said.contains("\nerror: "), "{said}");
    assert_stops_with_the_same_bits(&run, child);
}

#[test]
fn a_read_only_disk_is_waited_out() {
    let run = Run::new();
    let child = run.spawn_logged(&ENDLESS);
    run.wait_for(&run.checkpoint(5));
    // Root may write to folders that say no; a read-only mount over the folder stops root, too.
    let mount = |args: &[&str]| {
        let output = Command::new("mount").args(args).arg(run.dir()).output();
        output.is_ok_and(|output| output.status.success())
    };
    let own = run.dir().display().to_string();
    let mounted = mount(&["--bind", &own]);
    let guard = mounted.then(|| Disk(run.dir()));
    let folders = [run.dir(), run.dir().join("checkpoints")];
    let permit = |mode| {
        for folder in &folders {
            fs::set_permissions(folder, fs::Permissions::from_mode(mode)).expect("permitted");
        }
    };
    if mounted {
        assert!(mount(&["-o", "remount,bind,ro"]), "a mount of our own");
        run.wait_until_said("Read-only file system");
    } else {
        permit(0o555);
        run.wait_until_said("Permission denied");
    }
    run.wait_until_said("trying again at the next one");
    drop(guard);
    permit(0o755);
    let said = run.wait_until_said("written after an earlier failure");
    assert!(!said.contains("\nerror: "), "{said}");
    assert_stops_with_the_same_bits(&run, child);
}

#[test]
fn a_last_checkpoint_that_cannot_be_written_is_an_error_and_stop_means_at_once() {
    let run = Run::new();
    let short = [&ENDLESS[..], &["--set", "train.max_steps=12"]].concat();
    // No file may grow beyond 64 blocks of 512 bytes: as a quota, for any user. The metrics of so few steps fit.
    let limited = |extra: &[&str]| {
        let command = run.command(&[&short[..], &RESUME, extra].concat());
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -f 64; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
        shell.output().expect("byol runs")
    };
    succeeded(&run.train(&[&short[..], &["--set", "train.max_steps=7"]].concat()));
    let output = limited(&[]);
    let said = text(&output.stderr);
    failed(&output, &["step 12, the run's last, could not be saved", "File too large", "(needs 8.5 MB, free: "]);
    assert!(said.contains("trying again at the next one") && said.contains("step-00000007; free some space"), "{said}");
    let output = limited(&["--set", "output.on_write_error=stop"]);
    failed(&output, &["writing checkpoint", "step-00000010", "File too large"]);
    run.assert_tidy(2);
    succeeded(&run.train(&[&short[..], &RESUME].concat()));
    let whole = Run::new();
    succeeded(&whole.train(&short));
    assert!(run.weights(12) == whole.weights(12), "weights or optimizer state differ");
}

#[test]
fn a_folder_deleted_under_the_run_is_made_again() {
    let run = Run::new();
    let child = run.spawn_logged(&ENDLESS);
    run.wait_for(&run.checkpoint(5));
    let moved = run.folder.path().join("moved");
    fs::rename(run.dir(), &moved).expect("moved"); // the same to the run as deleted, but for one instant
    let said = run.wait_until_said("was deleted or moved during the run: recreating it");
    assert!(!said.contains("\nerror: "), "{said}");
    run.wait_until_said("metrics.jsonl was deleted: starting a new file");
    let second = run.command(&RESUME).stdout(Stdio::null()).output().expect("byol runs");
    failed(&second, &[&format!("is in use by process {}", child.id())]);
    for name in ["config.yaml", "manifest.json", "lock"] {
        assert!(run.dir().join(name).exists(), "{name}");
    }
    let mut child = child;
    send("-TERM", &child);
    assert_eq!(ended(&mut child).code(), Some(143));
    run.records();
    let step = run.summary()["step"].as_u64().expect("a step");
    succeeded(&run.train(&[&ENDLESS[..], &RESUME, &["--set", &format!("train.max_steps={}", step + 1)]].concat()));
}
