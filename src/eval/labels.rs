//! Classes of two labeled sets, and stratified subsets.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

use crate::data::Dataset;
use crate::rng::{Purpose, Stream};

/// The classes of the training images, numbered from 0 in the order of their labels, which may be any numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    labels: Vec<i64>,
    /// Name of each class, or its label if it has none.
    pub names: Vec<String>,
}

/// The labels that occur in a set.
fn labels_of(set: &dyn Dataset, key: &str) -> Result<BTreeSet<i64>> {
    let label = |index: usize| match set.label(index).filter(|&label| label >= 0) {
        Some(label) => Ok(label),
        None => bail!("{key}: found no label for {}, expected one for every image", set.describe(index)),
    };
    (0..set.len()).map(label).collect()
}

/// Whether a set's labeled images have two classes or more.
pub fn several_classes(set: &dyn Dataset) -> bool {
    let mut labels = (0..set.len()).filter_map(|index| set.label(index));
    let first = labels.next();
    labels.any(|label| Some(label) != first)
}

impl Classes {
    /// Those of `train`, after checking that `test` has the same.
    /// # Errors
    /// An image without a label; fewer than two classes; a class of `test` that `train` lacks; classes with
    /// different names.
    pub fn of(train: &dyn Dataset, test: &dyn Dataset) -> Result<Self> {
        let (known, tested) = (labels_of(train, "data.path")?, labels_of(test, "data.eval_path")?);
        let (train_names, test_names) = (train.class_names(), test.class_names());
        if known.len() < 2 {
            bail!(
                "data.path: found {} class, expected two or more to tell apart: there is no accuracy to compute",
                known.len()
            );
        }
        let name = |names: &[String], label: i64| {
            names.get(label as usize).filter(|name| !name.is_empty()).cloned().unwrap_or_else(|| label.to_string())
        };
        if let Some(&extra) = tested.difference(&known).next() {
            bail!(
                "data.eval_path: found {} classes, the training images have {}: none of them is of class {}",
                tested.len(),
                known.len(),
                name(&test_names, extra)
            );
        }
        let both = !train_names.is_empty() && !test_names.is_empty();
        let renamed = tested.iter().find(|&&label| both && name(&train_names, label) != name(&test_names, label));
        if let Some(&label) = renamed {
            bail!(
                "data.eval_path: class {label} is {:?}, among the training images {:?}; expected the same classes",
                name(&test_names, label),
                name(&train_names, label)
            );
        }
        let labels: Vec<i64> = known.into_iter().collect();
        let names = labels.iter().map(|&label| name(&train_names, label)).collect();
        Ok(Self { labels, names })
    }

    /// Number of the class with this label; unknown labels were refused before.
    pub fn number(&self, label: i64) -> i64 {
        self.labels.binary_search(&label).map_or(-1, |number| number as i64)
    }

    /// Number of classes.
    pub fn count(&self) -> i64 {
        self.labels.len() as i64
    }
}

