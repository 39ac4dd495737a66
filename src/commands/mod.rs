//! One module per command: they put the parts together.

pub mod bench;
pub mod preview;
pub mod train;
