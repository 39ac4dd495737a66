//! Encoders beyond ResNet with BatchNorm after training: loaded, evaluated, exported in all formats that have them, read back.

use std::fs;
use std::process::Command;

use crate::support::run::succeeded;
use crate::support::{CPU, TinyRun};
use byol::augment::{AugmentConfig, Size};
use byol::eval::{Encoder, EncoderOptions, Represent};
use byol::export::{self, ExportOptions, Format, ImageSize};
use byol::model::Pool;
use tch::{Kind, Tensor};

fn run(model: &[&str]) -> TinyRun {
    let short = ["schedule.epochs=1", "train.max_steps=1", "model.width=0.25"];
    TinyRun::train(&[&short[..], model].concat())
}

const CONVNEXT: [&str; 3] = ["model.stem=imagenet", "model.arch=convnext_tiny", "model.patch_size=2"];
const VIT: [&str; 4] = ["model.stem=imagenet", "model.arch=vit_small", "model.patch_size=4", "model.pool=mean"];
const VIT_BASE: [&str; 3] = ["model.stem=imagenet", "model.arch=vit_base", "model.patch_size=8"];
const GROUP_NORM: [&str; 1] = ["model.norm=group_ws"];

/// Writes and verifies every format; the safetensors file opens as the same encoder.
fn check_exports(run: &TinyRun) -> Encoder {
    let encoder = Encoder::open(&run.dir(), &EncoderOptions::default()).expect("opened");
    for format in Format::ALL {
        let output = run.folder().join(format.name());
        for image_size in [None, Some(ImageSize::Dynamic), Some(ImageSize::Fixed(32.into()))] {
            let options = ExportOptions { image_size, ..ExportOptions::default() };
            let vit = encoder.config.arch.to_string().starts_with("vit");
            if format.check_options(&options).is_err() {
                continue;
            }
            // timm's ConvNeXt has patches of 4 px.
            if let Err(error) = format.check_encoder(&encoder.config) {
                assert!(["timm", "hf"].contains(&format.name()) && !vit, "{error}");
                continue;
            }
            let written = export::write(&encoder, format, &options, &output);
            let size = encoder.augment.size;
            if format.name() == "hf" && image_size.is_none() && size.height != size.width {
                let error = written.expect_err("refused").to_string();
                assert!(error.contains("transformers crops squares only; add --image-size"), "{error}");
                continue;
            }
            if vit && image_size == Some(ImageSize::Dynamic) {
                let error = written.expect_err("refused").to_string();
                assert!(
                    error.contains("--image-size dynamic: a ViT's position embeddings are for one size"),
                    "{error}"
                );
                continue;
            }
            written.expect("written");
            let difference = export::verify(&encoder, format, &options, &output).expect("verified");
            difference.check().unwrap_or_else(|error| panic!("{} {image_size:?}: {error:#}", format.name()));
        }
    }
    let again = Encoder::open(&run.folder().join("safetensors"), &EncoderOptions::default()).expect("opened");
    assert_eq!(again.config.to_string(), encoder.config.to_string());
    assert_eq!((again.config.pool, again.config.norm), (encoder.config.pool, encoder.config.norm));
    assert_eq!(again.fingerprint().expect("a sum"), encoder.fingerprint().expect("a sum"));
    encoder
}

#[test]
fn convnext_is_exported_in_all_formats_that_have_it() {
    let encoder = check_exports(&run(&CONVNEXT));
    assert_eq!(encoder.net.feature_dim, 192);
}

#[test]
fn resnets_with_group_norm_are_exported_in_all_formats_that_have_them() {
    let run = run(&GROUP_NORM);
    assert_eq!(check_exports(&run).net.feature_dim, 128);
    // No BatchNorm, so the target needs no images either.
    let mut command = Command::new(env!("CARGO_BIN_EXE_byol"));
    command.args(["export-encoder", "--network", "target", "--format", "onnx", "--checkpoint"]).arg(run.dir());
    succeeded(&command.arg("--output").arg(run.folder().join("target.onnx")).output().expect("byol runs"));
}

#[test]
fn vits_are_exported_and_evaluated_at_other_sizes() {
    let run = run(&VIT);
    let encoder = check_exports(&run);
    assert_eq!((encoder.config.pool, encoder.config.image_size, encoder.net.feature_dim), (Pool::Mean, [16, 16], 96));
    // At another size its position embeddings are interpolated; one that its patches do not divide is refused.
    let at = |size: usize| {
        let augment = Some(AugmentConfig { size: size.into(), ..encoder.augment.clone() });
        Encoder::open(&run.dir(), &EncoderOptions { augment, ..EncoderOptions::default() })
    };
    let features = at(32).expect("opened").represent(&Tensor::ones([2, 3, 32, 32], (Kind::Float, CPU))).expect("run");
    assert_eq!(features.size(), [2, 96]);
    let error = at(18).map(drop).expect_err("refused").to_string();
    assert!(error.contains("augment.size: found 18, expected a multiple of model.patch_size 4"), "{error}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_byol"));
    command.args(["knn-eval", "--set", "augment.size=32", "--checkpoint"]).arg(run.dir());
    succeeded(&command.output().expect("byol runs"));
    // The first convolution names the file's own library.
    let names = fs::read(run.folder().join("safetensors")).expect("read");
    assert!(String::from_utf8_lossy(&names).contains("patch_embed.proj.weight"));
    check_exports(&self::run(&VIT_BASE));
}

/// Also those whose position embeddings are for no square, which shapes alone do not tell.
#[test]
fn encoders_of_wide_views_are_exported_in_all_formats_that_have_them() {
    let wide = ["augment.size=[16, 24]"];
    let encoder = check_exports(&run(&[&VIT_BASE[..], &wide].concat()));
    assert_eq!((encoder.config.image_size, encoder.augment.size), ([16, 24], Size { height: 16, width: 24 }));
    let lines = Format::SAFETENSORS.load_in_python(&encoder, &ExportOptions::default(), "file");
    assert!(lines.contains("torch.empty(1, 7, "), "{lines}");
    let convnext = check_exports(&run(&[&CONVNEXT[..], &wide].concat()));
    assert_eq!(convnext.augment.size, encoder.augment.size);
}
