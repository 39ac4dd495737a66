//! How many updates a run needs, judging by published runs, and how many images BatchNorm needs.

use crate::augment::Size;

/// What a run is, as far as its length goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// Drawn images: a demonstration.
    Demonstration,
    /// Images of some 32 px.
    Small,
    /// Larger images.
    Large,
}

impl RunKind {
    /// For views of this size, of drawn images or not.
    pub fn new(drawn: bool, size: Size) -> Self {
        match (drawn, size.long()) {
            (true, _) => Self::Demonstration,
            (false, ..=48) => Self::Small,
            (false, _) => Self::Large,
        }
    }

    /// The number of updates below which a run of this kind is known to fall short, and how that is known: k-NN
    /// accuracies of lightly's benchmarks.
    pub fn needs(self) -> Option<(u64, &'static str)> {
        match self {
            Self::Demonstration => None,
            Self::Small => Some((20_000, "CIFAR-10: k-NN 86.8 % after 20 000 updates, 91.0 % after 78 000")),
            Self::Large => Some((30_000, "Imagenette: k-NN 70.5 % after 7 400 updates, 88.7 % after 30 000")),
        }
    }
}

/// Warns of a run of fewer updates than its kind is known to need.
pub fn warn_if_few(updates: u64, kind: &RunKind) {
    if let Some((needed, why)) = kind.needs().filter(|(needed, _)| updates < *needed) {
        log::warn!("{updates} updates are few, published runs needed about {needed} ({why}); train longer");
    }
}

/// Images that BatchNorm should see.
pub const BATCH_NORM_IMAGES: usize = 128;

/// Warns where BatchNorm's statistics are over too few images.
pub fn warn_of_batch_norm(images: usize, kind: &RunKind) {
    if images < BATCH_NORM_IMAGES && *kind != RunKind::Demonstration {
        log::warn!(
            "BatchNorm sees {images} images (train.batch_size / accumulation_steps), at least {BATCH_NORM_IMAGES} are \
             better (ImageNet, 300 epochs: 256 -> 71.8 %, 128 -> 69.6 %, 64 -> 59.7 %; paper, table 16)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_number() {
        let needs = |drawn, size: usize| RunKind::new(drawn, size.into()).needs().map(|(updates, _)| updates);
        assert_eq!([needs(true, 32), needs(false, 32), needs(false, 64)], [None, Some(20_000), Some(30_000)]);
    }
}
