//! Loading trained encoders: runs, checkpoints, and files from elsewhere, against torchvision; what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{CPU, Fixture, TinyRun};
use byol::eval::{Branch, Encoder, EncoderOptions, Represent};
use byol::export::{self, ExportOptions, Format, ImageSize};
use byol::model::{self, Arch, EncoderConfig, Family, Norm, Params, Stem};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tch::{Kind, Tensor};

/// A safetensors file of these tensors.
pub fn write(path: &Path, tensors: &BTreeMap<String, Tensor>) {
    let bytes = |t: &Tensor| {
        let mut bytes = vec![0; t.numel() * t.kind().elt_size_in_bytes()];
        t.contiguous().copy_data_u8(&mut bytes, t.numel());
        bytes
    };
    let copies: Vec<_> = tensors.iter().map(|(name, t)| (name, t, bytes(t))).collect();
    let views = copies.iter().map(|(name, t, bytes)| {
        let dtype = match t.kind() {
            Kind::Float => Dtype::F32,
            Kind::Double => Dtype::F64,
            Kind::Half => Dtype::F16,
            Kind::BFloat16 => Dtype::BF16,
            _ => Dtype::I64,
        };
        let shape = t.size().iter().map(|&n| n as usize).collect();
        (name.as_str(), TensorView::new(dtype, shape, bytes).expect("a view"))
    });
    fs::write(path, safetensors::serialize(views, None).expect("serialized")).expect("written");
}

/// torchvision's `state_dict` of this ResNet by the fill rule, with a classifier.
pub fn state_dict(fixture: &Fixture, arch: Arch, width: f64, stem: Stem) -> BTreeMap<String, Tensor> {
    let mut params = Params::new(CPU, None);
    model::Encoder::new(params.root(), &EncoderConfig { arch, width, stem, ..EncoderConfig::default() });
    let mut state: BTreeMap<String, Tensor> = params
        .state_dict(17)
        .into_iter()
        .map(|n| {
            let counted = n.name.ends_with("num_batches_tracked");
            let value = if counted { n.tensor } else { fixture.fill(&n.name, &n.tensor.size()).to_kind(Kind::Float) };
            (n.name, value)
        })
        .collect();
    state.insert("fc.weight".into(), Tensor::zeros([1000, 8], (Kind::Float, CPU)));
    state.insert("fc.bias".into(), Tensor::zeros([1000], (Kind::Float, CPU)));
    state
}

fn open(path: &Path) -> anyhow::Result<Encoder> {
    Encoder::open(path, &EncoderOptions::default())
}

fn refused(path: &Path, parts: &[&str]) {
    let error = format!("{:#}", open(path).expect_err("refused"));
    assert!(!error.contains('\n'), "{error}");
    assert!(error.contains(&path.display().to_string()), "{error}");
    for part in parts {
        assert!(error.contains(part), "{part:?} in {error}");
    }
}

// model = torchvision.models.resnet50(); model.load_state_dict(...); model.fc = nn.Identity(); model.eval()(x)
#[test]
fn torchvisions_own_networks_give_torchvisions_features() {
    let fixture = Fixture::open("encoder.safetensors");
    let folder = tempfile::tempdir().expect("a folder");
    for (case, arch) in [("resnet18", Arch::Resnet18), ("resnet50", Arch::Resnet50)] {
        let path = folder.path().join(case);
        write(&path, &state_dict(&fixture, arch, 1.0, Stem::Imagenet));
        let mut encoder = open(&path).expect("opened");
        assert_eq!((encoder.config.arch, encoder.config.stem), (arch, Stem::Imagenet));
        assert_eq!((encoder.batches_tracked, encoder.augment.size), (17, 224.into()));
        encoder.params.to_kind(fixture.kind);
        let x = fixture.fill("input.view1", &[4, 3, 64, 64]);
        fixture.check(&format!("{case}.features_eval"), None, &encoder.net.forward(&x, false));
    }
}

