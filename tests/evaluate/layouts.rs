//! The names that other trainers give an encoder's tensors. `scripts/exports/layouts.py` compares with files by the
//! libraries themselves.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::encoder::{state_dict, write};
use crate::support::{CPU, Fixture};
use byol::eval::{Encoder, EncoderOptions, Represent};
use byol::model::{Arch, Stem};
use tch::{Kind, Tensor};

type State = BTreeMap<String, Tensor>;

/// torchvision's name as a `nn.Sequential` of the children has it; `shift` is 1 without max-pooling.
fn numbered(name: &str, shift: usize) -> String {
    let (first, rest) = name.split_once('.').expect("a dot");
    let number = match first {
        "conv1" => 0,
        "bn1" => 1,
        "fc" => 9 - shift,
        layer => layer["layer".len()..].parse::<usize>().expect("a stage") + 3 - shift,
    };
    format!("{number}.{rest}")
}

/// As `transformers.ResNetModel` has it.
fn hugging_face(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let kind = |module: &str| if module.starts_with("conv") { "convolution" } else { "normalization" };
    let number = |text: &str| text[text.len() - 1..].parse::<usize>().expect("a number") - 1;
    match parts[..] {
        ["fc", leaf] => format!("classifier.1.{leaf}"),
        [module, leaf] => format!("resnet.embedder.embedder.{}.{leaf}", kind(module)),
        [stage, block, "downsample", at, leaf] => {
            let kind = if at == "0" { "convolution" } else { "normalization" };
            format!("resnet.encoder.stages.{}.layers.{block}.shortcut.{kind}.{leaf}", number(stage))
        }
        [stage, block, module, leaf] => {
            let place = format!("resnet.encoder.stages.{}.layers.{block}", number(stage));
            format!("{place}.layer.{}.{}.{leaf}", number(module), kind(module))
        }
        _ => panic!("{name}"),
    }
}

fn renamed(state: &State, rename: impl Fn(&str) -> String) -> State {
    state.iter().map(|(name, tensor)| (rename(name), tensor.shallow_clone())).collect()
}

fn open(path: &Path, prefix: Option<&str>) -> anyhow::Result<Encoder> {
    Encoder::open(path, &EncoderOptions { prefix: prefix.map(String::from), ..EncoderOptions::default() })
}

fn refused(path: &Path, prefix: Option<&str>, parts: &[&str]) {
    let error = format!("{:#}", open(path, prefix).expect_err("refused"));
    assert!(!error.contains('\n'), "{error}");
    for part in parts {
        assert!(error.contains(part), "{part:?} in {error}");
    }
}

struct Case {
    folder: tempfile::TempDir,
    state: State,
    images: Tensor,
    expected: Tensor,
}

impl Case {
    fn new(arch: Arch, stem: Stem) -> Self {
        let fixture = Fixture::open("encoder.safetensors");
        let folder = tempfile::tempdir().expect("a folder");
        let state = state_dict(&fixture, arch, 0.25, stem);
        let images = fixture.fill("input.view1", &[2, 3, 32, 32]).to_kind(Kind::Float);
        write(&folder.path().join("plain"), &state);
        let plain = open(&folder.path().join("plain"), None).expect("opened");
        let expected = plain.represent(&images).expect("features");
        Self { folder, state, images, expected }
    }

    fn opens(&self, tensors: &State, prefix: Option<&str>) {
        let path = self.folder.path().join("renamed");
        write(&path, tensors);
        let encoder = open(&path, prefix).expect("opened");
        assert_eq!(encoder.batches_tracked, 17);
        assert!(encoder.represent(&self.images).expect("features").equal(&self.expected));
    }
}

#[test]
fn any_spelling_of_the_names_is_the_same_encoder() {
    for (arch, stem) in [(Arch::Resnet18, Stem::Cifar), (Arch::Resnet50, Stem::Imagenet)] {
        let case = Case::new(arch, stem);
        let state = &case.state;
        case.opens(&renamed(state, |name| format!("backbone.{}", numbered(name, 0))), None);
        case.opens(&renamed(state, |name| format!("state_dict.net.features.{}", numbered(name, 1))), None);
        case.opens(&renamed(state, |name| numbered(name, 0)), None);
        case.opens(&renamed(state, hugging_face), None);
        case.opens(&renamed(state, |name| hugging_face(name).replace("resnet.", "")), None);
        case.opens(&renamed(state, |name| name.replace("downsample", "shortcut")), None);
        case.opens(&renamed(state, |name| format!("module._orig_mod.{name}")), None);
        let stem = |name: &str| match name.split_once('.') {
            Some(("conv1", leaf)) => format!("stem.0.{leaf}"),
            Some(("bn1", leaf)) => format!("stem.1.{leaf}"),
            _ => name.to_string(),
        };
        case.opens(&renamed(state, stem), None);
    }
}

