//! BYOL's loss (paper, equation 2) and the statistic that shows a collapse.

use tch::{Kind, Tensor};

/// `torch.nn.functional.normalize(x, dim=1)`, half precision converted to fp32 first: rows of `[N, D]` to length 1,
/// norms clamped to at least 1e-12.
pub fn l2_normalize(x: &Tensor) -> Tensor {
    let x = if x.kind() == Kind::Double { x.shallow_clone() } else { x.to_kind(Kind::Float) };
    let norm = x.norm_scalaropt_dim(2, [1].as_slice(), true).clamp_min(1e-12);
    x / norm
}

/// The squared distance of the normalized rows, `2 - 2 cos`, averaged over the batch: predictions and target
/// projections `[N, D]` to a scalar in 0..4.
pub fn regression_loss(prediction: &Tensor, projection: &Tensor) -> Tensor {
    let cosine = (l2_normalize(prediction) * l2_normalize(projection)).sum_dim_intlist([1].as_slice(), false, None);
    (cosine * -2.0 + 2.0).mean(None)
}

/// Standard deviation over the batch of the normalized projections `[N, D]`, averaged over D: about
/// `1 / sqrt(D)` when healthy, near 0 when collapsed: the network maps every image to the same point.
pub fn z_std(projection: &Tensor) -> Tensor {
    l2_normalize(&projection.detach()).std_dim(Some([0].as_slice()), true, false).mean(None)
}

/// Sums of the normalized projections `[N, D]` and of their squares over the batch, `[2 D]` in fp64. Those of parts of
/// a batch add up to those of the whole.
pub fn moments(projection: &Tensor) -> Tensor {
    let rows = l2_normalize(&projection.detach()).to_kind(Kind::Double);
    let sum = |x: &Tensor| x.sum_dim_intlist([0].as_slice(), false, None);
    Tensor::cat(&[sum(&rows), sum(&rows.square())], 0)
}

/// [`z_std`] from the [`moments`] of `n` rows.
pub fn z_std_of_moments(moments: &Tensor, n: i64) -> Tensor {
    let parts = moments.chunk(2, 0);
    let variance = (&parts[1] - parts[0].square() / n as f64) / (n - 1) as f64;
    variance.clamp_min(0.0).sqrt().mean(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).reshape([-1, 2])
    }

    #[test]
    fn both_directions_span_0_to_8() {
        let (x, y) = (rows(&[3.0, 0.0, 0.0, 0.5]), rows(&[0.0, 2.0, 9.0, 0.0]));
        let both = |a: &Tensor, b: &Tensor| (regression_loss(a, b) + regression_loss(b, a)).double_value(&[]);
        assert_eq!(both(&x, &x), 0.0);
        assert_eq!(both(&x, &y), 4.0);
        assert_eq!(both(&x, &-&x), 8.0);
    }

    #[test]
    fn gradient_flows_through_the_prediction_only_when_the_target_is_detached() {
        let p = rows(&[1.0, 2.0, 3.0, -1.0]).set_requires_grad(true);
        let z = rows(&[2.0, 1.0, 0.5, 1.0]).set_requires_grad(true);
        regression_loss(&p, &z.detach()).backward();
        assert!(p.grad().defined() && p.grad().abs().max().double_value(&[]) > 0.0);
        assert!(!z.grad().defined());
    }

    #[test]
    fn moments_of_parts_add_up_to_the_z_std_of_the_whole() {
        for spread in [1.0, 1e-3] {
            let whole =
                (Tensor::arange(24, (Kind::Double, tch::Device::Cpu)) * 1.7).sin().reshape([8, 3]) * spread + 1.0;
            let sums = moments(&whole.narrow(0, 0, 2)) + moments(&whole.narrow(0, 2, 6));
            let (found, expected) = (z_std_of_moments(&sums, 8).double_value(&[]), z_std(&whole).double_value(&[]));
            assert!((found - expected).abs() < 1e-9 * expected, "{found} {expected}");
        }
    }

    #[test]
    fn z_std_is_0_for_a_collapsed_batch() {
        assert_eq!(z_std(&rows(&[1.0, 2.0, 2.0, 4.0, 0.5, 1.0])).double_value(&[]), 0.0);
    }
}
