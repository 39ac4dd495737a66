//! L-BFGS (Nocedal and Wright, algorithm 7.5) for smooth convex functions in f64, with a preconditioner in the place of
//! the scaled identity that the update starts from.

use std::collections::VecDeque;

use anyhow::Result;
use tch::{Kind, Tensor};

/// Pairs of steps and gradient changes that are kept.
const HISTORY: usize = 20;
/// Evaluations of one line search.
const LINE_SEARCH: usize = 30;
/// Share of a value that its rounding may come to.
const ROUNDING: f64 = 1e-13;

/// A function to minimize.
pub trait Objective {
    /// Value and gradient at a point.
    fn evaluate(&mut self, at: &Tensor) -> Result<(f64, Tensor)>;
    /// Makes the preconditioner anew, for this point.
    fn refresh(&mut self, at: &Tensor) -> Result<()>;
    /// Evaluations after which that is worth it.
    fn lifetime(&self) -> usize;
    /// The preconditioner, near the inverse of the Hessian, times a gradient.
    fn precondition(&self, gradient: &Tensor) -> Result<Tensor>;
}

/// Where a minimization ended.
pub struct Minimum {
    /// The point.
    pub at: Tensor,
    /// L-BFGS steps that it took.
    pub iterations: usize,
    /// Whether the tolerance was reached.
    pub converged: bool,
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    (a * b).sum(Kind::Double).double_value(&[])
}

/// A point with its value and gradient.
struct Point {
    at: Tensor,
    value: f64,
    gradient: Tensor,
}

/// What is known of a function's curvature: the last steps and what they changed in the gradient, with the number of
/// evaluations since the preconditioner was made. The next minimization starts with it.
pub struct Memory {
    pairs: VecDeque<(Tensor, Tensor, f64)>, // step, change, 1 / their product
    scale: f64,                             // of the preconditioner
    age: usize,
}

impl Default for Memory {
    /// Nothing is known: the preconditioner will be made first.
    fn default() -> Self {
        Self { pairs: VecDeque::new(), scale: 1.0, age: usize::MAX }
    }
}

