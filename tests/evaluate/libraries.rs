//! ConvNeXt and ViT under the names of torchvision, timm and transformers: read from their files, exported to their
//! folders. The libraries themselves do both in scripts/exports.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::encoder::write;
use crate::support::run::{byol, failed, succeeded, text};
use crate::support::{CPU, Fixture, TinyRun};
use byol::augment::AugmentConfig;
use byol::eval::{Encoder, EncoderOptions, Represent};
use byol::export::{self, ExportOptions, Format, ImageSize};
use byol::model::{self, Arch, EncoderConfig, Norm, Params, Pool};
use byol::weights::{Choice, WeightFile, find};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

type State = BTreeMap<String, Tensor>;

/// The encoder's tensors under its own names, by the fill rule.
fn state_dict(config: &EncoderConfig) -> State {
    let fixture = Fixture::open("vit.safetensors");
    let mut params = Params::new(CPU, None);
    model::Encoder::new(params.root(), config);
    let filled = |name: &str, size: &[i64]| fixture.fill(name, size).to_kind(Kind::Float);
    params.parameters.iter().map(|n| (n.name.clone(), filled(&n.name, &n.tensor.size()))).collect()
}

fn patches(arch: Arch, width: f64, patch_size: i64) -> EncoderConfig {
    EncoderConfig { arch, width, patch_size, image_size: [32; 2], ..EncoderConfig::default() }
}

fn open(path: &Path) -> Encoder {
    let augment = Some(AugmentConfig { size: 32.into(), ..AugmentConfig::default() });
    Encoder::open(path, &EncoderOptions { augment, ..EncoderOptions::default() }).expect("opened")
}

/// torchvision's name of a ConvNeXt's tensor as timm, transformers and the network's authors have it.
fn convnext(name: &str) -> [String; 3] {
    let parts: Vec<&str> = name.split('.').collect();
    let layer = |at: &str| match at {
        "0" => ["conv_dw", "dwconv", "dwconv"],
        "2" => ["norm", "layernorm", "norm"],
        "3" => ["mlp.fc1", "pwconv1", "pwconv1"],
        _ => ["mlp.fc2", "pwconv2", "pwconv2"],
    };
    let stage = |at: &str| at.parse::<usize>().expect("a number") / 2;
    match parts[..] {
        ["classifier", "0", leaf] => ["head.norm", "layernorm", "norm"].map(|name| format!("{name}.{leaf}")),
        ["features", "0", "0", leaf] => {
            ["stem.0", "embeddings.patch_embeddings", "downsample_layers.0.0"].map(|name| format!("{name}.{leaf}"))
        }
        ["features", "0", _, leaf] => {
            ["stem.1", "embeddings.layernorm", "downsample_layers.0.1"].map(|name| format!("{name}.{leaf}"))
        }
        ["features", at, layer, leaf @ ("weight" | "bias")] => {
            let at = stage(at);
            [
                format!("stages.{at}.downsample.{layer}.{leaf}"),
                format!("encoder.stages.{at}.downsampling_layer.{layer}.{leaf}"),
                format!("downsample_layers.{at}.{layer}.{leaf}"),
            ]
        }
        ["features", at, block, ref rest @ ..] => {
            let at = stage(at);
            let rest = match *rest {
                [_, number, leaf] => layer(number).map(|name| format!("{name}.{leaf}")),
                _ => ["gamma", "layer_scale_parameter", "gamma"].map(String::from),
            };
            let places = [
                format!("stages.{at}.blocks.{block}"),
                format!("encoder.stages.{at}.layers.{block}"),
                format!("stages.{at}.{block}"),
            ];
            std::array::from_fn(|library| format!("{}.{}", places[library], rest[library]))
        }
        _ => panic!("{name}"),
    }
}

