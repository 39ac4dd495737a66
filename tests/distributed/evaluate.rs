//! `extract-features`, `knn-eval` and `linear-eval` by several processes: the same results as by one, to the last bit,
//! and how all of them end when one is killed, signalled, or not like the others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::support::TinyRun;
use crate::support::ranks::*;
use serde_json::Value;

/// A run of a few steps, made once. Evaluations take 64 images at a time.
fn run() -> &'static TinyRun {
    static RUN: OnceLock<TinyRun> = OnceLock::new();
    RUN.get_or_init(|| TinyRun::train_shared("evaluate-ranks", &["schedule.epochs=1"]))
}

/// A command on the run, [`with`] arguments.
fn command(name: &str, args: &str) -> Command {
    command_on(run(), name, args)
}

fn command_on(run: &TinyRun, name: &str, args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byol"));
    command.arg(name).arg("--checkpoint").arg(run.dir());
    with(command, args)
}

fn output(name: &str, args: &str) -> Output {
    command(name, args).output().expect("byol runs")
}

/// The report, without what differs from run to run.
fn report(output: &Output) -> Value {
    succeeded(output);
    let mut report: Value = serde_json::from_slice(&output.stdout).expect("one JSON report");
    for key in ["/seconds", "/training_seconds", "/random_baseline/seconds", "/random_baseline/training_seconds"] {
        if let Some(seconds) = report.pointer_mut(key) {
            *seconds = Value::Null;
        }
    }
    report
}

/// One process's part, as torchrun would start it.
fn rank(mut command: Command, rank: usize, world: usize, port: u16) -> Child {
    for (name, value) in [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world), ("LOCAL_WORLD_SIZE", world)] {
        command.env(name, value.to_string());
    }
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command.spawn().expect("byol starts")
}

/// A folder of 200 images, of which number 10 and all of the second batch of 64 are damaged.
fn images(folder: &Path) -> PathBuf {
    for i in 0..200u32 {
        let class = folder.join(if i < 100 { "a" } else { "b" });
        fs::create_dir_all(&class).expect("made");
        let path = class.join(format!("{i:03}.png"));
        if i == 10 || (64..128).contains(&i) {
            fs::write(path, "no image").expect("written");
            continue;
        }
        let image = image::RgbImage::from_fn(20, 20, |x, y| image::Rgb([i as u8, (x * 12) as u8, (y * 7) as u8]));
        image.save(path).expect("saved");
    }
    folder.to_path_buf()
}

#[test]
fn features_are_the_same_files_whatever_the_number_of_processes() {
    let folder = tempfile::tempdir().expect("a folder");
    let images = images(&folder.path().join("images"));
    let mut found: Vec<Vec<u8>> = Vec::new();
    for world in 1..=3 {
        let at = |name: &str| folder.path().join(format!("{world}{name}"));
        let (npy, single) = (at("npy"), [".safetensors", ".parquet", ".csv"].map(at));
        let mut files = Vec::new();
        for to in single.iter().chain([&npy]) {
            let data = format!("data.format=image_folder data.path={} data.workers=2", images.display());
            let output = output("extract-features", &format!("{data} --nproc {world} --output {}", to.display()));
            let stderr = succeeded(&output);
            let said = text(&output.stdout);
            assert!(said.contains("135 x 128 features, 65 unreadable images skipped"), "{said}");
            assert!(said.lines().count() == 1 && stderr.matches("step 4 of 4").count() == 1, "{said}{stderr}");
        }
        let folder = ["features.npy", "labels.npy", "indices.npy", "names.txt"].map(|name| npy.join(name));
        for path in folder.iter().chain(&single) {
            files.extend(fs::read(path).expect("written"));
        }
        found.push(files);
    }
    assert!(found[0].len() > 4 * 135 * 128 * 4);
    assert!(found[1] == found[0] && found[2] == found[0]);
}