#[test]
fn every_encoder_is_recognized_by_its_shapes() {
    for arch in Arch::of(Family::Resnet) {
        for (stem, width) in [(Stem::Imagenet, 1.0), (Stem::Cifar, 0.25), (Stem::Imagenet, 0.375), (Stem::Cifar, 2.0)] {
            let config = EncoderConfig { arch, width, stem, ..EncoderConfig::default() };
            let tensors: Vec<_> = config.layers().iter().flat_map(|layer| layer.tensors()).collect();
            let shapes = tensors.iter().map(|(name, shape)| (name.as_str(), shape.clone())).collect();
            assert_eq!(EncoderConfig::recognize(&shapes, None).expect("recognized"), config);
        }
    }
    let (patches, all) = (EncoderConfig::default(), Arch::ALL.into_iter());
    for arch in all.filter(|arch| arch.family() != Family::Resnet) {
        let image_size = if arch.family() == Family::Vit { [32; 2] } else { patches.image_size };
        let config = EncoderConfig { arch, patch_size: 4, image_size, ..patches };
        let tensors: Vec<_> = config.layers().iter().flat_map(|layer| layer.tensors()).collect();
        let shapes = tensors.iter().map(|(name, shape)| (name.as_str(), shape.clone())).collect();
        assert_eq!(EncoderConfig::recognize(&shapes, None).expect("recognized"), config);
    }
    let config = EncoderConfig { arch: Arch::Resnet18, norm: Norm::GroupWs, ..EncoderConfig::default() };
    let tensors: Vec<_> = config.layers().iter().flat_map(|layer| layer.tensors()).collect();
    let shapes = tensors.iter().map(|(name, shape)| (name.as_str(), shape.clone())).collect();
    assert_eq!(EncoderConfig::recognize(&shapes, None).expect("recognized"), config);
}

#[test]
fn resnext_and_wide_resnet_files_are_read_and_exported_in_all_formats() {
    let fixture = Fixture::open("encoder.safetensors");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    for arch in [Arch::Resnext50_32x4d, Arch::Resnext101_32x8d, Arch::WideResnet50_2, Arch::WideResnet101_2] {
        write(&path, &state_dict(&fixture, arch, 0.25, Stem::Imagenet));
        let encoder = open(&path).expect("opened");
        assert_eq!((encoder.config.arch, encoder.net.feature_dim), (arch, 512));
        let size = Some(ImageSize::Fixed(64.into()));
        let formats = Format::ALL.into_iter().filter(|format| format.check_encoder(&encoder.config).is_ok());
        let folded = Format::ALL.into_iter().filter(|format| format.name() == "onnx").map(|format| (format, true));
        for (format, fold_batchnorm) in formats.map(|format| (format, false)).chain(folded) {
            let image_size = size.filter(|_| format.name() != "torchscript");
            let options = ExportOptions { fold_batchnorm, image_size, ..ExportOptions::default() };
            let output = folder.path().join(format.name());
            export::write(&encoder, format, &options, &output).expect("written");
            export::verify(&encoder, format, &options, &output).and_then(|found| found.check()).expect("the same");
        }
    }
}

// torch.optim.swa_utils.update_bn(batches, model)
#[test]
fn recomputed_statistics_are_update_bns() {
    let fixture = Fixture::open("encoder.safetensors");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("encoder.safetensors");
    write(&path, &state_dict(&fixture, Arch::Resnet18, 1.0, Stem::Cifar));
    let mut encoder = open(&path).expect("opened");
    encoder.params.to_kind(fixture.kind);
    // A batch of one image is skipped: it has no variance.
    let batches = [("batch0", 4), ("single", 1), ("batch1", 4), ("batch2", 3)];
    let batches = batches.map(|(name, size)| Ok(fixture.fill(&format!("input.{name}"), &[size, 3, 32, 32])));
    assert_eq!(encoder.recompute_batchnorm(batches.into_iter()).expect("recomputed"), 3);
    assert_eq!(encoder.batches_tracked, 3);
    for buffer in &encoder.params.buffers {
        fixture.check(&format!("update_bn.{}", buffer.name), None, &buffer.tensor);
    }
    let x = fixture.fill("input.view1", &[4, 3, 32, 32]);
    fixture.check("update_bn.features_eval", None, &encoder.net.forward(&x, false));
    assert!(
        encoder.recompute_batchnorm(std::iter::empty()).expect_err("no batch").to_string().contains("found no batch")
    );
}

