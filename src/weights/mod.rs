//! Weights from files of any trainer: `model.init` and `--checkpoint` read them the same way. [`locate`] says
//! what is at a path, [`WeightFile`] reads a file, [`find`] finds the encoder in it by names and shapes, and
//! [`Start`] begins a run from it. `names.rs` has what other libraries call
//! the tensors of a ConvNeXt or a ViT. To add a family of encoders, put its names there, or a file next to `resnet.rs`, and
//! add its function to `FAMILIES` in `encoder.rs`.

mod encoder;
mod file;
mod input;
mod layout;
mod locate;
mod named;
mod names;
mod resnet;
mod start;
mod values;

pub use encoder::{Choice, FoundEncoder, find};
pub use file::{Tensors, WeightFile};
pub use input::adapt_input;
pub use locate::{Place, locate};
pub use names::{Library, names, own_names, renamed};
pub use start::Start;
pub use values::check_values;
