//! An encoder as a folder for `transformers`' `ResNetModel.from_pretrained` and the like: the weights under its names, the
//! architecture, and the preprocessing for `AutoImageProcessor`.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{Contents, ExportOptions, Exporter, Reader, inputs, resized, safetensors, torchvision};
use crate::augment::Size;
use crate::eval::Encoder;
use crate::model::{EncoderConfig, Family, LAYER_NORM_EPS, Named, Norm, Op, Pool, Stem};
use crate::weights::{Library, renamed};

const FILES: [&str; 3] = ["model.safetensors", "preprocessor_config.json", "config.json"];

pub(super) struct Hf;

impl Exporter for Hf {
    fn name(&self) -> &'static str {
        "hf"
    }

    fn help(&self) -> &'static str {
        "A folder for transformers' ResNetModel, ConvNextModel or ViTModel.from_pretrained"
    }

    fn describe(&self, _: &Encoder) -> String {
        "folder for transformers".into()
    }

    fn check_options(&self, options: &ExportOptions) -> Result<()> {
        torchvision::check_options(self.name(), options)
    }

    fn check_encoder(&self, config: &EncoderConfig) -> Result<()> {
        let plain = config.norm == Norm::Batch && config.arch.groups() == (1, 64) && config.stem == Stem::Imagenet;
        if config.arch.family() == Family::Resnet && !plain {
            bail!(
                "--format hf: found {config}, which transformers lacks: its ResNetModel is a plain ResNet of any depth and \
                 width with stem imagenet and BatchNorm; use --format safetensors, whose printed lines build the network"
            );
        }
        Ok(())
    }

    fn normalizes(&self, _: &ExportOptions) -> bool {
        false
    }

    fn files(&self) -> Option<&'static [&'static str]> {
        Some(&FILES)
    }

    fn serialize(&self, encoder: &Encoder, options: &ExportOptions) -> Result<Contents> {
        let augment = inputs(encoder, self.image_size(encoder, options));
        let Size { height, width } = augment.size;
        if height != width {
            bail!(
                "--format hf: found images of {height} x {width} px, transformers crops squares only; add --image-size \
                 with one number"
            );
        }
        let encoder = &resized(encoder, options, augment.size)?;
        let tensors = encoder.params.state_dict(encoder.batches_tracked);
        let tensors = match encoder.config.arch.family() {
            Family::Resnet => tensors.into_iter().map(resnet_tensor).collect::<Result<_>>()?,
            Family::Convnext | Family::Vit => renamed(&encoder.config, tensors, Library::Transformers)?,
        };
        let weights = safetensors::weights(encoder, options, &tensors)?;
        // Resize the short side, crop the center, scale to 0..1, normalize.
        let preprocessor = json!({
            "image_processor_type": "BitImageProcessor",
            "do_convert_rgb": encoder.config.channels == 3,
            "do_resize": true,
            "size": {"shortest_edge": augment.eval_side()},
            "resample": 3, // bicubic
            "do_center_crop": true,
            "crop_size": {"height": height, "width": width},
            "do_rescale": true,
            "rescale_factor": 1.0 / 255.0,
            "do_normalize": true,
            "image_mean": augment.mean.values(),
            "image_std": augment.std.values(),
        });
        let json = |value| serde_json::to_vec_pretty(value);
        let mut config = describe(&encoder.config);
        config["architectures"] = json!([class(encoder.config.arch.family())]);
        config["num_channels"] = json!(encoder.config.channels);
        let files = [weights, json(&preprocessor)?, json(&config)?];
        Ok(Contents::Folder(FILES.into_iter().zip(files).collect()))
    }

    fn open(&self, encoder: &Encoder, path: &Path) -> Result<Reader> {
        safetensors::open(encoder, &path.join(FILES[0]))
    }

    fn load_in_python(&self, encoder: &Encoder, _: &ExportOptions, file: &str) -> String {
        let (more, features) = match (encoder.config.arch.family(), encoder.config.pool) {
            (Family::Resnet, _) => ("", "pooler_output.flatten(1)"),
            (Family::Convnext, _) => ("", "pooler_output"),
            (Family::Vit, Pool::Token) => (", add_pooling_layer=False", "last_hidden_state[:, 0]"),
            (Family::Vit, Pool::Mean) => (", add_pooling_layer=False", "last_hidden_state[:, 1:].mean(1)"),
        };
        let class = class(encoder.config.arch.family());
        format!(
            "from transformers import AutoImageProcessor, {class}\n\
             processor = AutoImageProcessor.from_pretrained(\"{file}\")\n\
             model = {class}.from_pretrained(\"{file}\"{more})\n\
             # features [N, {}]: model(**processor(images, return_tensors=\"pt\")).{features}",
            encoder.net.feature_dim
        )
    }
}

