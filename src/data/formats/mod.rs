//! Data set formats: a module for each, and their helpers. To add one, write its module and add it to [`Format`],
//! [`open_train`] and [`open_eval`].

use std::sync::Arc;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DataConfig, Dataset};

pub mod cifar;
pub mod detect;
pub mod image_folder;
mod image_list;
mod index_cache;
mod labels;
pub(super) mod names;
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

/// `data.format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Generated on the fly; needs no files.
    #[default]
    Synthetic,
    /// Parquet shards with encoded images, as Hugging Face datasets publish them.
    Parquet,
    /// A folder of image files, one subfolder per class or none, or a text file that lists them.
    ImageFolder,
    /// Tar shards as the webdataset tool writes them.
    Webdataset,
    /// The binary version of CIFAR-10.
    Cifar10,
    /// The binary version of CIFAR-100, with its fine labels.
    Cifar100,
    /// The binary version of STL-10.
    Stl10,
}

impl Format {
    /// Whether the held-out images are part of the set.
    pub(super) fn has_own_test_set(self) -> bool {
        matches!(self, Self::Cifar10 | Self::Cifar100 | Self::Stl10)
    }
}

/// Opens all training images.
pub(super) fn open_train(config: &DataConfig) -> Result<Arc<dyn Dataset>> {
    Ok(match config.format {
        Format::Synthetic => Arc::new(synthetic::Synthetic::train(&config.synthetic)),
        Format::Parquet => Arc::new(parquet::Parquet::open_train(config)?),
        Format::ImageFolder => Arc::new(image_folder::ImageFolder::open_train(config)?),
        Format::Webdataset => Arc::new(webdataset::WebDataset::open_train(config)?),
        Format::Cifar10 | Format::Cifar100 => Arc::new(cifar::Cifar::open_train(config)?),
        Format::Stl10 => Arc::new(stl10::Stl10::open_train(config)?),
    })
}

/// Opens the held-out images, all of them, with labels of the same meaning; `None` if the
/// configuration names none and none are found beside the training images.
pub(super) fn open_eval(config: &DataConfig) -> Result<Option<Arc<dyn Dataset>>> {
    Ok(match config.format {
        Format::Synthetic => Some(Arc::new(synthetic::Synthetic::eval(&config.synthetic))),
        Format::Parquet => parquet::Parquet::open_eval(config)?.map(|set| Arc::new(set) as _),
        Format::ImageFolder => image_folder::ImageFolder::open_eval(config)?.map(|set| Arc::new(set) as _),
        Format::Webdataset => webdataset::WebDataset::open_eval(config)?.map(|set| Arc::new(set) as _),
        Format::Cifar10 | Format::Cifar100 => cifar::Cifar::open_eval(config)?.map(|set| Arc::new(set) as _),
        Format::Stl10 => stl10::Stl10::open_eval(config)?.map(|set| Arc::new(set) as _),
    })
}
