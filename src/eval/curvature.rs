//! The preconditioner of logistic regression: the inverse of the Hessian's blocks on the diagonal, one for each class.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::parallel::in_parallel;
use crate::rng::{Purpose, Stream};

/// Rows for each dimension that the blocks are made from, at most, if all would take too long.
const ROWS_PER_DIMENSION: usize = 8;
/// Dimensions up to which the blocks are made from all rows.
const SMALL: f64 = 128.0;
/// Most numbers of the blocks: beyond it all classes share one.
const MAX_NUMBERS: i64 = 1 << 25;
/// Most evaluations of the loss that making the blocks may cost: beyond it all classes share one.
const MAX_EVALUATIONS: usize = 150;
/// Evaluations after which blocks are made anew, at least.
const MIN_AGE: usize = 20;
/// Share of the mean on the diagonal that is added to it, so that rounding leaves the blocks positive definite.
const RIDGE: f64 = 1e-12;

/// The blocks, made at some point, and their factors for some penalty.
pub struct Curvature {
    rows: Tensor,            // [N, D + 1]
    weights: Option<Tensor>, // [1, N]
    draws: Option<Tensor>,   // [n], from 0 to 1, where not all rows are taken
    classes: i64,
    threads: usize,
    blocks: Vec<Tensor>, // one or a class each, [D + 1, D + 1]
    factors: Tensor,     // Cholesky's, [1 or C, D + 1, D + 1]
}

impl Curvature {
    /// Of rows `[N, D + 1]` (f64), the last column 1, each counted `weights` `[N]` times, or once.
    pub fn new(rows: &Tensor, weights: Option<&Tensor>, classes: i64, threads: usize) -> Self {
        let (n, size) = (rows.size()[0] as usize, rows.size()[1] as usize);
        let all = n as f64 * (SMALL / (size - 1) as f64).powi(2).min(1.0);
        let taken = (all as usize).max(ROWS_PER_DIMENSION * size);
        let draws = (taken < n).then(|| {
            let mut random = Stream::new(0, Purpose::Subset, 0, 0, 4);
            let draws: Vec<f64> = (0..taken).map(|at| (at as f64 + random.unit()) / taken as f64).collect();
            Tensor::from_slice(&draws).to_device(rows.device())
        });
        Self {
            rows: rows.shallow_clone(),
            weights: weights.map(|weights| weights.unsqueeze(0)),
            draws,
            classes,
            threads: if rows.device() == Device::Cpu { threads } else { 1 },
            blocks: Vec::new(),
            factors: Tensor::empty([0], (Kind::Double, rows.device())),
        }
    }

    /// What it costs to make the blocks of all classes, in evaluations of the loss; measured at some sizes.
    fn cost(&self) -> usize {
        let n = self.rows.size()[0] as usize;
        let taken = self.draws.as_ref().map_or(n, |draws| draws.size()[0] as usize);
        taken * self.rows.size()[1] as usize / (8 * n)
    }

    fn shared(&self) -> bool {
        self.classes * self.rows.size()[1].pow(2) > MAX_NUMBERS || self.cost() > MAX_EVALUATIONS
    }

    /// Evaluations after which it is worth making the blocks anew.
    pub fn lifetime(&self) -> usize {
        self.cost().clamp(MIN_AGE, MAX_EVALUATIONS)
    }

    /// Makes the blocks where the classes have these probabilities `[C, N]`; [`Self::factorize`] comes next.
    pub fn refresh(&mut self, probabilities: &Tensor) -> Result<()> {
        let mut curved: Tensor = probabilities * (1.0 - probabilities);
        if self.shared() {
            curved = curved.mean_dim([0i64].as_slice(), true, Kind::Double);
        }
        if let Some(weights) = &self.weights {
            curved *= weights;
        }
        let mut rows = self.rows.shallow_clone();
        if let Some(draws) = &self.draws {
            // The more a row curves the loss, the likelier it is drawn, and the less it counts for.
            let (n, taken) = (rows.size()[0], draws.size()[0]);
            let density = curved.sum_dim_intlist([0i64].as_slice(), false, Kind::Double) + f64::MIN_POSITIVE;
            let density = &density / density.sum(Kind::Double) * 0.9 + 0.1 / n as f64;
            let drawn = density.cumsum(0, Kind::Double).f_searchsorted(draws, false, false, "left", None::<Tensor>)?;
            let drawn = drawn.clamp_max(n - 1);
            rows = rows.f_index_select(0, &drawn)?;
            curved = curved.f_index_select(1, &drawn)? / (density.index_select(0, &drawn) * taken as f64);
        }
        let classes = (0..curved.size()[0]).map(|class| (rows.shallow_clone(), curved.get(class).unsqueeze(1)));
        let block = |(rows, curved): (Tensor, Tensor)| Ok(rows.tr().f_matmul(&(&rows * curved))?);
        self.blocks = in_parallel(self.threads, classes.collect(), block)?;
        Ok(())
    }

    /// Factorizes the blocks, if there are any yet, with a penalty.
    pub fn factorize(&mut self, penalty: f64) -> Result<()> {
        if self.blocks.is_empty() {
            return Ok(());
        }
        let n = self.rows.size()[0] as f64;
        let blocks = self.blocks.iter().map(Tensor::shallow_clone).collect();
        let factors = in_parallel(self.threads, blocks, |block: Tensor| {
            let diagonal = block.diagonal(0, 0, 1);
            let ridge = penalty + RIDGE * diagonal.mean(Kind::Double).double_value(&[]);
            let diagonal = diagonal + ridge;
            // Intercepts have no penalty: a trace of one keeps the matrix regular where a class is certain.
            let last = block.get(-1).get(-1) + 1e-8 * n;
            diagonal.get(-1).f_copy_(&last)?;
            let matrix = block.copy();
            matrix.diagonal(0, 0, 1).f_copy_(&diagonal)?;
            Ok(matrix.f_linalg_cholesky(false)?)
        })?;
        self.factors = Tensor::f_stack(&factors, 0)?;
        Ok(())
    }

    /// The inverse times a gradient `[C, D + 1]`.
    pub fn solve(&self, gradient: &Tensor) -> Result<Tensor> {
        // Adding the same vector to the weights of every class changes no probability: the gradient's mean over the
        // classes is only the penalty's, 0 at the minimum, and stays 0 on the way.
        let centered = |t: &Tensor| t - t.mean_dim([0i64].as_slice(), true, Kind::Double);
        let solved = match self.factors.size()[0] {
            1 => centered(gradient).tr().unsqueeze(0).f_cholesky_solve(&self.factors, false)?.squeeze_dim(0).tr(),
            _ => centered(gradient).unsqueeze(2).f_cholesky_solve(&self.factors, false)?.squeeze_dim(2),
        };
        Ok(centered(&solved))
    }
}
