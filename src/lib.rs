//! BYOL pre-training of vision encoders (Bootstrap Your Own Latent, arXiv 2006.07733) on libtorch.
//!
//! A YAML file becomes a [`config`]; [`data`] reads images and, through [`augment`], makes two views of each;
//! [`train`] moves the online and the target [`model`] with [`optim`]; [`checkpoint`] keeps what
//! a run needs to go on. [`eval`] tells what an encoder is worth, [`export`] writes it for other software,
//! [`preview`] draws the views, [`distributed`] makes several processes one run. Read `src/byol/step.rs` first: it is the paper's algorithm.

pub mod augment;
pub mod byol;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod distributed;
pub mod eval;
pub mod export;
pub mod files;
pub mod logging;
pub mod model;
pub mod optim;
pub mod pixels;
pub mod preview;
pub mod pytorch;
pub mod rng;
pub mod run;
pub mod signals;
pub mod train;

/// The commit this program was built from, `-changed` after it if the sources were; `unknown` without git.
pub const COMMIT: &str = env!("BYOL_COMMIT");
