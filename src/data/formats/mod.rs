//! Data set formats: a module for each, and their helpers.

pub mod cifar;
pub mod detect;
pub mod image_folder;
mod image_list;
mod index_cache;
mod labels;
mod names;
pub mod parquet;
mod shards;
mod splits;
pub mod stl10;
pub mod synthetic;
mod tar_index;
mod tar_member;
mod tar_report;
pub mod textures;
mod unread;
pub mod webdataset;
