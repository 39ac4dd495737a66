//! An encoder as a folder for `transformers`' `ResNetModel.from_pretrained`: the weights under its names, the
//! architecture, and the preprocessing for `AutoImageProcessor`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Contents, ExportOptions, Exporter, Reader, inputs, safetensors, torchvision};
use crate::augment::Size;
use crate::checkpoint;
use crate::eval::{Encoder, Represent};
use crate::model::{EncoderConfig, Family, Named, Norm, Stem};

const FILES: [&str; 3] = ["model.safetensors", "preprocessor_config.json", "config.json"];

pub(super) struct Hf;

impl Exporter for Hf {
    fn name(&self) -> &'static str {
        "hf"
    }

    fn help(&self) -> &'static str {
        "A folder for transformers' ResNetModel.from_pretrained"
    }

    fn describe(&self, _: &Encoder) -> String {
        "folder for transformers".into()
    }

    fn check_options(&self, options: &ExportOptions) -> Result<()> {
        torchvision::check_options(self.name(), options)
    }

    fn check_encoder(&self, config: &EncoderConfig) -> Result<()> {
        let resnet = config.arch.family() == Family::Resnet && config.norm == Norm::Batch;
        if !resnet || config.arch.groups() != (1, 64) || config.stem != Stem::Imagenet {
            bail!(
                "--format hf: found {config}, which transformers lacks: its ResNetModel is a plain ResNet of any depth and \
                 width with stem imagenet; use --format safetensors, whose printed lines build the network"
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
        let tensors = encoder.params.state_dict(encoder.batches_tracked).into_iter();
        let renamed = tensors.map(|Named { name, tensor }| Ok(Named { name: rename(&name)?, tensor }));
        let weights = safetensors::weights(encoder, options, &renamed.collect::<Result<Vec<_>>>()?)?;
        let augment = inputs(encoder, self.image_size(encoder, options));
        let Size { height, width } = augment.size;
        if height != width {
            bail!(
                "--format hf: found images of {height} x {width} px, transformers crops squares only; add --image-size \
                 with one number"
            );
        }
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
        let config = describe(&encoder.config);
        let files = [weights, json(&preprocessor)?, json(&config)?];
        Ok(Contents::Folder(FILES.into_iter().zip(files).collect()))
    }

    fn open(&self, encoder: &Encoder, path: &Path) -> Result<Reader> {
        let path = &path.join(FILES[0]);
        let place = || path.display().to_string();
        let bytes = fs::read(path).with_context(place)?;
        let written = encoder.random(0);
        let tensors = written.params.state_dict(0);
        let ours = tensors.iter().map(|named| Ok((rename(&named.name)?, named.name.clone())));
        let ours: BTreeMap<String, String> = ours.collect::<Result<_>>()?;
        let found = checkpoint::views(&bytes).with_context(place)?.into_iter();
        // A name that is none of ours stays, to be reported.
        let found = found.map(|(name, view)| (ours.get(&name).cloned().unwrap_or(name), view)).collect();
        checkpoint::load_views(found, &tensors, false).with_context(place)?;
        Ok(Box::new(move |images| written.represent(images)))
    }

    fn load_in_python(&self, encoder: &Encoder, _: &ExportOptions, file: &str) -> String {
        format!(
            "from transformers import AutoImageProcessor, ResNetModel\n\
             processor = AutoImageProcessor.from_pretrained(\"{file}\")\n\
             model = ResNetModel.from_pretrained(\"{file}\")\n\
             # features [N, {}]: model(**processor(images, return_tensors=\"pt\")).pooler_output.flatten(1)",
            encoder.net.feature_dim
        )
    }
}

/// transformers' `ResNetConfig`.
fn describe(config: &EncoderConfig) -> Value {
    let base = (64.0 * config.width).round() as i64;
    let (layer, first) = if config.arch.bottleneck() { ("bottleneck", 4 * base) } else { ("basic", base) };
    json!({
        "architectures": ["ResNetModel"],
        "model_type": "resnet",
        "num_channels": config.channels,
        "embedding_size": base,
        "hidden_sizes": [first, first * 2, first * 4, first * 8],
        "depths": config.arch.blocks(),
        "layer_type": layer,
        "hidden_act": "relu",
        "downsample_in_first_stage": false,
        "downsample_in_bottleneck": false,
    })
}

/// transformers' name for torchvision's: `layer1.0.conv2.weight` is `encoder.stages.0.layers.0.layer.1.convolution.weight`.
fn rename(name: &str) -> Result<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let number = |part: &str| part.chars().next_back().and_then(|c| c.to_digit(10)).unwrap_or(1) - 1;
    let kind = |layer: &str| if layer.starts_with("conv") { "convolution" } else { "normalization" };
    Ok(match parts[..] {
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
    })
}
