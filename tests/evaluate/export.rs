//! `byol export-encoder` as a user runs it: each format read back, by others' eyes where Rust has them, and what is
//! refused. Python's side of it is scripts/exports/check.py.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::LazyLock;

use crate::support::{CPU, TinyRun};
use byol::eval::{Encoder, EncoderOptions, Represent};
use byol::export::{self, ExportOptions, Format};
use clap::ValueEnum;
use safetensors::{Dtype, SafeTensors};
use tch::{CModule, Kind, Tensor};

/// One run serves every test that only reads it.
static RUN: LazyLock<TinyRun> = LazyLock::new(|| TinyRun::train_shared("export", &["train.max_steps=4"]));

fn byol(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_byol")).arg("export-encoder").args(args).output().expect("byol runs")
}

/// Exports the run; stdout comes back.
fn exported(format: &str, output: &Path, extra: &[&str]) -> String {
    let (run, output) = (RUN.dir(), output.display().to_string());
    let fixed = ["--checkpoint", run.to_str().expect("a path"), "--format", format, "--output", &output];
    let done = byol(&[&fixed[..], extra].concat());
    let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{stderr}");
    let stdout = String::from_utf8(done.stdout).expect("text");
    assert!(stdout.starts_with(&output), "{stdout}");
    assert!(stdout.contains("read back: largest difference to the encoder"), "{stdout}");
    stdout
}

/// Exit code 1, one line on stderr with all of `parts`, nothing on stdout.
fn refused(args: &[&str], parts: &[&str]) {
    let done = byol(args);
    let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(1), "{stderr}");
    assert_eq!((stderr.lines().count(), done.stdout.len()), (1, 0), "{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} in {stderr}");
    }
}

fn open(path: &Path) -> Encoder {
    Encoder::open(path, &EncoderOptions::default()).expect("opened")
}

fn images(count: i64, size: i64) -> Tensor {
    let values: Vec<f32> = (0..count * 3 * size * size).map(|i| (i * 7919 % 256) as f32 / 255.0).collect();
    Tensor::from_slice(&values).reshape([count, 3, size, size])
}

fn normalized(encoder: &Encoder, images: &Tensor) -> Tensor {
    let [mean, std] = [&encoder.augment.mean, &encoder.augment.std]
        .map(|v| Tensor::from_slice(v.values()).to_kind(Kind::Float).reshape([1, 3, 1, 1]));
    (images - mean) / std
}

fn close(found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size());
    let error = (found - expected).abs().max() / expected.abs().max();
    assert!(error.double_value(&[]) < 1e-5, "{error:?}");
}

#[test]
fn safetensors_hold_torchvisions_state_dict_and_say_what_it_takes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("encoder.safetensors");
    let stdout = exported("safetensors", &path, &[]);
    assert!(stdout.contains("0.0e0 of the largest feature"), "{stdout}");
    assert!(stdout.contains("load_state_dict(load_file("), "{stdout}");
    let bytes = fs::read(&path).expect("bytes");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    // torchvision.models.resnet18().state_dict(): 122 entries, 2 of them the classifier's.
    assert_eq!(file.len(), 120);
    let counts: Vec<_> = file.names().into_iter().filter(|n| n.ends_with("num_batches_tracked")).collect();
    assert_eq!(counts.len(), 20);
    for name in file.names() {
        let view = file.tensor(name).expect("a tensor");
        let counted = name.ends_with("num_batches_tracked");
        assert_eq!(view.dtype(), if counted { Dtype::I64 } else { Dtype::F32 }, "{name}");
        if counted {
            assert_eq!((view.shape(), view.data()), (&[][..], &8i64.to_le_bytes()[..]), "{name}");
        }
    }
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
    let metadata = header.metadata().clone().expect("metadata");
    let source = RUN.checkpoint(4).display().to_string();
    for (key, value) in [
        ("format", "pt"),
        ("arch", "resnet18"),
        ("width", "0.25"),
        ("stem", "cifar"),
        ("feature_dim", "128"),
        ("mean", "[0.5, 0.4, 0.3]"),
        ("std", "[0.25, 0.3, 0.2]"),
        ("image_size", "16"),
        ("eval_resize", "null"),
        ("input", "RGB in 0..1, (x - mean) / std"),
        ("network", "online"),
        ("step", "4"),
        ("source", &source),
    ] {
        assert_eq!(metadata.get(key).map(String::as_str), Some(value), "{key}");
    }
    // The metadata serve its reader: nothing has to be said again.
    let (read, trained) = (open(&path), open(&RUN.dir()));
    assert_eq!((read.config, read.batches_tracked), (trained.config, 8));
    let found = (read.augment.size, read.augment.mean.values(), read.augment.std.values());
    assert_eq!(found, (16.into(), &[0.5, 0.4, 0.3][..], &[0.25, 0.3, 0.2][..]));
    let x = images(5, 16);
    assert!(read.represent(&x).expect("features").equal(&trained.represent(&x).expect("features")));
    // Such a file is an encoder like any other, so it can be exported again.
    let again = folder.path().join("again.onnx");
    let done = byol(
        &["--checkpoint", path.to_str().expect("a path"), "--format", "onnx", "--output"]
            .into_iter()
            .chain([again.to_str().expect("a path")])
            .collect::<Vec<_>>(),
    );
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let resized = folder.path().join("resized.safetensors");
    exported("safetensors", &resized, &["--image-size", "24"]);
    assert_eq!(open(&resized).augment.size, 24.into());
}

