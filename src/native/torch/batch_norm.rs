//! BatchNorm of a training batch on a GPU, with the residual sum and the ReLU that follow it, by kernels of our own
//! (`batch_norm.cu`): four passes over the values, where libtorch makes up to seven.
use std::ffi::{CString, c_char, c_int};
use std::ptr;

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use super::shim::check;

static SOURCE: &str = include_str!("batch_norm.cu");

unsafe extern "C" {
    fn byol_batch_norm_compile(device: c_int, source: *const c_char) -> c_int;
    fn byol_batch_norm_forget();
    fn byol_batch_norm_fused(
        x: *const C_tensor,
        shortcut: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        running_mean: *const C_tensor,
        running_var: *const C_tensor,
        momentum: f64,
        eps: f64,
        relu: c_int,
        out: *mut *mut C_tensor,
    ) -> c_int;
}

/// The tensors of one BatchNorm, fp32, `[C]` each, and its constants.
#[derive(Clone, Copy, Debug)]
pub struct Normalization<'a> {
    /// Scale of each channel.
    pub weight: &'a Tensor,
    /// Offset of each channel.
    pub bias: &'a Tensor,
    /// Advances.
    pub running_mean: &'a Tensor,
    /// Advances, by the unbiased variance.
    pub running_var: &'a Tensor,
    /// Share of the batch in the running statistics.
    pub momentum: f64,
    /// Added to the variance.
    pub eps: f64,
}

/// Compiles the kernels for a GPU and compares them with libtorch's on random values; from then on [`fused`] uses them.
/// # Errors
/// NVRTC is missing or does not know this GPU; results that differ: then [`fused`] does nothing.
pub fn compile(device: usize) -> Result<()> {
    let source = CString::new(SOURCE)?;
    // SAFETY: `source` is NUL-terminated and outlives the call.
    check(unsafe { byol_batch_norm_compile(device as c_int, source.as_ptr()) })?;
    let compared = crate::caught(|| compare(Device::Cuda(device)));
    if compared.is_err() {
        // SAFETY: nothing is running them.
        unsafe { byol_batch_norm_forget() }
    }
    compared
}

/// `relu(batch_norm(x) + shortcut)` in train mode, without the sum or the ReLU where there is none; `None` where the
/// kernels are not compiled or do not fit: on the CPU, or channels not last, or not a multiple of 8 (fp32: 4). `x` is
/// `[N, C]` or `[N, C, H, W]` in bf16 or fp32. Rounds once, where libtorch's bf16 operators do after each.
pub fn fused(x: &Tensor, shortcut: Option<&Tensor>, norm: Normalization, relu: bool) -> Result<Option<Tensor>> {
    let Normalization { weight, bias, running_mean, running_var, momentum, eps } = norm;
    let mut out = ptr::null_mut();
    // SAFETY: the tensors are borrowed for the call, which keeps what it needs itself; `out` outlives it.
    check(unsafe {
        byol_batch_norm_fused(
            x.as_ptr(),
            shortcut.map_or(ptr::null(), Tensor::as_ptr),
            weight.as_ptr(),
            bias.as_ptr(),
            running_mean.as_ptr(),
            running_var.as_ptr(),
            momentum,
            eps,
            relu.into(),
            &mut out,
        )
    })?;
    // SAFETY: if not null, a tensor that the shim gives away.
    Ok((!out.is_null()).then(|| unsafe { Tensor::from_ptr(out) }))
}

/// All results of [`fused`] and of its backward pass beside those of libtorch's operators in fp32, for the shapes and
/// combinations that a ResNet has.
fn compare(device: Device) -> Result<()> {
    for shape in [vec![6, 24, 5, 7], vec![3, 512, 4, 4], vec![300, 128]] {
        for kind in [Kind::Float, Kind::BFloat16] {
            for (relu, summed) in [(false, false), (true, false), (true, true)] {
                let example = Example::random(&shape, kind, relu, summed, device);
                let apart = distance(&example.own()?, &example.expected()?);
                let most = if kind == Kind::Float { 1e-4 } else { 2e-2 };
                let what = format!("{kind:?}, shape {shape:?}, relu {relu}, shortcut {summed}");
                ensure!(apart <= most, "found results {apart:.1e} from libtorch's, expected at most {most:e}: {what}");
            }
        }
    }
    Ok(())
}

