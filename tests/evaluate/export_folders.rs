//! `byol export-encoder` to a PyTorch file and to the folders of timm and transformers. These libraries themselves load
//! them in scripts/exports/check.py.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::sync::LazyLock;

use crate::support::TinyRun;
use crate::support::run::{byol, failed, succeeded, text};
use byol::eval::{Encoder, EncoderOptions, Represent};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// A network that the other libraries have, for images of a size of its own.
static RUN: LazyLock<TinyRun> = LazyLock::new(|| {
    let plain = ["model.width=1", "model.stem=imagenet", "augment.size=32", "augment.eval_resize=40"];
    TinyRun::train_shared("export_folders", &[&plain[..], &["train.max_steps=1", "train.batch_size=4"]].concat())
});

fn export(checkpoint: &Path, format: &str, output: &Path, extra: &[&str]) -> Output {
    let (checkpoint, output) = (checkpoint.display().to_string(), output.display().to_string());
    let fixed = ["export-encoder", "--checkpoint", &checkpoint, "--format", format, "--output", &output];
    byol(&[&fixed[..], extra].concat()).output().expect("byol runs")
}

fn written(format: &str, output: &Path, extra: &[&str]) -> String {
    let done = export(&RUN.dir(), format, output, extra);
    succeeded(&done);
    let stdout = text(&done.stdout);
    assert!(stdout.starts_with(&output.display().to_string()) && stdout.contains("read back: largest dif"), "{stdout}");
    stdout
}

fn open(path: &Path) -> Encoder {
    Encoder::open(path, &EncoderOptions::default()).expect("opened")
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON")
}

#[test]
fn a_pytorch_file_holds_the_same_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("encoder.pth");
    let stdout = written("pth", &path, &[]);
    assert!(stdout.contains("import torchvision; import torch\nmodel = torchvision.models.resnet18()"), "{stdout}");
    assert!(stdout.contains("load_state_dict(torch.load(\"") && stdout.contains("weights_only=True)"), "{stdout}");
    let images = Tensor::rand([2, 3, 32, 32], (Kind::Float, tch::Device::Cpu));
    let features = |path: &Path| open(path).represent(&images).expect("features");
    assert!(features(&path).equal(&features(&RUN.dir())));
    assert_eq!(open(&path).batches_tracked, open(&RUN.dir()).batches_tracked);
    // What torch.load asks of the archive: members under one folder, stored, each tensor's values aligned.
    let mut zip = zip::ZipArchive::new(fs::File::open(&path).expect("opened")).expect("a zip archive");
    for at in 0..zip.len() {
        let member = zip.by_index(at).expect("a member");
        assert_eq!((member.compression(), member.data_start() % 64), (zip::CompressionMethod::Stored, 0));
        assert!(member.name().starts_with("archive/"), "{}", member.name());
    }
    assert_eq!(zip.len(), 120 + 3);
    for refused in [&["--normalize"][..], &["--fold-batchnorm"], &["--image-size", "dynamic"]] {
        let extra = [refused, &["--force"]].concat();
        failed(&export(&RUN.dir(), "pth", &path, &extra), &[refused[0], "is for --format onnx"][..1]);
    }
}

#[test]
fn timms_folder_names_architecture_and_preprocessing() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("timm");
    let stdout = written("timm", &output, &[]);
    let line = format!("timm.create_model(\"local-dir:{}\", pretrained=True)", output.display());
    assert!(stdout.contains(&line), "{stdout}");
    let config = json_of(&output.join("config.json"));
    assert_eq!(config["architecture"], "resnet18");
    assert_eq!((config["num_classes"].as_i64(), config["num_features"].as_i64()), (Some(0), Some(512)));
    let inputs = &config["pretrained_cfg"];
    assert_eq!((&inputs["input_size"], &inputs["crop_pct"]), (&json!([3, 32, 32]), &json!(0.8)));
    assert_eq!((&inputs["mean"], &inputs["std"]), (&json!([0.5, 0.4, 0.3]), &json!([0.25, 0.3, 0.2])));
    // The weights are an encoder's file like any other.
    let images = Tensor::rand([2, 3, 32, 32], (Kind::Float, tch::Device::Cpu));
    let read = open(&output.join("model.safetensors"));
    assert!(read.represent(&images).expect("features").equal(&open(&RUN.dir()).represent(&images).expect("features")));
    assert_eq!(read.augment.eval_resize, Some(40));
    // Another size has the resize of the rule.
    written("timm", &output, &["--image-size", "224", "--force"]);
    let inputs = &json_of(&output.join("config.json"))["pretrained_cfg"];
    assert_eq!((&inputs["input_size"], &inputs["crop_pct"]), (&json!([3, 224, 224]), &json!(0.875)));
}

