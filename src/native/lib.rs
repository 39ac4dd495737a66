//! The bottom layer: devices, threads, mixed precision, and readable error messages of libtorch. All unsafe code is
//! here.

#![allow(unsafe_code)]

mod c10d;
pub mod jpeg;
mod library;
mod memory;
pub mod simd;
mod torch;

use std::collections::BTreeSet;

use anyhow::Result;
use tch::{Device, Tensor};

pub use c10d::{Listen, ProcessGroup, Reducer, Store};
pub use memory::alloc::{Counted, allocated_bytes, keep_freed_memory, peak_bytes};
pub use memory::{Memory, human_bytes, no_memory_for, out_of_memory, resize, swap_bytes};
pub use torch::contention::{share_cores, stop_sharing_cores};
pub use torch::cuda::{DeviceChoice, choose_device, describe_device};
pub use torch::normalize::{ImageLayout, Normalizer};
pub use torch::shim::{
    allow_tf32, clear_grad, deterministic, device_bus, device_name, freeze_torchscript, libtorch_version, log_warnings,
};
pub use torch::{batch_norm, foreach, graph, observer, stream};

/// bf16 autocast for this thread while it lives (`torch.autocast(device, dtype=torch.bfloat16)`): matrix
/// products and convolutions in bf16, sums and norms in fp32. A guard, so a panic cannot leave it on.
#[must_use]
pub struct Autocast {
    cuda: bool,
}

impl Autocast {
    /// Enters autocast on `device`; `None` when `enabled` is false.
    pub fn bf16(device: Device, enabled: bool) -> Result<Option<Self>> {
        if !enabled {
            return Ok(None);
        }
        let cuda = device.is_cuda();
        torch::shim::autocast_bf16(cuda, true)?;
        Ok(Some(Self { cuda }))
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // Turning a thread-local flag off cannot fail once turning it on has worked.
        let _ = torch::shim::autocast_bf16(self.cuda, false);
    }
}

/// Default numbers of threads for libtorch's operators and for the loader.
/// On the CPU both share the cores, and a training step costs about 20 times what its images cost to load (140 times at
/// 32 px), so libtorch gets every core and the loader one worker per eight cores. Two hardware threads of a core share
/// one vector unit: libtorch gets one of them, as in PyTorch. With a GPU the loader gets all of them.
pub fn default_threads(device: Device) -> (usize, usize) {
    // Within affinity and cgroup quota.
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    share_threads(device, usable, physical_cores().unwrap_or(usable))
}

fn share_threads(device: Device, usable: usize, physical: usize) -> (usize, usize) {
    if device.is_cuda() { (1, usable.saturating_sub(1).max(1)) } else { (usable.min(physical), usable.div_ceil(8)) }
}

/// Physical cores of the machine; `None` if unknown.
fn physical_cores() -> Option<usize> {
    let cpus = std::fs::read_dir("/sys/devices/system/cpu").ok()?.flatten();
    let siblings =
        cpus.filter_map(|cpu| std::fs::read_to_string(cpu.path().join("topology/thread_siblings_list")).ok());
    Some(siblings.collect::<BTreeSet<_>>().len()).filter(|&cores| cores > 0)
}

/// Sets the number of threads of libtorch's operators; call before the first of them runs.
/// Reductions are split by thread: results repeat bit for bit only with the same number.
pub fn set_threads(threads: usize) {
    static INTEROP: std::sync::Once = std::sync::Once::new();
    // libtorch allows setting this once per process, and panics the second time.
    INTEROP.call_once(|| tch::set_num_interop_threads(1));
    tch::set_num_threads(threads as i32);
}

/// Whether oneDNN computes convolutions in bf16 on the CPU; libtorch has its own, slow and large, where it does not.
pub fn convolves_in_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    let processor = std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("avx512dq");
    #[cfg(not(target_arch = "x86_64"))]
    let processor = true;
    processor
}

/// Whether bf16 is faster than fp32 on a device: any GPU that libtorch 2.11 supports, and processors with bf16
/// products.
pub fn computes_in_bf16(device: Device) -> bool {
    #[cfg(target_arch = "x86_64")]
    let processor = std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    let processor = false;
    device.is_cuda() || processor
}

/// Resident memory of this process in bytes; 0 if unknown.
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    // In pages, which have 4096 bytes on x86-64.
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// Peak resident memory of this process in bytes; 0 if unknown.
pub fn peak_resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse().ok());
    kilobytes.map_or(0, |k: u64| k * 1024)
}

