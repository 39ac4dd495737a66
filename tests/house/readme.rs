//! The walk of README and guide, run as written: train the quick start, evaluate, extract features, export, load in
//! Python. What they show is what the commands say, but for the numbers.
//!
//! The Python of BYOL_PYTHON (else `python3`) needs scripts/exports/requirements.txt installed; that part is skipped
//! where `python3` lacks them, and fails where a named one does.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::{Dtype, SafeTensors};

use crate::support::run::draw_images;

/// Only this is added to a command: one epoch, a log interval, in place of 14; two steps in place of an hour.
const SHORTENED: &str = "--set schedule.epochs=1 --set schedule.warmup_epochs=0";
const TWO_STEPS: &str = "--set train.max_steps=2";

/// Where commands are shown: the README, then the guide.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = fs::read_dir(root.join("src/guide")).expect("the guide").map(|entry| entry.expect("an entry").path());
    let mut pages: Vec<PathBuf> = guide.filter(|path| path.extension().is_some_and(|ending| ending == "md")).collect();
    pages.sort();
    pages.insert(0, root.join("README.md"));
    pages
}

/// The code blocks of README and guide: their language and text.
fn blocks() -> Vec<(String, String)> {
    let block = |part: &str| part.split_once('\n').map(|(language, text)| (language.to_string(), text.to_string()));
    let blocks = |page: PathBuf| {
        let text = fs::read_to_string(page).expect("a page");
        text.split("```").skip(1).step_by(2).filter_map(block).collect::<Vec<_>>()
    };
    pages().into_iter().flat_map(blocks).collect()
}

/// The only block of this language with `part` in it.
fn block_with(language: &str, part: &str) -> String {
    let mut found = blocks();
    found.retain(|(of, text)| of == language && text.contains(part));
    assert_eq!(found.len(), 1, "README blocks of {language} with {part:?}");
    found.remove(0).1
}

/// The commands on the quick start's run and on a folder of photos, each once, in the order of their first appearance.
fn walk() -> Vec<String> {
    let shell = blocks().into_iter().filter(|(language, _)| language == "sh");
    let mut commands: Vec<String> = Vec::new();
    for (_, text) in shell {
        for line in text.replace("\\\n", "").lines() {
            let line = line.split(" #").next().unwrap_or_default().trim_end();
            let line = line.strip_prefix("scripts/").unwrap_or(line);
            let on = ["quickstart", "~/photos", "/data/photos", "runs/photos", "runs/plan"];
            let ours = line.starts_with("byol ");
            if ours && on.iter().any(|name| line.contains(name)) && !commands.iter().any(|seen| seen == line) {
                commands.push(line.to_string());
            }
        }
    }
    let names: BTreeSet<&str> = commands.iter().filter_map(|command| command.split(' ').nth(1)).collect();
    let expected =
        ["train", "linear-eval", "knn-eval", "extract-features", "export-encoder", "data", "preview", "check"];
    assert!(names.is_superset(&expected.into()) && names.is_superset(&["report", "neighbors", "duplicates"].into()));
    commands
}

/// A folder from which the README's relative paths lead where they do from the repository. `scripts/byol` is the binary
/// under test: the script itself would install libtorch and build another one. Photos are in the home folder.
fn checkout() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("scripts")).expect("a folder");
    symlink(env!("CARGO_BIN_EXE_byol"), folder.path().join("scripts/byol")).expect("a link");
    symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs"), folder.path().join("configs")).expect("a link");
    draw_images(&folder.path().join("photos"));
    fs::copy(folder.path().join("photos/a/0.png"), folder.path().join("photo.jpg")).expect("copied");
    folder
}

/// Exit code 0; stdout, and stderr.
fn succeeds(what: &str, command: &mut Command) -> (String, String) {
    let Output { status, stdout, stderr } = command.output().expect("it runs");
    let (out, err) = (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned());
    assert!(status.success(), "{what}\n{out}{err}");
    (out, err)
}

