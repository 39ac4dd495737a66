//! How often a chosen run is evaluated, logged and saved.

use anyhow::Result;
use serde_json::json;

use super::Choices;
use super::look::Facts;

/// The share of a run that k-NN may take; opinion.
const KNN_SHARE: f64 = 0.1;

/// Forward passes that take as long as training on one image: of each of two views one through the target network and
/// one through the online network, whose backward pass takes two.
const PASSES: f64 = 8.0;

/// Fewer images than these (training, held-out) say little; opinion.
const MIN_KNN: [usize; 2] = [1000, 200];

/// k-NN accuracy, log records and checkpoints: about twenty of each but the records, which are more. `updates` may end
/// within the first epoch.
pub fn watch(facts: &Facts, epochs: f64, updates: f64, batch: usize, choices: &mut Choices) -> Result<()> {
    let every = (epochs / 20.0).ceil().max(1.0) as u64;
    let labels =
        facts.labeled.map(|count| format!("{count} of {} images have one of {} labels", facts.images, facts.classes));
    let k = facts.labeled.map_or(200, |count| (count / 10).clamp(5, 200));
    match &labels {
        Some(reason) => {
            choices.set("monitor.knn_every", every, reason)?;
            choices.set("monitor.knn_k", k, "a tenth of the images, 5 to 200")?;
            let evaluations = 1.0 + (epochs / every as f64).ceil(); // the first one before training
            let most = (KNN_SHARE * PASSES * updates * batch as f64 / evaluations) as usize;
            few_images(facts, most, choices)?;
            let held_out = match facts.held_out {
                0 => "; leave-one-out".to_string(),
                count => format!("; {count} held-out images"),
            };
            choices.row(
                "k-NN accuracy",
                format!("every {every} epochs"),
                format!("{reason}{held_out}"),
                &["monitor.knn_every"],
            );
        }
        None => {
            choices.set("monitor.knn_every", json!(null), "no labels of several classes")?;
            choices.row("k-NN accuracy", "none".into(), "no labels of several classes".into(), &["monitor.knn_every"]);
        }
    }
    choices.set(
        "monitor.log_every",
        (updates / 200.0).clamp(1.0, 50.0) as u64,
        "about 200 records, one every 50 steps at least",
    )?;
    choices.set("output.checkpoint_every_epochs", every, "about 20 checkpoints")
}

/// Limits k-NN to about `most` images, a fifth of them held out, if the data set has more.
fn few_images(facts: &Facts, most: usize, choices: &mut Choices) -> Result<()> {
    let monitor = &choices.config.monitor;
    let all = |limit: Option<usize>, count: usize| limit.map_or(count, |limit| limit.min(count));
    let train = all(monitor.knn_train_images, facts.labeled.unwrap_or(0));
    let held_out = all(monitor.knn_eval_images, facts.held_out);
    if train + held_out <= most {
        return Ok(());
    }
    let reason = "keeps k-NN to about a tenth of the run";
    let fewer = held_out.min(most / 5).max(MIN_KNN[1]);
    if held_out > fewer {
        choices.set("monitor.knn_eval_images", fewer, reason)?;
    }
    let fewer = most.saturating_sub(held_out.min(fewer)).max(MIN_KNN[0]);
    if train > fewer { choices.set("monitor.knn_train_images", fewer, reason) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn knn_takes_a_tenth_of_the_run() -> Result<()> {
        let facts = Facts { images: 50_000, labeled: Some(50_000), classes: 10, held_out: 10_000, ..Facts::default() };
        for (epochs, updates, images) in [
            (1.0, 60.0, [2458, 614]), // three minutes on a CPU
            (1.0, 390.0, [15_975, 3993]),
            (100.0, 39_000.0, [50_000, 10_000]),
        ] {
            let mut choices = Choices::new(Config::default(), &[]);
            watch(&facts, epochs, updates, 128, &mut choices)?;
            let monitor = &choices.config.monitor;
            assert_eq!([monitor.knn_train_images, monitor.knn_eval_images], images.map(Some), "{updates} updates");
        }
        Ok(())
    }
}
