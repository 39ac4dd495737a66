//! BYOL pre-training of vision encoders (Bootstrap Your Own Latent, arXiv 2006.07733) on libtorch.
//!
//! A YAML file becomes a [`config`]; [`data`] reads images and, through [`augment`], makes two views of each;
//! [`train`] moves the online and the target [`model`] with [`optim`] and [`ema`]; [`checkpoint`] keeps what
//! a run needs to go on. [`eval`] tells what an encoder is worth, [`export`] writes it for other software,
//! [`preview`] draws the views, [`dist`] makes several processes one run. Read `src/train/step.rs` first: it is the paper's algorithm.

pub mod augment;
pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod dist;
pub mod ema;
pub mod eval;
pub mod export;
pub mod files;
pub mod logging;
pub mod loss;
pub mod model;
pub mod optim;
pub mod pixels;
pub mod preview;
pub mod rng;
pub mod train;
