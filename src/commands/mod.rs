//! One module per command: they put the parts together.

pub mod evaluation;
pub mod export;
pub mod extract_features;
pub mod knn_eval;
pub mod linear_eval;
pub mod setup;
pub mod train;
