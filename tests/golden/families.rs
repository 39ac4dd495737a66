//! GroupNorm with weight standardization, ConvNeXt and ViT against torchvision and timm; fixtures by
//! `scripts/reference/families.py`.

use crate::model::check_encoder;
use crate::support::{CPU, Fixture};
use byol::byol::{Byol, Rates};
use byol::model::{self, Arch, Encoder, EncoderConfig, ModelConfig, Network, Norm, Params, Pool, Stem};
use byol::optim::{Algorithm, EmaConfig, OptimizerConfig, TauSchedule, learning_rate, tau};
use tch::Tensor;

fn cifar_ws() -> EncoderConfig {
    let (arch, norm) = (Arch::Resnet18, Norm::GroupWs);
    EncoderConfig { arch, width: 0.25, stem: Stem::Cifar, norm, ..EncoderConfig::default() }
}

fn patches(arch: Arch, width: f64, patch_size: i64, size: i64) -> EncoderConfig {
    EncoderConfig { arch, width, patch_size, image_size: [size; 2], ..EncoderConfig::default() }
}

#[test]
fn resnets_with_group_norm_are_torchvisions_with_timms_standardized_convolutions() {
    let fixture = Fixture::open("norm_ws.safetensors");
    check_encoder(&fixture, "resnet18", cifar_ws(), 32);
    let resnet50 = EncoderConfig { arch: Arch::Resnet50, stem: Stem::Imagenet, ..cifar_ws() };
    check_encoder(&fixture, "resnet50", resnet50, 64);
}

#[test]
fn convnext_is_torchvisions() {
    let fixture = Fixture::open("convnext.safetensors");
    check_encoder(&fixture, "tiny", patches(Arch::ConvnextTiny, 1.0, 4, 64), 64);
    check_encoder(&fixture, "small_w0.25", patches(Arch::ConvnextSmall, 0.25, 2, 32), 32);
}

#[test]
fn vit_base_is_torchvisions_and_the_smaller_ones_are_timms() {
    let fixture = Fixture::open("vit.safetensors");
    check_encoder(&fixture, "base_w0.25", patches(Arch::VitBase, 0.25, 16, 64), 64);
    check_encoder(&fixture, "tiny", patches(Arch::VitTiny, 1.0, 8, 32), 32);
}

#[test]
fn parameter_counts_are_torchvisions_and_timms() {
    let count = |config: EncoderConfig| config.layers().iter().map(|layer| layer.parameters()).sum::<u64>() as f64;
    let convnext = [Arch::ConvnextTiny, Arch::ConvnextSmall, Arch::ConvnextBase].map(|a| patches(a, 1.0, 4, 224));
    assert_eq!(convnext.map(count), Fixture::open("convnext.safetensors").numbers("parameter_counts")[..]);
    let vit = [Arch::VitTiny, Arch::VitSmall, Arch::VitBase].map(|arch| patches(arch, 1.0, 16, 224));
    let counts = [&vit.map(count)[..], &[count(patches(Arch::VitBase, 1.0, 8, 32))]].concat();
    assert_eq!(counts, Fixture::open("vit.safetensors").numbers("parameter_counts"));
}

fn filled(fixture: &Fixture, config: &EncoderConfig) -> Encoder {
    let mut params = Params::new(CPU, None);
    let encoder = Encoder::new(params.root(), config);
    fixture.fill_params("", &mut params);
    encoder
}

// vit.forward_features(x)[:, 1:].mean(1)
#[test]
fn a_vit_may_give_the_mean_of_its_patches() {
    let fixture = Fixture::open("vit.safetensors");
    let config = EncoderConfig { pool: Pool::Mean, ..patches(Arch::VitTiny, 0.25, 4, 16) };
    let x = fixture.fill("input.view1", &[4, 3, 16, 16]);
    fixture.check("mean.features_eval", None, &filled(&fixture, &config).forward(&x, false));
}

// timm.layers.resample_abs_pos_embed(embeddings, [height, width])
#[test]
fn position_embeddings_for_other_sizes_are_timms() {
    let fixture = Fixture::open("vit.safetensors");
    let embeddings = fixture.fill("input.positions", &[1, 1 + 14 * 14, 48]);
    for [height, width] in [[6, 6], [24, 24], [7, 9], [14, 14]] {
        let resampled = model::resample(&embeddings, [14, 14], [height, width]);
        assert_eq!(resampled.size(), [1, 1 + height * width, 48]);
        fixture.check(&format!("positions.{height}x{width}"), None, &resampled);
    }
    // timm.create_model(..., dynamic_img_size=True) on images that are larger, and not square
    let x = fixture.fill("input.view1", &[4, 3, 48, 40]);
    let encoder = filled(&fixture, &patches(Arch::VitTiny, 0.25, 8, 32));
    fixture.check("other_size.features_eval", None, &encoder.forward(&x, false));
}

