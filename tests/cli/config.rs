//! Config files: every shipped one loads, and what is wrong is said with file, line, key, what was found and what
//! is accepted.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use byol::augment::{AugmentConfig, Preset};
use byol::config::Config;
use byol::model::Arch;
use byol::optim::Algorithm;
use byol::section::Keys;

fn load(yaml: &str, overrides: &[&str]) -> Result<Config, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("c.yaml");
    fs::write(&path, yaml).expect("written");
    let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
    Config::load(&path, &overrides).map_err(|e| format!("{e:#}").replace(&folder.path().display().to_string(), "."))
}

fn shipped(name: &str) -> Config {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name);
    Config::load(&path, &[]).unwrap_or_else(|e| panic!("{name}: {e:#}"))
}

#[test]
fn shipped_configs_load_and_have_their_recipes_numbers() {
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")).expect("configs");
    let names: Vec<String> = files.map(|f| f.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    assert!(names.len() >= 6, "{names:?}");
    names.iter().for_each(|name| drop(shipped(name)));
    // Peak rate at batch 4096, decay, tau, epochs: byol section 3.3, 5, the authors' release, mmpretrain's config.
    for (name, peak, decay, tau, epochs) in [
        ("imagenet_resnet50_1000ep.yaml", 3.2, 1.5e-6, 0.996, 1000),
        ("imagenet_resnet50_300ep.yaml", 4.8, 1e-6, 0.99, 300),
        ("imagenet_resnet50_100ep.yaml", 7.2, 1e-6, 0.99, 100),
        ("mmpretrain_resnet50_200ep.yaml", 4.8, 1e-6, 0.99, 200),
    ] {
        let config = shipped(name);
        assert!((config.optimizer.peak_lr(config.train.batch_size) - peak).abs() < 1e-9, "{name}");
        assert_eq!((config.optimizer.name, config.optimizer.weight_decay), (Algorithm::Lars, decay), "{name}");
        assert_eq!((config.ema.base_tau, config.schedule.epochs, config.schedule.warmup_epochs), (tau, epochs, 10.0));
        assert_eq!(
            (config.train.batch_size, config.model.arch, config.augment.size),
            (4096, Arch::Resnet50, 224.into())
        );
        assert_eq!(config.augment.view1, Config::default().augment.view1, "{name}");
        assert_eq!(config.augment.view2, Config::default().augment.view2, "{name}");
    }
    // Their originals: solo-learn (in the scale of this loss), lightly, DeepMind's README, the paper's appendix G.
    for (name, base_lr, decay, eta, clip, tau, epochs, batch) in [
        ("cifar10_resnet18.yaml", 0.5, 2e-5, 0.02, true, 0.99, 1000, 256),
        ("cifar100_resnet18.yaml", 0.5, 2e-5, 0.02, true, 0.99, 1000, 256),
        ("cifar10_sgd_resnet18.yaml", 0.03, 2e-3, 1e-3, false, 0.99, 800, 512),
        ("imagenette_resnet18.yaml", 2.0, 1e-6, 1e-3, false, 0.996, 1000, 256),
        ("imagenet100_resnet18.yaml", 0.5, 1e-5, 0.02, true, 0.99, 400, 256),
        ("imagenet_resnet50_100ep_batch256.yaml", 0.45, 1e-6, 1e-3, false, 0.99, 100, 256),
        ("imagenet_resnet50_1000ep_batch512.yaml", 0.4, 1.5e-6, 1e-3, false, 0.9995, 1000, 512),
        ("photos_resnet18.yaml", 0.5, 1e-5, 0.02, true, 0.99, 400, 256),
        ("photos_resnet50.yaml", 0.45, 1e-6, 1e-3, false, 0.99, 100, 256),
    ] {
        let config = shipped(name);
        let optimizer = &config.optimizer;
        assert_eq!((optimizer.base_lr, optimizer.weight_decay, optimizer.eta), (base_lr, decay, eta), "{name}");
        assert_eq!((optimizer.clip_lr, config.ema.base_tau, config.schedule.epochs), (clip, tau, epochs), "{name}");
        assert_eq!(config.train.batch_size, batch, "{name}");
    }
}

/// Paths of all leaves, and the line of each.
fn keys(value: &serde_yaml::Value, prefix: &str, found: &mut BTreeSet<String>) {
    match value.as_mapping() {
        Some(map) => map.iter().for_each(|(key, value)| {
            keys(value, &format!("{prefix}.{}", key.as_str().expect("a text key")), found);
        }),
        None => drop(found.insert(prefix.trim_start_matches('.').to_string())),
    }
}

#[test]
fn the_shipped_configs_comment_every_key_and_show_all_there_are() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let (mut shown, mut all) = (BTreeSet::new(), BTreeSet::new());
    for file in fs::read_dir(&folder).expect("configs") {
        let path = file.expect("entry").path();
        let text = fs::read_to_string(&path).expect("read");
        if path.ends_with("cifar10_resnet18.yaml") {
            keys(&serde_yaml::from_str(&text).expect("YAML"), "", &mut shown);
        }
        if path.ends_with("quickstart.yaml") {
            let yaml: serde_yaml::Value = serde_yaml::from_str(&text).expect("YAML");
            keys(&yaml["data"]["synthetic"], "data.synthetic", &mut shown);
        }
        // A key has a value on its line; a section has none.
        for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
            let value = line.split_once(':').map_or("", |(_, value)| value.trim());
            assert!(value.is_empty() || value.contains('#'), "{}: {line}", path.display());
        }
    }
    keys(&serde_yaml::to_value(Config::default()).expect("YAML"), "", &mut all);
    let left_out: Vec<_> = all.difference(&shown).collect();
    assert!(left_out.is_empty(), "{left_out:?}");
}

