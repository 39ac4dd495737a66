//! `byol knn-eval`: weighted nearest neighbors of the held-out images among the training images.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::cli::KnnEvalArgs;
use crate::data::Dataset;
use crate::eval::{Classes, KnnAccuracy, extract, knn};
use crate::run::evaluation::{Evaluation, print};

/// Runs the command; the value is the process's exit code.
pub fn run(args: &KnnEvalArgs) -> Result<u8> {
    // The range of monitor.knn_temperature: outside of it all weights but the first vanish, or all are equal.
    let temperature = args.temperature;
    ensure!((0.001..=100.0).contains(&temperature), "--temperature: found {temperature:?}, expected 0.001 to 100");
    for (at, k) in args.k.iter().enumerate() {
        ensure!(*k > 0, "--k: found 0, expected 1 or more");
        ensure!(!args.k[..at].contains(k), "--k: found {k} twice, expected different numbers");
    }
    let asked = |_: &_| json!({"command": "knn-eval", "--k": args.k, "--temperature": args.temperature});
    Evaluation::run(&args.encoder, asked, |evaluation| classify(evaluation, args))
}

fn classify(evaluation: &Evaluation, args: &KnnEvalArgs) -> Result<()> {
    let Evaluation { encoder, options, config, .. } = evaluation;
    let (train, test) = (evaluation.labeled_train_set()?, evaluation.labeled_held_out()?);
    // Checked before minutes of work.
    Classes::of(&*train, &**test.as_ref().unwrap_or(&train))?;
    evaluation.check_memory(train.len(), "lower data.limit")?;
    log::info!("{}", evaluation.encoder_line());
    let started = Instant::now();
    let features = |set: &Arc<dyn Dataset>, what| {
        extract(encoder, set, (0..set.len() as u32).collect(), &config.augment, options, what)
    };
    let bank = features(&train, "features of the training images")?;
    let queries = test.as_ref().map(|set| features(set, "features of the held-out images")).transpose()?;
    let count = queries.as_ref().unwrap_or(&bank).labels.len();
    let ks = available(&args.k, bank.labels.len() - usize::from(queries.is_none()), evaluation.is_first());
    let bar = options.bar("nearest neighbors: images", count);
    let results = knn(&bank, queries.as_ref(), &ks, args.temperature, Some(evaluation.group()), &mut |done| {
        bar.iter().for_each(|bar| bar.set(done));
        options.check()
    })
    .context("knn-eval")?;
    drop(bar);
    let report = json!({
        "checkpoint": encoder.source,
        "training_images": bank.labels.len(),
        "test_images": count,
        "leave_one_out": queries.is_none(),
        "temperature": args.temperature,
        "results": results,
        "images_skipped": evaluation.images_skipped()?,
        "seconds": started.elapsed().as_secs_f64(),
    });
    match evaluation.is_first() {
        true if args.json => print(&serde_json::to_string_pretty(&report)?),
        true => print(&table(&evaluation.encoder_line(), &report, &results)),
        false => Ok(()),
    }
}

/// The values of k that there are enough images for, without duplicates.
fn available(ks: &[usize], images: usize, speaks: bool) -> Vec<usize> {
    let mut found = Vec::new();
    for &k in ks {
        if k > images && speaks {
            log::warn!("k = {k}: there are {images} training images to compare with; k = {images} is used");
        }
        if !found.contains(&k.min(images)) {
            found.push(k.min(images));
        }
    }
    found
}

/// The report for humans.
fn table(encoder: &str, report: &serde_json::Value, results: &[KnnAccuracy]) -> String {
    let against = match report["leave_one_out"] == true {
        false => format!("{} held-out images, {} training images", report["test_images"], report["training_images"]),
        true => {
            format!("{} training images, leave-one-out (no held-out images: data.eval_path)", report["test_images"])
        }
    };
    let top5 = results.iter().any(|result| result.top5.is_some());
    let mut text = format!(
        "{encoder}\nweighted k-NN, cosine, temperature {}: {against}; {:.1} s\n\n{:>6}  {:>8}  {:>8}{}\n",
        report["temperature"],
        report["seconds"].as_f64().unwrap_or(0.0),
        "k",
        "top-1",
        "balanced",
        if top5 { "     top-5" } else { "" }
    );
    for KnnAccuracy { k, top1, balanced_top1, top5 } in results {
        let top5 = top5.map_or(String::new(), |top5| format!("  {:>6.2} %", 100.0 * top5));
        text += &format!("{k:>6}  {:>6.2} %  {:>6.2} %{top5}\n", 100.0 * top1, 100.0 * balanced_top1);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbors_are_as_many_as_there_are_images() {
        assert_eq!(available(&[10, 20, 200], 15, false), [10, 15]);
        assert_eq!(available(&[1, 5], 5, false), [1, 5]);
    }
}