#[test]
fn torchscript_takes_any_batch_and_any_size() {
    let folder = tempfile::tempdir().expect("a folder");
    let (plain, normal) = (folder.path().join("plain.pt"), folder.path().join("normal.pt"));
    assert!(exported("torchscript", &plain, &[]).contains("torch.jit.load("));
    exported("torchscript", &normal, &["--no-normalize"]);
    let encoder = open(&RUN.dir());
    let modules = [&plain, &normal].map(|path| CModule::load(path).expect("a module"));
    assert!(modules.iter().all(|module| module.named_parameters().expect("parameters").is_empty()), "not frozen");
    for (count, size) in [(1, 16), (2, 16), (7, 16), (3, 24), (1, 33)] {
        let x = images(count, size);
        let expected = encoder.represent(&normalized(&encoder, &x)).expect("features");
        close(&modules[0].forward_ts(&[&x]).expect("features"), &expected);
        close(&modules[1].forward_ts(&[normalized(&encoder, &x)]).expect("features"), &expected);
    }
    let left: Vec<_> = fs::read_dir(folder.path()).expect("entries").flatten().collect();
    assert_eq!(left.len(), 2, "something half-written remains: {left:?}");
}

/// The strings of a protobuf file that `needle` is one of; enough to see names and operators.
fn holds(bytes: &[u8], needle: &str) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[test]
fn onnx_says_opset_shapes_and_operators_as_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, extra: &[&str]| {
        let path = folder.path().join(name);
        let stdout = exported("onnx", &path, extra);
        assert!(stdout.contains("onnx opset 17") && stdout.contains("onnxruntime.InferenceSession("), "{stdout}");
        // The shapes are the file's own.
        let (input, side) = if extra.is_empty() { ("RGB in 0..1", "16, 16") } else { ("normalized RGB", "H, W") };
        assert!(stdout.contains(&format!("float32 [N, 3, {side}], {input}; features: [N, 128]")), "{stdout}");
        fs::read(path).expect("bytes")
    };
    let plain = write("plain.onnx", &[]);
    for text in ["BatchNormalization", "batch", "images", "features", "layer4.1.conv2.weight", "Sub", "Div"] {
        assert!(holds(&plain, text), "{text}");
    }
    assert!(!holds(&plain, "height"));
    let folded = write("folded.onnx", &["--fold-batchnorm", "--no-normalize", "--image-size", "dynamic"]);
    assert!(holds(&folded, "height") && holds(&folded, "layer4.1.conv2.bias"));
    for text in ["BatchNormalization", "running_mean", "Sub", "Div"] {
        assert!(!holds(&folded, text), "{text}");
    }
}

