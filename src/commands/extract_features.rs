//! `byol extract-features`: features, names and labels of a data set's images, for pandas, numpy and the like.

use std::time::Instant;

use anyhow::Result;
use serde_json::json;
use tch::Tensor;

use crate::cli::{ExtractFeaturesArgs, SplitName};
use crate::eval::{FeatureWriter, Images, Table, View, stream};
use crate::run::evaluation::{Evaluation, print};

/// Runs the command; the value is the process's exit code.
pub fn run(args: &ExtractFeaturesArgs) -> Result<u8> {
    let asked = |_: &_| {
        json!({
            "command": "extract-features",
            "--split": format!("{:?}", args.split),
            "--normalize": args.normalize,
        })
    };
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
        "normalized": args.normalize.to_string(),
    });
    let dim = encoder.net.feature_dim;
    let table = Table { dim: dim as usize, classes: set.class_names(), metadata };
    let create = || FeatureWriter::create(&args.output, table, args.force);
    let mut writer = evaluation.is_first().then(create).transpose()?;
    log::info!("{}", evaluation.encoder_line());
    let (started, indices) = (Instant::now(), (0..set.len() as u32).collect());
    let (bar, mut done, mut unlabelled) = (options.bar("features", set.len()), 0, 0);
    let images = Images { dataset: &set, indices, view: View::Plain, augment: &config.augment };
    stream(encoder, images, options, |batch| {
        done += batch.labels.len();
        unlabelled += batch.labels.iter().filter(|&&label| label < 0).count();
        bar.iter().for_each(|bar| bar.set(done));
        let Some(writer) = &mut writer else { return Ok(()) };
        let features = if args.normalize { unit_length(&batch.features)? } else { batch.features };
        let names: Vec<String> = batch.indices.iter().map(|&index| set.name(index as usize)).collect();
        writer.write(&features, &batch.labels, &batch.indices, &names)
    })?;
    drop(bar);
    let Some(writer) = writer else { return Ok(()) };
    let rows = writer.finish()?;
    let seconds = started.elapsed().as_secs_f64();
    let skipped = match set.len() - rows {
        0 => String::new(),
        count => format!(", {count} unreadable images skipped"),
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

/// `torch.nn.functional.normalize`.
fn unit_length(features: &Tensor) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let length = features.f_norm_scalaropt_dim(2, [1], true)?;
    Ok(features.f_div(&length.f_clamp_min(1e-12)?)?)
}
