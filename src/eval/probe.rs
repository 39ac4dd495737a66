//! Linear classifiers on the same features, one for each learning rate, trained side by side: their weights are
//! columns of one matrix, so that a step of all of them is two matrix products.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::LinearEvalConfig;

/// L classifiers of D features into C classes.
pub struct Probes {
    classes: i64,
    weight: Tensor,       // [D, L * C], classifier l in columns l C to (l + 1) C
    bias: Tensor,         // [L * C]
    momenta: [Tensor; 2], // of weight and bias
    rates: Tensor,        // [L * C], minus the peak learning rate of each column
    momentum: f64,
    nesterov: bool,
    weight_decay: f64,
    class_weights: Option<Tensor>, // [C]
}

impl Probes {
    /// Classifiers that start from 0 (the problem is convex), one for each of `rates`, the peak learning rates.
    pub fn new(dim: i64, classes: i64, rates: &[f64], config: &LinearEvalConfig, device: Device) -> Self {
        let columns = classes * rates.len() as i64;
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, device));
        let rates: Vec<f32> = rates.iter().map(|&rate| -rate as f32).collect();
        Self {
            classes,
            weight: zeros(&[dim, columns]),
            bias: zeros(&[columns]),
            momenta: [zeros(&[dim, columns]), zeros(&[columns])],
            rates: Tensor::from_slice(&rates).to_device(device).repeat_interleave_self_int(classes, 0, None),
            momentum: config.momentum,
            nesterov: config.nesterov,
            weight_decay: config.weight_decay,
            class_weights: None,
        }
    }

    /// Weights images by their class (`[C]`).
    pub fn with_class_weights(self, weights: Option<Tensor>) -> Self {
        Self { class_weights: weights.map(|weights| weights.to_kind(Kind::Float)), ..self }
    }

    /// Scores `[B, L, C]` of features `[B, D]`.
    pub fn scores(&self, features: &Tensor) -> Result<Tensor> {
        let scores = self.bias.f_addmm(features, &self.weight)?;
        Ok(scores.view([features.size()[0], -1, self.classes]))
    }

    /// One step of `torch.optim.SGD` for each classifier on the mean cross-entropy of features `[B, D]` and classes
    /// `[B]` (int64), at its peak learning rate times `factor`.
    pub fn step(&mut self, features: &Tensor, classes: &Tensor, factor: f64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let batch = features.size()[0];
        // The gradient of cross-entropy by the scores is softmax minus one-hot, so no graph is needed.
        let mut slope = self.scores(features)?.f_softmax(2, Kind::Float)?;
        let own = classes.view([-1, 1, 1]).expand([-1, slope.size()[1], 1], false);
        let one = Tensor::full_like(&own, -1.0).to_kind(Kind::Float);
        let mut slope = slope.f_scatter_add_(2, &own, &one)?.f_div_scalar_(batch as f64)?;
        if let Some(weights) = &self.class_weights {
            slope *= weights.index_select(0, classes).view([-1, 1, 1]);
        }
        let slope = slope.view([batch, -1]);
        let gradients = [features.tr().f_matmul(&slope)?, slope.sum_dim_intlist([0].as_slice(), false, Kind::Float)];
        let rates = &self.rates * factor;
        for ((weight, momentum), gradient) in
            [&mut self.weight, &mut self.bias].into_iter().zip(&mut self.momenta).zip(gradients)
        {
            let gradient = gradient.f_add(&(&*weight * self.weight_decay))?;
            let _ = momentum.f_mul_scalar_(self.momentum)?.f_add_(&gradient)?;
            let direction =
                if self.nesterov { gradient + &*momentum * self.momentum } else { momentum.shallow_clone() };
            let _ = weight.f_addcmul_(&direction, &rates)?;
        }
        Ok(())
    }

    /// Number of classifiers.
    pub fn count(&self) -> i64 {
        self.bias.size()[0] / self.classes
    }

    /// Weights `[D, C]` and bias `[C]` of classifier `l`, shallow.
    pub fn parameters(&self, l: usize) -> (Tensor, Tensor) {
        let start = l as i64 * self.classes;
        (self.weight.narrow(1, start, self.classes), self.bias.narrow(0, start, self.classes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    fn batch(seed: u64, rows: i64, dim: i64, classes: usize) -> (Tensor, Tensor) {
        let mut rng = Stream::new(seed, Purpose::Init, 0, 0, 0);
        let values: Vec<f32> = (0..rows * dim).map(|_| rng.normal_pair().0 as f32).collect();
        let labels: Vec<i64> = (0..rows).map(|_| rng.below(classes) as i64).collect();
        (Tensor::from_slice(&values).reshape([rows, dim]), Tensor::from_slice(&labels))
    }

    /// The definition: autograd, one classifier, `torch.optim.SGD` written out.
    fn alone(rate: f64, config: &LinearEvalConfig, steps: u64) -> (Tensor, Tensor) {
        let options = (Kind::Double, Device::Cpu);
        let parameters =
            [Tensor::zeros([6, 4], options), Tensor::zeros([4], options)].map(|p| p.set_requires_grad(true));
        let mut momenta = parameters.each_ref().map(|p| p.detach().zeros_like());
        for step in 0..steps {
            let (x, y) = batch(step, 9, 6, 4);
            let [w, b] = &parameters;
            let loss = (x.to_kind(Kind::Double).matmul(w) + b).cross_entropy_for_logits(&y);
            let gradients = Tensor::run_backward(&[&loss], &[w, b], false, false);
            let _no_grad = tch::no_grad_guard();
            for ((p, m), g) in parameters.iter().zip(&mut momenta).zip(gradients) {
                let g = g + p * config.weight_decay;
                *m = &*m * config.momentum + &g;
                let direction = if config.nesterov { g + &*m * config.momentum } else { m.copy() };
                p.shallow_clone().copy_(&(p - direction * (rate / (step + 1) as f64)));
            }
        }
        let [w, b] = parameters;
        (w.detach(), b.detach())
    }

    #[test]
    fn side_by_side_is_one_by_one() -> Result<()> {
        let rates = [1.6, 0.3, 0.05];
        for (nesterov, weight_decay) in [(true, 0.0), (false, 0.0), (true, 0.01)] {
            let config = LinearEvalConfig { nesterov, weight_decay, ..LinearEvalConfig::default() };
            let mut probes = Probes::new(6, 4, &rates, &config, Device::Cpu);
            for step in 0..20 {
                let (x, y) = batch(step, 9, 6, 4);
                probes.step(&x, &y, 1.0 / (step + 1) as f64)?;
            }
            for (l, rate) in rates.into_iter().enumerate() {
                let ((w, b), (expected_w, expected_b)) = (probes.parameters(l), alone(rate, &config, 20));
                let error = |a: &Tensor, b: &Tensor| (a - b).norm().double_value(&[]) / b.norm().double_value(&[]);
                assert!(error(&w, &expected_w) < 1e-5 && error(&b, &expected_b) < 1e-5, "rate {rate}");
                let (x, _) = batch(99, 9, 6, 4);
                let scores = probes.scores(&x)?.select(1, l as i64);
                assert!(error(&scores, &(x.matmul(&w) + b)) < 1e-6, "rate {rate}");
            }
        }
        Ok(())
    }
}