#[test]
fn neighbors_are_the_same_whatever_the_number_of_processes() {
    // Three blocks of images to classify, the last one small.
    let held_out = "data.synthetic.images=300 data.synthetic.eval_images=2100 --k 5,1,200 --json";
    // Training images that classify each other.
    let folder = tempfile::tempdir().expect("a folder");
    let images = images(folder.path());
    let among = format!("data.format=image_folder data.path={} --k 3 --json", images.display());
    for (args, skipped) in [(held_out, 0), (&among, 65)] {
        let one = report(&output("knn-eval", args));
        assert_eq!(
            (one["leave_one_out"].as_bool(), one["images_skipped"].as_u64()),
            (Some(skipped > 0), Some(skipped))
        );
        for world in [2, 3] {
            assert_eq!(report(&output("knn-eval", &format!("{args} --nproc {world}"))), one);
        }
        // The same behind another launcher, whose rank 0 alone prints.
        let port = port();
        let children: Vec<Child> = (0..2).map(|at| rank(command("knn-eval", args), at, 2, port)).collect();
        let outputs: Vec<Output> = children.into_iter().map(|c| c.wait_with_output().expect("ended")).collect();
        assert_eq!(report(&outputs[0]), one);
        assert!(outputs[1].status.success() && outputs[1].stdout.is_empty(), "{outputs:?}");
    }
}

#[test]
fn linear_evaluation_is_the_same_whatever_the_number_of_processes() {
    let folder = tempfile::tempdir().expect("a folder");
    let common = "data.synthetic.images=400 data.synthetic.eval_images=150 linear_eval.epochs=3 --json";
    let cached = format!("{common} linear_eval.solver=lbfgs --random-baseline");
    // Steps of two batches, three in an epoch: for three processes a round is no whole step.
    let augmented = format!("{common} linear_eval.features=augmented linear_eval.batch_size=120");
    let sgd = format!("{common} linear_eval.solver=sgd");
    for (name, args) in [("cached", cached), ("augmented", augmented), ("cached", sgd)] {
        let of = |world: usize| {
            let file = folder.path().join(format!("{name}{world}.json"));
            let output = output("linear-eval", &format!("{args} --force --nproc {world} --output {}", file.display()));
            let written: Value = serde_json::from_slice(&fs::read(file).expect("written")).expect("JSON");
            let report = report(&output);
            assert_eq!((&report["features"], &report["trials"]), (&Value::from(name), &written["trials"]));
            report
        };
        let one = of(1);
        for world in [2, 3] {
            assert_eq!(of(world), one, "{world} processes");
        }
    }
    let output = output("linear-eval", "--finetune --fraction 0.5 --nproc 2 dist.timeout=12");
    failed(&output, &["--finetune: found several processes, expected one"]);
}

/// An extraction that does not end by itself, once it has begun to write; its processes by rank, and whether there is
/// a file, finished or not.
fn started(folder: &Path, args: &str) -> (Child, Vec<u32>, impl Fn() -> bool) {
    let folder = folder.to_path_buf();
    let endless =
        format!("data.synthetic.images=2000000 --nproc 2 --output {}", folder.join("f.safetensors").display());
    let child = command("extract-features", &format!("{args} {endless}")).spawn().expect("byol starts");
    let written = move || {
        let names = fs::read_dir(&folder).expect("listed").map(|entry| entry.expect("an entry").file_name());
        names.into_iter().any(|name| name.to_string_lossy().contains("f.safetensors"))
    };
    let start = Instant::now();
    while !written() {
        assert!(start.elapsed() < PATIENCE, "it never began");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    let ranks = (0..2).map(|rank| rank_of(child.id(), rank)).collect();
    (child, ranks, written)
}

#[test]
fn a_killed_process_ends_all_in_one_line_and_leaves_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (child, ranks, written) = started(folder.path(), "dist.timeout=30");
    let at = Instant::now();
    send("-KILL", ranks[1]);
    let output = child.wait_with_output().expect("ended");
    assert!(at.elapsed() < PATIENCE, "ended after {:?}", at.elapsed());
    failed(&output, &[&format!("rank 1 on {}", host()), "killed by signal 9", "run the command again"]);
    assert!(gone(&ranks) && !written());
}

