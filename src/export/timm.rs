//! An encoder as a folder for `timm.create_model("local-dir:...", pretrained=True)`: the weights, and a config that names
//! the architecture and the preprocessing.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{Contents, ExportOptions, Exporter, Reader, inputs, resized, safetensors, torchvision};
use crate::augment::AugmentConfig;
use crate::eval::Encoder;
use crate::model::{Arch, EncoderConfig, Family, Norm, Pool, Stem};
use crate::weights::{Library, renamed};

const FILES: [&str; 2] = ["model.safetensors", "config.json"];

pub(super) struct Timm;

impl Exporter for Timm {
    fn name(&self) -> &'static str {
        "timm"
    }

    fn help(&self) -> &'static str {
        "A folder for timm.create_model(\"local-dir:...\", pretrained=True)"
    }

    fn describe(&self, _: &Encoder) -> String {
        "folder for timm".into()
    }

    fn check_options(&self, options: &ExportOptions) -> Result<()> {
        torchvision::check_options(self.name(), options)
    }

    fn check_encoder(&self, config: &EncoderConfig) -> Result<()> {
        let plain = config.norm == Norm::Batch && config.width == 1.0 && config.stem == Stem::Imagenet;
        let (has, what) = match config.arch.family() {
            Family::Resnet => (plain, "width 1 with stem imagenet and BatchNorm"),
            Family::Convnext => (config.patch_size == config.arch.patch_size(), "any width with patches of 4 px"),
            Family::Vit => return Ok(()),
        };
        if !has {
            bail!(
                "--format timm: found {config}, which timm lacks: it has {} of {what}; use --format safetensors, whose \
                 printed lines build the network",
                config.arch
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
        let [height, width] = augment.size.shape();
        let encoder = &resized(encoder, options, augment.size)?;
        let (architecture, arguments, [first, last]) = describe(&encoder.config);
        let vit = encoder.config.arch.family() == Family::Vit;
        let config = json!({
            "architecture": architecture,
            "num_classes": 0,
            "num_features": encoder.net.feature_dim,
            "model_args": arguments,
            "pretrained_cfg": {
                "input_size": [encoder.config.channels, height, width],
                "fixed_input_size": vit,
                "interpolation": "bicubic",
                "crop_pct": crop_share(&augment),
                "crop_mode": "center",
                "mean": augment.mean.values(),
                "std": augment.std.values(),
                "num_classes": 0,
                "pool_size": (!vit).then_some([(height + 31) / 32, (width + 31) / 32]),
                "first_conv": first,
                "classifier": last,
            },
        });
        let tensors = encoder.params.state_dict(encoder.batches_tracked);
        let tensors = renamed(&encoder.config, tensors, Library::Timm)?;
        let weights = safetensors::weights(encoder, options, &tensors)?;
        Ok(Contents::Folder(vec![(FILES[0], weights), (FILES[1], serde_json::to_vec_pretty(&config)?)]))
    }

    fn open(&self, encoder: &Encoder, path: &Path) -> Result<Reader> {
        safetensors::open(encoder, &path.join(FILES[0]))
    }

    fn load_in_python(&self, encoder: &Encoder, _: &ExportOptions, file: &str) -> String {
        format!(
            "import timm, timm.data\n\
             model = timm.create_model(\"local-dir:{file}\", pretrained=True).eval()  # features: [N, {}]\n\
             transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            encoder.net.feature_dim
        )
    }
}

/// timm's name and arguments of a network, and the names of its first and its last layer.
fn describe(config: &EncoderConfig) -> (String, Value, [&'static str; 2]) {
    let EncoderConfig { arch, channels, patch_size, image_size, .. } = config;
    // Of the first convolution.
    let width = config.layers()[0].tensors()[0].1[0];
    match arch.family() {
        Family::Resnet => (arch.to_string(), json!({"in_chans": channels}), ["conv1", "fc"]),
        Family::Convnext => {
            let arguments = json!({"in_chans": channels, "dims": [width, 2 * width, 4 * width, 8 * width]});
            (arch.to_string(), arguments, ["stem.0", "head.fc"])
        }
        Family::Vit => {
            let has_8 = *patch_size == 8 && *arch != Arch::VitTiny;
            let architecture = format!("{arch}_patch{}_224", if has_8 { 8 } else { 16 });
            let mut arguments = json!({
                "in_chans": channels,
                "img_size": image_size,
                "patch_size": patch_size,
                "embed_dim": width,
            });
            if config.pool == Pool::Mean {
                // Of the normalized patches, as here; timm's default normalizes the mean.
                arguments["global_pool"] = json!("avg");
                arguments["fc_norm"] = json!(false);
            }
            (architecture, arguments, ["patch_embed.proj", "head"])
        }
    }
}

/// What timm divides height and width by to get the lengths that the image is resized to cover, truncating the result.
fn crop_share(augment: &AugmentConfig) -> f64 {
    let (size, side) = (augment.size.short() as f64, augment.eval_side() as f64);
    let share = size / side;
    if (size / share) as usize == augment.eval_side() { share } else { size / (side + 0.5) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timm_resizes_to_the_same_length() {
        for size in 8..=1024usize {
            for eval_resize in [None, Some(size), Some(size + 1), Some(size * 8 / 7)] {
                let augment = AugmentConfig { size: size.into(), eval_resize, ..AugmentConfig::default() };
                assert_eq!(
                    (size as f64 / crop_share(&augment)) as usize,
                    augment.eval_side(),
                    "{size} {eval_resize:?}"
                );
            }
        }
        assert_eq!(crop_share(&AugmentConfig { size: 224.into(), ..AugmentConfig::default() }), 0.875);
    }
}
