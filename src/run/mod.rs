//! What commands share: the machine, the processes, starting and resuming a run, opening an encoder with its data.

pub mod evaluation;
pub mod gpu_peaks;
pub mod image_list;
pub mod images;
pub mod machine;
pub mod memory;
pub mod pictures;
pub mod ranks;
pub mod resume;
pub mod summary;
pub mod trial;
