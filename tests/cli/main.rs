//! The command line, configs, the terminal.

#[path = "../support/mod.rs"]
mod support;

mod bench;
mod config;
mod config_bad;
mod config_types;
mod gpu_check;
mod preview;
mod special_files;
mod terminal;
