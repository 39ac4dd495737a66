//! The examples at the end of every command's `--help`, run as written, but for less work.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::support::run::{draw_images, text};

/// A folder with `photos`, training and held-out ones, and the program on the PATH below it.
fn place() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("bin")).expect("made");
    symlink(env!("CARGO_BIN_EXE_byol"), folder.path().join("bin/byol")).expect("a link");
    ["train", "val"].iter().for_each(|part| draw_images(&folder.path().join("photos").join(part)));
    folder
}

fn run(folder: &Path, line: &str) {
    let path = format!("{}:{}", folder.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("sh");
    command
        .args(["-c", line])
        .current_dir(folder)
        .env("PATH", path)
        .env("HOME", folder)
        .env("CUDA_VISIBLE_DEVICES", "");
    let output = command.output().expect("sh runs");
    assert!(output.status.success(), "{line}\n{}{}", text(&output.stdout), text(&output.stderr));
}

/// What makes a command quick, and changes nothing else.
fn shortened(line: &str) -> String {
    let more = match line.split(' ').nth(1) {
        Some("train") => " --set train.max_steps=1 --set monitor.knn_every=null --set model.width=0.25",
        Some("linear-eval") => " --set linear_eval.epochs=2",
        _ => "",
    };
    format!("{line}{more}").replace("--seconds 5", "--seconds 0.2").replace("--steps 5", "--steps 1")
}

#[test]
fn every_command_has_examples_that_work() {
    let mut lines: Vec<String> = Vec::new();
    let mut bare = Vec::new();
    collect(byol::cli::command(), "byol", &mut lines, &mut bare);
    assert!(bare.is_empty(), "no examples in the help of {bare:?}");
    lines.sort();
    lines.dedup();
    let made = place();
    run(made.path(), &shortened("byol train photos --epochs 1"));
    for line in &lines {
        let trains = line.starts_with("byol train");
        let fresh = trains.then(place);
        run(fresh.as_ref().map_or(made.path(), |folder| folder.path()), &shortened(line));
    }
    assert!(lines.len() > 25, "{lines:?}");
}

/// The examples of a command and those below it, from its help; `bare` gets the commands without.
fn collect(mut command: clap::Command, path: &str, lines: &mut Vec<String>, bare: &mut Vec<String>) {
    let help = command.render_long_help().to_string();
    let examples = help.split("Examples:\n").nth(1).unwrap_or_default();
    let own: Vec<&str> = examples.lines().map(str::trim).filter(|line| line.starts_with("byol ")).collect();
    if own.len() < 2 && !path.ends_with(" help") {
        bare.push(path.to_string());
    }
    lines.extend(own.into_iter().map(str::to_string));
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        collect(sub.clone(), &format!("{path} {}", sub.get_name()), lines, bare);
    }
}
