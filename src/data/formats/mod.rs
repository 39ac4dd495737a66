//! How images are stored: a module per format, and what only formats use.

pub mod cifar;
pub mod image_folder;
mod image_list;
mod index_cache;
mod names;
pub mod parquet;
mod shards;
pub mod stl10;
pub mod synthetic;
mod tar_index;
pub mod textures;
pub mod webdataset;
