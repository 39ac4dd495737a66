//! Quality without labels during a run: recorded, without any effect on the run, and warning of a collapse.

use crate::support::run::{Run, succeeded};

const KEYS: [&str; 7] = [
    "effective_rank",
    "projection_rank",
    "alignment",
    "uniformity",
    "view_retrieval",
    "random_cosine",
    "target_distance",
];

#[test]
fn quality_is_recorded_and_changes_no_bit_of_the_weights() {
    let (with, without) = (Run::new(), Run::new());
    let stderr = succeeded(&with.train(&[]));
    let silent = succeeded(&without.train(&["--set", "monitor.quality_every=null"]));
    assert!(with.weights(12) == without.weights(12), "weights, running statistics or optimizer state differ");
    assert!(stderr.contains("epoch 0: effective rank ") && stderr.contains("epoch 3: effective rank "), "{stderr}");
    assert!(!silent.contains("effective rank") && without.summary()["quality"].is_null(), "{silent}");
    let records: Vec<_> = with.records().into_iter().filter(|record| record["effective_rank"].is_f64()).collect();
    assert_eq!(records.iter().map(|record| record["step"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(12)]);
    for record in &records {
        assert!(KEYS.iter().all(|key| record[key].is_f64()), "{record}");
        assert_eq!((record["images"].as_u64(), record["features"].as_u64()), (Some(30), Some(128)));
    }
    let quality = with.summary()["quality"].clone();
    assert!(KEYS.iter().all(|key| quality[key] == records[1][key]), "{quality} {}", records[1]);
    // TensorBoard has them under a group of their own.
    let folder = std::fs::read_dir(with.dir().join("tensorboard")).expect("a folder");
    let events = std::fs::read(folder.flatten().next().expect("a file").path()).expect("read");
    let tag = b"quality/view_retrieval";
    assert!(events.windows(tag.len()).any(|window| window == tag));
}

/// A file is in the place of the projector's folder.
#[test]
fn images_that_tensorboard_cannot_get_end_no_run() {
    let run = Run::new();
    let events = run.dir().join("tensorboard");
    std::fs::create_dir_all(&events).expect("made");
    std::fs::write(events.join("projector"), "").expect("written");
    let stderr = succeeded(&run.train(&["--set", "monitor.tensorboard_images=true"]));
    assert!(stderr.contains("monitor.tensorboard_images: creating "), "{stderr}");
    assert_eq!(run.summary()["ending"], "finished");
    assert!(run.dir().join("encoder.safetensors").exists());
}

#[test]
fn a_resumed_run_says_where_and_continues_its_history() {
    let run = Run::new();
    for steps in ["train.max_steps=4", "train.max_steps=8", "train.max_steps=99"] {
        succeeded(&run.train(&["--set", steps, "--resume", "auto"]));
    }
    assert_eq!(run.summary()["resumed_at"], serde_json::json!([4, 8]));
    let steps: Vec<u64> = run
        .records()
        .iter()
        .filter(|record| record["effective_rank"].is_f64())
        .map(|record| record["step"].as_u64().expect("a step"))
        .collect();
    assert_eq!(steps, [0, 4, 8, 12]);
}

/// Weight decay that is far too strong shrinks one direction of the features after the other.
#[test]
fn a_collapse_of_dimensions_is_said_before_knn_falls() {
    let run = Run::new();
    let mut overrides = Vec::new();
    for text in [
        "data.synthetic.images=640",
        "data.synthetic.eval_images=200",
        "augment.size=8",
        "augment.view1.blur_prob=0",
        "augment.view2.blur_prob=0",
        "schedule.epochs=10",
        "schedule.warmup_epochs=0",
        "train.max_steps=120",
        "train.batch_size=32",
        "optimizer.name=sgd",
        "optimizer.base_lr=0.8",
        "optimizer.weight_decay=0.1",
        "monitor.quality_every=1",
        "monitor.knn_k=20",
        "monitor.log_every=20",
        "output.checkpoint_every_epochs=null",
    ] {
        overrides.extend(["--set", text]);
    }
    let stderr = succeeded(&run.train(&overrides));
    let said: Vec<&str> =
        stderr.lines().filter(|line| line.contains("and falling: the encoder is collapsing")).collect();
    assert!(!said.is_empty(), "{stderr}");
    assert!(said.len() <= 2, "each sentence once: {stderr}");
    // From its best value k-NN has lost less than a tenth when the warning comes.
    let at = stderr.lines().position(|line| line.contains("the encoder is collapsing")).expect("said");
    let knn = |lines: &mut dyn Iterator<Item = &str>| -> Vec<f64> {
        let value = |line: &str| line.split("k-NN top-1 ").nth(1)?.trim_end_matches(" %").parse().ok();
        lines.filter(|line| line.starts_with("epoch ")).filter_map(value).collect()
    };
    let before = knn(&mut stderr.lines().take(at));
    let best = before.iter().copied().fold(0.0, f64::max);
    assert!(*before.last().expect("measured") > 0.9 * best, "{before:?}\n{stderr}");
    let last = *knn(&mut stderr.lines()).last().expect("measured");
    assert!(last < 0.9 * best, "it has not collapsed: {last} of {best}\n{stderr}");
    let warnings = run.summary()["warnings"].clone();
    assert!(warnings[0].as_str().is_some_and(|text| text.contains("and falling")), "{warnings}");
}
