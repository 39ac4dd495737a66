//! Operations on many tensors at once, for optimizers and the moving average: a few launches on a GPU, not hundreds.
//! A rate is a 0-dim tensor on the tensors' device, so that changing it does not change the launches or synchronize.
//! Call them under `no_grad`.
use std::ffi::c_int;

use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use super::shim::check;

unsafe extern "C" {
    fn byol_foreach_sum(a: *const List, b: *const List, n: usize, alpha: f64, out: *mut *mut C_tensor) -> c_int;
    fn byol_foreach_norm(tensors: *const List, n: usize, out: *mut *mut C_tensor) -> c_int;
    fn byol_foreach_scale(tensors: *const List, n: usize, factor: *const C_tensor) -> c_int;
    fn byol_foreach_lerp(a: *const List, b: *const List, n: usize, weight: *const C_tensor) -> c_int;
    fn byol_fused_lerp(a: *const List, b: *const List, n: usize, weight: *const C_tensor) -> c_int;
    fn byol_fused_sgd(
        weights: *const List,
        gradients: *const List,
        momenta: *const List,
        n: usize,
        lr: *const C_tensor,
        weight_decay: f64,
        momentum: f64,
        nesterov: c_int,
    ) -> c_int;
    fn byol_fused_adamw(
        weights: *const List,
        gradients: *const List,
        first: *const List,
        second: *const List,
        n: usize,
        count: *const C_tensor,
        lr: *const C_tensor,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> c_int;
}

/// A list for the shim is an array of these.
type List = *const C_tensor;

fn list(tensors: &[Tensor]) -> Vec<List> {
    tensors.iter().map(Tensor::as_ptr).collect()
}

/// Pairs up lists for the shim.
fn same_length(lists: &[&[Tensor]]) -> Result<usize> {
    let n = lists[0].len();
    ensure!(lists.iter().all(|list| list.len() == n), "found lists of tensors of different lengths");
    Ok(n)
}

/// A rate of 0, to be changed by [`set_rate`]: f64 on the CPU, where it is read; fp32 on a GPU, as the kernels expect.
pub fn rate(device: Device) -> Tensor {
    Tensor::zeros([], (if device.is_cuda() { Kind::Float } else { Kind::Double }, device))
}

/// Sets a rate's value, ordered with the work queued on the device.
pub fn set_rate(rate: &Tensor, value: f64) -> Result<()> {
    let _ = rate.shallow_clone().f_fill_(value)?;
    Ok(())
}

/// `a + alpha b` for each pair (`torch._foreach_add`).
pub fn sum(a: &[Tensor], b: &[Tensor], alpha: f64) -> Result<Vec<Tensor>> {
    let n = same_length(&[a, b])?;
    let mut out = vec![std::ptr::null_mut(); n];
    // SAFETY: arrays of `n` pointers to tensors that are borrowed for the call.
    check(unsafe { byol_foreach_sum(list(a).as_ptr(), list(b).as_ptr(), n, alpha, out.as_mut_ptr()) })?;
    // SAFETY: after success the shim has made a tensor for each place, and gives them away.
    Ok(out.into_iter().map(|tensor| unsafe { Tensor::from_ptr(tensor) }).collect())
}

/// L2 norms as one tensor `[n]` (`torch._foreach_norm`).
pub fn norms(tensors: &[Tensor]) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    // SAFETY: an array of pointers to borrowed tensors, and its length.
    check(unsafe { byol_foreach_norm(list(tensors).as_ptr(), tensors.len(), &mut out) })?;
    // SAFETY: after success a tensor that the shim gives away.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// All tensors times one factor, a 0-dim tensor (`torch._foreach_mul_`).
pub fn scale(tensors: &[Tensor], factor: &Tensor) -> Result<()> {
    // SAFETY: an array of pointers to borrowed tensors, and its length.
    check(unsafe { byol_foreach_scale(list(tensors).as_ptr(), tensors.len(), factor.as_ptr()) })
}

/// `a = a + weight (b - a)` for each pair (`torch._foreach_lerp_`); on a GPU without reading the weight.
pub fn lerp(a: &[Tensor], b: &[Tensor], weight: &Tensor) -> Result<()> {
    let lerp = if weight.device().is_cuda() { byol_fused_lerp } else { byol_foreach_lerp };
    lerp_by(lerp, a, b, weight)
}

type Lerp = unsafe extern "C" fn(*const List, *const List, usize, *const C_tensor) -> c_int;

fn lerp_by(lerp: Lerp, a: &[Tensor], b: &[Tensor], weight: &Tensor) -> Result<()> {
    let n = same_length(&[a, b])?;
    // SAFETY: arrays of `n` pointers to tensors that are borrowed for the call.
    check(unsafe { lerp(list(a).as_ptr(), list(b).as_ptr(), n, weight.as_ptr()) })
}

/// `torch.optim.SGD(fused=True)` without dampening: u = g + wd w; v = m v + u; w = w - lr v, or with Nesterov
/// w = w - lr (u + m v). The momenta start at 0.
pub fn sgd(
    weights: &[Tensor],
    gradients: &[Tensor],
    momenta: &[Tensor],
    lr: &Tensor,
    weight_decay: f64,
    momentum: f64,
    nesterov: bool,
) -> Result<()> {
    let n = same_length(&[weights, gradients, momenta])?;
    let (w, g, v) = (list(weights), list(gradients), list(momenta));
    // SAFETY: arrays of `n` pointers to tensors that are borrowed for the call.
    check(unsafe {
        let nesterov = nesterov.into();
        byol_fused_sgd(w.as_ptr(), g.as_ptr(), v.as_ptr(), n, lr.as_ptr(), weight_decay, momentum, nesterov)
    })
}

/// `torch.optim.AdamW(fused=True)`; `moments` are the averages of g and of g^2, `count` the updates including this one,
/// a 0-dim tensor.
#[allow(clippy::too_many_arguments)] // they are the operator's
pub fn adamw(
    weights: &[Tensor],
    gradients: &[Tensor],
    moments: [&[Tensor]; 2],
    count: &Tensor,
    lr: &Tensor,
    betas: [f64; 2],
    weight_decay: f64,
    eps: f64,
) -> Result<()> {
    let n = same_length(&[weights, gradients, moments[0], moments[1]])?;
    let (w, g, first, second) = (list(weights), list(gradients), list(moments[0]), list(moments[1]));
    let [beta1, beta2] = betas;
    let (count, lr) = (count.as_ptr(), lr.as_ptr());
    // SAFETY: arrays of `n` pointers to tensors that are borrowed for the call.
    check(unsafe {
        let (w, g, m, v) = (w.as_ptr(), g.as_ptr(), first.as_ptr(), second.as_ptr());
        byol_fused_adamw(w, g, m, v, n, count, lr, beta1, beta2, weight_decay, eps)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a GPU runs, in f64, also on the CPU.
    #[test]
    fn the_fused_lerp_is_lerp() -> Result<()> {
        let gpu = crate::choose_device(crate::DeviceChoice::Auto)?;
        for device in if gpu.is_cuda() { vec![Device::Cpu, gpu] } else { vec![Device::Cpu] } {
            let random = |n| Tensor::randn([n, 3], (Kind::Double, device));
            let (a, b) = ([random(5), random(700)], [random(5), random(700)]);
            for tau in [0.0, 0.25, 0.5, 0.9375, 1.0] {
                let weight = rate(device);
                set_rate(&weight, tau)?;
                let moved: Vec<Tensor> = a.iter().map(Tensor::copy).collect();
                lerp_by(byol_fused_lerp, &moved, &b, &weight)?;
                for ((a, b), moved) in a.iter().zip(&b).zip(&moved) {
                    let expected = a.lerp(b, tau);
                    assert!((expected - moved).abs().max().double_value(&[]) < 1e-12, "tau {tau} on {device:?}");
                }
            }
        }
        Ok(())
    }
}
