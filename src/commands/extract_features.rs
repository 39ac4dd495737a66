//! `byol extract-features`: features and labels of a data set, for numpy, scikit-learn and the like.

use std::time::Instant;

use anyhow::Result;
use serde_json::json;

use super::evaluation::{Evaluation, print};
use crate::cli::{ExtractFeaturesArgs, SplitName};
use crate::eval::{FeatureWriter, stream};

/// Runs the command; the value is the process's exit code.
/// # Errors
/// One line: what is wrong, where, and what to do.
pub fn run(args: &ExtractFeaturesArgs) -> Result<u8> {
    let evaluation = Evaluation::open(&args.encoder)?;
    evaluation.end(write(&evaluation, args))
}

fn write(evaluation: &Evaluation, args: &ExtractFeaturesArgs) -> Result<()> {
    let Evaluation { encoder, options, config, .. } = evaluation;
    let (set, split) = match args.split {
        SplitName::Train => (evaluation.train_set()?, "train"),
        SplitName::Eval => (evaluation.test_set()?, "eval"),
    };
    let metadata = json!({
        "byol": env!("CARGO_PKG_VERSION"),
        "checkpoint": encoder.source.display().to_string(),
        "split": split,
        "class_names": serde_json::to_string(&set.class_names())?,
    });
    let dim = encoder.net.feature_dim;
    let mut writer = FeatureWriter::create(&args.output, dim, metadata, args.force)?;
    log::info!("{}", evaluation.encoder_line());
    let (started, indices) = (Instant::now(), (0..set.len() as u32).collect());
    let mut unlabelled = 0;
    stream(encoder, &set, indices, &config.augment, options, "features", |features, batch| {
        unlabelled += batch.labels.iter().filter(|&&label| label < 0).count();
        writer.write(&features, &batch.labels, &batch.indices)
    })?;
    let rows = writer.finish()?;
    let seconds = started.elapsed().as_secs_f64();
    let skipped = match set.len() - rows {
        0 => String::new(),
        count => format!(", {count} unreadable images left out"),
    };
    let unlabelled = match unlabelled {
        0 => String::new(),
        count => format!(", {count} without a label (-1)"),
    };
    print(&format!(
        "{}: {rows} x {dim} features{skipped}{unlabelled}; {seconds:.1} s, {:.0} images/s",
        args.output.display(),
        rows as f64 / seconds
    ))
}
