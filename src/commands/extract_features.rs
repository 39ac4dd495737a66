//! `byol extract-features`: features and labels of a data set, for numpy, scikit-learn and the like.

use std::time::Instant;

use anyhow::Result;
use serde_json::json;

use crate::cli::{ExtractFeaturesArgs, SplitName};
use crate::eval::{FeatureWriter, Images, View, stream};
use crate::run::evaluation::{Evaluation, print};

/// Runs the command; the value is the process's exit code.
pub fn run(args: &ExtractFeaturesArgs) -> Result<u8> {
    let asked = |_: &_| json!({"command": "extract-features", "--split": format!("{:?}", args.split)});
    Evaluation::run(&args.encoder, asked, |evaluation| write(evaluation, args))
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
    let create = || FeatureWriter::create(&args.output, dim, metadata, args.force);
    let mut writer = evaluation.is_first().then(create).transpose()?;
    log::info!("{}", evaluation.encoder_line());
    let (started, indices) = (Instant::now(), (0..set.len() as u32).collect());
    let (bar, mut done, mut unlabeled) = (options.bar("features", set.len()), 0, 0);
    let images = Images { dataset: &set, indices, view: View::Plain, augment: &config.augment };
    stream(encoder, images, options, |batch| {
        done += batch.labels.len();
        unlabeled += batch.labels.iter().filter(|&&label| label < 0).count();
        bar.iter().for_each(|bar| bar.set(done));
        writer.as_mut().map_or(Ok(()), |writer| writer.write(&batch.features, &batch.labels, &batch.indices))
    })?;
    drop(bar);
    let Some(writer) = writer else { return Ok(()) };
    let rows = writer.finish()?;
    let seconds = started.elapsed().as_secs_f64();
    let skipped = match set.len() - rows {
        0 => String::new(),
        count => format!(", {count} unreadable images skipped"),
    };
    let unlabeled = match unlabeled {
        0 => String::new(),
        count => format!(", {count} without a label (-1)"),
    };
    print(&format!(
        "{}: {rows} x {dim} features{skipped}{unlabeled}; {seconds:.1} s, {:.0} images/s",
        args.output.display(),
        rows as f64 / seconds
    ))
}
