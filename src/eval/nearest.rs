//! Exact nearest neighbors by cosine, block by block, so that memory does not grow with the product of the sets' sizes.

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use crate::byol::loss::l2_normalize;

/// Images to find neighbors of, per block.
pub const QUERIES: i64 = 1024;
/// Images to compare with, per block.
pub const BANK: i64 = 8192;

/// Two sets of features, both `[.., D]` on one device.
pub struct Nearest<'a> {
    /// Features to compare with.
    pub bank: &'a Tensor,
    /// Features to find neighbors of.
    pub queries: &'a Tensor,
    /// The sets are the same, and no image is a neighbor of itself.
    pub leave_one_out: bool,
    /// Precision of the cosines.
    pub kind: Kind,
    /// Rows of the bank per block.
    pub block: i64,
}

impl<'a> Nearest<'a> {
    /// In f64, as exact as neighbors of fp32 features can be. Without `queries` those of the bank, left out of their own
    /// neighbors.
    pub fn new(bank: &'a Tensor, queries: Option<&'a Tensor>) -> Self {
        let leave_one_out = queries.is_none();
        Self { bank, queries: queries.unwrap_or(bank), leave_one_out, kind: Kind::Double, block: BANK }
    }

    fn rows_of(&self, features: &Tensor, start: i64, length: i64) -> Tensor {
        l2_normalize(&features.narrow(0, start, length).to_kind(self.kind))
    }

    /// Cosines and positions in the bank of the `most` nearest to the `rows` queries from `start` on, the nearest first,
    /// both `[rows, most]`, fewer if the bank is smaller.
    pub fn of(&self, start: i64, rows: i64, most: i64) -> Result<(Tensor, Tensor)> {
        let (device, total) = (self.bank.device(), self.bank.size()[0]);
        let query_rows = self.rows_of(self.queries, start, rows);
        let mut best: Option<(Tensor, Tensor)> = None; // the nearest so far, [rows, <= most]
        for from in (0..total).step_by(self.block as usize) {
            let count = self.block.min(total - from);
            let mut cosine = query_rows.f_matmul(&self.rows_of(self.bank, from, count).tr())?; // [rows, count]
            if self.leave_one_out {
                // The image itself, if it is in this block.
                let own = Tensor::arange_start(start - from, start - from + rows, (Kind::Int64, device)).unsqueeze(1);
                let here = Tensor::arange(count, (Kind::Int64, device)).eq_tensor(&own);
                cosine = cosine.f_masked_fill(&here, f64::NEG_INFINITY)?;
            }
            let (near, index) = cosine.f_topk(most.min(count), 1, true, true)?;
            let index = index + from;
            best = Some(match best {
                None => (near, index),
                Some((cosines, known)) => {
                    let (all, found) = (Tensor::f_cat(&[cosines, near], 1)?, Tensor::f_cat(&[known, index], 1)?);
                    let (near, index) = all.f_topk(most.min(all.size()[1]), 1, true, true)?;
                    (near, found.f_gather(1, &index, false)?)
                }
            });
        }
        best.context("nearest neighbors: found no images to compare with")
    }

    /// The neighbors of each query, as (position in the bank, cosine), the nearest first. `tick` is called with the
    /// number of queries done and may return an error.
    pub fn all(&self, most: usize, mut tick: impl FnMut(usize) -> Result<()>) -> Result<Vec<Vec<(usize, f64)>>> {
        let _no_grad = tch::no_grad_guard();
        let (total, others) = (self.queries.size()[0], self.bank.size()[0] - i64::from(self.leave_one_out));
        let most = (most as i64).min(others);
        let mut found = Vec::with_capacity(total as usize);
        for start in (0..total).step_by(QUERIES as usize) {
            tick(start as usize)?;
            let (cosines, index) = self.of(start, QUERIES.min(total - start), most)?;
            let (cosines, index): (Vec<Vec<f64>>, Vec<Vec<i64>>) =
                (cosines.to_kind(Kind::Double).try_into()?, index.try_into()?);
            let row = |(cosines, index): (Vec<f64>, Vec<i64>)| {
                index.into_iter().map(|at| at as usize).zip(cosines).collect::<Vec<_>>()
            };
            found.extend(cosines.into_iter().zip(index).map(row));
        }
        Ok(found)
    }
}

