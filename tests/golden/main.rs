//! Numbers against PyTorch, torchvision and scikit-learn, from the fixtures of scripts/reference.

#[path = "../support/mod.rs"]
mod support;

mod augment;
mod families;
mod mmpretrain_order;
mod model;
mod probe;
mod quality;
mod same_weights;
mod sync_batchnorm;
mod training;
mod views;
