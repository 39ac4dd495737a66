//! Encoders: loading, evaluating, exporting.

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod encoder;
mod export;
mod families;
mod pytorch;
