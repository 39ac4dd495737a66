//! `byol knn-eval` and `extract-features` as a user runs them, on the encoder of a run of a few steps.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use safetensors::SafeTensors;
use serde_json::Value;

use crate::trained::{CONFIG, QUICK, Run, byol, draw_images, failed, json, output, text};

#[test]
fn neighbors_vote_for_every_k_in_one_pass() {
    let run = Run::new();
    let report = run.json("knn-eval", &["--k", "5,1,200"]);
    let results = report["results"].as_array().expect("results");
    assert_eq!(results.iter().map(|r| r["k"].as_u64().unwrap()).collect::<Vec<_>>(), [5, 1, 200]);
    for (k, result) in ["5", "1", "200"].iter().zip(results) {
        assert_eq!(run.json("knn-eval", &["--k", k])["results"][0], *result);
    }
    let table = run.stdout("knn-eval", &["--k", "5"]);
    assert!(table.contains("60 held-out images, 200 training images"), "{table}");
    assert!(table.contains("balanced") && !table.contains("top-5"), "four classes: {table}");
    assert_eq!((&results[0]["top5"], results[0]["balanced_top1"].is_f64()), (&Value::Null, true));
    // More than there are: all of them, once.
    let arguments = run.arguments("knn-eval", &["--k", "5,200,201", "--json"]);
    let printed = output(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let more: Value = serde_json::from_slice(&printed.stdout).expect("JSON");
    assert_eq!(more["results"], Value::from(vec![results[0].clone(), results[2].clone()]));
    let log = text(&printed.stderr);
    assert!(log.contains("k = 201: there are 200 training images to compare with; k = 200 is used"), "{log}");
    run.failed("knn-eval", &["--k", "0"], &["--k: found 0, expected 1 or more"]);
    run.failed("knn-eval", &["--temperature", "0"], &["--temperature: found 0.0, expected 0.001 to 100"]);
    run.failed("knn-eval", &["--temperature", "1e-300"], &["--temperature: found 1e-300, expected 0.001 to 100"]);
    run.failed("knn-eval", &["--k", "5,1,5"], &["--k: found 5 twice, expected different numbers"]);
}

#[test]
fn extracted_features_are_whole_and_nothing_is_overwritten() {
    let run = Run::new();
    let (file, folder) = (run.path("f.safetensors"), run.path("npy"));
    let said = run.stdout("extract-features", &["--split", "eval", "--output", &file]);
    assert!(said.contains("60 x 128 features"), "{said}");
    run.stdout("extract-features", &["--split", "eval", "--output", &folder]);
    let bytes = fs::read(&file).expect("read");
    let tensors = SafeTensors::deserialize(&bytes).expect("whole");
    let features = tensors.tensor("features").expect("features");
    assert_eq!(features.shape(), [60, 128]);
    let npy = |name: &str| fs::read(Path::new(&folder).join(name)).expect("read")[128..].to_vec();
    assert!(npy("features.npy") == features.data(), "both forms hold the same");
    assert_eq!(npy("labels.npy"), tensors.tensor("labels").expect("labels").data());
    // Class i % 4, and every position.
    let labels: Vec<u8> = (0..60i64).flat_map(|i| (i % 4).to_le_bytes()).collect();
    assert_eq!(npy("labels.npy"), labels);
    assert_eq!(npy("indices.npy"), (0..60i64).flat_map(i64::to_le_bytes).collect::<Vec<u8>>());
    for output in [&file, &folder] {
        run.failed("extract-features", &["--output", output], &["already exists; add --force"]);
    }
    assert!(fs::read(&file).expect("read") == bytes);
    // What a killed extraction left.
    let stale = run.path(".partial-f.safetensors-Xy12z9");
    fs::write(&stale, "half").expect("written");
    let said = run.stdout("extract-features", &["--output", &file, "--force"]);
    assert!(said.contains("200 x 128 features") && !Path::new(&stale).exists(), "{said}");
    run.failed(
        "extract-features",
        &["--output", &run.path("x.npy")],
        &["expected FILE.parquet, FILE.csv, FILE.safetensors, or"],
    );
}

fn only_path(images: &Path, key: &str, name: &str) -> String {
    format!("data.{key}={}", images.join(name).display())
}

#[test]
fn features_of_nothing_are_not_written() {
    let run = Run::new();
    let images = run.folder.path().join("rubbish");
    fs::create_dir(&images).expect("made");
    (0..3).for_each(|i| fs::write(images.join(format!("{i}.png")), "not an image").expect("written"));
    let config = run.path("rubbish.yaml");
    fs::write(&config, format!("data: {{format: image_folder, path: {}}}\n", images.display())).expect("written");
    let output = run.path("f.safetensors");
    run.failed("extract-features", &["--config", &config, "--output", &output], &["none of the images could be read"]);
    assert!(!Path::new(&output).exists());
}

/// A result that cannot be printed is an error, unless the reader closed the pipe.
#[test]
fn a_result_that_cannot_be_printed_is_an_error() {
    let run = Run::new();
    let arguments = run.arguments("knn-eval", &["--k", "1"]);
    let mut command = byol(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let full = fs::File::options().write(true).open("/dev/full").expect("a full device");
    let output = command.stdout(full).output().expect("byol runs");
    let message = text(&output.stderr);
    assert!(!output.status.success() && message.contains("cannot write the result to stdout"), "{message}");
}

#[test]
fn images_that_cannot_be_read_or_have_no_label_are_said() {
    let run = Run::new();
    let images = run.folder.path().join("images");
    draw_images(&images.join("train"), &["a", "b"], 12);
    draw_images(&images.join("val"), &["a", "b"], 6);
    fs::write(images.join("train/a/3.png"), "not an image").expect("damaged");
    let config = run.path("images.yaml");
    fs::write(&config, format!("data: {{format: image_folder, path: {}, workers: 1}}\n", images.display()))
        .expect("written");
    let config = ["--config", &config];
    let file = run.path("f.safetensors");
    let said = run.stdout("extract-features", &[&config[..], &["--output", &file]].concat());
    assert!(said.contains("23 x 128 features, 1 unreadable images skipped"), "{said}");
    let bytes = fs::read(&file).expect("read");
    let indices = SafeTensors::deserialize(&bytes).expect("whole").tensor("indices").expect("indices").data().to_vec();
    let position = |at: usize| i64::from_le_bytes(indices[at * 8..at * 8 + 8].try_into().expect("8 bytes"));
    assert_eq!(indices.len() / 8, 23);
    assert!((0..22).all(|at| position(at) < position(at + 1)) && position(22) == 23);
    let report = run.json("linear-eval", &[&config[..], &QUICK].concat());
    assert_eq!((report["training_images"].as_u64(), report["images_skipped"].as_u64()), (Some(23), Some(1)));
    assert_eq!(report["per_class"][1]["name"], "b");
    let strict = ["--set", "data.on_bad_image=fail", "--output", &run.path("g.safetensors")];
    run.failed("extract-features", &[&config[..], &strict].concat(), &["3.png"]);
    assert!(!Path::new(&run.path("g.safetensors")).exists());
    // A class that was never seen, no held-out images, no labels.
    draw_images(&images.join("val"), &["c"], 2);
    run.failed("linear-eval", &config, &["data.eval_path"]);
    // The same for k-NN, whose classes are numbers.
    for (list, labels) in [("train.txt", [0, 1]), ("val.txt", [0, 7])] {
        let line = |(i, label): (usize, i32)| format!("train/a/{i}.png\t{label}\n");
        fs::write(images.join(list), [0, 1].into_iter().zip(labels).map(line).collect::<String>()).expect("written");
    }
    let lists = [only_path(&images, "path", "train.txt"), only_path(&images, "eval_path", "val.txt")];
    let lists = ["--set", &lists[0], "--set", &lists[1], "--k", "1"];
    run.failed("knn-eval", &[&config[..], &lists].concat(), &["data.eval_path", "none of them is of class 7"]);
    let only = |folder: &str| format!("data.path={}", images.join(folder).display());
    run.failed(
        "linear-eval",
        &[&config[..], &["--set", &only("train")]].concat(),
        &["data.eval_path: found no held-out"],
    );
    fs::write(images.join("train/a/3.png"), fs::read(images.join("train/a/4.png")).expect("read")).expect("written");
    fs::remove_dir_all(images.join("val/c")).expect("removed");
    fs::rename(images.join("train/a/5.png"), images.join("train/5.png")).expect("moved");
    // A stray image has no label, the others keep theirs.
    fs::rename(images.join("val/a/5.png"), images.join("val/5.png")).expect("moved");
    let report = run.json("linear-eval", &[&config[..], &QUICK].concat());
    assert_eq!((report["training_images"].as_u64(), report["test_images"].as_u64()), (Some(23), Some(11)));
    assert_eq!(run.json("knn-eval", &[&config[..], &["--k", "3"]].concat())["test_images"], 11);
    for (class, image) in ["a", "b"].iter().flat_map(|class| (0..12).map(move |image| (class, image))) {
        let from = images.join(format!("train/{class}/{image}.png"));
        let _ = fs::rename(from, images.join(format!("train/{class}{image}.png"))); // the stray one is there
    }
    ["a", "b"].iter().for_each(|class| fs::remove_dir(images.join("train").join(class)).expect("empty"));
    run.failed("linear-eval", &config, &["data.path: found no label for any image"]);
    run.failed("knn-eval", &[&config[..], &["--k", "3"]].concat(), &["data.path: found no label for any image"]);
    let said = run.stdout("extract-features", &[&config[..], &["--output", &run.path("unlabeled")]].concat());
    assert!(said.contains("24 x 128 features, 24 without a label (-1)"), "{said}");
}

#[test]
fn encoders_from_elsewhere_are_evaluated_with_the_same_command() {
    let run = Run::new();
    let file = run.foreign();
    let own = run.json("knn-eval", &["--k", "5"]);
    let config = run.path("config.yaml");
    fs::write(&config, CONFIG).expect("written");
    let theirs = json(&["knn-eval", "--checkpoint", &file, "--config", &config, "--k", "5", "--json"]);
    assert_eq!(own["results"], theirs["results"]);
    failed(&["knn-eval", "--checkpoint", &file], &["--config: found none", "names the images"]);
    let quick = [&["linear-eval", "--checkpoint", &file, "--config", &config, "--json"], &QUICK[..]].concat();
    let report = json(&quick);
    assert!(report["step"].is_null() && report["top1"].is_f64());
    assert!(!run.folder.path().join("linear_eval.json").exists(), "no run folder, no report unless asked for");
}

#[test]
fn what_is_no_such_encoder_is_refused() {
    let run = Run::new();
    let wider = ["--set", "model.width=0.5"];
    run.failed("linear-eval", &wider, &["found resnet18 of width 0.25", "config's model is resnet18 of width 0.5"]);
    failed(&["knn-eval", "--checkpoint", &run.path("nowhere")], &["nowhere"]);
    failed(&["knn-eval", "--checkpoint", &run.path("")], &["found no checkpoint in this folder"]);
    let file = run.foreign();
    let config = run.path("config.yaml");
    fs::write(&config, CONFIG).expect("written");
    let bytes = fs::read(&file).expect("read");
    fs::write(&file, &bytes[..bytes.len() / 2]).expect("cut");
    let knn = ["knn-eval", "--checkpoint", &file, "--config", &config];
    failed(&knn, &["encoder.safetensors"]);
    fs::write(&file, "no tensors").expect("written");
    failed(&knn, &["encoder.safetensors"]);
    // A variance below 0 gives features that are no numbers.
    let mut bytes = bytes;
    let tensors = SafeTensors::deserialize(&bytes).expect("whole");
    let data = tensors.tensor("layer4.1.bn2.running_var").expect("a variance").data();
    let at = data.as_ptr() as usize - bytes.as_ptr() as usize;
    bytes[at..at + 4].copy_from_slice(&(-1f32).to_le_bytes());
    fs::write(&file, bytes).expect("written");
    failed(&knn, &["layer4.1.bn2.running_var holds negative values"]);
    let model = run.checkpoint().join("model.safetensors");
    let bytes = fs::read(&model).expect("read");
    fs::write(&model, &bytes[..bytes.len() / 2]).expect("cut");
    run.failed("linear-eval", &[], &["none of its 1 checkpoints can be used"]);
    assert!(!run.dir().join("linear_eval.json").exists());
}

#[test]
fn a_signal_ends_an_evaluation_cleanly() {
    let run = Run::new();
    let many = ["--set", "data.synthetic.images=2000000", "--output", &run.path("f.safetensors")];
    let arguments = run.arguments("extract-features", &many);
    let mut command = byol(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("byol runs");
    let partial = || {
        let mut names = fs::read_dir(run.folder.path()).expect("listed").map(|e| e.expect("an entry").file_name());
        names.any(|name| name.to_string_lossy().starts_with(".partial-f.safetensors"))
    };
    while !partial() {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill").success());
    let output = child.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("stopped by a signal; nothing was written"), "{}", text(&output.stderr));
    assert!(!partial() && output.stdout.is_empty());
}
