//! Multinomial logistic regression with an L2 penalty, scikit-learn's `LogisticRegression`: the minimum over weights W
//! and intercepts b of
//!
//! sum over images of cross-entropy(x W + b, class) + penalty / 2 |W|²
//!
//! with `C = 1 / penalty`. Intercepts carry no penalty. Of two classes scikit-learn fits one vector of weights, the
//! difference of the two here, so that its C is `2 / penalty`.
//!
//! Inside, features are centered, which moves the intercepts and nothing else and makes the problem better conditioned.
//! Several penalties are fitted fast one after another, from strong to weak: each fit starts where the last steps lead,
//! with the same preconditioner, and with the curvature that the fits before have seen, since a penalty adds a known
//! term to it.

use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

use super::curvature::Curvature;
use super::lbfgs::{Memory, Objective, minimize};
use super::softmax::CrossEntropy;

/// Most L-BFGS steps of one fit.
const MAX_ITERATIONS: usize = 1000;
/// Tolerance on the way to a weak penalty.
const COARSE: f64 = 1e-2;

/// A problem: labeled features, of which several penalties may be fitted in turn.
pub struct Logistic {
    loss: CrossEntropy,
    curvature: Curvature,
    memory: Memory,
    mean: Tensor,  // [D]
    start: Tensor, // [C, D + 1], 0
    spread: f64,   // mean eigenvalue of the Hessian at the start
    penalty: f64,
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
    at: Tensor,           // [C, D + 1]
    penalty: Option<f64>, // none before the first fit
    way: Option<Way>,
    /// L-BFGS steps.
    pub iterations: usize,
    /// Whether the tolerance was reached.
    pub converged: bool,
}

/// Where the fits are going.
struct Way {
    step: Tensor, // from one fit to the next
    length: f64,  // difference of their penalties' logarithms
}

impl Fit {
    /// Another fit of the same weights.
    pub fn again(&self) -> Self {
        let way = self.way.as_ref().map(|way| Way { step: way.step.shallow_clone(), length: way.length });
        Self { at: self.at.shallow_clone(), way, ..*self }
    }

    /// The weights expected for a penalty: as far on the way as penalties go on, at most as far again.
    fn expected(&self, penalty: f64) -> Tensor {
        match (&self.way, self.penalty) {
            (Some(way), Some(from)) => &self.at + &way.step * ((penalty / from).ln() / way.length).clamp(-1.0, 1.0),
            _ => self.at.copy(),
        }
    }
}

impl Logistic {
    /// Features `[N, D]` of classes `[N]` (int64), numbers below `count`; each image counts as often as its weight
    /// (`[N]`, f64), or once. On the CPU up to `threads` threads fit it; the last digits depend on their number.
    pub fn new(
        features: &Tensor,
        classes: &Tensor,
        weights: Option<&Tensor>,
        count: i64,
        threads: usize,
    ) -> Result<Self> {
        let (n, dim) = features.size2()?;
        let options = (Kind::Double, features.device());
        let rows = Tensor::f_ones([n, dim + 1], options)?;
        let mean = features.mean_dim([0i64].as_slice(), false, Kind::Double);
        let mut centered = rows.narrow(1, 0, dim);
        centered.f_copy_(features)?;
        let _ = centered.f_sub_(&mean)?;
        let spread = centered.norm().double_value(&[]).powi(2) / (dim * count) as f64;
        ensure!(spread.is_finite(), "the features hold NaN or Inf; is the encoder damaged?");
        Ok(Self {
            loss: CrossEntropy::new(&rows, classes, weights, threads),
            curvature: Curvature::new(&rows, weights, count, threads),
            memory: Memory::default(),
            mean,
            start: Tensor::f_zeros([count, dim + 1], options)?,
            spread,
            penalty: 0.0,
        })
    }

    /// Weights and intercepts of 0.
    pub fn start(&self) -> Fit {
        Fit { at: self.start.copy(), penalty: None, way: None, iterations: 0, converged: true }
    }

