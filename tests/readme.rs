//! The walk through the README, run as it is written: train the quick start, evaluate, export, load in Python.
//!
//! `scripts/byol` is stood in for by the binary under test, as the real one would install and build; and training ends
//! after a few steps. The lines of Python run where BYOL_PYTHON names an interpreter with torch, torchvision,
//! safetensors, numpy, onnx and onnxruntime.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The code blocks of a language, in order.
fn blocks(readme: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    readme.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap_or_default().to_string()).collect()
}

/// Runs a shell command in `folder`; its stdout.
fn shell(folder: &Path, command: &str) -> String {
    let output = Command::new("bash").args(["-ec", command]).current_dir(folder).output().expect("bash runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}\n{error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Runs lines of Python in `folder`, if there is an interpreter for them; its stdout.
fn python(folder: &Path, code: &str) -> Option<String> {
    let Some(interpreter) = std::env::var_os("BYOL_PYTHON") else {
        println!("skipped, as BYOL_PYTHON names no interpreter:\n{code}");
        return None;
    };
    let output = Command::new(interpreter).args(["-c", code]).current_dir(folder).output().expect("Python runs");
    assert!(output.status.success(), "{code}\n{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).expect("UTF-8"))
}

#[test]
fn the_walk_works_as_written() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = temporary.path();
    symlink(format!("{ROOT}/configs"), folder.join("configs")).expect("linked");
    fs::create_dir(folder.join("scripts")).expect("made");
    let launcher = folder.join("scripts/byol");
    fs::write(&launcher, format!("#!/bin/sh\nexec '{}' \"$@\"\n", env!("CARGO_BIN_EXE_byol"))).expect("written");
    fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755)).expect("executable");

    let readme = fs::read_to_string(format!("{ROOT}/README.md")).expect("a README");
    let lines: Vec<String> = blocks(&readme, "sh").concat().replace("\\\n", " ").lines().map(str::to_string).collect();
    // Commands about the quick start's run, in the README's order: all others need the reader's own data.
    let walk: Vec<&String> =
        lines.iter().filter(|line| line.contains("quickstart") && line.starts_with("scripts/byol ")).collect();
    let commands: Vec<&str> = walk.iter().filter_map(|line| line.split(' ').nth(1)).collect();
    let expected = ["train", "linear-eval", "knn-eval", "extract-features", "export-encoder"];
    assert!(expected.iter().all(|command| commands.contains(command)), "{commands:?}");
    assert_eq!(commands[0], "train");

    for line in walk {
        let short = if line.contains("byol train") { " --set train.max_steps=40" } else { "" };
        let said = shell(folder, &format!("{line}{short}"));
        match line.split(' ').nth(1) {
            Some("train") => assert!(said.contains("step 40 of 868"), "{said}"),
            Some("linear-eval") => {
                assert!(said.contains("top-1") && said.contains("(random encoder: top-1"), "{said}");
                assert!(folder.join("runs/quickstart/linear_eval.json").is_file());
            }
            Some("export-encoder") => {
                let (report, code) = said.split_once('\n').expect("a report, then Python");
                assert!(report.contains("read back: largest difference"), "{report}");
                let array = if code.contains("onnxruntime") { ".numpy()" } else { "" };
                python(folder, &format!("import torch; images = torch.rand(3, 3, 24, 24){array}\n{code}"));
            }
            _ => assert!(!said.is_empty(), "{line}"),
        }
    }
    let read = blocks(&readme, "python").into_iter().find(|code| code.contains("train.safetensors"));
    let read = read.expect("a block that reads the features");
    if let Some(said) = python(folder, &format!("{read}print(features.shape, labels.shape)")) {
        assert_eq!(said.trim(), "(4000, 128) (4000,)");
    }
}