/// Ten steps of BYOL with AdamW, which decays some parameters and not others.
fn check_trajectory(file: &str, config: ModelConfig) {
    let fixture = Fixture::open(file);
    let config = ModelConfig { projector_hidden: 64, projection_dim: 32, predictor_hidden: 64, ..config };
    let mut online = Network::online(&config, CPU, 0);
    fixture.fill_params("online.", &mut online.params);
    let mut target = Network::target_of(&online, &config, CPU);
    fixture.fill_params("online.", &mut target.params);
    let optimizer = OptimizerConfig { name: Algorithm::Adamw, weight_decay: 0.05, ..OptimizerConfig::default() };
    let mut byol = Byol::new(online, target, &optimizer);
    let (losses, ema) =
        (fixture.numbers("trajectory.loss"), EmaConfig { base_tau: 0.9, schedule: TauSchedule::Cosine });
    for step in 0..10 {
        let views = [1, 2].map(|v| fixture.fill(&format!("step{step}.view{v}"), &[16, 3, 16, 16]));
        let rates = Rates { lr: learning_rate(step, 2, 10, 2e-3, 0.0), tau: tau(step, 10, &ema), step };
        let output = byol.step([Ok(views)].into_iter(), rates).expect("a step");
        fixture.close(&format!("loss {step}"), &output.loss, &Tensor::from(losses[step as usize]));
        for named in byol.model_tensors() {
            fixture.check(&format!("trajectory.{}", named.name), Some(step as i64), &named.tensor);
        }
    }
}

#[test]
fn ten_steps_with_group_norm_are_pytorchs() {
    let (arch, width, stem, norm) = (Arch::Resnet18, 0.25, Stem::Cifar, Norm::GroupWs);
    check_trajectory("norm_ws.safetensors", ModelConfig { arch, width, stem, norm, ..ModelConfig::default() });
}

#[test]
fn ten_steps_of_convnext_are_pytorchs() {
    let (arch, patch_size) = (Arch::ConvnextTiny, Some(2));
    check_trajectory("convnext.safetensors", ModelConfig { arch, width: 0.25, patch_size, ..ModelConfig::default() });
}

#[test]
fn ten_steps_of_vit_with_frozen_patch_projection_are_pytorchs() {
    let config = ModelConfig {
        arch: Arch::VitTiny,
        width: 0.25,
        patch_size: Some(4),
        image_size: Some([16; 2]),
        freeze_patch_projection: true,
        ..ModelConfig::default()
    };
    check_trajectory("vit.safetensors", config);
}

/// Standard deviations and bounds of torchvision's and timm's own draws.
#[test]
fn initial_weights_are_those_of_the_libraries() {
    let deviation = |arch, name: &str| {
        let mut params = Params::new(CPU, Some(3));
        Encoder::new(params.root(), &patches(arch, 1.0, arch.patch_size(), 224));
        let named = params.parameters.iter().find(|p| p.name == name).unwrap_or_else(|| panic!("no {name}"));
        named.tensor.std(false).double_value(&[])
    };
    let uniform = |bound: f64| bound / 3f64.sqrt();
    let xavier = |input: f64, output: f64| uniform((6.0 / (input + output)).sqrt());
    for (arch, name, expected) in [
        (Arch::ConvnextTiny, "features.1.0.block.3.weight", 0.02),
        (Arch::ConvnextTiny, "features.2.1.weight", 0.02),
        (Arch::VitTiny, "patch_embed.proj.weight", uniform(1.0 / 768f64.sqrt())),
        (Arch::VitTiny, "pos_embed", 0.02),
        (Arch::VitTiny, "blocks.3.attn.qkv.weight", 0.02),
        (Arch::VitBase, "conv_proj.weight", 1.0 / 768f64.sqrt()),
        (Arch::VitBase, "encoder.layers.encoder_layer_0.self_attention.in_proj_weight", xavier(768.0, 2304.0)),
        (Arch::VitBase, "encoder.layers.encoder_layer_0.self_attention.out_proj.weight", uniform(1.0 / 768f64.sqrt())),
        (Arch::VitBase, "encoder.layers.encoder_layer_0.mlp.0.weight", xavier(768.0, 3072.0)),
        (Arch::VitBase, "encoder.layers.encoder_layer_0.mlp.3.bias", 1e-6),
    ] {
        let found = deviation(arch, name);
        assert!((found / expected - 1.0).abs() < 0.1, "{arch} {name}: {found}, expected {expected}");
    }
}

#[test]
fn embeddings_and_one_dimensional_parameters_do_not_decay() {
    let free = |arch| {
        let mut params = Params::new(CPU, Some(0));
        Encoder::new(params.root(), &patches(arch, 0.25, 4, 32));
        let free = params.parameters.iter().filter(|p| !p.decays() && p.tensor.dim() > 1);
        free.map(|p| p.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(free(Arch::VitTiny), ["cls_token", "pos_embed"]);
    assert_eq!(free(Arch::VitBase), ["class_token", "encoder.pos_embedding"]);
    let scales = free(Arch::ConvnextTiny);
    assert!(scales.len() == 18 && scales.iter().all(|name| name.ends_with("layer_scale")), "{scales:?}");
    assert!(free(Arch::Resnet18).is_empty());
}
