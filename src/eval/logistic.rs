//! Multinomial logistic regression with an L2 penalty, scikit-learn's `LogisticRegression`: the minimum over weights W
//! and intercepts b of
//!
//! sum over images of cross-entropy(x W + b, class) + penalty / 2 |W|²
//!
//! with `C = 1 / penalty`. Intercepts carry no penalty. Of two classes scikit-learn fits one vector of weights, the
//! difference of the two here, so that its C is `2 / penalty`.
//!
//! Inside, features are centered, which moves the intercepts and nothing else and makes the problem better conditioned.
//! L-BFGS starts from the inverse of the Hessian's blocks on the diagonal, one for each class.

use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

use super::lbfgs::{Objective, minimize};
use crate::rng::{Purpose, Stream};

/// Images whose scores are in memory at once.
const BLOCK: i64 = 4096;
/// Rows for each dimension that the preconditioner is made from, at most.
const ROWS_PER_DIMENSION: i64 = 4;
/// Most numbers of the preconditioner: beyond it all classes share one block.
const MAX_BLOCKS: i64 = 1 << 26;
/// Steps up to which a preconditioner serves the next penalty, too.
const REUSED: usize = 20;
/// Most L-BFGS steps of one fit.
const MAX_ITERATIONS: usize = 1000;

/// A problem: labelled features, of which several penalties may be fitted in turn.
pub struct Logistic {
    rows: Tensor,            // [N, D + 1], centered, the last column 1
    mean: Tensor,            // [D]
    classes: Tensor,         // [N]
    weights: Option<Tensor>, // [N]
    count: i64,
    penalty: f64,
    sample: Tensor,          // rows that the preconditioner is made from, [n, D + 1]
    sample_weights: Tensor,  // [n, 1], how many rows each stands for
    probabilities: Tensor,   // of the sample's classes at the last point, [n, C]
    curvature: Tensor,       // [C or 1, D + 1, D + 1], without the penalty
    factors: Option<Tensor>, // Cholesky factors of the same with it
}

/// A fitted classifier.
#[derive(Debug)]
pub struct Classifier {
    /// `[D, C]`, f64.
    pub weight: Tensor,
    /// `[C]`, f64.
    pub bias: Tensor,
}

impl Classifier {
    /// Scores `[B, 1, C]` of features `[B, D]`.
    pub fn scores(&self, features: &Tensor) -> Result<Tensor> {
        Ok(self.bias.f_addmm(&features.to_kind(Kind::Double), &self.weight)?.unsqueeze(1))
    }
}

/// A fit in the problem's own coordinates, from which the next one may start.
pub struct Fit {
    at: Tensor, // [D + 1, C]
    /// L-BFGS steps.
    pub iterations: usize,
    /// Whether the tolerance was reached.
    pub converged: bool,
}

impl Logistic {
    /// Features `[N, D]` of classes `[N]` (int64), numbers below `count`; each image counts as often as its weight
    /// (`[N]`, f64), or once.
    pub fn new(features: &Tensor, classes: &Tensor, weights: Option<Tensor>, count: i64) -> Result<Self> {
        let (n, dim) = features.size2()?;
        let options = (Kind::Double, features.device());
        let rows = Tensor::f_ones([n, dim + 1], options)?;
        let mean = features.mean_dim([0i64].as_slice(), false, Kind::Double);
        rows.narrow(1, 0, dim).f_copy_(&features.f_to_kind(Kind::Double)?.f_sub(&mean)?)?;
        ensure!(rows.isfinite().all().int64_value(&[]) == 1, "the features hold NaN or Inf; is the encoder damaged?");
        let mut chosen: Vec<i64> = (0..n).collect();
        // At random: the classes of a set may take turns.
        Stream::new(0, Purpose::Subset, 0, 0, 4).shuffle(&mut chosen);
        chosen.truncate((ROWS_PER_DIMENSION * (dim + 1)) as usize);
        let chosen = Tensor::from_slice(&chosen).to_device(features.device());
        let sample = rows.f_index_select(0, &chosen)?;
        let sampled = sample.size()[0];
        let each = Tensor::full([sampled, 1], n as f64 / sampled as f64, options);
        let sample_weights = weights.as_ref().map_or(each.copy(), |w| each * w.index_select(0, &chosen).unsqueeze(1));
        let mut problem = Self {
            rows,
            mean,
            classes: classes.shallow_clone(),
            weights,
            count,
            penalty: 1.0,
            probabilities: Tensor::full([sampled, count], 1.0 / count as f64, options),
            sample,
            sample_weights,
            curvature: Tensor::empty([0], options),
            factors: None,
        };
        problem.refresh()?;
        Ok(problem)
    }