/// The largest relative distance of a result from what is expected, whatever is NaN infinitely far.
fn distance(own: &[Tensor], expected: &[Tensor]) -> f64 {
    let length = |x: &Tensor| x.norm().double_value(&[]);
    let apart = own.iter().zip(expected).map(|(own, expected)| {
        length(&(own.to_kind(expected.kind()) - expected)) / length(expected).max(f64::MIN_POSITIVE)
    });
    apart.map(|apart| if apart.is_nan() { f64::INFINITY } else { apart }).fold(0.0, f64::max)
}

/// A forward and a backward pass.
struct Example {
    x: Tensor,
    shortcut: Option<Tensor>,
    /// Of the output.
    gradient: Tensor,
    weight: Tensor,
    bias: Tensor,
    relu: bool,
}

impl Example {
    fn random(shape: &[i64], kind: Kind, relu: bool, summed: bool, device: Device) -> Self {
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, device));
        let values = |x: Tensor| {
            let x = x.to_kind(kind);
            if shape.len() == 4 { crate::channels_last(&x) } else { x }
        };
        let shortcut = summed.then(|| values(random(shape)));
        let (weight, bias) = (random(&shape[1..2]).abs() + 0.5, random(&shape[1..2]));
        Self { x: values(random(shape) * 2.0 + 3.0), shortcut, gradient: values(random(shape)), weight, bias, relu }
    }

    /// Output, running statistics, and the gradients of input, weight, bias and shortcut, where `kind` is that of the
    /// values and `forward` takes the input, the shortcut and a BatchNorm.
    fn results(
        &self,
        kind: Kind,
        forward: impl FnOnce(&Tensor, Option<&Tensor>, Normalization) -> Result<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let leaf = |x: &Tensor, kind: Kind| x.to_kind(kind).copy().set_requires_grad(true);
        let (x, shortcut) = (leaf(&self.x, kind), self.shortcut.as_ref().map(|shortcut| leaf(shortcut, kind)));
        let exact = if kind == Kind::Double { kind } else { Kind::Float };
        let (weight, bias) = (&leaf(&self.weight, exact), &leaf(&self.bias, exact));
        let (running_mean, running_var) = (&bias.detach().zeros_like(), &bias.detach().ones_like());
        let norm = Normalization { weight, bias, running_mean, running_var, momentum: 0.1, eps: 1e-5 };
        let y = forward(&x, shortcut.as_ref(), norm)?;
        y.f_mul(&self.gradient.to_kind(y.kind()))?.f_sum(exact)?.f_backward()?;
        let mut results = vec![y.detach(), running_mean.copy(), running_var.copy()];
        results.extend([&x, weight, bias].into_iter().chain(&shortcut).map(Tensor::grad));
        Ok(results)
    }

    /// By the kernels.
    fn own(&self) -> Result<Vec<Tensor>> {
        self.results(self.x.kind(), |x, shortcut, norm| {
            fused(x, shortcut, norm, self.relu)?.context("the kernels do not run")
        })
    }

    /// By libtorch's operators, in fp32.
    fn expected(&self) -> Result<Vec<Tensor>> {
        self.expected_in(Kind::Float)
    }

    fn expected_in(&self, kind: Kind) -> Result<Vec<Tensor>> {
        self.results(kind, |x, shortcut, norm| {
            let (mean, var) = (Some(norm.running_mean), Some(norm.running_var));
            let (weight, bias) = (Some(norm.weight), Some(norm.bias));
            let y = x.f_batch_norm(weight, bias, mean, var, true, norm.momentum, norm.eps, false)?;
            let y = if let Some(shortcut) = shortcut { y.f_add(shortcut)? } else { y };
            Ok(if self.relu { y.f_relu()? } else { y })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::c_void;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    unsafe extern "C" {
        fn byol_batch_norm_install(bf16: c_int, launch: *const c_void, functions: *const *const c_void);
    }

    /// From now on [`fused`] runs the kernels on the CPU, compiled as C++.
    fn install_on_cpu(folder: &Path, kind: Kind) {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("torch/batch_norm_on_cpu.cpp");
        let library = folder.join(format!("{kind:?}.so"));
        let defines = ["-DBLOCK=64", "-DFINISH=64", if kind == Kind::BFloat16 { "-DBF16=1" } else { "-DBF16=0" }];
        let flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-fno-strict-aliasing"];
        let built = Command::new("c++").args(flags).args(defines).arg(source).arg("-o").arg(&library).status();
        assert!(built.expect("a compiler").success());
        let bytes = std::fs::read(&library).expect("a library");
        let library = crate::library::Library::load("batch_norm", &bytes, "none").expect("loaded");
        let numbers: Vec<_> = (0..6).map(|number| number as *const c_void).collect();
        // SAFETY: a function of the driver's type, which takes numbers for functions.
        unsafe {
            let launch: *const c_void = library.symbol(c"batch_norm_launch").expect("a function");
            byol_batch_norm_install((kind == Kind::BFloat16).into(), launch, numbers.as_ptr());
        }
    }

    /// Far from 0, as the means of deep layers are; shapes that leave threads, blocks and loads without work.
    fn check_kernels(kind: Kind, most: f64) -> Result<()> {
        for shape in [&[5, 8][..], &[37, 24], &[50, 520], &[3, 16, 5, 7], &[2, 64, 14, 14]] {
            for (relu, summed) in [(false, false), (true, false), (false, true), (true, true)] {
                let mut example = Example::random(shape, kind, relu, summed, Device::Cpu);
                example.x = (&example.x.to_kind(Kind::Float) + 27.0).to_kind(kind);
                let apart = distance(&example.own()?, &example.expected_in(Kind::Double)?);
                assert!(apart < most, "{kind:?} {shape:?}, relu {relu}, sum {summed}: {apart:.1e}");
            }
        }
        let mut example = Example::random(&[4, 8], kind, true, true, Device::Cpu);
        example.x = Tensor::full_like(&example.x, f64::NAN);
        let results = example.own()?;
        assert!(results[..5].iter().all(|result| bool::try_from(result.isnan().all()).expect("one value")));
        Ok(())
    }

    /// Whether [`fused`] takes values of this shape, laid out with the channels last if `last`.
    fn takes(shape: &[i64], kind: Kind, last: bool) -> Result<bool> {
        let Example { x, weight, bias, .. } = Example::random(shape, kind, true, false, Device::Cpu);
        let x = if last { x } else { x.contiguous() };
        let (running_mean, running_var) = (&bias.zeros_like(), &bias.ones_like());
        let norm = Normalization { weight: &weight, bias: &bias, running_mean, running_var, momentum: 0.1, eps: 1e-5 };
        Ok(fused(&x, None, norm, true)?.is_some())
    }

    /// One test: the kernels are the process's.
    #[test]
    fn the_kernels_are_batch_norm_sum_and_relu() -> Result<()> {
        if tch::Cuda::is_available() {
            println!("skipped: there is a GPU, where `compile` compares them");
            return Ok(());
        }
        let line = compile(0).expect_err("no device").to_string();
        assert!(line.starts_with("libtorch: ") && line.lines().count() == 1, "{line}");
        assert!(!takes(&[4, 8], Kind::Float, true)?, "without kernels");
        tch::manual_seed(0);
        let folder = tempfile::tempdir()?;
        for (kind, most) in [(Kind::Float, 2e-6), (Kind::BFloat16, 3e-3)] {
            install_on_cpu(folder.path(), kind);
            check_kernels(kind, most)?;
            assert!(takes(&[4, 8], kind, true)? && takes(&[2, 16, 3, 3], kind, true)?);
            assert!(!takes(&[2, 16, 3, 3], kind, false)?, "channels that are not last");
            assert!(!takes(&[4, 6], kind, true)?, "channels that are no multiple of a load");
            assert!(!takes(&[1, 8], kind, true)?, "one row: libtorch says what is wrong");
        }
        assert!(!takes(&[4, 8], Kind::Double, true)?);
        // SAFETY: nothing is running them.
        unsafe { byol_batch_norm_forget() }
        Ok(())
    }
}
