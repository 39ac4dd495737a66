//! `byol linear-eval` as a user runs it, on the encoder of a run of a few steps.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::trained::{CONFIG, QUICK, Run, byol, draw_images, output, text};

#[test]
fn a_linear_evaluation_reports_to_people_and_to_programs() {
    let run = Run::new();
    let table = run.stdout("linear-eval", &[&QUICK[..], &["--random-baseline"]].concat());
    for part in [
        "features, computed once",
        "logistic regression with an L2 penalty",
        "chosen by 5-fold cross-validation",
        "200 training, 200 held-out in turn, 60 test images, 4 classes",
        "  chosen\n",
        "more penalties",
        "stripes",
        ", balanced ",
        "random encoder",
    ] {
        assert!(table.contains(part), "{part:?} is not in {table}");
    }
    let path = run.dir().join("linear_eval.json");
    let saved: Value = serde_json::from_slice(&fs::read(&path).expect("a report")).expect("JSON");
    let report = run.json("linear-eval", &QUICK);
    let seen = |report: &Value| (report["top1"].clone(), report["trials"].clone(), report["per_class"].clone());
    assert_eq!(seen(&saved), seen(&report), "the same again, without the baseline");
    assert!(saved["random_baseline"]["top1"].is_f64() && report["random_baseline"].is_null());
    assert_eq!((report["features"].as_str(), report["step"].as_u64()), (Some("cached"), Some(20)));
    // Each is held out once, and all are trained on in the end.
    let counts = ["training_images", "validation_images", "test_images", "classes"].map(|key| report[key].as_u64());
    assert_eq!(counts, [Some(200), Some(200), Some(60), Some(4)]);
    assert_eq!((&report["refit"], &report["top5"], &report["batch_size"]), (&true.into(), &Value::Null, &Value::Null));
    assert_eq!((report["solver"].as_str(), report["class_weights"].as_str()), (Some("lbfgs"), Some("none")));
    let trials = report["trials"].as_array().expect("trials");
    let accuracy = |trial: &Value| trial["validation_top1"].as_f64().expect("a share");
    let best = trials.iter().map(accuracy).fold(0.0, f64::max);
    // The strongest of the best.
    let chosen = trials.iter().position(|trial| accuracy(trial) == best).expect("one of them");
    // Weaker penalties than help are not tried.
    assert!((7..=45).contains(&trials.len()) && report["chosen"] == chosen, "{report}");
    assert_eq!((&trials[0]["penalty"], &trials[chosen]["penalty"]), (&1e5.into(), &report["penalty"]));
    // The mean over the classes' images is the whole.
    let classes = report["per_class"].as_array().expect("classes");
    let hits: f64 = classes.iter().map(|c| c["top1"].as_f64().unwrap() * c["images"].as_f64().unwrap()).sum();
    assert!((hits / 60.0 - report["top1"].as_f64().unwrap()).abs() < 1e-9);
    let recall = classes.iter().map(|c| c["top1"].as_f64().unwrap()).sum::<f64>() / 4.0;
    assert!((recall - report["balanced_top1"].as_f64().unwrap()).abs() < 1e-9);
    assert!(report["top1"].as_f64().unwrap() > 0.4, "four classes of textures: {}", report["top1"]);
}