#[test]
fn the_default_is_the_papers_main_run() {
    let config = load("# nothing set\n", &[]).expect("loads");
    assert_eq!(config, Config::default());
    // Section 3.3 and table 6.
    assert_eq!(
        (config.model.arch, config.optimizer.name, config.optimizer.momentum),
        (Arch::Resnet50, Algorithm::Lars, 0.9)
    );
    assert!((config.optimizer.peak_lr(config.train.batch_size) - 3.2).abs() < 1e-9);
    assert_eq!((config.optimizer.weight_decay, config.optimizer.eta, config.ema.base_tau), (1.5e-6, 1e-3, 0.996));
    assert_eq!((config.schedule.epochs, config.schedule.warmup_epochs), (1000, 10.0));
    assert_eq!(
        (config.model.projector_hidden, config.model.projection_dim, config.model.predictor_hidden),
        (4096, 256, 4096)
    );
}

#[test]
fn overrides_are_yaml_values_in_order() {
    let yaml = "train: {batch_size: 64}\naugment: {size: 32}\n";
    let config = load(
        yaml,
        &[
            "train.batch_size=128",
            "train.batch_size=256",
            "output.dir=2024",
            "optimizer.base_lr=1e-1",
            "augment.view1.crop_scale=[0.2, 1]",
            "data.limit=5",
            "train.device=cuda:1",
        ],
    )
    .expect("loads");
    assert_eq!((config.train.batch_size, config.optimizer.base_lr), (256, 0.1));
    assert_eq!((config.output.dir.to_str(), config.data.limit), (Some("2024"), Some(5)));
    assert_eq!(config.augment.view1.crop_scale, [0.2, 1.0]);
    assert_eq!(load(yaml, &["data.limit=5", "data.limit=null"]).expect("loads").data.limit, None);
}

#[test]
fn keys_left_out_of_a_view_are_that_views_own() {
    let config = load("augment:\n  view1:\n    flip_prob: 0.1\n  view2:\n    flip_prob: 0.1\n", &[]).expect("loads");
    assert_eq!((config.augment.view1.blur_prob, config.augment.view1.solarize_prob), (1.0, 0.0));
    assert_eq!((config.augment.view2.blur_prob, config.augment.view2.solarize_prob), (0.1, 0.2));
}

#[test]
fn a_resolved_config_reads_as_itself() {
    let config = shipped("cifar10_resnet18.yaml");
    assert_eq!(load(&config.to_yaml().expect("YAML"), &[]).expect("loads"), config);
}

#[test]
fn paths_are_expanded_as_in_a_shell() {
    let home = std::env::var("HOME").expect("HOME");
    let yaml = "data: {format: parquet, path: ~/train, eval_path: $HOME/a b, spill_dir: \"${HOME}\"}\noutput: {dir: ~/runs/x}\n";
    let config = load(yaml, &[]).expect("loads");
    let data = &config.data;
    let shown = [&data.path, &data.eval_path].map(|paths| paths.as_ref().expect("a path").to_string());
    assert_eq!(shown, [format!("{home}/train"), format!("{home}/a b")]);
    assert_eq!(data.spill_dir.as_deref(), Some(Path::new(&home)));
    let error = load("data: {format: parquet, path: $BYOL_TEST_UNSET/x}", &[]).expect_err("a variable");
    let expected = "found $BYOL_TEST_UNSET/x, but the environment variable BYOL_TEST_UNSET is not set";
    assert!(format!("{error:#}").ends_with(expected), "{error:#}");
    assert_eq!(config.output.dir, Path::new(&home).join("runs/x"));
    assert_eq!(load("", &["output.dir=~/y"]).expect("loads").output.dir, Path::new(&home).join("y"));
}

