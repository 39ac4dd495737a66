//! `byol bench`: how fast the parts of training are on this machine, each as one line of JSON.

pub mod loader;
mod peaks;
pub mod step;