#[test]
fn one_setting_needs_no_held_out_images_and_a_fraction_takes_few() {
    let run = Run::new();
    let one = ["--set", "linear_eval.penalties=[1]"];
    let report = run.json("linear-eval", &[&QUICK[..], &one].concat());
    assert_eq!((report["training_images"].as_u64(), report["validation_images"].as_u64()), (Some(200), Some(0)));
    assert_eq!((report["penalty"].as_f64(), &report["trials"][0]["validation_top1"]), (Some(1.0), &Value::Null));
    let report = run.json("linear-eval", &[&QUICK[..], &["--fraction", "0.1"]].concat());
    assert_eq!((report["training_images"].as_u64(), report["validation_images"].as_u64()), (Some(20), Some(20)));
    assert_eq!((&report["refit"], &report["cross_validated"]), (&Value::Bool(false), &Value::Bool(false)));
    run.failed(
        "linear-eval",
        &[&QUICK[..], &["--fraction", "0.999"]].concat(),
        &["--fraction: found 0.999", "give one penalty"],
    );
    let sgd = ["--set", "linear_eval.solver=sgd"];
    let one = ["--set", "linear_eval.learning_rates=[0.2]", sgd[0], sgd[1]];
    let report = run.json("linear-eval", &[&QUICK[..], &one].concat());
    assert_eq!((report["training_images"].as_u64(), report["validation_images"].as_u64()), (Some(200), Some(0)));
    assert_eq!((&report["refit"], &report["trials"][0]["validation_top1"]), (&Value::Bool(false), &Value::Null));
    let report = run.json("linear-eval", &[&QUICK[..], &sgd, &["--fraction", "0.1"]].concat());
    assert_eq!((report["training_images"].as_u64(), report["validation_images"].as_u64()), (Some(20), Some(20)));
    assert_eq!((&report["refit"], report["batch_size"].as_u64()), (&Value::Bool(false), Some(20)));
    assert!(run.dir().join("linear_eval-0.1.json").exists());
    let output = run.path("elsewhere.json");
    run.json("linear-eval", &[&QUICK[..], &["--output", &output]].concat());
    run.failed("linear-eval", &["--output", &output], &["elsewhere.json already exists", "--force"]);
    run.json("linear-eval", &[&QUICK[..], &["--output", &output, "--force"]].concat());
    for bad in ["0", "1", "1.5", "nan"] {
        run.failed("linear-eval", &["--fraction", bad], &["--fraction", "expected above 0 and below 1"]);
    }
    run.failed("linear-eval", &["--fraction", "0.999"], &["--fraction: found 0.999, which leaves 0 of 200 images"]);
}

/// Of two equal settings one is chosen; SGD says where it makes too few updates.
#[test]
fn sgd_is_there_by_choice_and_warns_of_few_updates() {
    let run = Run::new();
    let sgd = ["--set", "linear_eval.solver=sgd", "--set", "linear_eval.learning_rates=[0.1, 0.2, 0.1]"];
    let arguments = run.arguments("linear-eval", &[&QUICK[..], &sgd].concat());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let printed = output(&arguments);
    let (table, log) = (text(&printed.stdout), text(&printed.stderr));
    assert_eq!(table.matches("  chosen\n").count(), 1, "{table}");
    for part in ["Nesterov momentum 0.9", "20 epochs", "batch 200", "chosen on 20 held-out training images"] {
        assert!(table.contains(part), "{part:?} is not in {table}");
    }
    assert!(log.contains("20 SGD updates (20 epochs of 180 images) are too few to converge"), "{log}");
    let many = output(&[&arguments[..], &["--set", "linear_eval.batch_size=3"]].concat());
    assert!(!text(&many.stderr).contains("SGD updates"), "60 batches in each of 20 epochs");
}

#[test]
fn class_weights_are_those_of_every_solver() {
    let run = Run::new();
    let images = run.folder.path().join("images");
    draw_images(&images.join("train"), &["a"], 30);
    draw_images(&images.join("train"), &["a", "b"], 6);
    draw_images(&images.join("val"), &["a", "b"], 6);
    let config = run.path("images.yaml");
    fs::write(&config, format!("data: {{format: image_folder, path: {}, workers: 1}}\n", images.display()))
        .expect("written");
    let common = ["--config", &config, "--set", "linear_eval.class_weights=balanced"];
    let finetune = ["--finetune", "--set", "linear_eval.finetune_epochs=[1]", "--set", "linear_eval.batch_size=9"];
    let rate = ["--set", "linear_eval.finetune_learning_rates=[0.01]"];
    for extra in [&[][..], &["--set", "linear_eval.solver=sgd"], &[&finetune[..], &rate].concat()] {
        let report = run.json("linear-eval", &[&common[..], &QUICK, extra].concat());
        assert_eq!(report["class_weights"], "balanced");
        assert!(report["balanced_top1"].is_f64(), "{report}");
    }
    // The strongest penalty alone: without weights everything is of the larger class.
    let strong = ["--set", "linear_eval.penalties=[1e9]"];
    let plain = run.json("linear-eval", &[&common[..2], &strong].concat());
    assert_eq!((plain["per_class"][0]["top1"].as_f64(), plain["top1"].as_f64()), (Some(1.0), Some(0.5)));
    let weighted = run.json("linear-eval", &[&common[..], &strong].concat());
    assert_ne!(weighted["per_class"], plain["per_class"], "the intercepts are equal");
}