/// timm's name of a ViT's tensor as torchvision and transformers, in files and in memory, have it; `Q`, `K` and `V` are
/// one after another where they are split.
fn vit(name: &str) -> [String; 3] {
    let parts: Vec<&str> = name.split('.').collect();
    let embeddings = |name: &str| format!("embeddings.{name}");
    match parts[..] {
        ["cls_token"] => ["class_token".into(), embeddings("cls_token"), embeddings("cls_token")],
        ["pos_embed"] => {
            let theirs = embeddings("position_embeddings");
            ["encoder.pos_embedding".into(), theirs.clone(), theirs]
        }
        ["patch_embed", "proj", leaf] => {
            let theirs = embeddings(&format!("patch_embeddings.projection.{leaf}"));
            [format!("conv_proj.{leaf}"), theirs.clone(), theirs]
        }
        ["norm", leaf] => [format!("encoder.ln.{leaf}"), format!("layernorm.{leaf}"), format!("layernorm.{leaf}")],
        ["blocks", block, ref layer @ .., leaf] => {
            let layers = match layer.join(".").as_str() {
                "norm1" => ["ln_1.", "layernorm_before.", "layernorm_before."],
                "attn.qkv" => ["self_attention.in_proj_", "attention.attention.QKV.", "attention.QKV_proj."],
                "attn.proj" => ["self_attention.out_proj.", "attention.output.dense.", "attention.o_proj."],
                "norm2" => ["ln_2.", "layernorm_after.", "layernorm_after."],
                "mlp.fc1" => ["mlp.0.", "intermediate.dense.", "mlp.fc1."],
                "mlp.fc2" => ["mlp.3.", "output.dense.", "mlp.fc2."],
                other => panic!("{other}"),
            };
            let places = [
                format!("encoder.layers.encoder_layer_{block}"),
                format!("encoder.layer.{block}"),
                format!("layers.{block}"),
            ];
            std::array::from_fn(|library| format!("{}.{}{leaf}", places[library], layers[library]))
        }
        _ => panic!("{name}"),
    }
}

/// The tensors under other names, split where these say so, with something beside the encoder.
fn renamed(state: &State, prefix: &str, rename: impl Fn(&str) -> String) -> State {
    let mut all = State::new();
    for (name, tensor) in state {
        let tensor = if let [channels, 1, 1] = tensor.size()[..] { tensor.reshape([channels]) } else { tensor.copy() };
        let name = format!("{prefix}{}", rename(name));
        if let Some((words, parts)) = [(["query", "key", "value"], "QKV."), (["q", "k", "v"], "QKV_proj.")]
            .into_iter()
            .find(|(_, parts)| name.contains(parts))
        {
            for (word, tensor) in words.into_iter().zip(tensor.chunk(3, 0)) {
                all.insert(name.replace(parts, &parts.replace("QKV", word)), tensor);
            }
        } else {
            all.insert(name, tensor);
        }
    }
    all.insert(format!("{prefix}pooler.dense.weight"), Tensor::zeros([2, 2], (Kind::Float, CPU)));
    all.insert("classifier.weight".into(), Tensor::zeros([2, 2], (Kind::Float, CPU)));
    all
}

#[test]
fn files_with_the_names_of_any_library_are_the_same_encoder() {
    let folder = tempfile::tempdir().expect("a folder");
    let (plain, other) = (folder.path().join("plain"), folder.path().join("other"));
    let images = Fixture::open("vit.safetensors").fill("input.view1", &[2, 3, 32, 32]).to_kind(Kind::Float);
    let convnexts = [(Arch::ConvnextTiny, 0.25), (Arch::ConvnextSmall, 0.25), (Arch::ConvnextBase, 0.25)];
    let vits = [(Arch::VitTiny, 1.0), (Arch::VitSmall, 1.0)];
    for (arch, width) in convnexts.into_iter().chain(vits) {
        let config = patches(arch, width, if arch == Arch::VitTiny { 16 } else { 4 });
        let state = state_dict(&config);
        write(&plain, &state);
        let expected = open(&plain).represent(&images).expect("features");
        for library in 0..3 {
            let rename = |name: &str| if width == 1.0 { vit(name) } else { convnext(name) }[library].clone();
            let prefix = ["", "vit.", "state_dict.module.encoder_q."][library];
            write(&other, &renamed(&state, prefix, rename));
            let read = open(&other);
            assert_eq!(read.config.to_string(), config.to_string(), "{library}");
            let features = read.represent(&images).expect("features");
            let difference = ((features - &expected).abs().max() / expected.abs().max()).double_value(&[]);
            assert!(difference < 1e-5, "{arch} {library}: {difference}");
        }
    }
    // Twelve heads, for which timm's names are not those here.
    let config = patches(Arch::VitBase, 1.0, 16);
    write(&plain, &state_dict(&config));
    let encoder = open(&plain);
    export::write(&encoder, format("timm"), &ExportOptions::default(), &other.with_extension("timm")).expect("written");
    let bytes = fs::read(other.with_extension("timm").join("model.safetensors")).expect("read");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let tensor = |name: &str| {
        let view = file.tensor(name).expect(name);
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        Tensor::from_data_size(view.data(), &shape, Kind::Float)
    };
    // Without its metadata.
    write(&other, &file.names().into_iter().map(|name| (name.to_string(), tensor(name))).collect());
    let read = open(&other);
    assert_eq!((read.config.arch, read.config.width), (Arch::VitBase, 1.0));
    assert_eq!(read.fingerprint().expect("a sum"), encoder.fingerprint().expect("a sum"));
}