/// Runs a line of shell. What the README shows was printed on a CPU.
fn shell(folder: &Path, line: &str) -> (String, String) {
    let line = line.replace("/data/photos", "~/photos");
    let path = format!("{}:{}", folder.join("scripts").display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("sh");
    command.args(["-c", &line]).current_dir(folder).env("HOME", folder).env("PATH", path);
    succeeds(&line, command.env("CUDA_VISIBLE_DEVICES", ""))
}

/// A line without what differs from run to run: numbers, the processor's precision, spaces, the chosen row's mark.
fn masked(line: &str) -> String {
    let line = line.trim_end_matches("chosen").replace("fp32", "bf16");
    let mut out = String::new();
    for c in line.chars() {
        match c {
            '0'..='9' if out.ends_with('#') => {}
            '0'..='9' => out.push('#'),
            ' ' if out.is_empty() || out.ends_with(' ') => {}
            _ => out.push(c),
        }
    }
    out.replace("#.#", "#").replace("#e-#", "#").replace("#e#", "#").trim_end().to_string()
}

/// Every line that the README shows in this block was printed, but for the numbers.
fn assert_shown(block: &str, printed: &str) {
    let printed: Vec<String> = printed.split(['\n', '\r']).map(masked).collect();
    for line in block.lines().map(masked) {
        assert!(printed.contains(&line), "the README shows\n{line}\nprinted was\n{}", printed.join("\n"));
    }
}

/// What the README draws of the run folder is there.
fn assert_run_folder(folder: &Path) {
    let checkpoints = fs::read_dir(folder.join("runs/quickstart/checkpoints")).expect("checkpoints");
    let newest = checkpoints.map(|entry| entry.expect("an entry").path()).max().expect("a checkpoint");
    let tree = block_with("text", "the resolved config");
    let names = |indent: &'static str| {
        tree.lines().filter_map(move |line| line.strip_prefix(indent)?.split(' ').next().filter(|n| !n.is_empty()))
    };
    let (run, checkpoint) = (names("  ").collect::<Vec<_>>(), names("    ").collect::<Vec<_>>());
    assert_eq!((run.len(), checkpoint.len()), (9, 4), "{tree}");
    for name in run.iter().filter(|name| !name.starts_with("checkpoints/")) {
        assert!(folder.join("runs/quickstart").join(name).exists(), "{name}");
    }
    checkpoint.iter().for_each(|name| assert!(newest.join(name).exists(), "{name}"));
    shell(&newest, "sha256sum -c SHA256SUMS");
}

/// Shape and type of a tensor in a safetensors file.
fn tensor(path: &Path, name: &str) -> (Vec<usize>, Dtype) {
    let bytes = fs::read(path).expect("read");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let view = file.tensor(name).expect("there");
    (view.shape().to_vec(), view.dtype())
}

/// An interpreter with the packages, or why there is none; a named one must have them.
fn python() -> Result<OsString, String> {
    let named = std::env::var_os("BYOL_PYTHON");
    let python = named.clone().unwrap_or_else(|| "python3".into());
    let tried = Command::new(&python).args(["-c", "import torch, torchvision, safetensors, onnxruntime"]).output();
    let problem = match tried {
        Ok(done) if done.status.success() => return Ok(python),
        Ok(done) => String::from_utf8_lossy(&done.stderr).lines().last().unwrap_or("it fails").to_string(),
        Err(error) => error.to_string(),
    };
    assert!(named.is_none(), "BYOL_PYTHON={}: {problem}", python.display());
    Err(format!("{}: {problem}; BYOL_PYTHON may name another one", python.display()))
}

/// The file that `--output` names was written.
fn assert_output(folder: &Path, command: &str) {
    let output = command.split("--output ").nth(1).and_then(|rest| rest.split(' ').next());
    assert!(output.is_none_or(|name| folder.join(name).is_file()), "{command} wrote no {output:?}");
}

