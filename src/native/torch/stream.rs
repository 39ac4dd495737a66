//! Asynchronous copies: batches to a GPU, scalars back to the host.
use std::ffi::c_int;
use std::ptr;

use anyhow::{Result, ensure};
use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use super::shim::check;

unsafe extern "C" {
    fn byol_own_stream(device: c_int) -> c_int;
    fn byol_ring_new(device: c_int, slots: usize, bytes: i64, out: *mut *mut RawRing) -> c_int;
    fn byol_ring_put(ring: *mut RawRing, first: *const u8, second: *const u8, n: i64, out: *mut *mut C_tensor)
    -> c_int;
    fn byol_ring_used(ring: *mut RawRing) -> c_int;
    fn byol_ring_free(ring: *mut RawRing);
    fn byol_later_new(values: *const C_tensor, out: *mut *mut RawLater) -> c_int;
    fn byol_later_get(later: *const RawLater, out: *mut f32, n: i64) -> c_int;
    fn byol_later_free(later: *mut RawLater);
    fn byol_peak_device_bytes(device: c_int, tensors: *mut i64, taken: *mut i64) -> c_int;
}

#[repr(C)]
struct RawRing {
    _private: [u8; 0],
}

#[repr(C)]
struct RawLater {
    _private: [u8; 0],
}

/// From now on this thread's work on GPU number `device` goes to a non-default stream, because a CUDA graph cannot
/// capture the default one. Waits for work queued before. Other threads keep their streams: their work is not ordered
/// with this thread's.
/// # Errors
/// No such device.
pub fn own_stream(device: usize) -> Result<()> {
    // SAFETY: a plain integer in, a status out.
    check(unsafe { byol_own_stream(device as c_int) })
}

/// Peak memory of GPU number `device` allocated to tensors, and peak memory reserved for them, including that of
/// captured graphs and the caching allocator's free blocks (`torch.cuda.max_memory_allocated`, `max_memory_reserved`).
/// # Errors
/// No such device.
pub fn peak_device_bytes(device: usize) -> Result<[u64; 2]> {
    let (mut tensors, mut taken) = (0, 0);
    // SAFETY: both numbers outlive the call.
    check(unsafe { byol_peak_device_bytes(device as c_int, &mut tensors, &mut taken) })?;
    Ok([tensors, taken].map(|bytes| bytes as u64))
}

/// Pinned buffers, and as many on the device, used in turn: while the device works on one batch, the next is copied on
/// a stream of its own.
#[derive(Debug)]
pub struct Ring(*mut RawRing);

impl Ring {
    /// `slots` buffers of `bytes` each for GPU number `device`.
    /// # Errors
    /// No such device, or out of memory.
    pub fn new(device: usize, slots: usize, bytes: usize) -> Result<Self> {
        let mut ring = ptr::null_mut();
        // SAFETY: `ring` outlives the call; after success it is ours to free.
        check(unsafe { byol_ring_new(device as c_int, slots, bytes as i64, &mut ring) })?;
        Ok(Self(ring))
    }

    /// Starts copying both arrays, which have the same length `n`; passes the bytes on the device, `[2 n]`, to `work`,
    /// which must queue everything that reads them. Later work on the device waits for the copy; the host does not.
    /// # Errors
    /// Lengths that differ or exceed the buffers; those of `work`.
    pub fn put<T>(&mut self, views: [&[u8]; 2], work: impl FnOnce(&Tensor) -> Result<T>) -> Result<T> {
        let [first, second] = views;
        ensure!(first.len() == second.len(), "found views of {} and {} bytes", first.len(), second.len());
        let mut out = ptr::null_mut();
        // SAFETY: the arrays have the length given, and are copied before the call returns.
        check(unsafe { byol_ring_put(self.0, first.as_ptr(), second.as_ptr(), first.len() as i64, &mut out) })?;
        // SAFETY: after success a tensor that the shim gives away. It shares the ring's memory, which the ring keeps
        // from being overwritten until the work queued here is done.
        let result = work(&unsafe { Tensor::from_ptr(out) });
        // SAFETY: the ring is alive.
        check(unsafe { byol_ring_used(self.0) })?;
        result
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: made by `byol_ring_new` and freed once.
        unsafe { byol_ring_free(self.0) }
    }
}

/// A few scalars of a step. On a GPU they are copied to the host when the step is done; the host does not wait.
#[derive(Debug)]
pub struct PendingScalars {
    values: Tensor,
    there: *mut RawLater,
}

impl PendingScalars {
    /// Starts copying `values`, `[n]`, from their device.
    pub fn new(values: Tensor) -> Result<Self> {
        let mut there = ptr::null_mut();
        if values.device().is_cuda() {
            // SAFETY: `values` is borrowed for the call, `there` outlives it.
            check(unsafe { byol_later_new(values.as_ptr(), &mut there) })?;
        }
        Ok(Self { values, there })
    }

    /// The values; on a GPU this waits for the work queued before them.
    pub fn get(&self) -> Result<Vec<f64>> {
        if self.there.is_null() {
            return Ok(Vec::try_from(&self.values.f_to_kind(Kind::Double)?)?);
        }
        let mut out = vec![0.0; self.values.numel()];
        // SAFETY: `out` has the length given; `there` is alive.
        check(unsafe { byol_later_get(self.there, out.as_mut_ptr(), out.len() as i64) })?;
        Ok(out.into_iter().map(f64::from).collect())
    }
}

impl Drop for PendingScalars {
    fn drop(&mut self) {
        if !self.there.is_null() {
            // SAFETY: made by `byol_later_new` and freed once.
            unsafe { byol_later_free(self.there) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_on_the_cpu_are_there() -> Result<()> {
        assert_eq!(PendingScalars::new(Tensor::from_slice(&[1.5f32, -2.0]))?.get()?, [1.5, -2.0]);
        Ok(())
    }

    #[test]
    fn without_cuda_everything_says_so() {
        if tch::Cuda::is_available() {
            println!("skipped: there is a GPU");
            return;
        }
        for error in [
            own_stream(0).expect_err("no device"),
            Ring::new(0, 3, 64).map(|_| ()).expect_err("no device"),
            peak_device_bytes(0).map(|_| ()).expect_err("no device"),
        ] {
            let line = error.to_string();
            assert!(line.starts_with("libtorch: ") && line.lines().count() == 1, "{line}");
        }
    }
}
