//! Parts of libtorch that tch does not bind.

pub mod batch_norm;
pub mod contention;
pub mod cuda;
pub mod foreach;
pub mod graph;
pub mod normalize;
pub mod observer;
pub mod shim;
pub mod stream;
