//! The paper's protocol for transfer (arXiv 2006.07733, appendix D.2): logistic regression on features in memory for a
//! grid of L2 penalties, the best of which on held-out training images is fitted again on all of them. A convex
//! problem: no learning rate, and one answer.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

use super::Represent;
use super::linear::{FOLDS, Outcome, Protocol, Rows, Setting, Task, Trial, too_few};
use super::logistic::{Classifier, Fit, Logistic};
use crate::rng::{Purpose, Stream};

/// Relative error of weights where penalties are compared: accuracies differ by some 0.05 points.
const ROUGH: f64 = 1e-3;
/// The same of the classifier that is tested.
const FINE: f64 = 1e-6;
/// How often the processes that wait for the first one hear of it.
const HEARTBEAT: Duration = Duration::from_millis(200);

/// Called before every step of L-BFGS.
type Tick<'a> = &'a mut dyn FnMut() -> Result<()>;

/// Penalties without a lower held-out loss or a higher held-out accuracy after which weaker ones are not tried: one and a
/// half decades of the paper's grid.
const PATIENCE: usize = 6;
/// Share of the held-out loss that counts as lower: with many images and few features it falls forever, by ever less.
const LOWER: f64 = 1e-4;

/// When a walk from strong to weak penalties has gone far enough.
struct Patience {
    /// Highest held-out accuracy so far.
    best: f64,
    /// Lowest held-out loss so far.
    lowest: f64,
    /// Penalties since either changed.
    since: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Self { best: f64::NEG_INFINITY, lowest: f64::INFINITY, since: 0 }
    }
}

impl Patience {
    /// Whether this penalty, of this held-out accuracy and loss, is the last.
    fn ends(&mut self, score: f64, loss: f64) -> bool {
        self.since = if score > self.best || loss < self.lowest * (1.0 - LOWER) { 0 } else { self.since + 1 };
        (self.best, self.lowest) = (self.best.max(score), self.lowest.min(loss));
        self.since == PATIENCE
    }
}

/// A fit that goes from penalty to penalty, and the images that it is judged by.
struct Path {
    problem: Logistic,
    fit: Fit,
    held_out: Rows,
}

/// A penalty, chosen, and the classifier to test.
struct Chosen {
    trials: Vec<Trial>,
    at: usize,
    classifier: Classifier,
}