    /// The minimum for a penalty, found from another one's or from the start; relative error of the weights about
    /// `tolerance`.
    /// # Errors
    /// `tick`'s own, called before every step of L-BFGS.
    pub fn fit(
        &mut self,
        penalty: f64,
        from: &Fit,
        tolerance: f64,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Fit> {
        let mut from = from.again();
        // A weak penalty is far from the start, where the Hessian is another one: it is approached by way of others.
        let decades =
            if from.penalty.is_none() { (self.spread / penalty).log10().floor().clamp(0.0, 30.0) } else { 0.0 };
        for decade in (1..=decades as i32).rev() {
            from = self.one(penalty * 10f64.powi(decade), &from, COARSE, tick)?;
        }
        self.one(penalty, &from, tolerance, tick)
    }

    fn one(&mut self, penalty: f64, from: &Fit, tolerance: f64, tick: &mut dyn FnMut() -> Result<()>) -> Result<Fit> {
        let start = from.expected(penalty);
        if penalty != self.penalty {
            let added = penalty - self.penalty;
            self.memory.add(|step| without_intercepts(step) * added);
            self.penalty = penalty;
            self.curvature.factorize(penalty)?;
        }
        let mut memory = std::mem::take(&mut self.memory);
        let found = minimize(self, &mut memory, &start, tolerance, MAX_ITERATIONS, tick);
        self.memory = memory;
        let found = found?;
        let way = from
            .penalty
            .filter(|&before| before != penalty)
            .map(|before| Way { step: &found.at - &from.at, length: (penalty / before).ln() });
        let iterations = found.iterations;
        Ok(Fit { at: found.at, penalty: Some(penalty), way, iterations, converged: found.converged })
    }

    /// A fit as a classifier of features as they are.
    pub fn classifier(&self, fit: &Fit) -> Classifier {
        let dim = self.mean.size()[0];
        let weight = fit.at.narrow(1, 0, dim).tr().contiguous();
        let bias = fit.at.select(1, dim) - self.mean.matmul(&weight);
        Classifier { weight, bias }
    }
}

/// Weights `[C, D + 1]` with intercepts of 0.
fn without_intercepts(at: &Tensor) -> Tensor {
    let weights = at.copy();
    let _ = weights.select(1, -1).zero_();
    weights
}

impl Objective for Logistic {
    fn evaluate(&mut self, at: &Tensor) -> Result<(f64, Tensor)> {
        let (loss, gradient) = self.loss.evaluate(at)?;
        let weights = without_intercepts(at);
        let squares = weights.square().sum(Kind::Double).double_value(&[]);
        Ok((loss + self.penalty / 2.0 * squares, gradient + weights * self.penalty))
    }

    fn refresh(&mut self, at: &Tensor) -> Result<()> {
        self.curvature.refresh(&self.loss.probabilities(at)?)?;
        self.curvature.factorize(self.penalty)
    }

    fn lifetime(&self) -> usize {
        self.curvature.lifetime()
    }

    fn precondition(&self, gradient: &Tensor) -> Result<Tensor> {
        self.curvature.solve(gradient)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};
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
        let problem = Logistic::new(&features, &classes, weights.as_ref(), 3, 2).expect("a problem");
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
        let mut repeated = Logistic::new(&both(&features), &both(&classes), None, 3, 1).expect("a problem");
        let expected = fit(&mut repeated, 0.1);
        let strong = weighted.fit(100.0, &weighted.start(), 1e-9, &mut || Ok(())).expect("a fit");
        let warm = weighted.fit(0.1, &strong, 1e-9, &mut || Ok(())).expect("a fit");
        for found in [weighted.classifier(&warm), fit(&mut weighted, 0.1)] {
            assert!((&found.weight - &expected.weight).abs().max().double_value(&[]) < 1e-7);
            assert!((&found.bias - &expected.bias).abs().max().double_value(&[]) < 1e-7);
        }
    }
}
