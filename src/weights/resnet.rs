//! ResNets under the names of torchvision, timm and all that build on them; as an `nn.Sequential` of torchvision's
//! parts, whose names are numbers; and of Hugging Face's `ResNetModel`.

use std::collections::{BTreeMap, BTreeSet};

use super::layout::{Layout, Part, Shapes};

/// The first weight of the first block of each spelling: what is before it is the prefix of all names.
const STAGES: &str = "layer1.0.conv1.weight";
const HUGGING_FACE: &str = "encoder.stages.0.layers.0.layer.0.convolution.weight";
const NUMBERED: &str = ".0.conv1.weight";

/// All ResNets in a file.
pub fn layouts(shapes: &Shapes) -> Vec<Layout> {
    let below = |marker: &'static str| {
        let prefix = move |name: &&str| name.strip_suffix(marker).map(str::to_string);
        shapes.keys().filter_map(prefix).filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
    };
    let named = below(STAGES).map(|prefix| Layout::new(&prefix, shapes, stage_names));
    let hugging_face = below(HUGGING_FACE).map(|prefix| Layout::new(&prefix, shapes, hugging_face_names));
    let numbered = lists(shapes).into_iter().map(|(prefix, stages)| {
        let list = List::new(&prefix, stages, shapes);
        Layout::new(&prefix, shapes, |name| list.part(name))
    });
    let mut all: Vec<Layout> = named.chain(hugging_face).chain(numbered).collect();
    all.sort_by(|a, b| a.prefix.cmp(&b.prefix));
    all
}

/// Names such as `layer1.0.conv1.weight`.
fn stage_names(name: &str) -> Part {
    let parts: Vec<&str> = name.split('.').collect();
    let known = match parts[..] {
        ["conv1", "weight"] | ["stem" | "layer0", "0", "weight"] => Some("conv1.weight".into()),
        ["bn1", leaf] | ["stem" | "layer0", "1", leaf] => norm("bn1", leaf),
        ["layer1" | "layer2" | "layer3" | "layer4", block, ref inner @ ..] => {
            block_part(inner).map(|inner| format!("{}.{block}.{inner}", parts[0]))
        }
        [first, ..] if !is_numbered(first, &["conv", "bn", "norm", "layer", "stem"]) => return Part::Beside,
        _ => None,
    };
    known.map_or(Part::Unknown, Part::Known)
}

/// Whether `text` is one of `words` with or without a number.
fn is_numbered(text: &str, words: &[&str]) -> bool {
    words.contains(&text.trim_end_matches(|c: char| c.is_ascii_digit()))
}

/// Names such as `encoder.stages.0.layers.0.layer.0.convolution.weight`.
fn hugging_face_names(name: &str) -> Part {
    let parts: Vec<&str> = name.split('.').collect();
    let known = match parts[..] {
        ["embedder", "embedder", "convolution", "weight"] => Some("conv1.weight".into()),
        ["embedder", "embedder", "normalization", leaf] => norm("bn1", leaf),
        ["encoder", "stages", stage, "layers", block, ref inner @ ..] => {
            one_more(stage).and_then(|stage| block_part(inner).map(|inner| format!("layer{stage}.{block}.{inner}")))
        }
        ["embedder" | "encoder", ..] => None,
        _ => return Part::Beside,
    };
    known.map_or(Part::Unknown, Part::Known)
}

/// A tensor of a residual block, in any spelling.
fn block_part(parts: &[&str]) -> Option<String> {
    match *parts {
        [conv, "weight"] if is_one_of_three(conv, "conv") => Some(format!("{conv}.weight")),
        [bn, leaf] if is_one_of_three(bn, "bn") => norm(bn, leaf),
        ["downsample" | "shortcut", "0", "weight"] | ["shortcut", "convolution", "weight"] => {
            Some("downsample.0.weight".into())
        }
        ["downsample" | "shortcut", "1", leaf] | ["shortcut", "normalization", leaf] => norm("downsample.1", leaf),
        ["layer", at, "convolution", "weight"] => Some(format!("conv{}.weight", one_more(at)?)),
        ["layer", at, "normalization", leaf] => norm(&format!("bn{}", one_more(at)?), leaf),
        _ => None,
    }
}

fn is_one_of_three(text: &str, word: &str) -> bool {
    matches!(text.strip_prefix(word), Some("1" | "2" | "3"))
}

/// A tensor of the BatchNorm `layer`.
fn norm(layer: &str, leaf: &str) -> Option<String> {
    let known = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"].contains(&leaf);
    known.then(|| format!("{layer}.{leaf}"))
}

/// Numbers from 1, for those from 0.
fn one_more(text: &str) -> Option<u32> {
    text.parse().ok().filter(|&number: &u32| number < 4).map(|number| number + 1)
}

/// Lists of modules in which some are stages of blocks: their prefixes, and the stages' numbers.
fn lists(shapes: &Shapes) -> BTreeMap<String, BTreeSet<u32>> {
    let mut lists: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for before in shapes.keys().filter_map(|name| name.strip_suffix(NUMBERED)) {
        let (prefix, number) = before.rsplit_once('.').map_or(("", before), |(prefix, number)| (prefix, number));
        if let Ok(number) = number.parse() {
            let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}.") };
            lists.entry(prefix).or_default().insert(number);
        }
    }
    lists
}

/// A ResNet as a list of its parts: `nn.Sequential(*list(resnet.children())[:-1])`, with or without max-pooling. The
/// first convolution and its BatchNorm come before the stages.
struct List {
    conv: Option<u32>,
    norm: Option<u32>,
    stages: Vec<u32>,
}

impl List {
    fn new(prefix: &str, stages: BTreeSet<u32>, shapes: &Shapes) -> Self {
        let first = stages.first().copied().unwrap_or(0);
        let has = |number: u32, leaf: &str| shapes.contains_key(format!("{prefix}{number}.{leaf}").as_str());
        // Numbers as large as a file likes are no positions.
        let norm = (0..first.min(64)).find(|&number| has(number, "running_mean"));
        let conv = (0..norm.unwrap_or(0)).find(|&number| has(number, "weight"));
        Self { conv, norm, stages: stages.into_iter().collect() }
    }

    fn part(&self, name: &str) -> Part {
        let parts: Vec<&str> = name.split('.').collect();
        let Some(number) = parts[0].parse::<u32>().ok() else { return Part::Beside };
        let stage = self.stages.iter().position(|&stage| stage == number);
        let known = match parts[1..] {
            ["weight"] if self.conv == Some(number) => Some("conv1.weight".into()),
            [leaf] if self.norm == Some(number) => norm("bn1", leaf),
            [block, ref inner @ ..] if stage.is_some() => {
                block_part(inner).map(|inner| format!("layer{}.{block}.{inner}", stage.unwrap_or(0) + 1))
            }
            _ if self.stages.last().is_some_and(|&last| number > last) => return Part::Beside,
            _ => None,
        };
        known.map_or(Part::Unknown, Part::Known)
    }
}