/// Groups of rows of `[N, D]` that pairs of a cosine of at least `threshold` connect, each in order, the largest group
/// first. `tick` is called with the number of rows done and may return an error.
pub fn duplicates(
    features: &Tensor,
    threshold: f64,
    mut tick: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<Vec<usize>>> {
    let _no_grad = tch::no_grad_guard();
    let total = features.size()[0];
    let block = |start: i64, most: i64| l2_normalize(&features.narrow(0, start, most.min(total - start)));
    let mut groups = Groups((0..total as usize).collect());
    for start in (0..total).step_by(QUERIES as usize) {
        tick(start as usize)?;
        let rows = block(start, QUERIES);
        for from in (start..total).step_by(BANK as usize) {
            let cosine = rows.f_matmul(&block(from, BANK).tr())?;
            // Pairs of a row and a later one.
            let pairs = cosine.ge(threshold).f_triu(start - from + 1)?.f_nonzero()?;
            for pair in Vec::<Vec<i64>>::try_from(pairs)? {
                groups.join((start + pair[0]) as usize, (from + pair[1]) as usize);
            }
        }
    }
    Ok(groups.found())
}

/// Disjoint sets: each member's parent.
struct Groups(Vec<usize>);

impl Groups {
    fn first(&mut self, mut at: usize) -> usize {
        while self.0[at] != at {
            self.0[at] = self.0[self.0[at]];
            at = self.0[at];
        }
        at
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.first(a), self.first(b));
        self.0[a.max(b)] = a.min(b);
    }

    fn found(mut self) -> Vec<Vec<usize>> {
        let mut members = vec![Vec::new(); self.0.len()];
        for at in 0..self.0.len() {
            let first = self.first(at);
            members[first].push(at);
        }
        members.retain(|group| group.len() > 1);
        members.sort_by_key(|group| (std::cmp::Reverse(group.len()), group[0]));
        members
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Points on a circle, at these degrees.
    fn circle(degrees: &[f64]) -> Tensor {
        let angle = Tensor::from_slice(degrees).deg2rad();
        Tensor::stack(&[angle.cos(), angle.sin()], 1).to_kind(Kind::Float) * 3.0
    }

    #[test]
    fn neighbors_have_their_positions_in_blocks_of_any_size() -> Result<()> {
        let bank = circle(&[0.0, 100.0, 10.0, 200.0, 103.0, 1.0]);
        for block in [1, 2, 4, 100] {
            let nearest = Nearest { block, ..Nearest::new(&bank, None) };
            let found = nearest.all(2, |_| Ok(()))?;
            let positions: Vec<Vec<usize>> =
                found.iter().map(|row| row.iter().map(|(position, _)| *position).collect()).collect();
            assert_eq!(positions, [vec![5, 2], vec![4, 2], vec![5, 0], vec![4, 1], vec![1, 2], vec![0, 2]], "{block}");
            assert!((found[1][0].1 - 3f64.to_radians().cos()).abs() < 1e-6);
        }
        let query = circle(&[199.0]);
        assert_eq!(Nearest::new(&bank, Some(&query)).all(9, |_| Ok(()))?[0].len(), 6);
        Ok(())
    }

    #[test]
    fn duplicates_are_groups_of_what_is_connected() -> Result<()> {
        // 0, 4 and 8 degrees are connected through 4; 3000 images lie in several blocks.
        let mut degrees: Vec<f64> = (0..3000).map(|at| 20.0 + at as f64 * 0.1).collect();
        degrees[2999] = 8.0;
        degrees[1500] = 4.0;
        degrees[0] = 0.0;
        let cosine = |degrees: f64| degrees.to_radians().cos();
        assert_eq!(duplicates(&circle(&degrees), cosine(0.05), |_| Ok(()))?, Vec::<Vec<usize>>::new());
        let mut spaced: Vec<f64> = (0..60).map(|at| 20.0 + at as f64 * 5.0).collect();
        (spaced[59], spaced[31], spaced[7]) = (8.0, 4.0, 0.0);
        spaced[20] = spaced[40];
        let found = duplicates(&circle(&spaced), cosine(4.5), |_| Ok(()))?;
        assert_eq!(found, [vec![7, 31, 59], vec![20, 40]]);
        assert_eq!(duplicates(&Tensor::zeros([3, 2], (Kind::Float, Device::Cpu)), 0.5, |_| Ok(()))?, [[0; 0]; 0]);
        Ok(())
    }
}
