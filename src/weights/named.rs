//! Encoders whose names here are those of torchvision or timm: ConvNeXt and ViT.

use super::layout::{Layout, Part, Shapes};
use crate::model::EncoderConfig;

/// The last layers in torchvision and timm, which no encoder has.
const CLASSIFIERS: [&str; 4] = ["fc.", "classifier.2.", "heads.", "head."];

/// All such encoders in a file: the first weight of each shows the common prefix of its names.
pub fn layouts(shapes: &Shapes) -> Vec<Layout> {
    let prefixes = shapes.keys().filter_map(|name| {
        let prefix = EncoderConfig::MARKERS.iter().find_map(|marker| name.strip_suffix(marker))?;
        (prefix.is_empty() || prefix.ends_with('.')).then_some(prefix)
    });
    let part = |name: &str| match CLASSIFIERS.iter().any(|classifier| name.starts_with(classifier)) {
        true => Part::Beside,
        false => Part::Known(name.to_string()),
    };
    prefixes.map(|prefix| Layout::new(prefix, shapes, part)).collect()
}