#[test]
fn a_value_given_twice_is_tried_once() {
    let twice = "linear_eval: {learning_rates: [0.1, 0.2, 0.1], finetune_epochs: [3, 3]}";
    let config = load(twice, &["linear_eval.finetune_learning_rates=[0.5, 0.5]"]).expect("loads").linear_eval;
    assert_eq!((config.learning_rates, config.finetune_epochs), (vec![0.1, 0.2], vec![3]));
    assert_eq!(config.finetune_learning_rates, [0.5]);
}

/// Former names and values are read, and one line each says how they are written now.
#[test]
fn what_is_written_otherwise_now_is_said_in_a_line_each() {
    let folder = tempfile::tempdir().expect("a folder");
    let yaml = "augment: {size: 32}\ndata:\n  workers: 0\noptimizer:\n  base_lr: 0.1\n  clip: true\n";
    fs::write(folder.path().join("c.yaml"), yaml).expect("written");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_byol"));
    command.args(["preview", "--config", "c.yaml", "--output", "x.png", "--images", "1", "--draws", "1"]);
    command.args(["--set", "train.threads=0", "--set", "monitor.knn_every=null", "--set", "optimizer.clip=false"]);
    let output = command.current_dir(folder.path()).output().expect("byol runs");
    let said = String::from_utf8(output.stderr).expect("text");
    let expected = [
        "c.yaml:6: optimizer.clip: this key is called optimizer.clip_lr now",
        "c.yaml:3: data.workers: 0 is written null now",
        "--set train.threads=0: 0 is written null now",
        "--set optimizer.clip=false: this key is called optimizer.clip_lr now",
    ];
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn harmless_differences_are_not_differences() {
    let saved = serde_json::to_value(load("", &[]).unwrap_or_default()).expect("JSON");
    let mut config = Config::default();
    config.data.workers = Some(3);
    config.output.keep_checkpoints = 9;
    config.monitor.log_every = 1;
    config.data.on_bad_image = byol::data::OnBadImage::Fail;
    config.augment.eval_resize = Some(300);
    config.train.on_non_finite = byol::train::OnNonFinite::SkipStep;
    config.train.max_skipped_steps = 3;
    config.train.deterministic = true;
    assert_eq!(config.fingerprint().expect("JSON"), Config::default().fingerprint().expect("JSON"));
    assert_eq!(config.differences(&saved).expect("compared"), Vec::<String>::new());
    config.train.seed = 1;
    config.augment.view2.hue = 0.2;
    assert_ne!(config.fingerprint().expect("JSON"), Config::default().fingerprint().expect("JSON"));
    assert_eq!(
        config.differences(&saved).expect("compared"),
        ["augment.view2.hue: 0.2, was 0.1", "train.seed: 1, was 0"]
    );
}

/// What a run of an older version saved: 0 where null is written now, keys under their old names.
#[test]
fn a_config_of_an_older_version_is_the_same_config() {
    let zeros = "train: {threads: 0}\ndata: {workers: 0}\nmonitor: {knn_every: 0, knn_train_images: 0, knn_eval_images: 0}\n\
                 output: {checkpoint_every_epochs: 0, checkpoint_every_steps: 0}\noptimizer: {clip: true}\n";
    let old = load(zeros, &[]).expect("loads");
    let new = load(&zeros.replace(": 0", ": null").replace("clip", "clip_lr"), &[]).expect("loads");
    assert_eq!(old, new);
    assert_eq!((old.train.threads, old.monitor.knn_every, old.output.checkpoint_every_epochs), (None, None, None));
    assert_eq!(load("", &["optimizer.clip=true"]).expect("loads").optimizer, new.optimizer);
    let mut saved = serde_json::to_value(&new).expect("JSON");
    let optimizer = saved["optimizer"].as_object_mut().expect("a section");
    let clip = optimizer.remove("clip_lr").expect("a key");
    optimizer.insert("clip".into(), clip);
    saved["monitor"]["knn_every"] = serde_json::json!(0);
    saved["data"]["workers"] = serde_json::json!(0);
    assert_eq!(Config::of_run(&saved).expect("read"), new);
    assert_eq!(new.differences(&saved).expect("compared"), Vec::<String>::new());
    saved["optimizer"]["clip"] = serde_json::json!(false);
    assert_eq!(new.differences(&saved).expect("compared"), ["optimizer.clip_lr: true, was false"]);
}

/// `config_sha256` in the manifests that the version before wrote for the same command line.
#[test]
fn the_fingerprint_is_that_of_older_versions() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/quickstart.yaml");
    let sum = |overrides: &[&str]| {
        // Those versions' recipe left the precision to `auto`.
        let overrides: Vec<String> =
            [overrides, &["train.precision=auto"]].concat().into_iter().map(String::from).collect();
        Config::load(&path, &overrides).expect("loads").fingerprint().expect("JSON")
    };
    assert_eq!(sum(&["train.max_steps=1"]), "e0e59c58dca281c372bd0c83620ebf3af077e880033ff7df66b33773ddeee597");
    let lars = sum(&["optimizer.name=lars", "optimizer.clip=true", "optimizer.eta=0.02"]);
    assert_eq!(lars, "22d31116744cb15378be64d3147062d82013ce0a09732afe6cb9b785442a3c78");
}