    /// Weights and intercepts of 0.
    pub fn start(&self) -> Fit {
        let shape = [self.rows.size()[1], self.count];
        Fit { at: Tensor::zeros(shape, (Kind::Double, self.rows.device())), iterations: 0, converged: true }
    }

    /// The minimum for a penalty, found from another one's; relative error of the weights about `tolerance`.
    /// # Errors
    /// `tick`'s own, called before every step of L-BFGS.
    pub fn fit(
        &mut self,
        penalty: f64,
        from: &Fit,
        tolerance: f64,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Fit> {
        self.penalty = penalty;
        if from.iterations > REUSED {
            let _ = self.evaluate(&from.at)?; // for the probabilities there
            self.refresh()?;
        } else {
            self.factorize()?;
        }
        let found = minimize(self, &from.at, tolerance, MAX_ITERATIONS, tick)?;
        Ok(Fit { at: found.at, iterations: found.iterations, converged: found.converged })
    }

    /// A fit as a classifier of features as they are.
    pub fn classifier(&self, fit: &Fit) -> Classifier {
        let dim = self.rows.size()[1] - 1;
        let weight = fit.at.narrow(0, 0, dim).copy();
        let bias = fit.at.get(dim) - self.mean.matmul(&weight);
        Classifier { weight, bias }
    }

    fn factorize(&mut self) -> Result<()> {
        let diagonal = Tensor::full([self.curvature.size()[1]], self.penalty, (Kind::Double, self.rows.device()));
        // Intercepts have no penalty: a trace of one keeps the matrix regular where a class is certain.
        let _ = diagonal.get(-1).f_fill_(1e-8 * self.rows.size()[0] as f64)?;
        let matrix = &self.curvature + diagonal.diag(0);
        self.factors = Some(matrix.f_linalg_cholesky(false)?);
        Ok(())
    }
}

impl Objective for Logistic {
    fn evaluate(&mut self, at: &Tensor) -> Result<(f64, Tensor)> {
        let (n, dim) = (self.rows.size()[0], self.rows.size()[1] - 1);
        let (mut loss, mut gradient) = (0.0, at * self.penalty);
        let _ = gradient.get(dim).f_zero_()?;
        let weight = at.narrow(0, 0, dim);
        loss += self.penalty / 2.0 * (&weight * &weight).sum(Kind::Double).double_value(&[]);
        for start in (0..n).step_by(BLOCK as usize) {
            let part = |t: &Tensor| t.narrow(0, start, BLOCK.min(n - start));
            let (rows, own) = (part(&self.rows), part(&self.classes).unsqueeze(1));
            let scores = rows.f_matmul(at)?.f_log_softmax(1, Kind::Double)?;
            let mut losses = scores.f_gather(1, &own, false)?;
            let mut slope = scores.f_exp()?;
            let _ = slope.f_scatter_add_(1, &own, &Tensor::full_like(&losses, -1.0))?;
            if let Some(weights) = &self.weights {
                let weights = part(weights).unsqueeze(1);
                losses *= &weights;
                slope *= weights;
            }
            loss -= losses.sum(Kind::Double).double_value(&[]);
            gradient = gradient.f_addmm(&rows.tr(), &slope)?;
        }
        self.probabilities = self.sample.f_matmul(at)?.f_softmax(1, Kind::Double)?;
        Ok((loss, gradient))
    }

    fn refresh(&mut self) -> Result<()> {
        let size = self.sample.size()[1];
        let mut each: Tensor = &self.probabilities * (1.0 - &self.probabilities);
        if self.count * size * size > MAX_BLOCKS {
            each = each.mean_dim([1i64].as_slice(), true, Kind::Double);
        }
        each *= &self.sample_weights;
        let block = |at: i64| Ok(self.sample.tr().f_matmul(&(&self.sample * each.narrow(1, at, 1)))?);
        let blocks = (0..each.size()[1]).map(block).collect::<Result<Vec<_>>>()?;
        self.curvature = Tensor::f_stack(&blocks, 0)?;
        self.factorize()
    }

