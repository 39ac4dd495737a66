//! `byol linear-eval`, `knn-eval` and `extract-features` as a user runs them, on the encoder of a run of a few steps.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use safetensors::SafeTensors;
use serde_json::Value;

/// 200 drawn images of 16 px in 4 classes, 60 held out; two epochs.
const CONFIG: &str = "
data:
  format: synthetic
  workers: 1
  synthetic: {images: 200, eval_images: 60, classes: 4, size: 16}
augment:
  size: 16
  view1: {blur_prob: 0}
  view2: {blur_prob: 0}
model: {arch: resnet18, width: 0.25, stem: cifar, projector_hidden: 32, projection_dim: 16, predictor_hidden: 32}
optimizer: {name: sgd, base_lr: 0.3}
schedule: {epochs: 2, warmup_epochs: 0}
train: {batch_size: 20, precision: fp32, device: cpu, threads: 1, seed: 7}
monitor: {knn_every: 0, tensorboard: false}
";

fn byol(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byol"));
    command.args(arguments);
    command
}

fn output(arguments: &[&str]) -> Output {
    byol(arguments).output().expect("byol runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn stdout(arguments: &[&str]) -> String {
    let output = output(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout(arguments)).expect("one JSON report")
}

/// One line that says `error: ` and all of `parts`; exit code 1 and nothing on stdout.
fn failed(arguments: &[&str], parts: &[&str]) {
    let output = output(arguments);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    let errors: Vec<&str> = stderr.lines().skip_while(|line| !line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    for part in parts {
        assert!(errors[0].contains(part), "{part:?} is not in {}", errors[0]);
    }
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
}

/// A copy of one trained run, made once, in a folder of its own.
struct Run {
    folder: tempfile::TempDir,
}

impl Run {
    fn new() -> Self {
        static TRAINED: OnceLock<tempfile::TempDir> = OnceLock::new();
        let trained = TRAINED.get_or_init(|| {
            let folder = tempfile::tempdir().expect("a folder");
            let config = folder.path().join("config.yaml");
            fs::write(&config, CONFIG).expect("written");
            let set = format!("output.dir={}", folder.path().join("run").display());
            stdout(&["train", "--config", &config.display().to_string(), "--set", &set]);
            folder
        });
        let run = Self { folder: tempfile::tempdir().expect("a folder") };
        fs::create_dir_all(run.checkpoint()).expect("made");
        for name in ["model.safetensors", "optimizer.safetensors", "manifest.json", "SHA256SUMS"] {
            let from = trained.path().join("run/checkpoints/step-00000020").join(name);
            fs::copy(from, run.checkpoint().join(name)).expect("copied");
        }
        run
    }

    fn checkpoint(&self) -> PathBuf {
        self.dir().join("checkpoints/step-00000020")
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn arguments<'a>(&self, command: &'a str, extra: &[&'a str]) -> Vec<String> {
        let own = [command, "--checkpoint", &self.path("run")].map(str::to_string);
        own.into_iter().chain(extra.iter().map(|s| s.to_string())).collect()
    }

    fn stdout(&self, command: &str, extra: &[&str]) -> String {
        let arguments = self.arguments(command, extra);
        stdout(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn json(&self, command: &str, extra: &[&str]) -> Value {
        serde_json::from_str(&self.stdout(command, &[extra, &["--json"]].concat())).expect("one JSON report")
    }

    fn failed(&self, command: &str, extra: &[&str], parts: &[&str]) {
        let arguments = self.arguments(command, extra);
        failed(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), parts);
    }

    /// The encoder alone, as anyone might hand it on.
    fn foreign(&self) -> String {
        let bytes = fs::read(self.checkpoint().join("model.safetensors")).expect("read");
        let file = SafeTensors::deserialize(&bytes).expect("whole");
        let own =
            file.iter().filter_map(|(name, view)| Some((name.strip_prefix("online.encoder.")?.to_string(), view)));
        let path = self.path("encoder.safetensors");
        fs::write(&path, safetensors::serialize(own, None).expect("serialized")).expect("written");
        path
    }
}

/// Images in folders `a` and `b`, which differ in brightness; labels of no other kind.
fn draw_images(folder: &Path, classes: &[&str], each: usize) {
    for (class, name) in classes.iter().enumerate() {
        fs::create_dir_all(folder.join(name)).expect("made");
        for i in 0..each {
            let value = (class * 100 + i * 3) as u8;
            let image = image::RgbImage::from_fn(20, 20, |x, _| image::Rgb([value, x as u8, value / 2]));
            image.save(folder.join(name).join(format!("{i}.png"))).expect("saved");
        }
    }
}

const QUICK: [&str; 4] = ["--set", "linear_eval.epochs=20", "--set", "linear_eval.solver=lbfgs"];

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
    let strong = ["--set", "linear_eval.penalties=[1e9]", "--set", "linear_eval.solver=lbfgs"];
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
    assert_eq!(run.json("linear-eval", &[&config[..], &QUICK].concat())["training_images"], 23);
    for (class, image) in ["a", "b"].iter().flat_map(|class| (0..12).map(move |image| (class, image))) {
        let from = images.join(format!("train/{class}/{image}.png"));
        let _ = fs::rename(from, images.join(format!("train/{class}{image}.png"))); // the stray one is there
    }
    ["a", "b"].iter().for_each(|class| fs::remove_dir(images.join("train").join(class)).expect("empty"));
    run.failed("linear-eval", &config, &["data.path: found no label for any image"]);
    run.failed("knn-eval", &[&config[..], &["--k", "3"]].concat(), &["data.path: found no label for any image"]);
    let said = run.stdout("extract-features", &[&config[..], &["--output", &run.path("unlabelled")]].concat());
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