#[test]
fn the_target_gets_statistics_of_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
    let config = RUN.config().display().to_string();
    let target = ["--network", "target", "--config", &config];
    exported("safetensors", &first, &target);
    let (exported_one, trained) = (open(&first), open(&RUN.dir()));
    let options = EncoderOptions { which: byol::eval::Branch::Target, ..EncoderOptions::default() };
    let in_training = Encoder::open(&RUN.dir(), &options).expect("opened");
    let buffer = |e: &Encoder, i: usize| e.params.buffers[i].tensor.shallow_clone();
    assert!(
        exported_one.params.parameters.iter().zip(&in_training.params.parameters).all(|(a, b)| a.tensor == b.tensor)
    );
    assert!(exported_one.params.parameters.iter().zip(&trained.params.parameters).any(|(a, b)| a.tensor != b.tensor));
    assert_ne!(buffer(&exported_one, 0), buffer(&in_training, 0));
    assert_eq!(exported_one.batches_tracked, 1); // 64 images are one batch
    // It is a function of the images named; other images give other statistics.
    exported("safetensors", &second, &[&target[..], &["--set", "data.synthetic.seed=5"]].concat());
    assert_ne!(buffer(&exported_one, 0), buffer(&open(&second), 0));
    // So are fewer of them.
    exported("safetensors", &second, &[&target[..], &["--batchnorm-images", "2", "--force"]].concat());
    assert_ne!(buffer(&exported_one, 0), buffer(&open(&second), 0));
}

#[test]
fn a_file_that_differs_from_its_encoder_is_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let graph = ExportOptions::default();
    let change = |encoder: &Encoder, name: &str, by: f64| {
        let _no_grad = tch::no_grad_guard();
        let named = encoder.params.parameters.iter().find(|p| p.name == name).expect("a parameter");
        let mut flat = named.tensor.view(-1).get(0);
        let _ = flat.g_add_(&Tensor::full([], by, (Kind::Float, CPU)));
    };
    let formats = || Format::ALL.into_iter().filter(|format| format.check_encoder(&open(&RUN.dir()).config).is_ok());
    for format in formats() {
        let path = folder.path().join(format!("{format:?}"));
        let encoder = open(&RUN.dir());
        export::write(&encoder, format, &graph, &path).expect("written");
        export::verify(&encoder, format, &graph, &path).expect("read").check().expect("the same");
        // One weight of eleven thousand in the last layer, by a little; then beyond all numbers.
        for (by, what) in [(0.05, "of the largest feature"), (f64::NAN, "NaN of the largest feature")] {
            change(&encoder, "layer4.1.bn2.bias", by);
            let difference = export::verify(&encoder, format, &graph, &path).expect("read");
            let error = difference.check().expect_err("another encoder").to_string();
            assert!(error.contains(what) && error.contains("expected at most 1e-4 of it"), "{error}");
            assert!(path.exists());
        }
    }
    // A file cut in two does not pass either. (The end of an ONNX file is metadata, which a graph runs without.)
    for format in formats() {
        let path = folder.path().join(format!("{format:?}"));
        let whole = fs::read(&path).expect("bytes");
        fs::write(&path, &whole[..whole.len() / 2]).expect("written");
        assert!(export::verify(&open(&RUN.dir()), format, &graph, &path).is_err(), "{format:?}");
    }
}

