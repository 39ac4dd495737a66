//! `byol linear-eval`: how much a linear classifier, or a fine-tuned network, makes of an encoder.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::json;

use crate::checkpoint::{check_output, write_file};
use crate::cli::LinearEvalArgs;
use crate::config::Config;
use crate::eval::{Classes, Encoder, Outcome, Split, Task, Trial};
use crate::logging;
use crate::run::evaluation::{Evaluation, print};

/// Classes shown in the table from either end of the ranking, where there are many.
const SHOWN: usize = 10;

/// Runs the command; the value is the process's exit code.
/// # Errors
/// One line: what is wrong, where, and what to do.
pub fn run(args: &LinearEvalArgs) -> Result<u8> {
    if let Some(fraction) = args.fraction {
        let right = fraction > 0.0 && fraction < 1.0;
        ensure!(right, "--fraction: found {fraction}, expected above 0 and below 1; leave it out to use all labels");
    }
    if let Some(path) = &args.output {
        check_output(path, args.force)?;
    }
    let asked = |config: &Config| {
        json!({
            "command": "linear-eval",
            "--fraction": args.fraction,
            "--finetune": args.finetune,
            "--random-baseline": args.random_baseline,
            "linear_eval": config.linear_eval,
        })
    };
    Evaluation::run(&args.encoder, asked, |evaluation| evaluate(evaluation, args))
}

/// The accuracy of a class.
#[derive(Clone, Serialize)]
struct Class {
    name: String,
    images: i64,
    /// 0 to 1; none without images.
    top1: Option<f64>,
}

/// What one encoder came to.
#[derive(Serialize)]
struct Scores {
    top1: f64,
    /// None with five classes or fewer.
    top5: Option<f64>,
    learning_rate: f64,
    peak_learning_rate: f64,
    epochs: u64,
    trials: Vec<Trial>,
    per_class: Vec<Class>,
    /// In all.
    seconds: f64,
    /// Of those, for training; with cached features the rest is their computation.
    training_seconds: f64,
}

/// `linear_eval.json`.
#[derive(Serialize)]
struct Report {
    checkpoint: PathBuf,
    step: Option<u64>,
    encoder: String,
    feature_dim: i64,
    /// cached, augmented or finetune.
    features: &'static str,
    protocol: String,
    fraction: Option<f64>,
    training_images: usize,
    validation_images: usize,
    test_images: usize,
    images_skipped: usize,
    classes: i64,
    batch_size: usize,
    seed: u64,
    refit: bool,
    device: String,
    precision: &'static str,
    #[serde(flatten)]
    scores: Scores,
    random_baseline: Option<Scores>,
}

fn evaluate(evaluation: &Evaluation, args: &LinearEvalArgs) -> Result<()> {
    ensure!(
        !(args.finetune && evaluation.group().world() > 1),
        "--finetune: found several processes, expected one; leave --nproc out, or start it without a launcher"
    );
    let (config, encoder) = (&evaluation.config, &evaluation.encoder);
    let own = &config.linear_eval;
    let (train, test) = (evaluation.labelled_train_set()?, evaluation.test_set()?);
    let trials = match args.finetune {
        true => own.finetune_epochs.len() * own.finetune_learning_rates.len(),
        false => own.learning_rates.len(),
    };
    let classes = Classes::of(&*train, &*test)?;
    let split = Split::new(&*train, own, args.fraction, trials)?;
    let task = Task {
        train,
        test,
        classes,
        split,
        augment: config.augment.clone(),
        config: own.clone(),
        options: evaluation.options.clone(),
    };
    let cached = own.cached(config.augment.size);
    if cached && !args.finetune {
        let images = task.split.train.len() + task.split.validation.len() + task.test.len();
        evaluation.check_memory(images, "use --set linear_eval.features=augmented, or lower data.limit")?;
    }
    log::info!("{}", evaluation.encoder_line());
    let score = |encoder: &Encoder| -> Result<(Outcome, Scores)> {
        let started = Instant::now();
        let outcome = if args.finetune { task.finetune(encoder)? } else { task.linear(encoder)? };
        let scores = scores(&outcome, &task.classes, started.elapsed().as_secs_f64());
        Ok((outcome, scores))
    };
    let (outcome, scores) = score(encoder)?;
    let random_baseline = match args.random_baseline {
        true => {
            log::info!("the same for the random encoder of seed {}", config.train.seed);
            Some(score(&encoder.random(config.train.seed)).context("random baseline")?.1)
        }
        false => None,
    };
    let images_skipped = evaluation.images_skipped()?;
    if !evaluation.is_first() {
        return Ok(());
    }
    let features = match (args.finetune, cached) {
        (true, _) => "finetune",
        (false, true) => "cached",
        (false, false) => "augmented",
    };
    let [training_images, validation_images, test_images] = outcome.images;
    let report = Report {
        checkpoint: encoder.source.clone(),
        step: encoder.run.as_ref().map(|run| run.step),
        encoder: format!("{:?}, width {}", encoder.config.arch, encoder.config.width),
        feature_dim: encoder.net.feature_dim,
        features,
        protocol: protocol(&task, &outcome, features),
        fraction: args.fraction,
        training_images,
        validation_images,
        test_images,
        images_skipped,
        classes: task.classes.count(),
        batch_size: outcome.batch_size,
        seed: own.seed,
        refit: outcome.refit,
        device: native::describe_device(evaluation.machine.device),
        precision: evaluation.machine.precision(),
        scores,
        random_baseline,
    };
    let json = serde_json::to_string_pretty(&report)?;
    let name = match (if args.finetune { "finetune" } else { "linear_eval" }, args.fraction) {
        (name, Some(fraction)) => format!("{name}-{fraction}.json"),
        (name, None) => format!("{name}.json"),
    };
    let path = args.output.clone().or_else(|| Some(evaluation.run_folder()?.join(name)));
    let written = path.as_ref().map(|path| write_file(path, json.as_bytes()));
    // First what the work was for: the report may have met a full disk.
    print(&if args.json { json } else { table(&report, &evaluation.encoder_line()) })?;
    written.transpose().context("the report could not be written")?;
    if let Some(path) = &path {
        log::info!("report: {}", path.display());
    }
    Ok(())
}

