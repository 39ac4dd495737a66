//! `byol linear-eval`: accuracy of a linear classifier on a frozen encoder, or of a fine-tuned network.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::json;

use crate::checkpoint::{check_output, write_file};
use crate::cli::LinearEvalArgs;
use crate::config::Config;
use crate::eval::{
    ClassWeights, Classes, Encoder, FOLDS, LinearEvalConfig, Outcome, Protocol, Setting, Split, Task, Trial,
};
use crate::logging;
use crate::run::evaluation::{Evaluation, print};

/// Classes shown in the table from either end of the ranking, if there are many.
const SHOWN: usize = 10;

/// Runs the command; the value is the process's exit code.
pub fn run(args: &LinearEvalArgs) -> Result<u8> {
    if let Some(fraction) = args.fraction {
        let right = fraction > 0.0 && fraction < 1.0;
        ensure!(right, "--fraction: found {fraction}, expected above 0 and below 1; omit it to use all labels");
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

/// The result of one encoder.
#[derive(Serialize)]
struct Scores {
    top1: f64,
    /// Mean over the classes of the same (mean recall).
    balanced_top1: f64,
    /// None with five classes or fewer.
    top5: Option<f64>,
    /// The chosen setting, as in `trials`.
    #[serde(flatten)]
    setting: Setting,
    /// Its index in `trials`.
    chosen: usize,
    trials: Vec<Trial>,
    per_class: Vec<Class>,
    /// In all.
    seconds: f64,
    /// Training time out of that; with cached features the rest is their extraction.
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
    /// lbfgs, sgd or finetune.
    solver: Protocol,
    class_weights: ClassWeights,
    protocol: String,
    fraction: Option<f64>,
    training_images: usize,
    validation_images: usize,
    cross_validated: bool,
    test_images: usize,
    images_skipped: usize,
    classes: i64,
    batch_size: Option<usize>,
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
        "--finetune: found several processes, expected one; remove --nproc, or start it without a launcher"
    );
    let (task, protocol) = task(evaluation, args)?;
    log::info!("{}", evaluation.encoder_line());
    let score = |encoder: &Encoder| -> Result<(Outcome, Scores)> {
        let started = Instant::now();
        let outcome = if args.finetune { task.finetune(encoder)? } else { task.linear(encoder)? };
        let scores = scores(&outcome, &task.classes, started.elapsed().as_secs_f64());
        Ok((outcome, scores))
    };
    let (outcome, scores) = score(&evaluation.encoder)?;
    let random_baseline = match args.random_baseline {
        true => {
            let seed = evaluation.config.train.seed;
            log::info!("the same for the random encoder of seed {seed}");
            Some(score(&evaluation.encoder.random(seed)).context("random baseline")?.1)
        }
        false => None,
    };
    let images_skipped = evaluation.images_skipped()?;
    if !evaluation.is_first() {
        return Ok(());
    }
    let features = match (protocol, task.config.cached(task.augment.size)) {
        (Protocol::Finetune, _) => "finetune",
        (_, true) => "cached",
        (_, false) => "augmented",
    };
    let report = report(evaluation, &task, &outcome, features, (scores, random_baseline), images_skipped);
    emit(evaluation, args, &report)
}

/// The evaluation's settings, after checking that they are possible.
fn task(evaluation: &Evaluation, args: &LinearEvalArgs) -> Result<(Task, Protocol)> {
    let config = &evaluation.config;
    let own = &config.linear_eval;
    let (train, test) = (evaluation.labeled_train_set()?, evaluation.labeled_test_set()?);
    let protocol = if args.finetune { Protocol::Finetune } else { own.protocol(config.augment.size) };
    let classes = Classes::of(&*train, &*test)?;
    let split = Split::new(&*train, own, args.fraction, protocol)?;
    if own.cached(config.augment.size) && !args.finetune {
        let images = split.train.len() + split.validation.len() + test.len();
        // L-BFGS has an f64 copy of the features it fits, and joins those for the last fit.
        let copies = match protocol {
            Protocol::Lbfgs if split.cross_validated => 1 + 2 * (FOLDS - 1),
            Protocol::Lbfgs => 4,
            _ => 1,
        };
        evaluation.check_memory(images * copies, "use --set linear_eval.features=augmented, or lower data.limit")?;
    }
    let threads = config.train.threads.unwrap_or_else(|| native::default_threads(evaluation.machine.device).0);
    let (augment, config, options) = (config.augment.clone(), own.clone(), evaluation.options.clone());
    Ok((Task { train, test, classes, split, augment, config, options, threads }, protocol))
}

fn report(
    evaluation: &Evaluation,
    task: &Task,
    outcome: &Outcome,
    features: &'static str,
    (scores, random_baseline): (Scores, Option<Scores>),
    images_skipped: usize,
) -> Report {
    let encoder = &evaluation.encoder;
    let [training_images, validation_images, test_images] = outcome.images;
    Report {
        checkpoint: encoder.source.clone(),
        step: encoder.run.as_ref().map(|run| run.step),
        encoder: format!("{}, width {}", encoder.config.arch, encoder.config.width),
        feature_dim: encoder.net.feature_dim,
        features,
        solver: outcome.protocol,
        class_weights: task.config.class_weights,
        protocol: protocol(task, outcome, features),
        fraction: task.split.fraction,
        training_images,
        validation_images,
        cross_validated: task.split.cross_validated,
        test_images,
        images_skipped,
        classes: task.classes.count(),
        batch_size: outcome.batch_size,
        seed: task.config.seed,
        refit: outcome.refit,
        device: native::describe_device(evaluation.machine.device),
        precision: evaluation.machine.precision(),
        scores,
        random_baseline,
    }
}

/// Prints and writes the report.
fn emit(evaluation: &Evaluation, args: &LinearEvalArgs, report: &Report) -> Result<()> {
    let json = serde_json::to_string_pretty(report)?;
    let name = match (if args.finetune { "finetune" } else { "linear_eval" }, args.fraction) {
        (name, Some(fraction)) => format!("{name}-{fraction}.json"),
        (name, None) => format!("{name}.json"),
    };
    let path = args.output.clone().or_else(|| Some(evaluation.run_folder()?.join(name)));
    let written = path.as_ref().map(|path| write_file(path, json.as_bytes()));
    // The table comes first: writing the report may have failed, on a full disk say.
    print(&if args.json { json } else { table(report, &evaluation.encoder_line()) })?;
    written.transpose().context("the report could not be written")?;
    if let Some(path) = &path {
        log::info!("report: {}", path.display());
    }
    Ok(())
}

fn scores(outcome: &Outcome, classes: &Classes, seconds: f64) -> Scores {
    let accuracy = &outcome.accuracy;
    let class = |(name, &(images, correct)): (&String, &(i64, i64))| Class {
        name: name.clone(),
        images,
        top1: (images > 0).then(|| correct as f64 / images as f64),
    };
    Scores {
        top1: accuracy.top1,
        balanced_top1: accuracy.balanced_top1(),
        top5: (classes.count() > 5).then_some(accuracy.top5),
        setting: outcome.trials[outcome.chosen].setting.clone(),
        chosen: outcome.chosen,
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
    let labels = split.fraction.map_or(String::new(), |f| format!("{}% of the labels of every class; ", 100.0 * f));
    let weights = match config.class_weights {
        ClassWeights::None => "",
        ClassWeights::Balanced => ", every class weighted the same",
    };
    let choice = match (split.validation.len(), outcome.refit) {
        _ if split.cross_validated => "chosen by 5-fold cross-validation, then trained again on all".to_string(),
        (0, _) => "nothing to choose, trained on all of them".to_string(),
        (held_out, true) => format!("chosen on {held_out} held-out training images, then trained again on all"),
        (held_out, false) => format!("chosen on {held_out} training images that are never trained on"),
    };
    format!(
        "{labels}{what}; {}{weights}; {choice}; tested once at {} px, resized to {} and cropped in the center",
        training(config, outcome),
        task.augment.size,
        task.augment.eval_side()
    )
}

/// The solver in words.
fn training(config: &LinearEvalConfig, outcome: &Outcome) -> String {
    let (Setting::Sgd { epochs, .. }, Some(batch)) = (&outcome.trials[outcome.chosen].setting, outcome.batch_size)
    else {
        return "logistic regression with an L2 penalty (scikit-learn's C is its inverse), L-BFGS to convergence"
            .into();
    };
    let momentum = if config.nesterov { "Nesterov momentum" } else { "momentum" };
    let decay = match config.weight_decay {
        0.0 => "no weight decay".to_string(),
        decay => format!("weight decay {decay}"),
    };
    format!(
        "SGD with {momentum} {}, {decay}, {epochs} epochs, batch {batch}, learning rate times batch / 256, cosine to 0",
        config.momentum
    )
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".into(), |share| format!("{:.2} %", 100.0 * share))
}

/// The report for humans.
fn table(report: &Report, encoder: &str) -> String {
    let mut text = format!("{encoder}\n{}\n", report.protocol);
    let (trained, held_out, tested) = (report.training_images, report.validation_images, report.test_images);
    let in_turn = if report.cross_validated { " in turn" } else { "" };
    let _ = write!(
        text,
        "{trained} training, {held_out} held-out{in_turn}, {tested} test images, {} classes",
        report.classes
    );
    if report.images_skipped > 0 {
        let _ = write!(text, ", {} unreadable images skipped", report.images_skipped);
    }
    let (all, training) = (report.scores.seconds, report.scores.training_seconds);
    let _ = writeln!(text, "; {all:.1} s, {training:.1} s of it training\n");
    trials(&mut text, &report.scores);
    let _ = writeln!(text, "\n{:20}  {:>7}  {:>9}", "class", "images", "top-1");
    let line = |text: &mut String, class: &Class| {
        let name: String = logging::one_line(&class.name).chars().take(20).collect();
        let _ = writeln!(text, "{name:20}  {:>7}  {:>9}", class.images, percent(class.top1));
    };
    let mut classes = report.scores.per_class.clone();
    if classes.len() > 2 * SHOWN {
        classes.sort_by(|a, b| b.top1.unwrap_or(0.0).total_cmp(&a.top1.unwrap_or(0.0)));
        classes[..SHOWN].iter().for_each(|class| line(&mut text, class));
        let _ = writeln!(text, "... {} more in the JSON report ...", classes.len() - 2 * SHOWN);
        classes.drain(..classes.len() - SHOWN);
    }
    classes.iter().for_each(|class| line(&mut text, class));
    let _ = write!(text, "\n{}", result(&report.scores));
    if let Some(random) = &report.random_baseline {
        let _ = write!(text, " (random encoder: {})", result(random));
    }
    text
}

fn result(scores: &Scores) -> String {
    let top5 = scores.top5.map_or(String::new(), |top5| format!(", top-5 {}", percent(Some(top5))));
    let (top1, balanced) = (percent(Some(scores.top1)), percent(Some(scores.balanced_top1)));
    format!("top-1 {top1}{top5}, balanced {balanced}")
}

/// The trials; of a long grid the penalties around the chosen one.
fn trials(text: &mut String, scores: &Scores) {
    let sgd = matches!(scores.setting, Setting::Sgd { .. });
    let first = if sgd { "learning rate  epochs" } else { "      penalty" };
    let _ = writeln!(text, "{first}  held-out top-1");
    let count = scores.trials.len();
    let shown = match count > 2 * SHOWN {
        true => scores.chosen.saturating_sub(SHOWN / 2)..(scores.chosen + SHOWN / 2 + 1).min(count),
        false => 0..count,
    };
    let left_out = count - shown.len();
    for at in shown {
        let trial = &scores.trials[at];
        let top1 = percent(trial.validation_top1.filter(|_| trial.validation_loss.is_some()));
        let mark = if at == scores.chosen { "  chosen" } else { "" };
        let _ = match trial.setting {
            Setting::Sgd { learning_rate, epochs, .. } => {
                writeln!(text, "{learning_rate:>13}  {epochs:>6}  {top1:>14}{mark}")
            }
            Setting::Lbfgs { penalty } => writeln!(text, "{penalty:>13.3e}  {top1:>14}{mark}"),
        };
    }
    if left_out > 0 {
        let _ = writeln!(text, "... {left_out} more penalties in the JSON report ...");
    }
}
