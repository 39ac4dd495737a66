//! Formats, decoding and the loader.

#[path = "../support/mod.rs"]
mod support;

mod archives;
mod bands;
mod decoding;
mod dicom;
mod formats;
mod loader;
mod names;
mod pack;
mod pages;
mod parquet;
mod repositories;
mod user_folders;
