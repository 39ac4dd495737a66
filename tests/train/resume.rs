//! What a resumed run takes from its checkpoint, and what `summary.json` says meanwhile.

use std::fs;
use std::path::Path;

use crate::support::run::{Run, draw_images, failed, succeeded, text};

const RESUME: [&str; 2] = ["--resume", "auto"];
const CHANGED: [&str; 3] = ["--resume", "auto", "--allow-config-change"];

/// A run on 36 images, 2 steps an epoch, 6 in all.
fn run_on_images() -> (Run, Vec<String>) {
    let run = Run::new();
    let folder = run.folder.path().join("images");
    draw_images(&folder);
    let settings = [
        "data.format=image_folder".to_string(),
        format!("data.path={}", folder.display()),
        "monitor.knn_every=0".into(),
        "monitor.log_every=1".into(),
    ];
    let args = settings.into_iter().flat_map(|setting| ["--set".to_string(), setting]).collect();
    (run, args)
}

/// Twice as many images.
fn double(images: &Path) {
    for class in ["a", "b"] {
        let files: Vec<_> =
            fs::read_dir(images.join(class)).expect("listed").map(|e| e.expect("entry").path()).collect();
        for file in files {
            let copy = file.with_file_name(format!("x{}", file.file_name().expect("a name").display()));
            fs::copy(&file, copy).expect("copied");
        }
    }
}

fn train(run: &Run, args: &[String], extra: &[&str]) -> String {
    let args: Vec<&str> = args.iter().map(String::as_str).chain(extra.iter().copied()).collect();
    succeeded(&run.train(&args))
}

/// Learning rate of each step.
fn rates(run: &Run) -> Vec<f64> {
    run.records().iter().filter_map(|record| record["lr"].as_f64()).collect()
}

#[test]
fn the_position_in_the_schedule_is_kept_when_the_number_of_images_changes() {
    let (whole, args) = run_on_images();
    train(&whole, &args, &[]);
    let ends: Vec<Vec<u8>> = [&[][..], &["--set", "train.max_steps=5"]]
        .into_iter()
        .map(|interrupted| {
            let (run, args) = run_on_images();
            train(&run, &args, &["--set", "train.max_steps=3"]);
            double(&run.folder.path().join("images"));
            // From epoch 1.5 of 3 on, 4 steps an epoch in place of 2: 6 steps are left in place of 3.
            let said = train(&run, &args, &[&RESUME[..], interrupted].concat());
            let kept = "an epoch has 4 steps, was 2: the run keeps its position in the schedule, epoch 1.50 of 3; steps \
                        left: 6, was 3; the learning rate is ";
            assert!(said.contains(kept) && said.contains("(step 3 of 9)"), "{said}");
            if !interrupted.is_empty() {
                let said = train(&run, &args, &RESUME);
                assert!(said.contains("(step 5 of 9)") && !said.contains("keeps its position"), "{said}");
            }
            let (found, expected) = (rates(&run), rates(&whole));
            assert_eq!((found.len(), &found[..4]), (9, &expected[..4]), "the same fraction of the schedule");
            assert!(found[3..].is_sorted_by(|a, b| a > b) && found[5] == expected[4], "{found:?} {expected:?}");
            let (records, summary) = (run.records(), run.summary());
            assert_eq!(records.last().map(|record| record["epoch"].as_f64()), Some(Some(3.0)));
            assert_eq!((summary["ending"].as_str(), summary["step"].as_u64()), (Some("finished"), Some(9)));
            assert!(train(&run, &args, &RESUME).contains("nothing left to do"));
            run.weights(9)
        })
        .collect();
    assert!(ends[0] == ends[1], "weights or optimizer state differ");
}