#[test]
fn a_process_that_hangs_ends_all_within_the_timeout() {
    let folder = tempfile::tempdir().expect("a folder");
    let (child, ranks, written) = started(folder.path(), "dist.timeout=10");
    let at = Instant::now();
    send("-STOP", ranks[1]);
    let output = child.wait_with_output().expect("ended");
    assert!(at.elapsed() < PATIENCE, "ended after {:?}", at.elapsed());
    failed(&output, &[&format!("rank 1 on {}", host()), "exited or cannot be reached", "run the command again"]);
    assert!(gone(&ranks) && !written());
}

#[test]
fn a_signal_to_any_process_ends_all_and_nothing_is_written() {
    for (to, signal, code) in [("launcher", "-TERM", 143), ("rank 0", "-TERM", 143), ("rank 1", "-INT", 130)] {
        let folder = tempfile::tempdir().expect("a folder");
        let (child, ranks, written) = started(folder.path(), "");
        send(signal, *to.strip_prefix("rank ").map_or(&child.id(), |rank| &ranks[usize::from(rank == "1")]));
        let output = child.wait_with_output().expect("ended");
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{to}: {stderr}");
        assert_eq!(stderr.matches("stopped by a signal; nothing was written").count(), 1, "{to}: {stderr}");
        assert!(!stderr.contains("error") && output.stdout.is_empty() && gone(&ranks) && !written(), "{to}: {stderr}");
    }
}

#[test]
fn an_error_of_one_process_is_that_of_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let images = images(&folder.path().join("images"));
    let file = folder.path().join("f.safetensors");
    let data = format!("data.format=image_folder data.path={} data.on_bad_image=fail", images.display());
    // Batches go round: number 10 is in rank 0's first, 064 in rank 1's.
    let output = output("extract-features", &format!("{data} --nproc 2 dist.timeout=12 --output {}", file.display()));
    failed(&output, &["rank ", &format!("on {}", host()), "bad image", ".png"]);
    assert!(!file.exists());
    assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1, "nothing beside the images");
}

#[test]
fn processes_that_were_asked_for_different_things_say_so() {
    let pair = |commands: [Command; 2]| -> Vec<Child> {
        let port = port();
        commands.into_iter().enumerate().map(|(at, command)| rank(command, at, 2, port)).collect()
    };
    let both = |name: &str, args: [&str; 2]| pair(args.map(|args| command(name, &format!("dist.timeout=12 {args}"))));
    one_failed(both("knn-eval", ["--k 5", "--k 1"]), &["rank 1 on", "differs from rank 0", "--k: [1], was [5]"]);
    let files = tempfile::tempdir().expect("a folder");
    let to = |name: &str| format!("--output {}", files.path().join(name).display());
    let splits = [to("a"), to("b") + " --split eval"];
    one_failed(both("extract-features", [&splits[0], &splits[1]]), &["--split: \"Eval\", was \"Train\""]);
    let epochs = ["linear_eval.epochs=3", "linear_eval.epochs=4"];
    one_failed(both("linear-eval", epochs), &["rank 1 on", "linear_eval: ", "\"epochs\":4", "\"epochs\":3"]);
    one_failed(
        pair([command("knn-eval", "dist.timeout=12 --k 1"), command("linear-eval", "dist.timeout=12")]),
        &["rank 1 on", "command: \"linear-eval\", was \"knn-eval\""],
    );
    // The same path on two machines, with other weights there.
    let other = TinyRun::train(&["schedule.epochs=1", "train.max_steps=2"]);
    one_failed(
        pair([run(), &other].map(|run| command_on(run, "knn-eval", "dist.timeout=12 --k 1"))),
        &["rank 1 on", "checkpoint: found step 2, weights ", "rank 0 has step 4, weights "],
    );
}
