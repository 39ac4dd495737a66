//! Weights from files of any trainer: `model.init` and `--checkpoint` read them the same way. [`locate`] says
//! what is at a path, [`WeightFile`] reads a file, [`find`] finds the encoder in it by names and shapes, and
//! [`Start`] begins a run from it. To add a family of encoders, put a file with its names elsewhere next to
//! `resnet.rs`, and add its function to `FAMILIES` in `encoder.rs`.

mod encoder;
mod file;
mod input;
mod layout;
mod locate;
mod named;
mod resnet;
mod start;
mod values;

pub use encoder::{Choice, FoundEncoder, find};
pub use file::{Tensors, WeightFile};
pub use input::adapt_input;
pub use locate::{Place, locate};
pub use start::Start;
pub use values::check_values;
