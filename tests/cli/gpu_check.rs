//! `scripts/gpu-check` where there is no GPU: what it says, and a rehearsal of what it would do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn gpu_check(folder: &Path, extra: &[&str]) -> Output {
    let mut command = Command::new(format!("{ROOT}/scripts/gpu-check"));
    command.current_dir(folder).args(["--data", "data", "--byol", env!("CARGO_BIN_EXE_byol")]).args(extra);
    // A GPU, as far as the script can see: the rest runs on the CPU.
    command.env("PATH", format!("{}:{}", folder.join("bin").display(), std::env::var("PATH").expect("a PATH")));
    command.output().expect("bash")
}

fn folder_with_gpu(gpu: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let tool = folder.path().join("bin/nvidia-smi");
    fs::create_dir_all(folder.path().join("data")).expect("made");
    fs::create_dir(tool.parent().expect("bin")).expect("made");
    fs::write(&tool, format!("#!/bin/sh\n{gpu}\n")).expect("written");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).expect("made executable");
    folder
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn without_a_gpu_it_says_so_and_measures_nothing() {
    let folder = folder_with_gpu("echo 'no devices' >&2; exit 9");
    for extra in [&[][..], &["--accuracy", "1"]] {
        let output = gpu_check(folder.path(), extra);
        assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "no CUDA device here: nothing was measured\n");
        assert!(!folder.path().join("runs").exists());
    }
}

#[test]
fn accuracy_is_trained_for_in_pieces_and_evaluated_after_each() {
    let folder = folder_with_gpu("echo 'GPU 0: none'");
    let tiny = "data.format=synthetic data.path=null data.synthetic.images=320 data.synthetic.eval_images=100 data.synthetic.classes=4 \
                data.synthetic.size=16 augment.size=16 model.width=0.25 model.projector_hidden=32 \
                model.predictor_hidden=32 model.projection_dim=16 train.batch_size=64 train.device=cpu train.threads=1 \
                linear_eval.epochs=2 monitor.knn_every=0 output.checkpoint_every_epochs=0";
    let sets: Vec<&str> = tiny.split_whitespace().flat_map(|key| ["--set", key]).collect();
    let epochs = ["--epochs", "40"]; // 200 steps, some 15 s
    let first = gpu_check(folder.path(), &[&["--accuracy", "0.06"], &epochs[..], &sets].concat());
    let second = gpu_check(folder.path(), &[&["--accuracy", "30"], &epochs[..], &sets].concat());
    for (output, finished) in [(first, false), (second, true)] {
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{err}");
        assert!(out.contains("\ntop-1 ") && out.contains("weighted k-NN"), "{out}");
        assert_eq!(out.contains("not finished: the same command goes on from here"), !finished, "{out}\n{err}");
        assert_eq!(out.contains("(step 200 of 200)"), finished, "{out}");
    }
}

#[test]
fn accuracy_is_not_trained_on_the_cpu() {
    let folder = folder_with_gpu("echo 'GPU 0: none'");
    let output = gpu_check(folder.path(), &["--accuracy", "1"]);
    let line = text(&output.stderr);
    assert!(!output.status.success() && line.contains("train.device"), "{line}");
    assert!(output.stdout.is_empty() && line.trim().lines().count() == 1, "{line}");
}

/// The bundle's binary starts with nothing but libtorch's folder, on Ubuntu 22.04 and whatever is newer.
#[test]
fn a_bundle_is_small_and_starts_elsewhere() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("data")).expect("made");
    fs::write(folder.path().join("data/train.parquet"), "PAR1").expect("written");
    let mut command = Command::new(format!("{ROOT}/scripts/gpu-bundle"));
    command.args(["--data", "data", "--output", "bundle", "--byol", env!("CARGO_BIN_EXE_byol")]);
    let output = command.current_dir(folder.path()).output().expect("bash");
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let newest = |name: &str| -> Vec<u32> {
        let version = said.split_once(name).expect(name).1.split(' ').next().expect("a version");
        version.split('.').map(|part| part.parse().expect("a number")).collect()
    };
    assert!(newest("GLIBC_") <= vec![2, 35] && newest("GLIBCXX_") <= vec![3, 4, 29], "{said}");
    let bundle = folder.path().join("bundle");
    assert!(fs::metadata(bundle.join("byol")).expect("the binary").len() < 20 << 20);
    for file in ["scripts/gpu-check", "scripts/compare/gpu.py", "scripts/compare/torch_step.py", "data/train.parquet"] {
        assert!(bundle.join(file).exists(), "{file}");
    }
    let torch = std::env::var("LIBTORCH").expect("set by scripts/test");
    let mut byol = Command::new(bundle.join("byol"));
    let output = byol.arg("--version").env_clear().env("LD_LIBRARY_PATH", format!("{torch}/lib")).output();
    assert!(text(&output.expect("it starts").stdout).starts_with("byol "));
}

#[test]
fn the_comparison_runs_to_its_table() {
    let python = std::env::var("BYOL_PYTHON").unwrap_or("python3".into());
    let packages = Command::new(&python).args(["-c", "import torch, torchvision, pyarrow"]).output();
    if !packages.is_ok_and(|done| done.status.success()) {
        println!("skipped: {python} lacks torch, torchvision or pyarrow; BYOL_PYTHON may name another one");
        return;
    }
    let data = Path::new(ROOT).join("../shared/data/cifar10");
    if !data.exists() {
        println!("skipped: {} is missing", data.display());
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let rehearse = |extra: &[&str]| {
        let mut command = Command::new(&python);
        command.arg(format!("{ROOT}/scripts/compare/gpu.py")).args(["--rehearse", "--minutes", "3"]).args(extra);
        command.arg("--byol").arg(env!("CARGO_BIN_EXE_byol")).arg("--data").arg(&data).current_dir(folder.path());
        command.output().expect("python")
    };
    let chosen = rehearse(&["--only", "small: byol", "--json", "results/some.json"]);
    assert_eq!(
        text(&chosen.stdout).lines().filter(|line| line.starts_with("| ")).count(),
        2,
        "{}",
        text(&chosen.stderr)
    );
    assert!(folder.path().join("results/some.json").exists());
    let unknown = rehearse(&["--only", "fast"]);
    assert!(text(&unknown.stderr).contains("error: --only: found fast, expected one of: small: byol, no loader; "));
    let output = rehearse(&["--json", "found.json"]);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{err}");
    assert!(
        out.starts_with("A REHEARSAL on a CPU") && out.contains("at most 0.0e+00 and 0.0e+00 apart, relative\n"),
        "{out}\n{err}"
    );
    for precision in ["fp32", "bf16"] {
        let (_, top1) = out.split_once(&format!("quick start in {precision}, seeds from 0: ")).expect("learned");
        assert!(top1.lines().next().is_some_and(|line| line.ends_with(" %")), "{out}");
    }
    let found: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.path().join("found.json")).expect("written")).expect("JSON");
    let results = ["small", "large"].map(|case| found[case].as_object().expect("contenders").clone());
    for (name, result) in results.iter().flatten() {
        // Compiling takes minutes on a CPU, and is cut off.
        assert!(result["images_per_second"].is_f64() || name.contains("compiled"), "{name}: {result}");
    }
    assert_eq!(results.map(|contenders| contenders.len()), [7, 5]);
}