#[test]
fn where_there_is_one_class_there_is_no_accuracy() {
    let run = Run::new();
    let images = run.folder.path().join("images");
    draw_images(&images.join("train"), &["a"], 6);
    draw_images(&images.join("val"), &["a"], 4);
    let config = run.path("images.yaml");
    fs::write(&config, format!("data: {{format: image_folder, path: {}, workers: 1}}\n", images.display()))
        .expect("written");
    let finetune = ["linear-eval", "--finetune"];
    for command in [&["knn-eval"][..], &["linear-eval"], &finetune] {
        let extra = [&command[1..], &["--config", &config]].concat();
        run.failed(command[0], &extra, &["data.path: found 1 class", "there is no accuracy to compute"]);
    }
}

/// A run's relative paths are those of the folder it was started in, wherever it is evaluated.
#[test]
fn relative_paths_of_a_run_are_resolved_against_where_it_was_started() {
    let folder = tempfile::tempdir().expect("a folder");
    let (home, elsewhere) = (folder.path().join("home"), folder.path().join("elsewhere"));
    for (at, each) in [(&home, 12), (&elsewhere, 20)] {
        draw_images(&at.join("imgs/train"), &["a", "b"], each);
        draw_images(&at.join("imgs/val"), &["a", "b"], 4);
    }
    let data = "data: {format: image_folder, path: imgs, workers: 1}\n";
    let config = CONFIG.replace(
        "data:\n  format: synthetic\n  workers: 1\n  synthetic: {images: 200, eval_images: 60, classes: 4, size: 16}\n",
        data,
    );
    fs::write(home.join("c.yaml"), config).expect("written");
    let at = |folder: &Path, arguments: &[&str]| {
        let output = byol(arguments).current_dir(folder).output().expect("byol runs");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    };
    at(&home, &["train", "--config", "c.yaml", "--set", "output.dir=run"]);
    let run = home.join("run").display().to_string();
    let knn = ["knn-eval", "--checkpoint", &run, "--k", "1"];
    let (table, log) = at(&elsewhere, &knn);
    assert!(table.contains("8 held-out images, 24 training images"), "{table}");
    let resolved =
        format!("data.path: imgs, relative to the folder the run was started in: {}", home.join("imgs").display());
    assert!(log.contains(&resolved) && !log.contains("are not the images"), "{log}");
    let (table, _) = at(&elsewhere, &[&knn[..], &["--set", "data.path=imgs"]].concat());
    assert!(table.contains("8 held-out images, 40 training images"), "{table}");
    draw_images(&home.join("imgs/train"), &["a", "b"], 13);
    let (_, log) = at(&home, &knn);
    assert!(log.contains("these are not the images that the run was trained on"), "{log}");
}

#[test]
fn augmented_features_and_fine_tuning_learn_too() {
    let run = Run::new();
    let small = ["--set", "linear_eval.batch_size=50", "--set", "linear_eval.epochs=6"];
    let augmented = ["--set", "linear_eval.features=augmented", "--set", "linear_eval.learning_rates=[0.4, 0.1]"];
    let report = run.json("linear-eval", &[&small[..], &augmented].concat());
    assert_eq!((report["features"].as_str(), &report["refit"]), (Some("augmented"), &Value::Bool(false)));
    assert_eq!(report["training_images"].as_u64(), Some(180));
    assert!(report["protocol"].as_str().unwrap().contains("random-resized crops and flips"), "{report}");
    assert!(report["top1"].as_f64().unwrap() > 0.3, "{}", report["top1"]);
    let again = run.json("linear-eval", &[&small[..], &augmented, &["--set", "data.workers=2"]].concat());
    assert_eq!(report["trials"], again["trials"], "crops are functions of the seed");
    // One setting, half of the labels: forward passes of 25 images, two to a step.
    let tune = ["--finetune", "--fraction", "0.5", "--set", "linear_eval.finetune_epochs=[4]"];
    let rate = ["--set", "linear_eval.finetune_learning_rates=[0.1, 0.02]"];
    let report = run.json("linear-eval", &[&small[..], &tune, &rate].concat());
    assert_eq!((report["features"].as_str(), report["training_images"].as_u64()), (Some("finetune"), Some(100)));
    assert_eq!(report["trials"].as_array().map(Vec::len), Some(2));
    assert!(report["top1"].as_f64().unwrap() > 0.3, "{}", report["top1"]);
    assert!(run.dir().join("finetune-0.5.json").exists());
}