/// Splits `images` into a random part that has `take(n)` of the `n` images of every class, and the rest, both in
/// order. The choice depends on `seed` and `part` only; class numbers are those of the data set's labels.
pub fn stratified(
    set: &dyn Dataset,
    images: &[u32],
    (seed, part): (u64, u64),
    take: impl Fn(usize) -> usize,
) -> (Vec<u32>, Vec<u32>) {
    let mut by_class: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
    for &image in images {
        by_class.entry(set.label(image as usize).unwrap_or(-1)).or_default().push(image);
    }
    let (mut chosen, mut rest) = (Vec::new(), Vec::new());
    for (label, mut members) in by_class {
        // Purpose::Subset serves `data.fraction` with index 0 and part 0; parts here begin at 1.
        Stream::new(seed, Purpose::Subset, 0, label as u64, part).shuffle(&mut members);
        let others = members.split_off(take(members.len()).min(members.len()));
        chosen.extend(members);
        rest.extend(others);
    }
    chosen.sort_unstable();
    rest.sort_unstable();
    (chosen, rest)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::pixels::Pixels;

    /// A data set with labels but no images.
    pub struct Labels(pub Vec<i64>, pub Vec<&'static str>);

    impl Dataset for Labels {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn label(&self, index: usize) -> Option<i64> {
            Some(self.0[index])
        }
        fn class_names(&self) -> Vec<String> {
            self.1.iter().map(|name| name.to_string()).collect()
        }
        fn load(&self, _: usize, _: &mut Pixels) -> Result<()> {
            bail!("no images here")
        }
        fn describe(&self, index: usize) -> String {
            format!("image {index}")
        }
        fn name(&self, index: usize) -> String {
            self.describe(index)
        }
        fn fingerprint(&self) -> String {
            String::new()
        }
    }

    #[test]
    fn labels_are_numbered_in_order_and_named() -> Result<()> {
        let train = Labels(vec![7, 2, 2, 900_000_000_000, 7], vec!["", "", "two"]);
        let classes = Classes::of(&train, &Labels(vec![2, 7], vec![]))?;
        assert_eq!(classes.names, ["two", "7", "900000000000"]);
        assert_eq!([2, 7, 900_000_000_000].map(|label| classes.number(label)), [0, 1, 2]);
        Ok(())
    }

    #[test]
    fn sets_that_do_not_fit_are_refused() {
        let train = || Labels(vec![0, 1, 1], vec!["cat", "dog"]);
        let refused = |train: Labels, test: Labels| format!("{:#}", Classes::of(&train, &test).expect_err("refused"));
        let message = refused(train(), Labels(vec![0, 1, 2], vec!["cat", "dog", "emu"]));
        assert_eq!(
            message,
            "data.eval_path: found 3 classes, the training images have 2: none of them is of class emu"
        );
        let message = refused(train(), Labels(vec![1, -1], vec![]));
        assert_eq!(message, "data.eval_path: found no label for image 1, expected one for every image");
        let message = refused(Labels(vec![-1], vec![]), train());
        assert_eq!(message, "data.path: found no label for image 0, expected one for every image");
        let message = refused(Labels(vec![3, 3], vec![]), train());
        assert_eq!(
            message,
            "data.path: found 1 class, expected two or more to tell apart: there is no accuracy to compute"
        );
        assert!(several_classes(&train()) && !several_classes(&Labels(vec![3, 3], vec![])));
        let message = refused(train(), Labels(vec![0, 1], vec!["dog", "cat"]));
        assert!(message.contains("class 0 is \"dog\", among the training images \"cat\""), "{message}");
    }

    #[test]
    fn parts_are_stratified_seeded_and_complete() {
        // 100 images of class 0, 50 of class 1, 5 of class 2, mixed.
        let labels: Vec<i64> = (0..155).map(|i| if i % 31 == 30 { 2 } else { i64::from(i % 3 == 2) }).collect();
        let set = Labels(labels.clone(), vec![]);
        let all: Vec<u32> = (0..155).collect();
        let tenth = |n: usize| (n as f64 * 0.1).round().max(1.0) as usize;
        let (chosen, rest) = stratified(&set, &all, (3, 1), tenth);
        for class in 0..3 {
            let count = |images: &[u32]| images.iter().filter(|&&i| labels[i as usize] == class).count();
            assert_eq!(count(&chosen), tenth(count(&all)), "class {class}");
        }
        let mut both = [chosen.clone(), rest].concat();
        both.sort_unstable();
        assert_eq!(both, all);
        assert!(chosen.is_sorted());
        assert_eq!(stratified(&set, &all, (3, 1), tenth).0, chosen);
        assert_ne!(stratified(&set, &all, (4, 1), tenth).0, chosen);
        assert_ne!(stratified(&set, &all, (3, 2), tenth).0, chosen);
    }
}
