//! The command line, configs, the terminal.

#[path = "../support/mod.rs"]
mod support;

mod bench;
mod check;
mod choose;
mod config;
mod config_bad;
mod config_types;
mod examples;
mod gpu_check;
mod preview;
mod special_files;
mod terminal;
