//! Where an encoder is in a file, and what its tensors are called there.

use std::collections::BTreeMap;

/// Names and shapes of a file's tensors.
pub type Shapes<'a> = BTreeMap<&'a str, &'a [usize]>;

/// The names of one encoder's tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// What all of its names begin with: nothing, or something that ends with a dot.
    pub prefix: String,
    /// By the names that this program gives the tensors, the file's, which has several where a tensor is split into rows.
    /// A tensor that is part of the encoder but unknown keeps its name, without the prefix: another stem,
    /// squeeze-and-excitation, biases.
    pub names: BTreeMap<String, Vec<String>>,
}

/// What a name in a file stands for, its prefix taken off.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// A tensor of the encoder, by the name that this program gives it.
    Known(String),
    /// A part of the encoder that this program does not know.
    Unknown,
    /// Something else, such as a classifier.
    Beside,
}

impl Layout {
    /// The encoder whose names begin with `prefix`.
    pub fn new(prefix: &str, shapes: &Shapes, part: impl Fn(&str) -> Part) -> Self {
        let mut names = BTreeMap::new();
        for (whole, name) in shapes.keys().filter_map(|whole| Some((*whole, whole.strip_prefix(prefix)?))) {
            match part(name) {
                // Two spellings of one name: the second is unknown.
                Part::Known(ours) if !names.contains_key(&ours) => drop(names.insert(ours, vec![whole.to_string()])),
                Part::Known(_) | Part::Unknown => drop(names.insert(name.to_string(), vec![whole.to_string()])),
                Part::Beside => {}
            }
        }
        Self { prefix: prefix.to_string(), names }
    }
}
