//! The training loop around a step of [`byol`](crate::byol); [`steps`] is the loop itself.

mod config;
mod executor;
mod feed;
mod hours;
mod interval;
mod monitor;
mod non_finite;
mod plan;
mod quality;
mod run_folder;
mod saving;
mod steps;
mod trainer;
pub mod trend;
pub mod updates;

pub use config::{CudaGraph, MonitorConfig, OnWriteError, OutputConfig, Precision, QualityEvery, TrainConfig};
pub use executor::Executor;
pub use feed::Feed;
pub use hours::Hours;
pub use monitor::{CollapseWatch, KnnWatch};
pub use non_finite::{Guard, OnNonFinite, Stepped};
pub use plan::Plan;
pub use quality::{QualityCost, QualityPlan, QualityWatch};
pub use run_folder::RunFolder;
pub use saving::Saver;
pub use trainer::{Ending, Outcome, Trainer};
