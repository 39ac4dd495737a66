//! ConvNeXt and ViT under the names of any library in [`super::names`].

use std::collections::{BTreeMap, BTreeSet};

use super::layout::{Layout, Shapes};
use super::names::{Library, names};
use crate::model::{Arch, EncoderConfig, Family};

/// The largest of each family, which has the names of all; and two of torchvision's names for it. What is before them in
/// a file is the prefix of all names; two, as one alone is in other networks, too.
const LARGEST: [(Arch, [&str; 2]); 2] = [
    (Arch::ConvnextSmall, ["features.0.0.weight", "features.1.0.layer_scale"]),
    (Arch::VitBase, ["conv_proj.weight", "encoder.layers.encoder_layer_0.ln_1.weight"]),
];

/// What libraries have behind an encoder.
const BEHIND: [&str; 5] = ["fc.", "classifier.", "heads.", "head.", "pooler."];

/// All such encoders in a file.
pub fn layouts(shapes: &Shapes) -> Vec<Layout> {
    let mut layouts = Vec::new();
    for ((arch, markers), library) in LARGEST.into_iter().flat_map(|of| Library::ALL.map(|library| (of, library))) {
        let config = EncoderConfig { arch, ..EncoderConfig::default() };
        let torchvision: Vec<String> = names(&config, Library::Torchvision).concat();
        let theirs = names(&config, library);
        let [first, second] = markers.map(|marker| {
            let at = torchvision.iter().position(|name| name == marker);
            at.map_or(String::new(), |at| theirs[at].concat())
        });
        let prefixes = shapes.keys().filter_map(|name| name.strip_suffix(first.as_str()));
        let prefixes = prefixes.filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
        let prefixes = prefixes.filter(|prefix| shapes.contains_key(format!("{prefix}{second}").as_str()));
        // The sizes of ViT that torchvision lacks have timm's names here: a file that has not torchvision's is like them.
        let other = arch.family() == Family::Vit && library != Library::Torchvision;
        let ours = if other { names(&config, Library::Timm).concat() } else { torchvision };
        layouts.extend(prefixes.map(|prefix| layout(prefix, shapes, ours.iter().zip(&theirs))));
    }
    layouts
}

/// The encoder whose names begin with `prefix`, by pairs of our name and theirs.
fn layout<'a>(prefix: &str, shapes: &Shapes, pairs: impl Iterator<Item = (&'a String, &'a Vec<String>)>) -> Layout {
    let whole = |theirs: &Vec<String>| theirs.iter().map(|name| format!("{prefix}{name}")).collect::<Vec<_>>();
    let pairs = pairs.map(|(ours, theirs)| (ours.clone(), whole(theirs)));
    let mut names: BTreeMap<String, Vec<String>> =
        pairs.filter(|(_, theirs)| theirs.iter().all(|name| shapes.contains_key(name.as_str()))).collect();
    let known: BTreeSet<String> = names.values().flatten().cloned().collect();
    for (name, rest) in shapes.keys().filter_map(|name| Some((*name, name.strip_prefix(prefix)?))) {
        if !known.contains(name) && !BEHIND.iter().any(|behind| rest.starts_with(behind)) {
            names.entry(rest.to_string()).or_insert_with(|| vec![name.to_string()]);
        }
    }
    Layout { prefix: prefix.to_string(), names }
}
