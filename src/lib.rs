//! BYOL pre-training of vision encoders (Bootstrap Your Own Latent, arXiv 2006.07733) on libtorch.
//!
//! A YAML file becomes a [`config`]; [`data`] reads images and, through [`augment`], makes two views of each; [`byol`]
//! is the algorithm, [`train`] the loop around it. Read [`byol`]'s `step.rs` first: it is Algorithm 1 of the paper.
//!
//! The map, from the ground up. A module imports only from lines above its own, and a test keeps it so
//! (`tests/house/layers.rs`). All unsafe code, C and C++ is below that, in a crate of its own
//! (`src/native`).
//!
//! ```text
//! rng           random numbers as functions of (seed, purpose, epoch, index)
//! pixels        an image in memory
//! pytorch       files of torch.save, read without Python
//! section       what sections of the config have in common
//! files         files written atomically, paths
//! signals       SIGINT, SIGTERM, SIGUSR1
//! logging       the terminal, metrics.jsonl, TensorBoard
//! augment       crops, flips, colors, blur: a view of an image
//! preview       views drawn side by side
//! data          formats, decoding, the parallel loader
//! model         encoders, heads, named parameters
//! optim         LARS, SGD, AdamW, schedules
//! distributed   several processes as one
//! byol          online and target networks, the step, the loss, the moving average
//! checkpoint    a run on disk
//! eval          features, k-NN, linear classifiers, fine-tuning
//! export        encoders for other software
//! train         the training loop
//! config        a YAML file of all sections
//! cli           the command line
//! run           what commands share: the machine, the processes, resuming, summaries
//! commands      one file per command
//! ```

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
pub mod section;
pub mod signals;
pub mod train;

/// The commit this program was built from, with `-changed` if there were uncommitted changes; `unknown` without git.
pub const COMMIT: &str = env!("BYOL_COMMIT");
