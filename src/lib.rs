//! BYOL pre-training of vision encoders (Bootstrap Your Own Latent, arXiv 2006.07733) on libtorch.
//!
//! [`config`] parses the YAML file of a run. [`data`] reads the images and uses [`augment`] to make two views of each.
//! [`byol`] is the algorithm, and [`train`] is the training loop. Start with [`byol`]'s `step.rs`: it is Algorithm 1 of
//! the paper. The user's guide is in [`guide`].
//!
//! The modules, from lowest to highest layer. A module may import only from those above it in this list, which the test
//! `tests/house/layers.rs` enforces. C, C++ and all calls into them are in a separate crate below these layers
//! (`src/native`).
//!
//! ```text
//! guide         the user's guide, text only
//! rng           random numbers as functions of (seed, purpose, epoch, index)
//! pixels        an image in memory
//! pytorch       reads and writes files of torch.save without Python
//! section       what all config sections share
//! files         atomic file writes, paths
//! signals       SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGHUP
//! logging       terminal output, metrics.jsonl, TensorBoard
//! augment       crops, flips, colors, blur: a view of an image
//! drawing       images with lines of text, drawn into one image
//! preview       views side by side in one image
//! sheet         a contact sheet: images in rows, with captions
//! data          formats, decoding, the parallel loader, packing
//! inspect       what is in a data set
//! model         encoders, heads, named parameters
//! optim         LARS, SGD, AdamW, schedules
//! distributed   data-parallel training with several processes
//! byol          online and target networks, training step, loss, moving average
//! checkpoint    saving and loading a run's state
//! weights       encoders in files, of any trainer; the weights that a run starts from
//! eval          features, k-NN, linear classifiers, fine-tuning
//! export        export of encoders: safetensors, TorchScript, ONNX
//! train         the training loop
//! config        the YAML config file with all sections
//! cli           the command line
//! run           code shared by the commands: hardware, processes, resuming, summaries
//! choose        chooses a config for the images and the machine
//! report        runs as one HTML page
//! commands      one file per command
//! ```

use std::sync::OnceLock;

pub mod augment;
pub mod byol;
pub mod checkpoint;
pub mod choose;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod distributed;
pub mod drawing;
pub mod eval;
pub mod export;
pub mod files;
pub mod guide;
pub mod inspect;
pub mod logging;
pub mod model;
pub mod optim;
pub mod pixels;
pub mod preview;
pub mod pytorch;
pub mod report;
pub mod rng;
pub mod run;
pub mod section;
pub mod sheet;
pub mod signals;
pub mod train;
pub mod weights;

static COMMIT: OnceLock<&str> = OnceLock::new();

/// Tells the library the commit that the program was built from: the program alone is compiled again after a commit.
pub fn set_commit(commit: &'static str) {
    COMMIT.get_or_init(|| commit);
}

/// The commit that the program was built from, with `-changed` appended if the sources were modified; `unknown` if it
/// was built without `scripts/byol` or git.
pub fn commit() -> &'static str {
    COMMIT.get().unwrap_or(&"unknown")
}