fn scores(outcome: &Outcome, classes: &Classes, seconds: f64) -> Scores {
    let (chosen, accuracy) = (&outcome.trials[outcome.chosen], &outcome.accuracy);
    let class = |(name, &(images, correct)): (&String, &(i64, i64))| Class {
        name: name.clone(),
        images,
        top1: (images > 0).then(|| correct as f64 / images as f64),
    };
    Scores {
        top1: accuracy.top1,
        top5: (classes.count() > 5).then_some(accuracy.top5),
        learning_rate: chosen.learning_rate,
        peak_learning_rate: chosen.peak_learning_rate,
        epochs: chosen.epochs,
        trials: outcome.trials.clone(),
        per_class: classes.names.iter().zip(&accuracy.per_class).map(class).collect(),
        seconds,
        training_seconds: outcome.training_seconds,
    }
}

/// The protocol in words.
fn protocol(task: &Task, outcome: &Outcome, features: &str) -> String {
    let (config, split) = (&task.config, &task.split);
    let what = match features {
        "finetune" => "encoder and linear classifier trained together on random-resized crops and flips".to_string(),
        "cached" => "linear classifier on frozen features, computed once from images without augmentation".to_string(),
        _ => "linear classifier on the frozen encoder, random-resized crops and flips in training".to_string(),
    };
    let momentum = if config.nesterov { "Nesterov momentum" } else { "momentum" };
    let decay = match config.weight_decay {
        0.0 => "no weight decay".to_string(),
        decay => format!("weight decay {decay}"),
    };
    let labels = split.fraction.map_or(String::new(), |f| format!("{}% of the labels of every class; ", 100.0 * f));
    let choice = match (split.validation.len(), outcome.refit) {
        (0, _) => "nothing to choose, all of them trained on".to_string(),
        (held_out, true) => format!("chosen on {held_out} held-out training images, then trained again on all"),
        (held_out, false) => format!("chosen on {held_out} training images that are never trained on"),
    };
    format!(
        "{labels}{what}; SGD with {momentum} {}, {decay}, {} epochs, batch {}, learning rate times batch / 256, cosine to 0; {choice}; \
         tested once at {} px, resized to {} and cropped in the center",
        config.momentum,
        outcome.trials[outcome.chosen].epochs,
        outcome.batch_size,
        task.augment.size,
        task.augment.eval_side()
    )
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".into(), |share| format!("{:.2} %", 100.0 * share))
}

/// The report for humans.
fn table(report: &Report, encoder: &str) -> String {
    let mut text = format!("{encoder}\n{}\n", report.protocol);
    let (trained, held_out, tested) = (report.training_images, report.validation_images, report.test_images);
    let _ = write!(text, "{trained} training, {held_out} held-out, {tested} test images, {} classes", report.classes);
    if report.images_skipped > 0 {
        let _ = write!(text, ", {} unreadable left out", report.images_skipped);
    }
    let (all, training) = (report.scores.seconds, report.scores.training_seconds);
    let _ = writeln!(text, "; {all:.1} s, {training:.1} s of it training\n");
    let _ = writeln!(text, "{:>13}  {:>6}  {:>14}", "learning rate", "epochs", "held-out top-1");
    for trial in &report.scores.trials {
        let best = trial.learning_rate == report.scores.learning_rate && trial.epochs == report.scores.epochs;
        let mark = if best { "  chosen" } else { "" };
        let top1 = percent(trial.validation_top1.filter(|_| trial.validation_loss.is_some()));
        let _ = writeln!(text, "{:>13}  {:>6}  {top1:>14}{mark}", trial.learning_rate, trial.epochs);
    }
    let _ = writeln!(text, "\n{:20}  {:>7}  {:>9}", "class", "images", "top-1");
    let line = |text: &mut String, class: &Class| {
        let name: String = logging::one_line(&class.name).chars().take(20).collect();
        let _ = writeln!(text, "{name:20}  {:>7}  {:>9}", class.images, percent(class.top1));
    };
    let mut classes = report.scores.per_class.clone();
    if classes.len() > 2 * SHOWN {
        classes.sort_by(|a, b| b.top1.unwrap_or(0.0).total_cmp(&a.top1.unwrap_or(0.0)));
        classes[..SHOWN].iter().for_each(|class| line(&mut text, class));
        let _ = writeln!(text, "... {} more, all of them in the JSON report ...", classes.len() - 2 * SHOWN);
        classes.drain(..classes.len() - SHOWN);
    }
    classes.iter().for_each(|class| line(&mut text, class));
    let _ = write!(text, "\ntop-1 {}", percent(Some(report.scores.top1)));
    if report.scores.top5.is_some() {
        let _ = write!(text, ", top-5 {}", percent(report.scores.top5));
    }
    if let Some(random) = &report.random_baseline {
        let _ = write!(text, " (random encoder: top-1 {}", percent(Some(random.top1)));
        if random.top5.is_some() {
            let _ = write!(text, ", top-5 {}", percent(random.top5));
        }
        text.push(')');
    }
    text
}