#[test]
fn transformers_folder_has_its_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("hf");
    let stdout = written("hf", &output, &[]);
    assert!(stdout.contains(&format!("ResNetModel.from_pretrained(\"{}\")", output.display())), "{stdout}");
    let config = json_of(&output.join("config.json"));
    assert_eq!((&config["model_type"], &config["layer_type"]), (&json!("resnet"), &json!("basic")));
    assert_eq!((&config["depths"], &config["hidden_sizes"]), (&json!([2, 2, 2, 2]), &json!([64, 128, 256, 512])));
    let inputs = json_of(&output.join("preprocessor_config.json"));
    assert_eq!((&inputs["size"]["shortest_edge"], &inputs["crop_size"]["height"]), (&json!(40), &json!(32)));
    let bytes = fs::read(output.join("model.safetensors")).expect("read");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    assert_eq!(file.len(), 120);
    let ours = fs::read(RUN.dir().join("encoder.safetensors")).expect("read");
    let ours = SafeTensors::deserialize(&ours).expect("a safetensors file");
    // transformers 5.24: ResNetModel(...).state_dict().
    for (name, own) in [
        ("embedder.embedder.convolution.weight", "conv1.weight"),
        ("embedder.embedder.normalization.running_var", "bn1.running_var"),
        ("encoder.stages.0.layers.1.layer.0.convolution.weight", "layer1.1.conv1.weight"),
        ("encoder.stages.2.layers.0.layer.1.normalization.bias", "layer3.0.bn2.bias"),
        ("encoder.stages.3.layers.0.shortcut.convolution.weight", "layer4.0.downsample.0.weight"),
        (
            "encoder.stages.3.layers.0.shortcut.normalization.num_batches_tracked",
            "layer4.0.downsample.1.num_batches_tracked",
        ),
    ] {
        let (found, own) = (file.tensor(name).expect(name), ours.tensor(own).expect(own));
        assert_eq!((found.shape(), found.data()), (own.shape(), own.data()), "{name}");
    }
}

/// Weights that differ from the encoder, or half of them, do not pass.
#[test]
fn a_folder_that_differs_from_its_encoder_is_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let (encoder, options) = (open(&RUN.dir()), byol::export::ExportOptions::default());
    for format in byol::export::Format::ALL.into_iter().filter(|format| format.files().is_some()) {
        let output = folder.path().join(format.name());
        let verify = || byol::export::verify(&encoder, format, &options, &output);
        byol::export::write(&encoder.random(5), format, &options, &output).expect("written");
        let error = verify().expect("read").check().expect_err("another encoder").to_string();
        assert!(error.contains("of the largest feature"), "{error}");
        byol::export::write(&encoder, format, &options, &output).expect("written");
        verify().expect("read").check().expect("the same");
        let weights = output.join("model.safetensors");
        let whole = fs::read(&weights).expect("read");
        fs::write(&weights, &whole[..whole.len() / 2]).expect("written");
        assert!(verify().is_err(), "{format:?}");
    }
}

#[test]
fn what_the_libraries_lack_and_what_is_there_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let quarter = TinyRun::train(&["train.max_steps=1", "train.batch_size=4"]);
    let lacks = "found resnet18 of width 0.25 with stem cifar, which";
    failed(&export(&quarter.dir(), "timm", &at("timm"), &[]), &["--format timm: ", lacks, "use --format safetensors"]);
    failed(&export(&quarter.dir(), "hf", &at("hf"), &[]), &["--format hf: ", lacks, "use --format safetensors"]);
    let options = byol::eval::EncoderOptions::default();
    let plain = Encoder::open(&RUN.dir(), &options).expect("opened").config;
    let grouped = byol::model::EncoderConfig { arch: byol::model::Arch::Resnext50_32x4d, ..plain };
    let wide = byol::model::EncoderConfig { width: 2.0, ..plain };
    let has = |format: &str, config| {
        let format = byol::export::Format::ALL.into_iter().find(|each| each.name() == format).expect("a format");
        format.check_encoder(config).is_ok()
    };
    assert_eq!([has("timm", &plain), has("timm", &grouped), has("timm", &wide)], [true, true, false]);
    assert_eq!([has("hf", &plain), has("hf", &grouped), has("hf", &wide)], [true, false, true]);

    fs::create_dir(at("full")).expect("made");
    fs::write(at("full/config.json"), "precious").expect("written");
    fs::write(at("full/other"), "precious").expect("written");
    failed(&export(&RUN.dir(), "hf", &at("full"), &[]), &["full/config.json already exists; add --force"]);
    assert_eq!(fs::read_to_string(at("full/config.json")).expect("read"), "precious");
    written("hf", &at("full"), &["--force"]);
    assert_eq!(fs::read_to_string(at("full/other")).expect("read"), "precious");
    let mut names: Vec<_> =
        fs::read_dir(at("full")).expect("listed").flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "other", "preprocessor_config.json"]);
    failed(
        &export(&RUN.dir(), "timm", &at("full/other"), &["--force"]),
        &["found the file", "a folder for --format timm"],
    );
    failed(&export(&RUN.dir(), "timm", &at("no/such"), &[]), &["--output: found no folder"]);
    failed(&export(&RUN.dir(), "timm", &RUN.checkpoint(1), &["--force"]), &["is the input of the export"]);
}
