//! Several processes as one.

#[path = "../support/mod.rs"]
mod support;

mod evaluate;
mod launchers;
mod train;
