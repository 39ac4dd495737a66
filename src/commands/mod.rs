//! One module per command: they put the parts together.

pub mod setup;
pub mod train;
