//! Is the representation any good? Frozen features and weighted k-nearest-neighbour classification.

mod encoder;
mod features;
mod foreign;
mod knn;

pub use encoder::{Encoder, EncoderOptions, Represent, Which};
pub use features::{ExtractOptions, Features, extract};
pub use knn::knn_top1;