#[test]
fn the_walk_works_as_written() {
    let checkout = checkout();
    let folder = checkout.path();
    let mut printed_lines = Vec::new();
    for command in walk() {
        let line = match command.contains(" train ") {
            true if command.contains("quickstart") => format!("{command} {SHORTENED}"),
            true => format!("{command} {TWO_STEPS}"),
            false => command.clone(),
        };
        let started = std::time::Instant::now();
        let (out, err) = shell(folder, &line);
        println!("{:.1} s: {line}", started.elapsed().as_secs_f64());
        match command.split(' ').nth(1).expect("a command") {
            "train" if !command.contains("quickstart") => {
                let run = if command.contains("runs/plan") { "plan" } else { "photos" };
                assert!(folder.join(format!("runs/{run}/config.yaml")).exists(), "{err}");
            }
            "train" => assert_shown(&block_with("text", "finished: step 868"), &format!("{out}{err}")),
            "linear-eval" => {
                assert_shown(&block_with("text", "held-out top-1"), &out);
                let report = fs::read(folder.join("runs/quickstart/linear_eval.json")).expect("the report");
                let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
                assert!(report["top1"].is_f64(), "{report}");
            }
            "knn-eval" => assert_eq!(out.lines().filter(|line| line.contains(" %")).count(), 3, "{out}"),
            "extract-features" => {
                let file = folder.join("train.safetensors");
                assert_eq!(tensor(&file, "features"), (vec![4000, 128], Dtype::F32));
                assert_eq!(tensor(&file, "labels"), (vec![4000], Dtype::I64));
            }
            "report" | "neighbors" | "duplicates" | "preview" => assert_output(folder, &command),
            "data" => assert!(out.contains("36"), "{out}"),
            "check" => assert!(out.contains("images/s"), "{out}"),
            _ => {
                let output = command.split(' ').next_back().expect("a file");
                assert!(out.starts_with(&format!("{output}: ")) && folder.join(output).is_file(), "{out}");
                let (first, python) = out.split_once('\n').expect("lines of Python");
                assert!(first.contains("read back: largest difference to the encoder"), "{first}");
                if output.ends_with(".pt") {
                    let shown = block_with("text", "torch.jit.load");
                    assert_shown(&shown, &out);
                    assert_eq!(shown.split_once('\n').expect("lines of Python").1, python, "the README's lines");
                }
                printed_lines.push((output.to_string(), python.to_string()));
            }
        }
    }
    assert_run_folder(folder);
    let python = match python() {
        Ok(python) => python,
        Err(why) => return println!("skipped: the lines of Python; {why}"),
    };
    let images = "import torch; images = torch.rand(2, 3, 24, 24)\n";
    let extracted = block_with("python", "train.safetensors");
    let mut scripts = vec![format!(
        "{extracted}\nassert features.shape == (4000, 128) and features.dtype == 'float32', features\n\
         assert labels.shape == (4000,) and labels.dtype == 'int64' and set(labels) == set(range(10)), labels"
    )];
    for (output, lines) in printed_lines {
        scripts.push(match output.rsplit('.').next() {
            Some("safetensors") => lines,
            Some("onnx") => format!("{images}images = images.numpy()\n{lines}\nassert features.shape == (2, 128)"),
            _ => format!("{images}{lines}\nassert features.shape == (2, 128)"),
        });
    }
    // The three lines for a ResNet-50, which needs one: a step of training makes it.
    let resnet = "--set model.arch=resnet50 --set model.width=1 --set model.stem=imagenet --set train.batch_size=2";
    let quick = "--set train.max_steps=1 --set monitor.knn_every=0 --set output.dir=runs/resnet50";
    shell(folder, &format!("scripts/byol train --config configs/quickstart.yaml {resnet} {quick}"));
    let export = "scripts/byol export-encoder --checkpoint runs/resnet50 --format safetensors";
    let (out, _) = shell(folder, &format!("{export} --output encoder.safetensors"));
    let lines = block_with("python", "resnet50()");
    assert_eq!(out.split_once('\n').expect("lines of Python").1, lines, "the README's lines");
    scripts.push(lines);

    // In one process, as importing torch takes seconds, but each with names of its own.
    let each = "import sys\nfor lines in sys.argv[1:]: exec(lines, {})";
    let (out, _) =
        succeeds(&scripts.join("\n\n"), Command::new(python).args(["-c", each]).args(&scripts).current_dir(folder));
    let quarter = "<All keys matched successfully>\n";
    assert_eq!(out, format!("{quarter}_IncompatibleKeys(missing_keys=['fc.weight', 'fc.bias'], unexpected_keys=[])\n"));
}