#[test]
fn parts_of_different_lengths_and_twofold_names_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    let refused = |state: &State, part: &str| {
        write(&path, state);
        let error = format!("{:#}", Encoder::open(&path, &EncoderOptions::default()).expect_err("refused"));
        assert!(error.contains(part) && !error.contains('\n'), "{part:?} in {error}");
    };
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, CPU));
    let state = state_dict(&patches(Arch::VitTiny, 0.25, 16));
    let files = || renamed(&state, "", |name| vit(name)[1].clone());
    let key = "encoder.layer.3.attention.attention.key.weight";
    let mut changed = files();
    changed.insert(key.into(), zeros(&[48, 40]));
    refused(&changed, "key.weight, encoder.layer.3.attention.attention.value.weight of different types or lengths");
    let mut changed = files();
    changed.remove(key);
    refused(
        &changed,
        "blocks.3.attn.qkv.weight is missing; encoder.layer.3.attention.attention.query.weight is not part",
    );
    let mut changed = files();
    changed.insert("embeddings.distillation_token".into(), zeros(&[1, 1, 48]));
    refused(&changed, "embeddings.distillation_token is not part of this model");
    let mut changed = renamed(&state, "", |name| vit(name)[0].clone());
    changed.insert("norm.weight".into(), zeros(&[48]));
    refused(&changed, "found two tensors for encoder.ln.weight, expected one");
}

fn format(name: &str) -> Format {
    Format::ALL.into_iter().find(|format| format.name() == name).expect("a format")
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON")
}

/// Every size is written for timm and transformers and read back, also for images of another size.
#[test]
fn folders_of_timm_and_transformers_are_the_same_encoder() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("plain");
    for config in [
        patches(Arch::ConvnextTiny, 0.25, 4),
        patches(Arch::ConvnextBase, 0.25, 4),
        patches(Arch::VitTiny, 1.0, 16),
        EncoderConfig { pool: Pool::Mean, ..patches(Arch::VitSmall, 0.5, 8) },
        patches(Arch::VitBase, 0.25, 8),
    ] {
        write(&path, &state_dict(&config));
        // Shapes do not tell heads and pooling.
        let mut encoder = open(&path);
        (encoder.config.arch, encoder.config.width, encoder.config.pool) = (config.arch, config.width, config.pool);
        let plain = encoder.random(3);
        for name in ["timm", "hf"] {
            for size in [32usize, 64] {
                let options =
                    ExportOptions { image_size: Some(ImageSize::Fixed(size.into())), ..ExportOptions::default() };
                let output = folder.path().join(name);
                export::write(&plain, format(name), &options, &output).expect("written");
                let difference = export::verify(&plain, format(name), &options, &output).expect("verified");
                assert!(difference.relative() < 1e-5, "{name} {config}: {difference:?}");
                let read = Encoder::open(&output, &EncoderOptions::default()).expect("opened");
                assert_eq!(
                    (read.config.arch, read.config.width, read.config.pool),
                    (config.arch, config.width, config.pool)
                );
                assert_eq!(read.augment.size, size.into());
            }
        }
    }
    let config = json_of(&folder.path().join("timm/config.json"));
    assert_eq!(config["architecture"], "vit_base_patch8_224");
    let arguments = json!({"in_chans": 3, "img_size": [64, 64], "patch_size": 8, "embed_dim": 192});
    assert_eq!(config["model_args"], arguments);
    assert_eq!(config["pretrained_cfg"]["first_conv"], "patch_embed.proj");
    let config = json_of(&folder.path().join("hf/config.json"));
    assert_eq!((&config["model_type"], &config["num_attention_heads"]), (&json!("vit"), &json!(12)));
    assert_eq!((&config["layer_norm_eps"], &config["image_size"]), (&json!(1e-6), &json!(64)));
    let bytes = fs::read(folder.path().join("hf/model.safetensors")).expect("read");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    assert_eq!(file.len(), 6 + 12 * 16);
    assert_eq!(file.tensor("encoder.layer.11.attention.attention.value.bias").expect("there").shape(), [192]);
}

