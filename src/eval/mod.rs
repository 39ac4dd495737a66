//! Is the representation any good? Frozen features, weighted k-nearest-neighbor classification, linear classifiers.

mod accuracy;
mod config;
mod encoder;
mod features;
mod finetune;
mod foreign;
mod knn;
mod labels;
mod linear;
mod probe;
mod store;

pub use crate::model::Represent;
pub use accuracy::{Accuracy, Tally};
pub use config::{FeatureMode, LinearEvalConfig};
pub use encoder::{Branch, Encoder, EncoderOptions};
pub use features::{Encoded, ExtractOptions, Features, Images, Interrupted, View, extract, stream};
pub use knn::{KnnAccuracy, knn, knn_top1};
pub use labels::{Classes, stratified};
pub use linear::{Outcome, Split, Task, Trial};
pub use probe::Probes;
pub use store::FeatureWriter;
