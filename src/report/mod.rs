//! `byol report`: runs as one self-contained HTML file. [`run_files`] reads what a run left, [`looks`] encodes its
//! images, [`charts`] draws, and [`page`] fills the template, which escapes every text.

pub mod charts;
mod classes;
mod facts;
mod follow;
pub mod looks;
pub mod page;
mod pictures;
pub mod projection;
pub mod run_files;
pub mod tensorboard;
mod views;

pub use looks::{Extent, Looks};
pub use page::{Look, page};
pub use run_files::{RunFiles, distinguish};