/// The same values with the channels innermost in memory (`torch.channels_last`); 4-D tensors only.
pub fn channels_last(tensor: &Tensor) -> Tensor {
    tensor.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// One line from an error of libtorch: its message without the C++ backtrace, also if tch panicked with it. An
/// out-of-memory error gets the amounts requested and free.
pub fn first_line(message: &str) -> String {
    let message = message.strip_prefix("called `Result::unwrap()` on an `Err` value: Torch(\"").unwrap_or(message);
    let end = [message.find('\n'), message.find("\\n")].into_iter().flatten().min().unwrap_or(message.len());
    let line = message[..end].trim_end_matches("\")");
    out_of_memory(line).unwrap_or_else(|| line.to_string())
}

/// An error and its causes in one line.
pub fn one_line(error: &anyhow::Error) -> String {
    let part = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<tch::TchError>() {
        Some(torch) => first_line(&torch.to_string()),
        None => cause.to_string(),
    };
    error.chain().map(part).collect::<Vec<_>>().join(": ")
}

/// A panic's message in one line.
pub fn panic_line(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    first_line(text.unwrap_or("panicked without a message"))
}

/// Ends the process. After an error of the GPU, which no later call on it survives: what is destroyed on the way out of
/// `main` could abort instead.
pub fn leave(code: u8) -> ! {
    // SAFETY: nothing runs after it.
    unsafe { libc::_exit(code.into()) }
}

/// Runs `work`; a panic in it, such as those of tch's operators, becomes an error.
/// # Errors
/// Those of `work`; the message of a panic.
pub fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(anyhow::anyhow!(panic_line(&*panic))))
}

/// The same; the error after a panic starts with "`what` panicked".
pub fn caught_in<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(anyhow::anyhow!("{what} panicked: {}", panic_line(&*panic))))
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn warnings_of_libtorch_are_logged_in_one_line() -> Result<()> {
        struct Kept(std::sync::Mutex<Vec<String>>);
        impl log::Log for Kept {
            fn enabled(&self, _: &log::Metadata) -> bool {
                true
            }
            fn log(&self, record: &log::Record) {
                self.0.lock().expect("no test panics with it").push(format!("{} {}", record.level(), record.args()));
            }
            fn flush(&self) {}
        }
        static KEPT: Kept = Kept(std::sync::Mutex::new(Vec::new()));
        log::set_logger(&KEPT).expect("the only logger of these tests");
        log::set_max_level(log::LevelFilter::Debug);
        log_warnings()?;
        let _ = Tensor::ones([1], (Kind::Float, Device::Cpu)).var(true);
        let kept = KEPT.0.lock().expect("as above");
        let warned = kept.iter().filter(|line| line.starts_with("DEBUG libtorch: var(): degrees of freedom is <= 0"));
        assert_eq!(warned.count(), 1, "{kept:?}");
        assert!(kept.iter().all(|line| !line.contains('\n')), "{kept:?}");
        Ok(())
    }

    #[test]
    fn autocast_is_on_inside_the_guard_only() -> Result<()> {
        let (a, b) =
            (Tensor::ones([4, 4], (Kind::Float, Device::Cpu)), Tensor::ones([4, 4], (Kind::Float, Device::Cpu)));
        {
            let _autocast = Autocast::bf16(Device::Cpu, true)?;
            assert_eq!(a.matmul(&b).kind(), Kind::BFloat16);
        }
        assert_eq!(a.matmul(&b).kind(), Kind::Float);
        let panicked = std::panic::catch_unwind(|| {
            let _autocast = Autocast::bf16(Device::Cpu, true);
            panic!("inside");
        });
        assert!(panicked.is_err());
        assert_eq!(a.matmul(&b).kind(), Kind::Float);
        Ok(())
    }

    #[test]
    fn neither_loader_nor_libtorch_starves() {
        for (usable, physical, expected) in
            [(1, 1, (1, 1)), (2, 2, (2, 1)), (8, 8, (8, 1)), (8, 4, (4, 1)), (2, 32, (2, 1)), (64, 64, (64, 8))]
        {
            assert_eq!(share_threads(Device::Cpu, usable, physical), expected);
            assert_eq!(share_threads(Device::Cuda(0), usable, physical), (1, usable.saturating_sub(1).max(1)));
        }
        assert!(physical_cores().is_none_or(|cores| cores <= 1 << 16));
    }

    #[test]
    fn a_libtorch_panic_is_one_line() {
        let caught = std::panic::catch_unwind(|| {
            Tensor::ones([2, 3], (Kind::Float, Device::Cpu)).matmul(&Tensor::ones([2, 3], (Kind::Float, Device::Cpu)))
        });
        let payload = caught.expect_err("shapes do not match");
        let line = first_line(payload.downcast_ref::<String>().expect("a message"));
        assert_eq!(line, "mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)");
    }

    #[test]
    fn what_an_operator_panics_with_is_an_error() {
        let [a, b] = [[2, 3], [2, 3]].map(|shape: [i64; 2]| Tensor::ones(shape, (Kind::Float, Device::Cpu)));
        let error = caught(|| Ok(a.matmul(&b))).expect_err("shapes do not match");
        assert_eq!(error.to_string(), "mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)");
        assert_eq!(caught(|| Ok(3)).expect("no panic"), 3);
    }

    #[test]
    fn a_cleared_gradient_is_stored_anew() -> Result<()> {
        let w = Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        (&w * 3.0).sum(Kind::Float).backward();
        clear_grad(&w)?;
        assert!(!w.grad().defined());
        (&w * 5.0).sum(Kind::Float).backward();
        assert_eq!(Vec::<f32>::try_from(w.grad())?, [5.0, 5.0]);
        Ok(())
    }
}