#[test]
fn what_cannot_be_written_is_refused_before_any_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let run = RUN.dir().display().to_string();
    let export = |output: &str, extra: &[&str]| -> Vec<String> {
        let fixed = ["--checkpoint", &run, "--format", "onnx", "--output", output];
        fixed.iter().chain(extra).map(|s| s.to_string()).collect()
    };
    let check =
        |args: Vec<String>, parts: &[&str]| refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), parts);
    let there = path("there.onnx");
    fs::write(&there, b"precious").expect("written");
    check(export(&there, &[]), &["there.onnx already exists; add --force"]);
    assert_eq!(fs::read(&there).expect("bytes"), b"precious");
    exported("onnx", Path::new(&there), &["--force"]);
    assert!(fs::read(&there).expect("bytes").len() > 1000);
    check(export(&path("no/such/x.onnx"), &[]), &["--output: found no folder", "no/such"]);
    check(export(&format!("{there}/x.onnx"), &[]), &["--output: found no folder"]);
    check(export(&path(""), &["--force"]), &["found the folder"]);
    // A rename would replace a device or a pipe, and a link that leads nowhere yet.
    let pipe = path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
    check(export(&pipe, &["--force"]), &["is not a regular file and will not be replaced"]);
    std::os::unix::fs::symlink("nowhere", path("link")).expect("linked");
    check(export(&path("link"), &[]), &["already exists; add --force"]);
    let model = RUN.checkpoint(4).join("model.safetensors").display().to_string();
    check(export(&model, &["--force"]), &["is the input of the export"]);
    Encoder::open(&RUN.checkpoint(4), &EncoderOptions::default()).expect("still whole");

    let new = path("new");
    check(export(&new, &["--network", "target"]), &["add --config FILE"]);
    check(export(&new, &["--set", "augment.sice=3"]), &["unknown key sice", "did you mean size?"]);
    check(export(&new, &["--set", "augment.size=3"]), &["--set augment.size=3: augment.size: found 3"]);
    let other = |format: &str, checkpoint: &str, extra: &[&str]| -> Vec<String> {
        let fixed = ["--checkpoint", checkpoint, "--format", format, "--output", &new];
        fixed.iter().chain(extra).map(|s| s.to_string()).collect()
    };
    check(other("safetensors", &run, &["--normalize"]), &["--normalize: safetensors holds weights, no graph"]);
    check(other("safetensors", &run, &["--fold-batchnorm"]), &["is for --format onnx"]);
    check(other("safetensors", &run, &["--image-size", "dynamic"]), &["is for --format onnx"]);
    check(other("torchscript", &run, &["--image-size", "16"]), &["a torchscript module takes any size"]);
    check(other("onnx", &path("nothing"), &[]), &["nothing: no such file"]);
    check(other("onnx", &path(""), &[]), &["found no checkpoint in this folder"]);
    let foreign = path("model.pth");
    fs::write(&foreign, b"PK\x03\x04").expect("written");
    check(other("onnx", &foreign, &[]), &["model.pth: damaged: not a whole zip archive"]);
    check(
        other("onnx", &there, &[]),
        &["found a file that begins with ", "expected one of safetensors or of torch.save"],
    );
    check(other("onnx", &pipe, &[]), &["pipe: found a named pipe, expected a file"]);
    check(other("onnx", &there, &["--network", "target", "--config", "x"]), &["found a file, expected a run's"]);
    assert!(!Path::new(&new).exists());
    let usage = byol(&["--checkpoint", &run, "--format", "onnx", "--output", &new, "--image-size", "7"]);
    assert_eq!(usage.status.code(), Some(2));
}

/// A file that cannot grow, as on a full disk: one line, and nothing is left.
#[test]
fn an_export_that_does_not_fit_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    for format in ["onnx", "safetensors", "pth", "torchscript"] {
        let command = format!(
            "ulimit -f 100; exec '{}' -q export-encoder --checkpoint '{}' --format {format} --output '{}/x'",
            env!("CARGO_BIN_EXE_byol"),
            RUN.dir().display(),
            folder.path().display()
        );
        let output = Command::new("bash").args(["-c", &command]).output().expect("bash runs");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), message.lines().count()), (Some(1), 1), "{message}");
        let expected = if format == "torchscript" { "raise the limit (ulimit -f)" } else { "File too large" };
        assert!(message.contains(expected), "{message}");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 0, "{format}");
    }
}

#[test]
fn a_network_too_large_for_protobuf_is_refused() {
    // ResNet-152 of width 4: 16 times torchvision's.
    let parameters = 928_000_000;
    let [torchscript, onnx] = ["torchscript", "onnx"].map(|name| Format::from_str(name, false).expect("a format"));
    let error = onnx.check_size(parameters).expect_err("refused").to_string();
    assert!(error.contains("at most 2.1 GB, the weights take 3.7 GB; use --format torchscript or safe"), "{error}");
    torchscript.check_size(parameters).expect("no limit");
    onnx.check_size(parameters / 2).expect("1.9 GB fit");
}
