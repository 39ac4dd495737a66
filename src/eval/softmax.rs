//! The cross-entropy of a linear classifier on all rows at once, its gradient and its probabilities.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::parallel::in_parallel;

/// Numbers of rows that are worked on at once: they are read from memory once for the scores and the gradient.
const BLOCK: i64 = 1 << 17;
/// The same on a GPU.
const GPU_BLOCK: i64 = 1 << 24;
/// Numbers below which another thread costs more than it saves.
const THREAD: i64 = 1 << 19;

/// Rows `[n, D]`, their classes `[1, n]` and weights `[1, n]`.
struct Part {
    rows: Tensor,
    classes: Tensor,
    weights: Option<Tensor>,
}

impl Part {
    fn narrow(&self, start: i64, length: i64) -> Self {
        Self {
            rows: self.rows.narrow(0, start, length),
            classes: self.classes.narrow(1, start, length),
            weights: self.weights.as_ref().map(|weights| weights.narrow(1, start, length)),
        }
    }

    fn blocks(&self) -> impl Iterator<Item = Self> + '_ {
        let (n, dim) = (self.rows.size()[0], self.rows.size()[1]);
        let block = if self.rows.device() == Device::Cpu { BLOCK } else { GPU_BLOCK };
        let block = (block / dim).max(64);
        (0..n).step_by(block as usize).map(move |start| self.narrow(start, block.min(n - start)))
    }

    fn evaluate(&self, at: &Tensor) -> Result<(f64, Tensor)> {
        let (mut loss, mut gradient) = (0.0, at.zeros_like());
        for Self { rows, classes, weights } in self.blocks() {
            let scores = at.f_matmul(&rows.tr())?.f_log_softmax(0, Kind::Double)?;
            let mut losses = scores.f_gather(0, &classes, false)?;
            let mut slope = scores.f_exp()?;
            let _ = slope.f_scatter_add_(0, &classes, &Tensor::full_like(&losses, -1.0))?;
            if let Some(weights) = weights {
                losses *= &weights;
                slope *= weights;
            }
            loss -= losses.sum(Kind::Double).double_value(&[]);
            gradient = gradient.f_addmm_(&slope, &rows)?;
        }
        Ok((loss, gradient))
    }

    fn probabilities(&self, at: &Tensor) -> Result<Tensor> {
        let blocks = self.blocks().map(|block| Ok(at.f_matmul(&block.rows.tr())?.f_softmax(0, Kind::Double)?));
        Ok(Tensor::f_cat(&blocks.collect::<Result<Vec<_>>>()?, 1)?)
    }
}

/// The cross-entropy on these rows, summed.
pub struct CrossEntropy {
    whole: Part,
    parts: Vec<[i64; 2]>, // start and length
    threads: usize,
}

impl CrossEntropy {
    /// Of rows `[N, D]` (f64) with classes `[N]` (int64), each counted `weights` `[N]` times, or once; on up to
    /// `threads` threads.
    pub fn new(rows: &Tensor, classes: &Tensor, weights: Option<&Tensor>, threads: usize) -> Self {
        let whole = Part {
            rows: rows.shallow_clone(),
            classes: classes.unsqueeze(0),
            weights: weights.map(|weights| weights.unsqueeze(0)),
        };
        let (n, numbers) = (rows.size()[0], rows.numel() as i64);
        let most = if rows.device() == Device::Cpu { threads as i64 } else { 1 };
        let count = (numbers / THREAD).clamp(1, most.max(1));
        let start = |part: i64| part * n / count;
        let parts = (0..count).map(|part| [start(part), start(part + 1) - start(part)]).collect();
        Self { whole, parts, threads: count as usize }
    }

    /// The parts, each with a view of `at` that may go to another thread.
    fn shares(&self, at: &Tensor) -> Vec<(Part, Tensor)> {
        self.parts.iter().map(|&[start, length]| (self.whole.narrow(start, length), at.shallow_clone())).collect()
    }

    /// Value and gradient `[C, D]` at weights `[C, D]`.
    pub fn evaluate(&self, at: &Tensor) -> Result<(f64, Tensor)> {
        let found = in_parallel(self.threads, self.shares(at), |(part, at)| part.evaluate(&at))?;
        let (mut loss, mut gradient) = (0.0, at.zeros_like());
        for (part, slope) in found {
            loss += part;
            gradient += slope;
        }
        Ok((loss, gradient))
    }

    /// Probabilities `[C, N]` at weights `[C, D]`.
    pub fn probabilities(&self, at: &Tensor) -> Result<Tensor> {
        let found = in_parallel(self.threads, self.shares(at), |(part, at)| part.probabilities(&at))?;
        Ok(Tensor::f_cat(&found, 1)?)
    }
}
