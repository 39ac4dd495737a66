//! Encoders, heads and loss against PyTorch and torchvision; fixtures by `scripts/reference/model.py`.

use crate::support::{CPU, Fixture};
use byol::byol::loss::{regression_loss, z_std};
use byol::model::{Arch, Encoder, EncoderConfig, Mlp, Norm, Params, Stem};
use tch::Kind;

fn config(arch: Arch, width: f64, stem: Stem) -> EncoderConfig {
    EncoderConfig { arch, width, stem, ..EncoderConfig::default() }
}

// model.train(); features = model(x); (features * G).sum().backward(); model.eval(); model(x)
fn check_resnet(case: &str, config: EncoderConfig, size: i64) {
    check_encoder(&Fixture::open("resnet.safetensors"), case, config, size);
}

pub fn check_encoder(fixture: &Fixture, case: &str, config: EncoderConfig, size: i64) {
    let mut params = Params::new(CPU, Some(0));
    let encoder = Encoder::new(params.root(), &config);
    fixture.fill_params("", &mut params);
    let x = fixture.fill("input.view1", &[4, 3, size, size]);
    let features = encoder.forward(&x, true);
    fixture.check(&format!("{case}.features_train"), None, &features);
    for buffer in &params.buffers {
        fixture.check(&format!("{case}.{}", buffer.name), None, &buffer.tensor);
    }
    (&features * fixture.fill("grad.features", &features.size())).sum(None::<Kind>).backward();
    for parameter in &params.parameters {
        fixture.check(&format!("{case}.{}.grad", parameter.name), None, &parameter.tensor.grad());
    }
    fixture.check(&format!("{case}.features_eval"), None, &encoder.forward(&x, false));
    // Every tensor of torchvision's state_dict is here, and no other.
    let stored = fixture.names().filter(|n| n.starts_with(&format!("{case}.")) && n.ends_with(".norm")).count();
    assert_eq!(stored, 2 + params.parameters.len() + params.buffers.len());
}

#[test]
fn resnet18_is_torchvisions() {
    check_resnet("resnet18", config(Arch::Resnet18, 1.0, Stem::Imagenet), 64);
}

#[test]
fn resnet18_with_the_cifar_stem_is_torchvisions_with_conv1_and_maxpool_replaced() {
    check_resnet("resnet18_cifar", config(Arch::Resnet18, 1.0, Stem::Cifar), 32);
}

#[test]
fn resnet18_of_half_width() {
    check_resnet("resnet18_w0.5", config(Arch::Resnet18, 0.5, Stem::Imagenet), 64);
}

#[test]
fn resnet50_is_torchvisions() {
    check_resnet("resnet50", config(Arch::Resnet50, 1.0, Stem::Imagenet), 64);
}

#[test]
fn resnet50_of_double_width() {
    check_resnet("resnet50_w2", config(Arch::Resnet50, 2.0, Stem::Imagenet), 64);
}

const RELATIVES: [(&str, Arch); 4] = [
    ("resnext50_32x4d", Arch::Resnext50_32x4d),
    ("resnext101_32x8d", Arch::Resnext101_32x8d),
    ("wide_resnet50_2", Arch::WideResnet50_2),
    ("wide_resnet101_2", Arch::WideResnet101_2),
];

// One after the other: in f64 the largest takes 2 GB.
#[test]
fn resnext_and_wide_resnet_are_torchvisions() {
    let fixture = Fixture::open("resnext.safetensors");
    for (case, arch) in RELATIVES {
        check_encoder(&fixture, case, config(arch, 1.0, Stem::Imagenet), 64);
    }
    check_encoder(&fixture, "resnext50_32x4d_w0.375", config(Arch::Resnext50_32x4d, 0.375, Stem::Cifar), 32);
}

#[test]
fn parameter_counts_of_resnext_and_wide_resnet_are_torchvisions() {
    let rows = Fixture::open("resnext.safetensors").numbers("parameter_counts");
    assert_eq!(rows.len(), 32 * 4);
    for row in rows.chunks(4) {
        let arch = RELATIVES[row[0] as usize].1;
        let stem = if row[1] == 1.0 { Stem::Cifar } else { Stem::Imagenet };
        let layers = config(arch, row[2] / 100.0, stem).layers();
        assert_eq!(layers.iter().map(|layer| layer.parameters()).sum::<u64>(), row[3] as u64, "{row:?}");
    }
}

// torchvision: nn.init.kaiming_normal_(mode="fan_out"), whose fan-out does not know groups
#[test]
fn grouped_convolutions_start_as_torchvisions() {
    let fixture = Fixture::open("resnext.safetensors");
    let mut params = Params::new(CPU, Some(3));
    Encoder::new(params.root(), &config(Arch::Resnext50_32x4d, 1.0, Stem::Imagenet));
    let weight = params.parameters.iter().find(|p| p.name == "layer1.0.conv2.weight").expect("the first grouped one");
    assert_eq!(weight.tensor.size(), [128, 4, 3, 3]);
    let expected = fixture.numbers("resnext50_32x4d.conv_std")[0];
    let (std, n) = (weight.tensor.std(true).double_value(&[]), weight.tensor.numel() as f64);
    assert!((std - expected).abs() < 5.0 * expected / (2.0 * n).sqrt(), "{std}, expected {expected}");
}