#[test]
fn of_several_encoders_the_prefix_chooses_one() {
    let case = Case::new(Arch::Resnet18, Stem::Cifar);
    let doubled: State = case.state.iter().map(|(name, tensor)| (name.clone(), tensor * 2)).collect();
    let mut both = renamed(&case.state, |name| format!("state_dict.module.encoder_q.{name}"));
    both.extend(renamed(&doubled, |name| format!("state_dict.module.encoder_k.{name}")));
    both.insert("state_dict.module.queue".into(), Tensor::zeros([8, 4], (Kind::Float, CPU)));
    for prefix in ["encoder_q", "module.encoder_q.", "state_dict.module.encoder_q", "state_dict.module.encoder_q."] {
        case.opens(&both, Some(prefix));
    }
    let path = case.folder.path().join("renamed");
    let kind = "(resnet18 of width 0.25 with stem cifar)";
    let list = format!("--prefix state_dict.module.encoder_k {kind}, --prefix state_dict.module.encoder_q {kind}");
    refused(&path, None, &["found 2 encoders, expected one; choose with ", &list]);
    refused(&path, Some("module"), &["found 2 encoders, expected one", &list]);
    refused(&path, Some("encoder"), &["--prefix encoder: found no encoder there, but ", &list]);
    // Beside its moving average, at the root, and a network that holds another.
    let mut both = renamed(&case.state, |name| format!("backbone.{name}"));
    both.extend(renamed(&doubled, |name| format!("momentum_backbone.{name}")));
    case.opens(&both, Some("backbone"));
    let mut both = renamed(&case.state, str::to_string);
    both.extend(renamed(&doubled, |name| format!("teacher.{name}")));
    case.opens(&both, Some(""));
    both.retain(|name, _| !name.starts_with("teacher"));
    both.extend(renamed(&case.state, |name| format!("online_net.0.{}", numbered(name, 0))));
    case.opens(&both, None);
    case.opens(&both, Some("online_net"));
    // A file that has one says so for a wrong prefix.
    write(&path, &case.state);
    refused(&path, Some("teacher"), &[&format!("--prefix teacher: found no encoder there, but --prefix \"\" {kind}")]);
}

#[test]
fn what_a_file_holds_is_said_when_it_is_no_encoder_of_ours() {
    let case = Case::new(Arch::Resnet18, Stem::Imagenet);
    let path = case.folder.path().join("renamed");
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, CPU));
    let check = |change: &dyn Fn(&mut State), parts: &[&str]| {
        let mut state = renamed(&case.state, |name| format!("model.{name}"));
        change(&mut state);
        write(&path, &state);
        refused(&path, None, parts);
    };
    // The stem of three convolutions.
    let deep = |state: &mut State| {
        state.remove("model.conv1.weight");
        state.insert("model.conv1.0.weight".into(), zeros(&[8, 3, 3, 3]));
        state.insert("model.conv1.3.weight".into(), zeros(&[16, 8, 3, 3]));
    };
    let held =
        "beside its numbered layers the encoder under model.* holds conv1.0.weight [8, 3, 3, 3], conv1.3.weight [16";
    check(&deep, &[held, "found no conv1.weight"]);
    let biased = |state: &mut State| drop(state.insert("model.conv1.bias".into(), zeros(&[16])));
    check(&biased, &["1 differences: conv1.bias is not part of this model"]);
    let attention = |state: &mut State| drop(state.insert("model.layer3.1.se.fc1.weight".into(), zeros(&[4, 64])));
    check(&attention, &["as resnet18 of width 0.25", "layer3.1.se.fc1.weight is not part of this model"]);
    let more = |state: &mut State| drop(state.insert("model.conv2.weight".into(), zeros(&[4, 64])));
    check(&more, &["conv2.weight is not part of this model"]);
    // Both names of one tensor.
    let twice =
        |state: &mut State| drop(state.insert("model.layer2.0.shortcut.0.weight".into(), zeros(&[32, 16, 1, 1])));
    check(&twice, &["layer2.0.shortcut.0.weight is not part of this model"]);
    // A list with three stages, and one whose first convolution is somewhere else.
    let list = renamed(&case.state, |name| numbered(name, 0));
    write(
        &path,
        &list.iter().filter(|(n, _)| !n.starts_with("7.")).map(|(n, t)| (n.clone(), t.shallow_clone())).collect(),
    );
    refused(&path, None, &["differences", "is missing"]);
    write(
        &path,
        &list.iter().filter(|(n, _)| !n.starts_with("0.")).map(|(n, t)| (n.clone(), t.shallow_clone())).collect(),
    );
    refused(&path, None, &["the encoder holds nothing", "found no conv1.weight"]);
}

#[test]
fn a_folder_of_weights_is_read() {
    let case = Case::new(Arch::Resnet18, Stem::Cifar);
    let folder = case.folder.path().join("hub");
    fs::create_dir(&folder).expect("made");
    refused(&folder, None, &["found no checkpoint in this folder", "or model.safetensors or pytorch_model.bin"]);
    write(&folder.join("model.safetensors"), &renamed(&case.state, hugging_face));
    let encoder = open(&folder, None).expect("opened");
    assert!(encoder.represent(&case.images).expect("features").equal(&case.expected));
}