fn class(family: Family) -> &'static str {
    match family {
        Family::Resnet => "ResNetModel",
        Family::Convnext => "ConvNextModel",
        Family::Vit => "ViTModel",
    }
}

/// The keys of transformers' config that depend on the family.
fn describe(config: &EncoderConfig) -> Value {
    // Channels of the first convolution.
    let (blocks, first) = (config.arch.blocks(), config.layers()[0].tensors()[0].1[0]);
    let stages = |first: i64| [first, first * 2, first * 4, first * 8];
    match config.arch.family() {
        Family::Resnet => json!({
            "model_type": "resnet",
            "embedding_size": first,
            "hidden_sizes": stages(if config.arch.bottleneck() { 4 * first } else { first }),
            "depths": blocks,
            "layer_type": if config.arch.bottleneck() { "bottleneck" } else { "basic" },
            "hidden_act": "relu",
            "downsample_in_first_stage": false,
            "downsample_in_bottleneck": false,
        }),
        Family::Convnext => json!({
            "model_type": "convnext",
            "hidden_sizes": stages(first),
            "depths": blocks,
            "patch_size": config.patch_size,
            "hidden_act": "gelu",
            "layer_norm_eps": LAYER_NORM_EPS,
        }),
        Family::Vit => json!({
            "model_type": "vit",
            "hidden_size": first,
            "intermediate_size": 4 * first,
            "num_hidden_layers": blocks[0],
            "num_attention_heads": heads(config),
            "image_size": config.image_size[0],
            "patch_size": config.patch_size,
            "qkv_bias": true,
            "hidden_act": "gelu",
            "layer_norm_eps": LAYER_NORM_EPS,
        }),
    }
}

fn heads(config: &EncoderConfig) -> Option<i64> {
    config.layers().iter().find_map(|layer| if let Op::Attention { heads, .. } = layer.op { Some(heads) } else { None })
}

/// transformers' name for torchvision's: `layer1.0.conv2.weight` is `encoder.stages.0.layers.0.layer.1.convolution.weight`.
fn resnet_tensor(Named { name, tensor }: Named) -> Result<Named> {
    let parts: Vec<&str> = name.split('.').collect();
    let number = |part: &str| part.chars().next_back().and_then(|c| c.to_digit(10)).unwrap_or(1) - 1;
    let kind = |layer: &str| if layer.starts_with("conv") { "convolution" } else { "normalization" };
    let name = match parts[..] {
        [layer @ ("conv1" | "bn1"), value] => format!("embedder.embedder.{}.{value}", kind(layer)),
        [stage, block, "downsample", at, value] => {
            let kind = if at == "0" { "convolution" } else { "normalization" };
            format!("encoder.stages.{}.layers.{block}.shortcut.{kind}.{value}", number(stage))
        }
        [stage, block, layer, value] => {
            let (stage, at) = (number(stage), number(layer));
            format!("encoder.stages.{stage}.layers.{block}.layer.{at}.{}.{value}", kind(layer))
        }
        _ => bail!("{name}: transformers' ResNet has no such tensor"),
    };
    Ok(Named { name, tensor })
}
