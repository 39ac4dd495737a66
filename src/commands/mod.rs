//! One module per command: they put the parts together.

pub mod bench;
pub mod export;
pub mod preview;
pub mod setup;
pub mod train;