/// Minimizes from `start` on, until half the squared preconditioned norm of the gradient, about the distance to the
/// smallest value, is below `tolerance`² times the value. `tick` is called before every iteration and may give up.
/// # Errors
/// The function's and `tick`'s own.
pub fn minimize(
    objective: &mut impl Objective,
    memory: &mut Memory,
    start: &Tensor,
    tolerance: f64,
    most: usize,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<Minimum> {
    let (value, gradient) = memory.evaluate(objective, start)?;
    let mut point = Point { at: start.copy(), value, gradient };
    let mut before: Option<Tensor> = None; // the last gradient, preconditioned
    for iterations in 0..most {
        tick()?;
        if memory.age >= objective.lifetime() {
            objective.refresh(&point.at)?;
            (memory.age, memory.scale, before) = (0, 1.0, None);
        }
        let preconditioned = objective.precondition(&point.gradient)?;
        if dot(&point.gradient, &preconditioned) / 2.0 <= tolerance * tolerance * point.value {
            return Ok(Minimum { at: point.at, iterations, converged: true });
        }
        memory.measure(before.map(|before| &preconditioned - before));
        before = Some(preconditioned);
        let direction = memory.direction(objective, &point.gradient)?;
        let Some(next) = memory.line_search(objective, &point, &direction)? else {
            if memory.pairs.is_empty() {
                // The value cannot fall any further in f64.
                return Ok(Minimum { at: point.at, iterations, converged: true });
            }
            *memory = Memory::default(); // what it knows misleads here
            continue;
        };
        memory.push(&next.at - &point.at, &next.gradient - &point.gradient);
        point = next;
    }
    Ok(Minimum { at: point.at, iterations: most, converged: false })
}

impl Memory {
    fn evaluate(&mut self, objective: &mut impl Objective, at: &Tensor) -> Result<(f64, Tensor)> {
        self.age = self.age.saturating_add(1);
        objective.evaluate(at)
    }

    /// A point along `direction` that satisfies the weak Wolfe conditions, by bisection; `None` where none is lower.
    fn line_search(
        &mut self,
        objective: &mut impl Objective,
        from: &Point,
        direction: &Tensor,
    ) -> Result<Option<Point>> {
        let slope = dot(&from.gradient, direction);
        if slope.is_nan() || slope >= 0.0 {
            return Ok(None);
        }
        let (mut low, mut high, mut step) = (0.0, f64::INFINITY, 1.0);
        for _ in 0..LINE_SEARCH {
            let at = &from.at + direction * step;
            let (value, gradient) = self.evaluate(objective, &at)?;
            let limit = from.value + 1e-4 * step * slope + ROUNDING * from.value.abs();
            if value.is_nan() || value > limit {
                high = step;
            } else if dot(&gradient, direction) < 0.9 * slope {
                low = step;
            } else {
                return Ok(Some(Point { at, value, gradient }));
            }
            step = if high.is_finite() { (low + high) / 2.0 } else { 2.0 * step };
        }
        Ok(None)
    }

    /// Takes note that a term was added to the function, whose gradient differs by `change(step)` along a step.
    pub fn add(&mut self, change: impl Fn(&Tensor) -> Tensor) {
        for (step, known, _) in std::mem::take(&mut self.pairs) {
            let changed = known + change(&step);
            self.push(step, changed);
        }
    }

    fn push(&mut self, step: Tensor, change: Tensor) {
        let product = dot(&step, &change);
        if product > 0.0 {
            self.pairs.push_back((step, change, 1.0 / product));
        }
        if self.pairs.len() > HISTORY {
            self.pairs.pop_front();
        }
    }

    /// Scales the preconditioner by what it makes of the last change of the gradient.
    fn measure(&mut self, preconditioned: Option<Tensor>) {
        if let (Some((_, change, inverse)), Some(preconditioned)) = (self.pairs.back(), preconditioned) {
            let scale = 1.0 / (inverse * dot(change, &preconditioned));
            self.scale = if scale.is_finite() && scale > 0.0 { scale } else { 1.0 };
        }
    }

    /// The two-loop recursion.
    fn direction(&self, objective: &impl Objective, gradient: &Tensor) -> Result<Tensor> {
        let mut rest = gradient.copy();
        let mut factors = Vec::with_capacity(self.pairs.len());
        for (step, change, inverse) in self.pairs.iter().rev() {
            let factor = inverse * dot(step, &rest);
            rest -= change * factor;
            factors.push(factor);
        }
        let mut direction = objective.precondition(&rest)? * self.scale;
        for ((step, change, inverse), factor) in self.pairs.iter().zip(factors.into_iter().rev()) {
            let correction = factor - inverse * dot(change, &direction);
            direction += step * correction;
        }
        Ok(-direction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// sum of c_i (x_i - i)² + (x_i - i)⁴, with c from 1 to 1000; preconditioned by its diagonal or not at all.
    struct Bowl {
        diagonal: bool,
    }

    impl Bowl {
        fn parts(at: &Tensor) -> (Tensor, Tensor) {
            let index = Tensor::arange(at.size()[0], (Kind::Double, at.device()));
            (at - &index, (index * (3.0 / 19.0 * 10f64.ln())).exp())
        }
    }

    impl Objective for Bowl {
        fn evaluate(&mut self, at: &Tensor) -> Result<(f64, Tensor)> {
            let (x, c) = Self::parts(at);
            let value = (&c * &x * &x + x.pow_tensor_scalar(4)).sum(Kind::Double).double_value(&[]);
            Ok((1.0 + value, &c * &x * 2.0 + x.pow_tensor_scalar(3) * 4.0))
        }
        fn refresh(&mut self, _: &Tensor) -> Result<()> {
            Ok(())
        }
        fn lifetime(&self) -> usize {
            20
        }
        fn precondition(&self, gradient: &Tensor) -> Result<Tensor> {
            let (_, c) = Self::parts(gradient);
            Ok(if self.diagonal { gradient / (c * 2.0) } else { gradient.copy() })
        }
    }

    #[test]
    fn the_minimum_is_found_with_and_without_a_preconditioner() -> Result<()> {
        let start = Tensor::zeros([20], (Kind::Double, tch::Device::Cpu)) - 3.0;
        let (expected, _) = Bowl::parts(&start.zeros_like());
        let mut iterations = Vec::new();
        for diagonal in [true, false] {
            let found = minimize(&mut Bowl { diagonal }, &mut Memory::default(), &start, 1e-9, 2000, &mut || Ok(()))?;
            let error = (&found.at + &expected).abs().max().double_value(&[]);
            assert!(found.converged && error < 1e-3, "{diagonal}: {error} after {}", found.iterations);
            iterations.push(found.iterations);
        }
        assert!(iterations[0] * 3 < iterations[1], "{iterations:?}");
        let cut = minimize(&mut Bowl { diagonal: false }, &mut Memory::default(), &start, 1e-9, 5, &mut || Ok(()))?;
        assert!(!cut.converged && cut.iterations == 5);
        Ok(())
    }
}