#[test]
fn prefixes_types_and_missing_counts_make_no_difference() {
    let fixture = Fixture::open("encoder.safetensors");
    let folder = tempfile::tempdir().expect("a folder");
    let plain = state_dict(&fixture, Arch::Resnet34, 0.25, Stem::Cifar);
    let path = |name: &str| folder.path().join(name);
    write(&path("plain"), &plain);
    let x = fixture.fill("input.view1", &[2, 3, 32, 32]).to_kind(Kind::Float);
    let expected = open(&path("plain")).expect("opened").represent(&x).expect("features");
    assert_eq!(expected.size(), [2, 128]);

    type Change<'a> = &'a dyn Fn(&str, &Tensor) -> Option<(String, Tensor)>;
    let cast = |t: &Tensor, kind| if t.kind() == Kind::Float { t.to_kind(kind) } else { t.shallow_clone() };
    let changes: [(&str, f64, Change); 6] = [
        ("headless", 0.0, &|n, t| (!n.starts_with("fc.")).then(|| (n.into(), t.shallow_clone()))),
        ("uncounted", 0.0, &|n, t| (!n.ends_with("tracked")).then(|| (n.into(), t.shallow_clone()))),
        ("prefixed", 0.0, &|n, t| Some((format!("module.backbone.{n}"), t.shallow_clone()))),
        ("double", 0.0, &|n, t| Some((n.into(), cast(t, Kind::Double)))),
        ("half", 5e-3, &|n, t| Some((n.into(), cast(t, Kind::Half)))),
        ("bfloat16", 4e-2, &|n, t| Some((n.into(), cast(t, Kind::BFloat16)))),
    ];
    for (name, tolerance, change) in changes {
        let mut changed: BTreeMap<_, _> = plain.iter().filter_map(|(n, t)| change(n, t)).collect();
        if name == "prefixed" {
            changed.insert("module.projector.0.weight".into(), Tensor::zeros([2], (Kind::Float, CPU)));
        }
        write(&path(name), &changed);
        let encoder = open(&path(name)).expect(name);
        let EncoderConfig { arch, width, stem, .. } = encoder.config;
        assert_eq!((arch, width, stem), (Arch::Resnet34, 0.25, Stem::Cifar));
        let features = encoder.represent(&x).expect("features");
        let error = (features - &expected).norm() / expected.norm();
        assert!(error.double_value(&[]) <= tolerance, "{name}: {error:?}");
    }
}

#[test]
fn what_is_no_encoder_of_ours_is_refused_in_one_line() {
    let fixture = Fixture::open("encoder.safetensors");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.safetensors");
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, CPU));
    let basic = || state_dict(&fixture, Arch::Resnet18, 0.25, Stem::Imagenet);
    let with = |changes: &[(&str, Tensor)]| {
        let mut state = basic();
        state.extend(changes.iter().map(|(n, t)| (n.to_string(), t.shallow_clone())));
        write(&path, &state);
    };
    refused(&path, &["reading"]); // not there
    refused(folder.path(), &["found no checkpoint"]);
    write(&path, &BTreeMap::from([("visual.proj".into(), zeros(&[3]))]));
    refused(&path, &["found no encoder among its 1 tensors (visual.proj, ...), expected one of resnet18, resnet34"]);
    with(&[("a.layer1.0.conv1.weight", zeros(&[1])), ("b.layer1.0.conv1.weight", zeros(&[1]))]);
    refused(
        &path,
        &["found 2 encoders, expected one; choose with --prefix \"\" (resnet18 of", "), --prefix a (not supported)"],
    );
    with(&[("conv1.weight", zeros(&[16, 3, 5, 5]))]);
    refused(&path, &["conv1.weight: found a kernel of 5, expected 7 (stem imagenet) or 3 (stem cifar)"]);
    with(&[("conv1.weight", zeros(&[8, 3, 7, 7]))]);
    refused(&path, &["found 8 output channels, expected 16 to 256"]);
    with(&[("conv1.weight", zeros(&[16]))]);
    refused(&path, &["conv1.weight: found shape [16]"]);
    // Of all encoders the one that differs least is named.
    with(&[("layer4.2.conv1.weight", zeros(&[1]))]);
    refused(&path, &["as resnet18 of width 0.25 with stem imagenet: 1 differences: layer4.2.conv1.weight is not part"]);
    let mut state = state_dict(&fixture, Arch::Resnet50, 0.25, Stem::Cifar);
    state.insert("layer1.0.conv1.weight".into(), zeros(&[24, 16, 1, 1]));
    write(&path, &state);
    refused(
        &path,
        &["as resnet50 of width 0.25 with stem cifar: 1 differences", "[24, 16, 1, 1], expected F32 [16, 16"],
    );
    with(&[("layer1.0.se.weight", zeros(&[2])), ("bn1.bias", zeros(&[3]))]);
    refused(
        &path,
        &["2 differences", "bn1.bias: found F32 [3], expected F32 [16]", "layer1.0.se.weight is not part", "resnet18"],
    );
    let mut state = basic();
    state.remove("bn1.running_var");
    write(&path, &state);
    refused(&path, &["bn1.running_var is missing"]);
    with(&[("bn1.weight", Tensor::full([16], f64::NAN, (Kind::Float, CPU)))]);
    refused(&path, &["bn1.weight holds values that are not finite"]);
    with(&[("bn1.weight", Tensor::zeros([16], (Kind::Int64, CPU)))]);
    refused(&path, &["bn1.weight: found I64 [16], expected F32 [16]"]);

    with(&[]);
    let whole = fs::read(&path).expect("bytes");
    for length in [0, 4, 8, 1000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).expect("written");
        let found = match length {
            0 => "found an empty file, expected one of safetensors or of torch.save",
            4 | 8 => "found a file that begins with ",
            _ => "not a valid safetensors file",
        };
        refused(&path, &[found]);
    }
    for name in ["m.pth", "m.PT", "m.ckpt", "pickled"] {
        let path = folder.path().join(name);
        fs::write(&path, b"PK\x03\x04").expect("written");
        refused(&path, &["not a whole zip archive"]);
        fs::write(&path, b"\x80\x02").expect("written");
        refused(&path, &["found a PyTorch file in the format before 1.6"]);
    }
}

