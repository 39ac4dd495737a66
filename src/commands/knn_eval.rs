//! `byol knn-eval`: weighted nearest neighbors of the held-out images among the training images.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::cli::KnnEvalArgs;
use crate::eval::{Classes, extract, knn};
use crate::run::evaluation::{Evaluation, print};

/// Runs the command; the value is the process's exit code.
/// # Errors
/// One line: what is wrong, where, and what to do.
pub fn run(args: &KnnEvalArgs) -> Result<u8> {
    // The range of monitor.knn_temperature: beyond it all weights but the first vanish, or none differs.
    let temperature = args.temperature;
    ensure!((0.001..=100.0).contains(&temperature), "--temperature: found {temperature:?}, expected 0.001 to 100");
    for (at, k) in args.k.iter().enumerate() {
        ensure!(!args.k[..at].contains(k), "--k: found {k} twice, expected different numbers");
    }
    let asked = |_: &_| json!({"command": "knn-eval", "--k": args.k, "--temperature": args.temperature});
    Evaluation::run(&args.encoder, asked, |evaluation| classify(evaluation, args))
}

fn classify(evaluation: &Evaluation, args: &KnnEvalArgs) -> Result<()> {
    let Evaluation { encoder, options, config, .. } = evaluation;
    let (train, test) = (evaluation.labelled_train_set()?, evaluation.held_out()?);
    // Before minutes of work: can it be done?
    let others = train.len() - usize::from(test.is_none());
    for &k in &args.k {
        ensure!(
            (1..=others).contains(&k),
            "--k: found {k}, expected 1 to {others}, the number of training images to compare with"
        );
    }
    Classes::of(&*train, &**test.as_ref().unwrap_or(&train))?;
    evaluation.check_memory(train.len(), "lower data.limit")?;
    log::info!("{}", evaluation.encoder_line());
    let started = Instant::now();
    let features = |set: &std::sync::Arc<_>, what| {
        let set: &std::sync::Arc<dyn crate::data::Dataset> = set;
        extract(encoder, set, (0..set.len() as u32).collect(), &config.augment, options, what)
    };
    let bank = features(&train, "features of the training images")?;
    let queries = test.as_ref().map(|set| features(set, "features of the held-out images")).transpose()?;
    let count = queries.as_ref().unwrap_or(&bank).labels.len();
    let bar = options.bar("nearest neighbors: images", count);
    let results = knn(&bank, queries.as_ref(), &args.k, args.temperature, Some(evaluation.group()), &mut |done| {
        bar.iter().for_each(|bar| bar.set(done));
        options.check()
    })
    .context("knn-eval")?;
    drop(bar);
    let images_skipped = evaluation.images_skipped()?;
    if !evaluation.is_first() {
        return Ok(());
    }
    let seconds = started.elapsed().as_secs_f64();
    let against = match &queries {
        Some(_) => format!("{count} held-out images, {} training images", bank.labels.len()),
        None => format!("{count} training images, each by the others (no held-out images: data.eval_path)"),
    };
    if args.json {
        let report = json!({
            "checkpoint": encoder.source,
            "training_images": bank.labels.len(),
            "test_images": count,
            "leave_one_out": queries.is_none(),
            "temperature": args.temperature,
            "results": results,
            "images_skipped": images_skipped,
            "seconds": seconds,
        });
        return print(&serde_json::to_string_pretty(&report)?);
    }
    let mut text = format!(
        "{}\nweighted k-NN, cosine, temperature {}: {against}; {seconds:.1} s\n\n{:>6}  {:>8}  {:>8}\n",
        evaluation.encoder_line(),
        args.temperature,
        "k",
        "top-1",
        "top-5"
    );
    for result in results {
        text += &format!("{:>6}  {:>6.2} %  {:>6.2} %\n", result.k, 100.0 * result.top1, 100.0 * result.top5);
    }
    print(&text)
}