    fn precondition(&self, gradient: &Tensor) -> Result<Tensor> {
        // Adding the same vector to the weights of every class changes no probability: the gradient's mean over the
        // classes is only the penalty's, 0 at the minimum, and stays 0 on the way.
        let centered = |t: &Tensor| t - t.mean_dim([1i64].as_slice(), true, Kind::Double);
        let Some(factors) = &self.factors else { return Ok(gradient.copy()) };
        let solved = match self.curvature.size()[0] {
            1 => centered(gradient).unsqueeze(0).f_cholesky_solve(factors, false)?.squeeze_dim(0),
            _ => centered(gradient).tr().unsqueeze(2).f_cholesky_solve(factors, false)?.squeeze_dim(2).tr(),
        };
        Ok(centered(&solved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Six features, two of them always 0, of three classes.
    fn problem(weights: Option<Tensor>) -> (Tensor, Tensor, Logistic) {
        let mut rng = Stream::new(5, Purpose::Init, 0, 0, 0);
        let classes: Vec<i64> = (0..90).map(|i| (i * i + i / 7) % 3).collect();
        let value = |i: usize| match i % 6 {
            4 | 5 => 0.0,
            d => (rng.normal_pair().0 as f32 + if d as i64 == classes[i / 6] { 1.0 } else { 0.0 }) * (1 + d) as f32,
        };
        let features = Tensor::from_slice(&(0..90 * 6).map(value).collect::<Vec<f32>>()).reshape([90, 6]);
        let classes = Tensor::from_slice(&classes);
        let problem = Logistic::new(&features, &classes, weights, 3).expect("a problem");
        (features, classes, problem)
    }

    fn fit(problem: &mut Logistic, penalty: f64) -> Classifier {
        let fit = problem.fit(penalty, &problem.start(), 1e-9, &mut || Ok(())).expect("a fit");
        assert!(fit.converged);
        problem.classifier(&fit)
    }

    /// The definition: at the minimum the gradient by autograd, in the features' own coordinates, is 0.
    #[test]
    fn the_gradient_is_zero_at_the_minimum() {
        for penalty in [1e3, 1.0, 1e-3, 1e-6] {
            let (features, classes, mut problem) = problem(None);
            let Classifier { weight, bias } = fit(&mut problem, penalty);
            let (weight, bias) = (weight.set_requires_grad(true), bias.set_requires_grad(true));
            let scores = features.to_kind(Kind::Double).matmul(&weight) + &bias;
            let losses = -scores.log_softmax(1, Kind::Double).gather(1, &classes.unsqueeze(1), false);
            let value = losses.sum(Kind::Double) + weight.square().sum(Kind::Double) * (penalty / 2.0);
            for gradient in Tensor::run_backward(&[value], &[&weight, &bias], false, false) {
                let largest = gradient.abs().max().double_value(&[]);
                assert!(largest < 1e-5, "penalty {penalty}: {largest}");
            }
            assert!(weight.narrow(0, 4, 2).abs().max().double_value(&[]) < 1e-12, "features without values");
        }
    }

    #[test]
    fn a_weight_of_two_is_an_image_twice_and_the_path_does_not_matter() {
        let (features, classes, _) = problem(None);
        let twice = Tensor::arange(90, (Kind::Int64, Device::Cpu)).remainder(2);
        let (_, _, mut weighted) = problem(Some(twice.to_kind(Kind::Double) + 1.0));
        let odd = twice.nonzero().squeeze_dim(1);
        let both = |t: &Tensor| Tensor::cat(&[t.shallow_clone(), t.index_select(0, &odd)], 0);
        let mut repeated = Logistic::new(&both(&features), &both(&classes), None, 3).expect("a problem");
        let expected = fit(&mut repeated, 0.1);
        let strong = weighted.fit(100.0, &weighted.start(), 1e-9, &mut || Ok(())).expect("a fit");
        let warm = weighted.fit(0.1, &strong, 1e-9, &mut || Ok(())).expect("a fit");
        for found in [weighted.classifier(&warm), fit(&mut weighted, 0.1)] {
            assert!((&found.weight - &expected.weight).abs().max().double_value(&[]) < 1e-7);
            assert!((&found.bias - &expected.bias).abs().max().double_value(&[]) < 1e-7);
        }
    }
}
