//! Representations of a data set by a frozen encoder.

use std::sync::Arc;

use anyhow::{Result, bail};
use tch::Tensor;

use super::Represent;
use crate::augment::AugmentConfig;
use crate::backend;
use crate::data::Dataset;
use crate::data::loader::{BadImages, EvalLoader, LoaderOptions};

/// Features and labels of some images, row by row.
#[derive(Debug)]
pub struct Features {
    /// `[N, feature_dim]`, fp32.
    pub values: Tensor,
    /// Class of each row, -1 where unknown.
    pub labels: Vec<i64>,
}

/// How to go through the images.
#[derive(Clone)]
pub struct ExtractOptions {
    /// Images per forward pass.
    pub batch_size: usize,
    /// Threads and prefetching.
    pub loader: LoaderOptions,
    /// Bad images: left out and counted, or fatal.
    pub bad: Arc<BadImages>,
    /// Memory layout of the images, that of the weights.
    pub channels_last: bool,
    /// Asked between batches: give up?
    pub interrupted: Arc<dyn Fn() -> bool>,
}

/// Features of the images at `indices` by a frozen encoder, without augmentation.
/// # Errors
/// Unreadable images where the options say `fail`; what libtorch says.
pub fn extract(
    encoder: &impl Represent,
    dataset: &Arc<dyn Dataset>,
    indices: Vec<u32>,
    augment: &AugmentConfig,
    options: &ExtractOptions,
) -> Result<Features> {
    let _no_grad = tch::no_grad_guard();
    let size = augment.size as i64;
    let loader = EvalLoader::new(
        dataset.clone(),
        augment.clone(),
        indices,
        options.batch_size,
        options.bad.clone(),
        options.loader,
    )?;
    let (mut values, mut labels) = (Vec::new(), Vec::new());
    for batch in loader {
        let batch = batch?;
        if (options.interrupted)() {
            bail!("interrupted by a signal");
        }
        let shape = [batch.labels.len() as i64, size, size, 3];
        let images = backend::normalised(
            &batch.pixels,
            shape,
            augment.mean,
            augment.std,
            encoder.device(),
            !options.channels_last,
        )?;
        values.push(encoder.represent(&images)?);
        labels.extend(batch.labels);
    }
    let values = if values.is_empty() {
        Tensor::zeros([0, encoder.feature_dim()], (tch::Kind::Float, encoder.device()))
    } else {
        Tensor::f_cat(&values, 0)?
    };
    Ok(Features { values, labels })
}
