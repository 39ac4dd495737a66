//! Class labels that come as text: numbers stay numbers, names are numbered in sorted order.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Result, bail};

/// Most classes of the training set that an error names.
const MAX_NAMED: usize = 10;

/// How the labels of the training set are numbered, which those of the held-out set have to follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Known {
    /// It has no labels.
    #[default]
    Nothing,
    /// They are numbers.
    Numbers,
    /// They are names, numbered in this order.
    Names(Vec<String>),
}

/// The labels of a set, one per image, each distinct text kept once.
#[derive(Default)]
pub(super) struct Labels {
    texts: Vec<String>,
    ids: HashMap<String, u32>,
    images: Vec<Option<u32>>,
    /// Classes that may have no image.
    declared: BTreeSet<String>,
    /// Whether numbers are names, too.
    named: bool,
}

impl Labels {
    /// Labels that are names also where they look like numbers.
    pub fn names() -> Self {
        Self { named: true, ..Self::default() }
    }

    /// Number of images so far.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Adds the label of the next image.
    pub fn push(&mut self, label: Option<&str>) {
        let id = label.and_then(class_text).map(|text| self.id(text));
        self.images.push(id);
    }

    /// Adds the label of the next image, a name whatever it looks like.
    pub fn push_name(&mut self, name: Option<&str>) {
        let id = name.map(|name| self.id(name));
        self.images.push(id);
    }

    /// The number of a distinct text among those seen so far.
    pub fn id(&mut self, text: &str) -> u32 {
        if let Some(&id) = self.ids.get(text) {
            return id;
        }
        let id = self.texts.len() as u32;
        self.texts.push(text.to_string());
        self.ids.insert(text.to_string(), id);
        id
    }

    /// Adds a class by name, whether or not it has images: numbers are names from now on.
    pub fn declare(&mut self, class: &str) {
        self.named = true;
        self.declared.insert(class.to_string());
    }

    /// The label of every image, -1 for none (empty if no image has one), and the class names (empty for numbers).
    pub fn finish(&self, known: &Known, place: &str) -> Result<(Vec<i64>, Vec<String>)> {
        let (numbers, names) = self.numbers(known, place)?;
        if self.texts.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let label = |id: &Option<u32>| id.map_or(-1, |id| numbers[id as usize]);
        Ok((self.images.iter().map(label).collect(), names))
    }

    /// The label that each [`Self::id`] stands for, and the class names.
    /// # Errors
    /// A class that the training set does not have.
    pub fn numbers(&self, known: &Known, place: &str) -> Result<(Vec<i64>, Vec<String>)> {
        let numeric: Option<Vec<i64>> = self.texts.iter().map(|text| text.parse().ok()).collect();
        let by_name = |names: &[String]| -> Result<Vec<i64>, &String> {
            let numbers: HashMap<&str, i64> = names.iter().map(String::as_str).zip(0..).collect();
            self.texts.iter().map(|text| numbers.get(text.as_str()).copied().ok_or(text)).collect()
        };
        match (known, numeric) {
            (Known::Nothing, Some(numbers)) if !self.named => Ok((numbers, Vec::new())),
            (Known::Nothing, _) => {
                let names: BTreeSet<&String> = self.texts.iter().chain(&self.declared).collect();
                let names: Vec<String> = names.into_iter().cloned().collect();
                Ok((by_name(&names).unwrap_or_default(), names))
            }
            (Known::Numbers, Some(numbers)) => Ok((numbers, Vec::new())),
            (Known::Numbers, None) => {
                let name = self.texts.iter().find(|text| text.parse::<i64>().is_err()).cloned().unwrap_or_default();
                bail!("found class {name} in {place}, expected a number as in the training set")
            }
            (Known::Names(names), numeric) => match (by_name(names), numeric) {
                (Ok(numbers), _) => Ok((numbers, names.clone())),
                // A list of numbers beside class folders.
                (Err(_), Some(numbers)) if !self.named => Ok((numbers, names.clone())),
                (Err(name), _) => {
                    let more = if names.len() > MAX_NAMED { ", ..." } else { "" };
                    let listed = names[..names.len().min(MAX_NAMED)].join(", ");
                    bail!(
                        "found class {name} in {place}, expected one of the {} classes of the training set ({listed}{more})",
                        names.len()
                    )
                }
            },
        }
    }

    /// What a held-out set has to follow.
    pub fn known(&self) -> Result<Known> {
        if self.texts.is_empty() && self.declared.is_empty() {
            return Ok(Known::Nothing);
        }
        let (_, names) = self.numbers(&Known::Nothing, "")?;
        Ok(if names.is_empty() { Known::Numbers } else { Known::Names(names) })
    }
}

/// The class in a text; `None` for an empty one and for a number below 0, which stands for no class.
pub(super) fn class_text(text: &str) -> Option<&str> {
    let text = text.trim();
    (!text.is_empty() && !text.parse::<i64>().is_ok_and(|number| number < 0)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(texts: &[&str]) -> Labels {
        let mut labels = Labels::default();
        texts.iter().for_each(|text| labels.push(Some(text)));
        labels
    }

    fn finish(texts: &[&str], known: &Known) -> Result<(Vec<i64>, Vec<String>)> {
        labels(texts).finish(known, "val.txt")
    }

    #[test]
    fn numbers_stay_and_names_are_sorted() {
        assert_eq!(finish(&["7", "", "0", "-1"], &Known::Nothing).unwrap(), (vec![7, -1, 0, -1], vec![]));
        let names = ["10", "cat", "dog"].map(String::from).to_vec();
        assert_eq!(finish(&["dog", "10", "cat", "dog"], &Known::Nothing).unwrap(), (vec![2, 0, 1, 2], names));
        assert_eq!(finish(&["", "-1"], &Known::Nothing).unwrap(), (vec![], vec![]));
        let mut named = labels(&["10", "9"]);
        named.declare("8");
        let names = ["10", "8", "9"].map(String::from).to_vec();
        assert_eq!(named.finish(&Known::Nothing, "").unwrap(), (vec![0, 2], names));
    }

    #[test]
    fn held_out_labels_follow_the_training_set() {
        let known = Known::Names(["ant", "bee", "cat"].map(String::from).to_vec());
        assert_eq!(finish(&["cat", "bee"], &known).unwrap().0, [2, 1]);
        assert_eq!(finish(&["2", "0"], &known).unwrap().0, [2, 0]);
        let message = finish(&["cat", "dog"], &known).unwrap_err().to_string();
        let expected = "found class dog in val.txt, expected one of the 3 classes of the training set (ant, bee, cat)";
        assert_eq!(message, expected);
        assert_eq!(finish(&["3", "1"], &Known::Numbers).unwrap().0, [3, 1]);
        let message = finish(&["3", "cat"], &Known::Numbers).unwrap_err().to_string();
        assert_eq!(message, "found class cat in val.txt, expected a number as in the training set");
        assert_eq!(labels(&["b", "a"]).known().unwrap(), Known::Names(vec!["a".into(), "b".into()]));
        assert_eq!(labels(&["4"]).known().unwrap(), Known::Numbers);
        assert_eq!(labels(&[""]).known().unwrap(), Known::Nothing);
    }
}
