//! The sources and the README.

#[path = "../support/mod.rs"]
mod support;

mod readme;
mod unsafe_code;