#[test]
fn runs_and_checkpoints_open_at_any_of_their_paths() {
    let run = TinyRun::train(&["train.max_steps=4", "output.checkpoint_every_steps=2"]);
    let checkpoint = run.checkpoint(4);
    let x = Tensor::from_slice(&(0..2 * 3 * 16 * 16).map(|i| (i % 17) as f32 / 17.0).collect::<Vec<_>>());
    let x = x.reshape([2, 3, 16, 16]);
    let features = |path: &Path, which: Branch| {
        let encoder = Encoder::open(path, &EncoderOptions { which, ..EncoderOptions::default() }).expect("opened");
        assert_eq!(encoder.augment.size, 16.into());
        (encoder.represent(&x).expect("features"), encoder)
    };
    let (online, encoder) = features(&run.dir(), Branch::Online);
    assert_eq!(encoder.source, checkpoint);
    assert_eq!(encoder.run.as_ref().map(|manifest| manifest.step), Some(4));
    assert_eq!(encoder.batches_tracked, 8); // two views a step
    let target = features(&run.dir(), Branch::Target).0;
    assert!(!online.equal(&target));
    let lone = run.folder().join("lone.safetensors");
    fs::copy(checkpoint.join("model.safetensors"), &lone).expect("copied");
    for path in [checkpoint.clone(), checkpoint.join("model.safetensors"), run.dir().join("checkpoints")] {
        assert!(features(&path, Branch::Online).0.equal(&online), "{}", path.display());
        assert!(features(&path, Branch::Target).0.equal(&target), "{}", path.display());
    }
    let options = |which| EncoderOptions { which, augment: Some(encoder.augment.clone()), ..EncoderOptions::default() };
    for (which, expected) in [(Branch::Online, &online), (Branch::Target, &target)] {
        let encoder = Encoder::open(&lone, &options(which)).expect("a model without its folder");
        assert!(encoder.represent(&x).expect("features").equal(expected));
    }
    // In the other memory layout convolutions round differently.
    let options = EncoderOptions { channels_last: true, ..EncoderOptions::default() };
    let other = Encoder::open(&checkpoint, &options).expect("opened").represent(&x).expect("features");
    assert!(((other - &online).norm() / online.norm()).double_value(&[]) < 1e-5);

    // A damaged checkpoint is skipped and the previous one used; given by name, it is an error.
    let model: PathBuf = checkpoint.join("model.safetensors");
    let whole = fs::read(&model).expect("bytes");
    fs::write(&model, &whole[..whole.len() - 1]).expect("written");
    assert_eq!(features(&run.dir(), Branch::Online).1.source, run.checkpoint(2));
    refused(&checkpoint, &["damaged"]);
    fs::remove_file(run.checkpoint(2).join("manifest.json")).expect("removed");
    let error = open(&run.dir()).expect_err("nothing left").to_string();
    assert!(error.contains("none of its 2 checkpoints can be used"), "{error}");
}
