//! Encoders: loading, evaluating, exporting.

#[path = "../support/mod.rs"]
mod support;

mod channels;
mod commands;
mod encoder;
mod export;
mod export_folders;
mod families;
mod features;
mod layouts;
mod libraries;
mod linear_eval;
mod looking;
mod pytorch;
mod report;
mod trained;