#[test]
fn parameter_counts_are_torchvisions() {
    let rows = Fixture::open("resnet.safetensors").numbers("parameter_counts");
    assert_eq!(rows.len(), 72 * 4);
    // The widest ResNet-200s hold 4 GB; width 2 has shown by then how every depth multiplies.
    for row in rows.chunks(4).filter(|row| row[2] <= 200.0) {
        let arch = match row[0] as i64 {
            18 => Arch::Resnet18,
            34 => Arch::Resnet34,
            50 => Arch::Resnet50,
            101 => Arch::Resnet101,
            152 => Arch::Resnet152,
            _ => Arch::Resnet200,
        };
        let stem = if row[1] == 1.0 { Stem::Cifar } else { Stem::Imagenet };
        let mut params = Params::new(CPU, None);
        Encoder::new(params.root(), &config(arch, row[2] / 100.0, stem));
        assert_eq!(params.count(), row[3] as i64, "{row:?}");
    }
}

// nn.Sequential(nn.Linear(i, h), nn.BatchNorm1d(h), nn.ReLU(), nn.Linear(h, o, bias=False))
#[test]
fn heads_are_pytorchs() {
    let fixture = Fixture::open("heads_loss.safetensors");
    for (head, input, output) in [("projector", 24, 12), ("predictor", 12, 12)] {
        let mut params = Params::new(CPU, Some(0));
        let mlp = Mlp::new(params.root(), input, 32, output, false, Norm::Batch);
        fixture.fill_params(&format!("{head}."), &mut params);
        let x = fixture.fill(&format!("input.{head}"), &[16, input]).set_requires_grad(true);
        let y = mlp.forward(&x, true);
        let key = |name: &str| format!("{head}.{name}");
        fixture.close(&key("output"), &y, fixture.get(&key("output")));
        (&y * fixture.fill(&format!("grad.{head}"), &[16, output])).sum(None::<Kind>).backward();
        fixture.close(&key("input.grad"), &x.grad(), fixture.get(&key("input.grad")));
        for parameter in &params.parameters {
            let name = key(&format!("{}.grad", parameter.name));
            fixture.close(&name, &parameter.tensor.grad(), fixture.get(&name));
        }
        for buffer in &params.buffers {
            fixture.close(&key(&buffer.name), &buffer.tensor, fixture.get(&key(&buffer.name)));
        }
        fixture.close(&key("output_eval"), &mlp.forward(&x, false), fixture.get(&key("output_eval")));
        if head == "projector" {
            fixture.close("z_std", &z_std(&y), fixture.get("z_std"));
        }
    }
}

// (2 - 2 * F.cosine_similarity(p1, t2)).mean() + (2 - 2 * F.cosine_similarity(p2, t1)).mean(), by F.normalize
#[test]
fn loss_and_its_gradients_are_pytorchs() {
    let fixture = Fixture::open("heads_loss.safetensors");
    let load = |name: &str| fixture.get(&format!("loss.{name}")).to_kind(fixture.kind);
    let (p1, p2) = (load("p1").set_requires_grad(true), load("p2").set_requires_grad(true));
    let loss = regression_loss(&p1, &load("t2")) + regression_loss(&p2, &load("t1"));
    fixture.close("loss", &loss, fixture.get("loss.value"));
    loss.backward();
    for (name, p) in [("loss.p1.grad", &p1), ("loss.p2.grad", &p2)] {
        // Row by row: the gradient of a nearly zero prediction is a million times longer.
        for row in 0..8 {
            fixture.close(&format!("{name} row {row}"), &p.grad().get(row), &fixture.get(name).get(row));
        }
    }
}

// torchvision: nn.init.kaiming_normal_(mode="fan_out", nonlinearity="relu"); torch.nn.Linear's default
#[test]
fn initial_weights_are_drawn_as_pytorch_draws_them() {
    let fixture = Fixture::open("init.safetensors");
    let mut params = Params::new(CPU, Some(3));
    Encoder::new(params.root(), &config(Arch::Resnet18, 1.0, Stem::Imagenet));
    let mut convolutions = 0;
    for parameter in &params.parameters {
        let values = &parameter.tensor;
        if values.dim() == 1 {
            let constant = if parameter.name.ends_with("weight") { 1.0 } else { 0.0 };
            assert!(values.eq(constant).all().int64_value(&[]) == 1, "{}", parameter.name);
            continue;
        }
        convolutions += 1;
        let expected = fixture.numbers(&format!("conv_std.{}", parameter.name))[0];
        let n = values.numel() as f64;
        let (mean, std) =
            (values.mean(Kind::Double).double_value(&[]), values.to_kind(Kind::Double).std(true).double_value(&[]));
        // Five standard errors of a normal sample's mean and deviation.
        assert!(mean.abs() < 5.0 * expected / n.sqrt(), "{}: mean {mean}", parameter.name);
        assert!((std - expected).abs() < 5.0 * expected / (2.0 * n).sqrt(), "{}: std {std}", parameter.name);
        // Normal, not uniform: the fourth moment is 3.
        let kurtosis =
            (values.to_kind(Kind::Double) / expected).pow_tensor_scalar(4).mean(Kind::Double).double_value(&[]);
        assert!((kurtosis - 3.0).abs() < 5.0 * (96.0 / n).sqrt(), "{}: kurtosis {kurtosis}", parameter.name);
    }
    assert_eq!(convolutions, 20);
    for input in [32, 256, 512, 2048, 4096] {
        let bound = fixture.numbers(&format!("linear_bound.{input}"))[0];
        let mut params = Params::new(CPU, Some(3));
        Mlp::new(params.root(), input, 64, 16, true, Norm::Batch);
        for parameter in &params.parameters[..2] {
            let largest = parameter.tensor.abs().max().double_value(&[]);
            assert!(largest <= bound * (1.0 + 1e-6) && largest > 0.9 * bound, "{}: {largest}", parameter.name);
        }
    }
}