#[test]
fn a_preset_is_the_base_of_the_keys_in_the_file() {
    let text = "augment: {preset: aerial, view1: {hue: 0.2}}";
    let first = |text: &str, overrides: &[&str]| load(text, overrides).expect("loads").augment.view1;
    let of_preset = first(text, &[]);
    assert_eq!((of_preset.hue, of_preset.vertical_flip_prob, of_preset.rotation_prob), (0.2, 0.5, 0.0));
    // From the command line it is the base of the same keys.
    for overrides in [
        ["augment.preset=medical", "augment.view1.flip_prob=0"],
        ["augment.view1.flip_prob=0", "augment.preset=medical"],
    ] {
        let set = first(text, &overrides);
        assert_eq!((set.hue, set.vertical_flip_prob, set.rotation_prob, set.flip_prob), (0.2, 0.0, 0.5, 0.0));
    }
    for text in ["", "train: {seed: 3}"] {
        assert_eq!(first(text, &["augment.preset=aerial"]), AugmentConfig::from(Preset::Aerial).view1);
    }
    let error = format!("{:#}", load(text, &["augment.preset=space"]).unwrap_err());
    assert!(error.contains("augment.preset") && error.contains("space") && error.contains("small_images"), "{error}");
    // The keys count for a resumed run, not the name.
    let aerial = load("augment: {preset: aerial}", &[]).expect("loads");
    let mut saved = serde_json::to_value(&aerial).expect("JSON");
    saved["augment"]["preset"] = "paper".into();
    assert_eq!(aerial.differences(&saved).expect("compared"), Vec::<String>::new());
    let plain = serde_json::to_value(Config::default()).expect("JSON");
    let differences = aerial.differences(&plain).expect("compared");
    assert!(differences.contains(&"augment.view1.vertical_flip_prob: 0.5, was 0.0".to_string()), "{differences:?}");
}

/// A key that is listed under a wrong name would count, or not be read, without a word.
#[test]
fn sections_list_keys_that_exist() {
    let config = Config::default();
    let all = serde_json::to_value(&config).expect("JSON");
    for (name, section) in config.sections() {
        let keys = all[name].as_object().expect("a section");
        if let Keys::Only(listed) = section.no_effect() {
            assert!(listed.iter().all(|key| keys.contains_key(*key)), "{name}: {listed:?}");
        }
        let leaf = |key: &str| key.split('.').try_fold(&all[name], |at, part| at.get(part)).is_some();
        assert!(section.added().iter().all(|key| leaf(key)), "{name}: {:?}", section.added());
        for (old, new) in section.renamed() {
            let value = &keys[*new];
            assert_eq!(load(&format!("{name}: {{{old}: {value}}}"), &[]).expect("loads"), config, "{name}.{old}");
        }
    }
}

/// Checkpoints outlive the versions of the program that wrote them.
#[test]
fn keys_that_a_saved_config_lacks_had_their_default() {
    let mut config = Config::default();
    let mut saved = serde_json::to_value(&config).expect("JSON");
    let remove = |saved: &mut serde_json::Value, path: &str, key: &str| {
        saved.pointer_mut(path).and_then(|section| section.as_object_mut()).expect("a section").remove(key);
    };
    remove(&mut saved, "/data", "exif_orientation");
    remove(&mut saved, "/augment/view2", "blur_prob");
    remove(&mut saved, "", "ema");
    assert_eq!(config.differences(&saved).expect("compared"), Vec::<String>::new());
    config.data.exif_orientation = false;
    config.augment.view2.blur_prob = 1.0;
    let expected = ["augment.view2.blur_prob: 1.0, was 0.1", "data.exif_orientation: false, was true"];
    assert_eq!(config.differences(&saved).expect("compared"), expected);
    // What a later version saved may matter.
    saved["optimizer"]["lookahead"] = serde_json::json!({ "steps": 5 });
    saved["monitor"]["color"] = serde_json::json!("red");
    let expected = [expected[0], expected[1], "optimizer.lookahead.steps: unknown, was 5"];
    assert_eq!(config.differences(&saved).expect("compared"), expected);
    saved["train"]["seed"] = serde_json::json!("many");
    let error = format!("{:#}", config.differences(&saved).unwrap_err());
    assert!(error.starts_with("cannot read the saved config: ") && !error.contains('\n'), "{error}");
}