#[test]
fn a_run_starts_from_transformers_names_and_another_grid() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vit.safetensors");
    let state = state_dict(&patches(Arch::VitSmall, 0.25, 4));
    write(&path, &renamed(&state, "vit.", |name| vit(name)[1].clone()));
    let init = format!("model.init={}", path.display());
    let model = ["model.stem=imagenet", "model.arch=vit_small", "model.width=0.25", "model.patch_size=4", &init];
    let run = TinyRun::train(&[&["schedule.epochs=1", "train.max_steps=1"][..], &model].concat());
    let encoder = Encoder::open(&run.dir(), &EncoderOptions::default()).expect("opened");
    assert_eq!(encoder.config.image_size, [16; 2]);
    let file = WeightFile::read(&path).expect("read");
    let tensors = file.tensors().expect("tensors");
    let choice = Choice { prefix: None, option: "--prefix", network: "online", known: Some(encoder.config) };
    let found = find(&tensors, &choice).expect("found");
    assert_eq!((found.config.arch, found.config.image_size), (Arch::VitSmall, [32; 2]));
    let params = encoder.random(0).params;
    found.load_into(&params.state_dict(0), [16; 2]).expect("loaded");
    for (name, tensor) in params.parameters.iter().map(|named| (named.name.as_str(), &named.tensor)) {
        let expected = &state[name];
        let expected =
            if name == "pos_embed" { model::resample(expected, [8; 2], [4; 2]) } else { expected.shallow_clone() };
        assert!(tensor.equal(&expected), "{name}");
    }
    let data = folder.path().join("data.yaml");
    fs::write(&data, "data: {format: synthetic, synthetic: {images: 20, eval_images: 10, classes: 2, size: 16}}")
        .expect("written");
    for name in ["timm", "hf"] {
        let output = folder.path().join(name).display().to_string();
        let checkpoint = run.dir().display().to_string();
        let command = ["export-encoder", "--checkpoint", &checkpoint, "--format", name, "--output", &output];
        let done = byol(&command).output().expect("byol runs");
        succeeded(&done);
        assert!(text(&done.stdout).contains("read back: largest difference"), "{}", text(&done.stdout));
        let config = data.display().to_string();
        succeeded(&byol(&["knn-eval", "--checkpoint", &output, "--config", &config]).output().expect("byol runs"));
        let wrong = [&command[..], &["--force", "--image-size", "18"]].concat();
        let said = "--image-size: found 18, expected a multiple of model.patch_size 4 for vit_small of width 0.25";
        failed(&byol(&wrong).output().expect("byol runs"), &[said]);
    }
}

#[test]
fn what_the_libraries_lack_is_said_of_the_family() {
    let refused = |name: &str, config: EncoderConfig, text: &str| {
        let error = format(name).check_encoder(&config).expect_err("refused").to_string();
        assert!(error.contains(text), "{error}");
    };
    let lacks =
        "found convnext_tiny of width 0.5 with patches of 2 px, which timm lacks: it has convnext_tiny of any width";
    refused("timm", patches(Arch::ConvnextTiny, 0.5, 2), lacks);
    let group_norm = EncoderConfig { norm: Norm::GroupWs, ..EncoderConfig::default() };
    refused("timm", group_norm, "it has resnet50 of width 1 with stem imagenet and BatchNorm");
    refused("hf", group_norm, "plain ResNet of any depth and width with stem imagenet and BatchNorm");
    for arch in Arch::ALL.into_iter().filter(|arch| arch.patch_size() > 1) {
        for name in ["timm", "hf"] {
            format(name).check_encoder(&patches(arch, 0.5, arch.patch_size())).expect("there");
        }
    }
}

/// A ViT-Base of a quarter of the channels has the names and shapes of a ViT-Tiny, which has fewer heads.
#[test]
fn what_shapes_do_not_tell_may_be_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, base) = (folder.path().join("vit.safetensors"), patches(Arch::VitBase, 0.25, 16));
    write(&file, &state_dict(&base));
    let opened = |known| {
        let augment = Some(AugmentConfig { size: 32.into(), ..AugmentConfig::default() });
        Encoder::open(&file, &EncoderOptions { augment, known, ..EncoderOptions::default() }).expect("opened").config
    };
    assert_eq!((opened(None).arch, opened(None).width), (Arch::VitTiny, 1.0));
    assert_eq!(opened(Some(base)), base);
}
