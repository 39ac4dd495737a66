//! One module per command: they put the parts together.

pub mod bench;
pub mod evaluation;
pub mod export;
pub mod extract_features;
pub mod knn_eval;
pub mod linear_eval;
pub mod preview;
pub mod ranks;
pub mod setup;
pub mod train;
