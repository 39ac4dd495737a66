//! Evaluating representations: frozen features, weighted k-nearest-neighbor classification, linear classifiers.

mod accuracy;
mod branch;
mod config;
mod curvature;
mod encoder;
mod features;
mod finetune;
mod knn;
mod labels;
mod lbfgs;
mod linear;
mod logistic;
mod metadata;
mod nearest;
mod parallel;
mod probe;
mod quality;
mod sgd;
mod softmax;
mod store;
mod transfer;

pub use crate::model::Represent;
pub use accuracy::{Accuracy, Tally};
pub use branch::Branch;
pub use config::{ClassWeights, FeatureMode, LinearEvalConfig, Solver};
pub use encoder::{Encoder, EncoderOptions};
pub use features::{Encoded, ExtractOptions, Features, Images, Interrupted, View, extract, extract_views, stream};
pub use knn::{KnnAccuracy, knn, knn_top1};
pub use labels::{Classes, several_classes, stratified};
pub use linear::{FOLDS, Outcome, Protocol, Setting, Split, Task, Trial};
pub use logistic::{Classifier, Fit, Logistic};
pub use nearest::{Nearest, duplicates};
pub use probe::Probes;
pub use quality::ViewPairs;
pub use store::{FeatureWriter, Table};
