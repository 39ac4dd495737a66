//! One module per command: they put the parts together.

pub mod bench_loader;
pub mod bench_step;
pub mod check;
pub mod completions;
pub mod config;
pub mod configs;
pub mod data;
pub mod duplicates;
pub mod export_encoder;
pub mod extract_features;
pub mod knn_eval;
pub mod linear_eval;
pub mod man;
pub mod neighbors;
pub mod pack;
pub mod preview;
pub mod report;
pub mod train;