impl Task {
    pub(super) fn logistic_regression(&self, encoder: &impl Represent) -> Result<Outcome> {
        let split = &self.split;
        let train = self.rows(encoder, &self.train, &split.train, "features of the training images")?;
        let validation = self.rows(encoder, &self.train, &split.validation, "features of the held-out images")?;
        let test = self.rows(encoder, &self.test, &self.test_images(), "features of the test images")?;
        let started = Instant::now();
        let refit = split.cross_validated
            || validation.len() > 0 && split.fraction.is_none() && self.config.refit.unwrap_or(true);
        let mut chosen = self.on_the_first(&train, || self.choose_penalty(&train, &validation, refit))?;
        // Those that the walk did not come to; the chosen one is before them.
        let judged = chosen.trials.iter().filter(|trial| trial.validation_top1.is_some()).count();
        chosen.trials.truncate(judged.max(1));
        let mut tally = self.tally(1, test.features.device());
        self.judge(&mut tally, &test, |features| chosen.classifier.scores(features))?;
        let accuracy = tally.accuracies()?.swap_remove(0);
        let held_out = if split.cross_validated { train.len() } else { validation.len() };
        let trained = train.len() + if refit { validation.len() } else { 0 };
        Ok(Outcome {
            protocol: Protocol::Lbfgs,
            trials: chosen.trials,
            chosen: chosen.at,
            accuracy,
            images: [trained, held_out, test.len()],
            batch_size: None,
            refit,
            training_seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Has the first process do `work`, on as many threads as it would have alone, and gives all of them its result:
    /// the same bits, whatever their number.
    fn on_the_first(&self, rows: &Rows, work: impl FnOnce() -> Result<Chosen>) -> Result<Chosen> {
        let work = || {
            let own = tch::get_num_threads();
            native::set_threads(1); // several fit it, but each by itself
            let chosen = work();
            native::set_threads(own as usize);
            chosen
        };
        let group = &self.options.group;
        let penalties = self.config.penalties();
        let mut chosen = if group.is_first() {
            let chosen = work();
            // After an error the others do not wait: all have heard of the signal, or the group ends.
            let chosen = chosen?;
            group.from_first(&[0.0])?;
            chosen
        } else {
            while group.from_first(&[1.0])?[0] > 0.0 {
                self.options.check()?;
            }
            let options = (Kind::Double, rows.features.device());
            let shape = [rows.features.size()[1], self.classes.count()];
            let classifier =
                Classifier { weight: Tensor::zeros(shape, options), bias: Tensor::zeros(shape[1], options) };
            let trial = |&penalty: &f64| Trial::new(Setting::Lbfgs { penalty });
            Chosen { trials: penalties.iter().map(trial).collect(), at: 0, classifier }
        };
        group.broadcast(&[chosen.classifier.weight.shallow_clone(), chosen.classifier.bias.shallow_clone()])?;
        let number = |value: Option<f64>| value.unwrap_or(f64::NAN);
        let told = chosen.trials.iter().flat_map(|trial| {
            [trial.validation_top1, trial.validation_balanced_top1, trial.validation_loss].map(number)
        });
        let told = group.from_first(&told.chain([chosen.at as f64]).collect::<Vec<_>>())?;
        for (trial, told) in chosen.trials.iter_mut().zip(told.chunks(3)) {
            let [top1, balanced, loss] = [told[0], told[1], told[2]].map(|value| Some(value).filter(|v| !v.is_nan()));
            (trial.validation_top1, trial.validation_balanced_top1, trial.validation_loss) = (top1, balanced, loss);
        }
        chosen.at = told[penalties.len() * 3] as usize;
        Ok(chosen)
    }

    fn choose_penalty(&self, train: &Rows, validation: &Rows, refit: bool) -> Result<Chosen> {
        let penalties = self.config.penalties();
        let mut trials: Vec<Trial> = penalties.iter().map(|&penalty| Trial::new(Setting::Lbfgs { penalty })).collect();
        let device = train.features.device();
        let parts = match self.split.cross_validated {
            true => folds(train, self.config.seed)?,
            false => Vec::new(),
        };
        let mut tick = self.heartbeat();
        let mut nearest = None;
        let mut paths =
            parts.iter().map(|[rest, part]| self.path(&train.at(rest), train.at(part))).collect::<Result<Vec<_>>>()?;
        if validation.len() > 0 {
            paths.push(
                self.path(train, validation.at(&Tensor::arange(validation.len() as i64, (Kind::Int64, device))))?,
            );
        }
        if paths.is_empty() {
            ensure!(trials.len() < 2, too_few(trials.len(), train.len(), "give one penalty"));
        } else {
            nearest = self.walk(&mut paths, &mut trials, &mut tick)?;
        }
        drop(paths); // their copies of the features
        // Strictly more, from the strongest penalty on: equal ones are for the stronger.
        let score = |at: usize| trials[at].score(self.config.class_weights).unwrap_or(0.0);
        let at = (1..trials.len()).fold(0, |best, at| if score(at) > score(best) { at } else { best });
        let classifier = match refit && validation.len() > 0 {
            true => self.fit(
                &Rows {
                    features: Tensor::cat(&[&train.features, &validation.features], 0),
                    classes: Tensor::cat(&[&train.classes, &validation.classes], 0),
                },
                penalties[at],
                nearest,
                &mut tick,
            )?,
            false => self.fit(train, penalties[at], nearest, &mut tick)?,
        };
        Ok(Chosen { trials, at, classifier })
    }

    fn path(&self, train: &Rows, held_out: Rows) -> Result<Path> {
        let problem = self.problem(train)?;
        Ok(Path { fit: problem.start(), problem, held_out })
    }

    /// Fits the penalties from the strongest on, each from the one before, on every path, and counts what they make of the
    /// held-out images. Weaker and weaker ones take ever longer and only fit the training images better: the walk ends
    /// where the held-out loss has not fallen any more, and the accuracy has not been the best, for [`PATIENCE`] penalties.
    /// Returns a fit for the penalty with the highest accuracy.
    fn walk(&self, paths: &mut [Path], trials: &mut [Trial], tick: Tick) -> Result<Option<Fit>> {
        let mut nearest = None;
        let (count, weights) = (trials.len(), self.config.class_weights);
        let bar = self.options.bar("logistic regression: penalties", count);
        let mut patience = Patience::default();
        for (at, (penalty, trial)) in self.config.penalties().into_iter().zip(trials).enumerate() {
            let mut tally = self.tally(1, paths[0].held_out.features.device());
            for path in &mut *paths {
                path.fit = path.problem.fit(penalty, &path.fit, ROUGH, tick)?;
                let classifier = path.problem.classifier(&path.fit);
                self.judge(&mut tally, &path.held_out, |features| classifier.scores(features))?;
            }
            trial.judged(&tally.accuracies()?[0]);
            bar.iter().for_each(|bar| bar.set(at + 1));
            let (score, loss) = (trial.score(weights).unwrap_or(0.0), trial.validation_loss.unwrap_or(f64::INFINITY));
            if score > patience.best {
                nearest = Some(paths[0].fit.again());
            }
            if patience.ends(score, loss) {
                bar.iter().for_each(|bar| bar.set(count));
                break;
            }
        }
        Ok(nearest)
    }

    /// Fits a penalty for good, from near the result if that is known.
    fn fit(&self, rows: &Rows, penalty: f64, near: Option<Fit>, tick: Tick) -> Result<Classifier> {
        let mut problem = self.problem(rows)?;
        let start = near.unwrap_or_else(|| problem.start());
        let fit = problem.fit(penalty, &start, FINE, tick)?;
        if !fit.converged {
            log::warn!("linear_eval: L-BFGS did not converge in {} steps at penalty {penalty:e}", fit.iterations);
        }
        Ok(problem.classifier(&fit))
    }

    fn problem(&self, rows: &Rows) -> Result<Logistic> {
        let weights = self.class_weights(&rows.classes).map(|weights| weights.index_select(0, &rows.classes));
        Logistic::new(&rows.features, &rows.classes, weights.as_ref(), self.classes.count(), self.threads)
    }

    /// Looks for signals, and keeps the processes that wait from taking this one for lost.
    fn heartbeat(&self) -> impl FnMut() -> Result<()> {
        let mut last = Instant::now();
        move || {
            if last.elapsed() < HEARTBEAT {
                return Ok(());
            }
            last = Instant::now();
            self.options.group.from_first(&[1.0])?;
            self.options.check()
        }
    }
}

/// Positions in `rows`, all but a part and the part, for parts that are equal to one image in every class. An image
/// that is alone in its class is in no part.
fn folds(rows: &Rows, seed: u64) -> Result<Vec<[Tensor; 2]>> {
    let classes = Vec::<i64>::try_from(&rows.classes.to_device(Device::Cpu))?;
    let mut by_class = vec![Vec::new(); classes.iter().max().map_or(0, |&most| most as usize + 1)];
    classes.iter().enumerate().for_each(|(at, &class)| by_class[class as usize].push(at));
    let (mut fold_of, mut next) = (vec![FOLDS; classes.len()], 0);
    for (class, mut members) in by_class.into_iter().enumerate().filter(|(_, members)| members.len() > 1) {
        Stream::new(seed, Purpose::Subset, 0, class as u64, 3).shuffle(&mut members);
        for member in members {
            fold_of[member] = next % FOLDS;
            next += 1;
        }
    }
    let positions = |part: bool, fold: usize| -> Tensor {
        let chosen = fold_of.iter().enumerate().filter(|(_, own)| (**own == fold) == part).map(|(at, _)| at as i64);
        Tensor::from_slice(&chosen.collect::<Vec<_>>()).to_device(rows.classes.device())
    };
    Ok((0..FOLDS.min(next)).map(|fold| [positions(false, fold), positions(true, fold)]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_ends_where_neither_accuracy_nor_loss_gets_better() {
        let tried = |course: &dyn Fn(i32) -> (f64, f64)| {
            let mut patience = Patience::default();
            let ends = |&at: &i32| {
                let (score, loss) = course(at);
                patience.ends(score, loss)
            };
            (0..45).find(ends).map_or(45, |at| at + 1)
        };
        assert_eq!(tried(&|at| (0.5, 2.0 - 0.01 * f64::from(at))), 45, "the loss falls");
        assert_eq!(tried(&|at| (0.5 + 0.001 * f64::from(at), 2.0)), 45, "the accuracy rises");
        assert_eq!(tried(&|at| (0.5 - 0.001 * f64::from(at), 2.0 + 0.1 * f64::from(at))), 7, "both get worse");
        assert_eq!(
            tried(&|at| (0.5, 2.0 - 0.0001 * f64::from(at))),
            7,
            "many images: the loss falls by next to nothing"
        );
        assert_eq!(tried(&|at| (if at == 5 { 0.6 } else { 0.5 }, 2.0)), 12, "the best after some that were not");
    }

    #[test]
    fn folds_are_stratified_and_hold_every_image_out_once() -> Result<()> {
        // 23 of class 0, 11 of class 1, 1 of class 2.
        let classes: Vec<i64> = (0..35).map(|i| if i == 34 { 2 } else { i64::from(i % 3 == 1) }).collect();
        let rows = Rows {
            features: Tensor::zeros([35, 2], (Kind::Float, Device::Cpu)),
            classes: Tensor::from_slice(&classes),
        };
        let mut seen = Vec::new();
        for [rest, part] in folds(&rows, 0)? {
            let (rest, part) = (Vec::<i64>::try_from(rest)?, Vec::<i64>::try_from(part)?);
            assert_eq!(rest.len() + part.len(), 35);
            assert!(rest.contains(&34), "alone in its class");
            let of_class = |class: i64| part.iter().filter(|&&at| classes[at as usize] == class).count();
            assert!((4..=5).contains(&of_class(0)) && (2..=3).contains(&of_class(1)), "{part:?}");
            seen.extend(part);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..34).collect::<Vec<i64>>());
        let few = Rows { features: rows.features.narrow(0, 0, 2), classes: Tensor::from_slice(&[0i64, 1]) };
        assert!(folds(&few, 0)?.is_empty());
        Ok(())
    }
}
