//! Values that no trained network has.

use anyhow::{Result, bail};
use tch::{Kind, Tensor};

use crate::model::Params;

/// Fails if a tensor holds NaN or infinity, or a variance below 0.
/// # Errors
/// The name of the first one.
pub fn check_values(params: &Params) -> Result<()> {
    let tensors = || params.parameters.iter().chain(&params.buffers);
    let _no_grad = tch::no_grad_guard();
    // A sum in f64 is finite only if every value is; one sum over all tensors first.
    let sums: Vec<Tensor> = tensors().map(|n| n.tensor.sum(Kind::Double)).collect();
    if !Tensor::f_stack(&sums, 0)?.sum(Kind::Double).double_value(&[]).is_finite() {
        let bad = tensors().zip(&sums).find(|(_, sum)| !sum.double_value(&[]).is_finite());
        bail!("{} holds values that are not finite", bad.map_or("a tensor", |(named, _)| named.name.as_str()));
    }
    for named in params.buffers.iter().filter(|named| named.name.ends_with("running_var")) {
        if named.tensor.min().double_value(&[]) < 0.0 {
            bail!("{} holds negative values, expected variances", named.name);
        }
    }
    Ok(())
}
