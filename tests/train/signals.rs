//! Signals and terminals that come and go under a run.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::run::{Run, ended, send, succeeded};

const ENDLESS: [&str; 6] =
    ["--set", "schedule.epochs=10000", "--set", "output.checkpoint_every_epochs=0", "--set", "monitor.knn_every=0"];

#[test]
fn sigusr1_and_sigusr2_write_a_checkpoint_and_the_run_continues() {
    let run = Run::new();
    let mut child = run.spawn_logged(&ENDLESS);
    run.wait_for(&run.dir().join("lock"));
    send("-USR1", &child); // before there is anything to save
    run.wait_until_said("checkpoint requested by a signal: wrote ");
    send("-USR2", &child);
    let start = Instant::now();
    while fs::read_to_string(run.log()).expect("a log").matches("by a signal: wrote ").count() < 2 {
        assert!(start.elapsed() < crate::support::run::PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
    send("-TERM", &child);
    assert_eq!(ended(&mut child).code(), Some(143));
    let said = fs::read_to_string(run.log()).expect("a log");
    for line in said.lines().filter_map(|line| line.strip_prefix("checkpoint requested by a signal: wrote ")) {
        assert!(std::path::Path::new(line).join("SHA256SUMS").exists(), "{line}");
    }
    run.assert_tidy(3);
}

#[test]
fn sighup_and_closed_descriptors_do_not_end_a_run() {
    let run = Run::new();
    let command = run.command(&[]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" <&- >&- 2>&-", "sh"]).arg(command.get_program()).args(command.get_args());
    let mut child = shell.stdin(Stdio::null()).spawn().expect("byol runs");
    run.wait_for(&run.dir().join("lock"));
    std::thread::sleep(Duration::from_millis(20));
    send("-HUP", &child);
    assert!(ended(&mut child).success());
    assert_eq!(run.summary()["ending"], "finished");
}

/// `script` gives the run a terminal, and takes it away when it is killed.
#[test]
fn a_closed_terminal_does_not_end_a_run() {
    if Command::new("script").arg("--version").output().is_err() {
        return println!("skipped: there is no script(1) here");
    }
    let run = Run::new();
    let command = run.command(&[]);
    let words: Vec<String> =
        [command.get_program()].into_iter().chain(command.get_args()).map(|w| format!("'{}'", w.display())).collect();
    let typescript = run.folder.path().join("typescript");
    let mut script = Command::new("script");
    script.arg("--quiet").arg("--flush").arg("--command").arg(format!("exec {}", words.join(" "))).arg(&typescript);
    script.env("TERM", "xterm");
    let mut child = script.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("script runs");
    run.wait_for(&run.checkpoint(4));
    // Bars, as on a terminal; `script` may be a little behind.
    let start = Instant::now();
    let shown = || fs::read_to_string(&typescript).unwrap_or_default();
    while !shown().contains("\u{1b}[") {
        assert!(start.elapsed() < crate::support::run::PATIENCE, "{}", shown());
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    let start = Instant::now();
    while run.summary()["ending"] != "finished" {
        assert!(start.elapsed() < crate::support::run::PATIENCE, "{}", run.summary());
        std::thread::sleep(Duration::from_millis(5));
    }
    // The lock is free once the process has exited.
    let start = Instant::now();
    while !run.train(&["--resume", "auto"]).status.success() {
        assert!(start.elapsed() < crate::support::run::PATIENCE);
    }
}

#[test]
fn a_terminal_that_cannot_draw_gets_lines() {
    if Command::new("script").arg("--version").output().is_err() {
        return println!("skipped: there is no script(1) here");
    }
    for term in [None, Some("dumb")] {
        let run = Run::new();
        let command = run.command(&[]);
        let words: Vec<String> = [command.get_program()]
            .into_iter()
            .chain(command.get_args())
            .map(|word| format!("'{}'", word.display()))
            .collect();
        let typescript = run.folder.path().join("typescript");
        let mut script = Command::new("script");
        script.args(["--quiet", "--command", &format!("exec {}", words.join(" "))]).arg(&typescript).env_remove("TERM");
        script.envs(term.map(|term| ("TERM", term))).stdin(Stdio::null()).stdout(Stdio::null());
        assert!(script.status().expect("script runs").success());
        let shown = fs::read_to_string(&typescript).expect("a typescript");
        assert!(shown.contains("step 12/12 epoch 3.00 loss ") && !shown.contains('\u{1b}'), "{term:?}: {shown}");
    }
}

#[test]
fn a_stale_lock_is_ignored() {
    let run = Run::new();
    let mut child = run.spawn_logged(&ENDLESS);
    run.wait_for(&run.dir().join("metrics.jsonl"));
    child.kill().expect("kill -9");
    child.wait().expect("ended");
    let owner = fs::read_to_string(run.dir().join("lock")).expect("a lock");
    assert_eq!(owner.trim(), child.id().to_string());
    succeeded(&run.train(&["--resume", "auto", "--set", "train.max_steps=1"]));
}
