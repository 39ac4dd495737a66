//! Numbers that judge representations without labels: effective rank (RankMe, arXiv 2210.02885), alignment and
//! uniformity (Wang and Isola, arXiv 2005.10242), and how well one view of an image finds the other.

use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

use crate::byol::loss::l2_normalize;
use crate::logging::Quality;

/// What the networks make of two views of N images, row by row, on one device.
pub struct ViewPairs {
    /// Representations of view 1 and of view 2 by the online encoder, each `[N, F]`.
    pub representations: [Tensor; 2],
    /// Projections of view 1 by the online and by the target network, each `[N, D]`.
    pub projections: [Tensor; 2],
}

impl ViewPairs {
    /// The numbers, in f64.
    /// # Errors
    /// Fewer than two images; NaN or Inf.
    pub fn quality(&self) -> Result<Quality> {
        let _no_grad = tch::no_grad_guard();
        let images = self.representations[0].size()[0];
        ensure!(images >= 2, "found {images} images that can be read, expected at least 2");
        let mut all = self.representations.iter().chain(&self.projections);
        let finite = all.all(|rows| rows.sum(Kind::Double).double_value(&[]).is_finite());
        ensure!(finite, "found NaN or Inf among the representations, expected numbers");
        let [first, second] = self.representations.each_ref().map(unit_rows);
        let [online, target] = self.projections.each_ref().map(unit_rows);
        let own = first.f_matmul(&second.tr())?; // cosine of view 1 of each image with view 2 of each, [N, N]
        let found = own.argmax(1, false).eq_tensor(&Tensor::arange(images, (Kind::Int64, own.device())));
        let pairs = first.f_matmul(&first.tr())?.f_triu(1)?; // cosines of different images
        let count = (images * (images - 1) / 2) as f64;
        // |x - y|^2 = 2 - 2 cos; below the diagonal lie zeros, each of which adds exp(-4) to the sum.
        let zeros = (images * images) as f64 - count;
        let potential = ((&pairs - 1.0) * 4.0).f_exp()?.sum(Kind::Double).double_value(&[]) - zeros * (-4f64).exp();
        Ok(Quality {
            effective_rank: effective_rank(&self.representations[0])?,
            features: self.representations[0].size()[1],
            projection_rank: effective_rank(&self.projections[0])?,
            alignment: distance(&first, &second),
            uniformity: (potential / count).max(f64::MIN_POSITIVE).ln(),
            view_retrieval: found.to_kind(Kind::Double).mean(None).double_value(&[]),
            random_cosine: pairs.sum(Kind::Double).double_value(&[]) / count,
            target_distance: distance(&online, &target),
            images,
        })
    }
}

fn unit_rows(x: &Tensor) -> Tensor {
    l2_normalize(&x.to_kind(Kind::Double))
}

/// Mean squared distance of rows.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).square().sum_dim_intlist([1].as_slice(), false, None).mean(None).double_value(&[])
}

/// RankMe: the exponential of the entropy of the singular values of `[N, F]` over their sum, 1e-7 added to each. At most
/// the smaller of N and F.
fn effective_rank(rows: &Tensor) -> Result<f64> {
    let rows = rows.to_kind(Kind::Double);
    // The squares of the singular values are the eigenvalues of the smaller Gram matrix, much less work on a GPU.
    let [images, features] = [rows.size()[0], rows.size()[1]];
    let gram = if images < features { rows.f_matmul(&rows.tr())? } else { rows.tr().f_matmul(&rows)? };
    let values = gram.f_to_device(Device::Cpu)?.f_linalg_eigvalsh("L")?.clamp_min(0.0).sqrt();
    let shares = &values / values.sum(Kind::Double).clamp_min(f64::MIN_POSITIVE) + 1e-7;
    Ok((-(&shares * shares.log()).sum(Kind::Double)).exp().double_value(&[]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(first: Tensor, second: Tensor) -> ViewPairs {
        let projections = [first.shallow_clone(), second.shallow_clone()];
        ViewPairs { representations: [first, second], projections }
    }

    #[test]
    fn extremes_have_the_numbers_that_their_definitions_give() -> Result<()> {
        let eye = Tensor::eye(6, (Kind::Float, Device::Cpu));
        let quality = pairs(eye.copy(), eye.copy()).quality()?;
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-4, "{a}, expected {b}");
        near(quality.effective_rank, 6.0);
        near(quality.uniformity, -4.0); // all distances are sqrt(2)
        assert_eq!((quality.alignment, quality.view_retrieval, quality.random_cosine), (0.0, 1.0, 0.0));
        let same = Tensor::ones([6, 4], (Kind::Float, Device::Cpu));
        let quality = pairs(same.copy(), -same).quality()?;
        near(quality.effective_rank, 1.0);
        near(quality.uniformity, 0.0);
        near(quality.alignment, 4.0);
        near(quality.target_distance, 4.0);
        near(quality.random_cosine, 1.0);
        assert!(pairs(eye.narrow(0, 0, 1), eye.narrow(0, 0, 1)).quality().is_err());
        assert!(pairs(&eye / 0.0, eye.copy()).quality().is_err());
        Ok(())
    }
}
