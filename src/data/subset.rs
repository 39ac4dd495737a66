//! A part of a data set. The choice does not depend on the run's seed, so runs that differ in
//! their seed only still train on the same images.

use std::sync::Arc;

use anyhow::Result;

use super::{Dataset, PartFor, digest};
use crate::augment::Part;
use crate::pixels::Pixels;
use crate::rng::{Purpose, Stream};

struct Subset {
    inner: Arc<dyn Dataset>,
    indices: Vec<u32>,
}

/// Keeps a random `fraction` in (0, 1] of the images (rounded, at least one, in their old
/// order), then the first `limit` of those. `None` keeps all.
pub fn subset(inner: Arc<dyn Dataset>, fraction: Option<f64>, limit: Option<usize>) -> Result<Arc<dyn Dataset>> {
    let len = inner.len();
    anyhow::ensure!(len <= u32::MAX as usize, "found {len} images, expected at most {}", u32::MAX);
    if fraction.is_none() && limit.is_none_or(|limit| limit >= len) {
        return Ok(inner);
    }
    let mut indices: Vec<u32> = (0..len as u32).collect();
    if let Some(fraction) = fraction {
        Stream::new(0, Purpose::Subset, 0, 0, 0).shuffle(&mut indices);
        indices.truncate(((len as f64 * fraction).round() as usize).max(1));
        indices.sort_unstable();
    }
    indices.truncate(limit.unwrap_or(len));
    indices.shrink_to_fit();
    Ok(Arc::new(Subset { inner, indices }))
}

/// Positions of `count` of `len` images (all if there are fewer), in order: one at random from each of as many equal
/// parts, so that sets sorted by class show all classes, and so do sets whose classes alternate. The same in every run.
pub fn spread(len: usize, count: usize) -> Vec<u32> {
    let parts = count.min(len);
    let mut rng = Stream::new(0, Purpose::Subset, 0, 0, 1);
    let bound = |part: usize| part * len / parts;
    (0..parts).map(|part| (bound(part) + rng.below(bound(part + 1) - bound(part))) as u32).collect()
}

/// Keeps the images with a label; `None` if there are none.
pub fn labeled(inner: Arc<dyn Dataset>) -> Option<Arc<dyn Dataset>> {
    let indices: Vec<u32> = (0..inner.len()).filter(|&at| inner.label(at).is_some()).map(|at| at as u32).collect();
    match indices.len() {
        0 => None,
        all if all == inner.len() => Some(inner),
        _ => Some(Arc::new(Subset { inner, indices })),
    }
}

impl Dataset for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn label(&self, index: usize) -> Option<i64> {
        self.inner.label(self.indices[index] as usize)
    }

    fn class_names(&self) -> Vec<String> {
        self.inner.class_names()
    }

    fn load(&self, index: usize, out: &mut Pixels) -> Result<()> {
        self.inner.load(self.indices[index] as usize, out)
    }

    fn load_part(&self, index: usize, want: &mut PartFor, out: &mut Pixels) -> Result<Part> {
        self.inner.load_part(self.indices[index] as usize, want, out)
    }

    fn with_encoded(&self, index: usize, work: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        self.inner.with_encoded(self.indices[index] as usize, work)
    }

    fn clipped(&self) -> [u64; 2] {
        self.inner.clipped()
    }

    fn describe(&self, index: usize) -> String {
        self.inner.describe(self.indices[index] as usize)
    }

    fn name(&self, index: usize) -> String {
        self.inner.name(self.indices[index] as usize)
    }

    fn fingerprint(&self) -> String {
        let own = self.indices.iter().map(|index| index.to_string());
        digest([self.inner.fingerprint()].into_iter().chain(own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::formats::synthetic::{Synthetic, SyntheticConfig};

    fn labels(fraction: Option<f64>, limit: Option<usize>) -> Vec<String> {
        let config = SyntheticConfig { images: 1000, ..Default::default() };
        let set = subset(Arc::new(Synthetic::train(&config)), fraction, limit).unwrap();
        (0..set.len()).map(|index| set.describe(index)).collect()
    }

    #[test]
    fn takes_a_fixed_share_in_order_then_the_first() {
        let all = labels(None, None);
        let tenth = labels(Some(0.1), None);
        assert_eq!((all.len(), tenth.len()), (1000, 100));
        assert_eq!(tenth, labels(Some(0.1), None));
        let positions: Vec<_> = tenth.iter().map(|name| all.iter().position(|other| other == name).unwrap()).collect();
        assert!(positions.is_sorted() && positions[99] > 900 && positions[0] < 100);
        assert_eq!(labels(Some(0.1), Some(7)), tenth[..7]);
        assert_eq!(labels(None, Some(7)), all[..7]);
        assert_eq!(labels(None, Some(5000)), all);
        assert_eq!(labels(Some(1e-9), None).len(), 1);
    }

    #[test]
    fn fingerprint_depends_on_the_choice() {
        let config = SyntheticConfig { images: 100, ..Default::default() };
        let print = |limit| {
            let set = Arc::new(Synthetic::train(&config));
            subset(set, None, limit).unwrap().fingerprint()
        };
        assert_ne!(print(None), print(Some(50)));
        assert_ne!(print(Some(49)), print(Some(50)));
    }
    #[test]
    fn images_are_spread_over_the_set_and_over_classes_that_alternate() {
        for (len, wanted) in [(50_000, 8), (9, 8), (8, 8), (3, 8), (1, 64), (0, 5)] {
            let chosen = spread(len, wanted);
            let parts = chosen.len();
            assert_eq!((parts, &chosen), (wanted.min(len), &spread(len, wanted)));
            let in_its_part =
                |(part, &at): (usize, &u32)| (part * len / parts..(part + 1) * len / parts).contains(&(at as usize));
            assert!(chosen.iter().enumerate().all(in_its_part), "{chosen:?}");
        }
        let classes: std::collections::BTreeSet<u32> = spread(1000, 100).iter().map(|at| at % 10).collect();
        assert_eq!(classes.len(), 10);
    }
}
