//! Is the representation any good? Frozen features and weighted k-nearest-neighbour classification.

mod features;
mod knn;

pub use features::{ExtractOptions, Features, extract};
pub use knn::knn_top1;