#[test]
fn fewer_images_or_another_batch_size_keep_the_position_too() {
    let (run, args) = run_on_images();
    double(&run.folder.path().join("images"));
    train(&run, &args, &["--set", "train.max_steps=10"]); // epoch 2.5 of 3
    for class in ["a", "b"] {
        let images = run.folder.path().join("images").join(class);
        for entry in fs::read_dir(images).expect("listed") {
            let path = entry.expect("entry").path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('x')) {
                fs::remove_file(path).expect("removed");
            }
        }
    }
    let said = train(&run, &args, &RESUME);
    assert!(
        said.contains("an epoch has 2 steps, was 4") && said.contains("epoch 2.50 of 3; steps left: 1, was 2"),
        "{said}"
    );
    assert_eq!((run.summary()["step"].as_u64(), run.summary()["epochs"].as_f64()), (Some(11), Some(3.0)));
    let (run, args) = run_on_images();
    train(&run, &args, &["--set", "train.max_steps=3"]);
    let said = train(&run, &args, &[&CHANGED[..], &["--set", "train.batch_size=8"]].concat());
    assert!(
        said.contains("an epoch has 4 steps, was 2") && said.contains("epoch 1.50 of 3; steps left: 6, was 3"),
        "{said}"
    );
    assert_eq!((run.summary()["step"].as_u64(), run.summary()["epochs"].as_f64()), (Some(9), Some(3.0)));
}

#[test]
fn another_optimizer_is_named_with_the_way_out() {
    let run = Run::new();
    succeeded(&run.train(&["--set", "train.max_steps=4"]));
    let output =
        run.train(&[&CHANGED[..], &["--set", "optimizer.name=adamw", "--set", "optimizer.base_lr=0.001"]].concat());
    failed(
        &output,
        &[
            "--resume: the checkpoint is of another model or optimizer (",
            "optimizer.name: \"adamw\", was \"lars\"",
            &format!("start a new run from its encoder in another folder: --set model.init={} ", run.dir().display()),
            "exp_avg.encoder.conv1.weight is missing",
        ],
    );
    assert!(!text(&output.stderr).contains("skipping a checkpoint"), "{}", text(&output.stderr));
    assert_eq!(run.summary()["ending"], "max_steps", "nothing has happened to the run");
}

#[test]
fn a_runs_folder_is_resumed_from() {
    let (first, second) = (Run::new(), Run::new());
    succeeded(&first.train(&["--set", "train.max_steps=5"]));
    let from = first.dir().display().to_string();
    let said = succeeded(&second.train(&["--resume", &from]));
    assert!(said.contains("step-00000005 (step 5 of 12)"), "{said}");
    succeeded(&first.train(&RESUME));
    assert!(first.weights(12) == second.weights(12), "weights or optimizer state differ");
    let nothing = first.folder.path().display().to_string();
    failed(
        &first.train(&["--resume", &nothing]),
        &["--resume: found", "expected auto, the folder of a run", "step-..."],
    );
}

#[test]
fn the_summary_is_that_of_the_latest_part_of_a_run() {
    let run = Run::new();
    let broken = ["--set", "augment.std=[1e-42, 1e-42, 1e-42]", "--set", "monitor.knn_every=0"];
    failed(&run.train(&broken), &["step 1: the loss is NaN"]);
    let summary = run.summary();
    assert_eq!((&summary["ending"], &summary["step"], &summary["loss"]), (&"failed".into(), &0.into(), &().into()));
    assert!(summary["error"].as_str().expect("why").contains("step 1: the loss is NaN"), "{summary}");
    succeeded(&run.train(&["--set", "train.max_steps=4"]));
    assert!(run.summary()["ending"] == "max_steps" && run.summary()["error"].is_null(), "{}", run.summary());
    failed(&run.train(&[&CHANGED[..], &broken].concat()), &["step 5: the loss is NaN"]);
    let summary = run.summary();
    assert_eq!((&summary["ending"], &summary["step"]), (&"failed".into(), &4.into()));
    assert!(summary["checkpoint"].as_str().expect("a checkpoint").ends_with("step-00000004"), "{summary}");
    // A killed run cannot write that it was.
    let mut child = run.spawn(&[&CHANGED[..], &["--set", "schedule.epochs=10000"]].concat());
    run.wait_for(&run.checkpoint(8));
    child.kill().expect("kill -9");
    child.wait().expect("ended");
    assert_eq!(run.summary()["ending"], "running");
    // One that never began has failed, too.
    let lost = Run::new();
    failed(&lost.train(&["--set", "data.format=image_folder", "--set", "data.path=/nowhere"]), &["/nowhere"]);
    assert!(lost.summary()["error"].as_str().expect("why").contains("/nowhere"), "{}", lost.summary());
}
