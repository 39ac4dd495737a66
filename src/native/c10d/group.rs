//! c10d's process group and gradient Reducer.

use std::ffi::{CString, c_char, c_int};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use super::nccl::{self, Peer};
use super::store::{Listen, Opaque, Store, made, milliseconds};
use crate::torch::shim::check;

unsafe extern "C" {
    fn byol_group_gloo(
        store: *const Opaque,
        rank: c_int,
        world: c_int,
        address: *const c_char,
        is_interface: c_int,
        timeout_ms: i64,
        out: *mut *mut Opaque,
    ) -> c_int;
    fn byol_group_free(group: *mut Opaque);
    fn byol_group_add_nccl(group: *mut Opaque, nccl: *mut Opaque) -> c_int;
    fn byol_group_nccl_error(group: *const Opaque, error: *mut c_int) -> c_int;
    fn byol_group_close_nccl(group: *mut Opaque) -> c_int;
    fn byol_waited(group: *const Opaque) -> i64;
    fn byol_all_reduce(group: *const Opaque, tensor: *mut C_tensor) -> c_int;
    fn byol_all_gather(group: *const Opaque, own: *const C_tensor, all: *mut *mut C_tensor) -> c_int;
    fn byol_broadcast(group: *const Opaque, tensors: *const *mut C_tensor, count: usize) -> c_int;
    fn byol_reducer_new(
        group: *const Opaque,
        parameters: *const *mut C_tensor,
        count: usize,
        out: *mut *mut Opaque,
    ) -> c_int;
    fn byol_reducer_prepare(group: *const Opaque, reducer: *mut Opaque) -> c_int;
    fn byol_reducer_free(reducer: *mut Opaque);
    fn byol_sync_batch_norm(
        group: *const Opaque,
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        running_mean: *const C_tensor,
        running_var: *const C_tensor,
        momentum: f64,
        eps: f64,
        y: *mut *mut C_tensor,
    ) -> c_int;
}

/// The processes of a run (`torch.distributed.ProcessGroup`). Every process must call the collectives in the same
/// order; they fail when a process dies or does not take part within the timeout.
#[derive(Debug)]
pub struct ProcessGroup {
    group: NonNull<Opaque>,
    /// Rank of this process, from 0.
    pub rank: usize,
    /// World size.
    pub world: usize,
    /// NCCL is in use; only [`ProcessGroup::close`] shuts it down cleanly.
    nccl: AtomicBool,
}

// SAFETY: c10d's process groups take calls from any thread; the order is the caller's.
unsafe impl Send for ProcessGroup {}
// SAFETY: as above.
unsafe impl Sync for ProcessGroup {}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // Destroying NCCL without closing it may wait for processes that were lost: it is left to the end of this
        // process.
        if !self.nccl.load(SeqCst) {
            // SAFETY: made by the shim, and dropped once; graphs hold c10d's own reference.
            unsafe { byol_group_free(self.group.as_ptr()) }
        }
    }
}

impl ProcessGroup {
    /// Connects to all others over Gloo; `timeout` is for this and for every collective.
    /// # Errors
    /// Another process does not join in time, or this process cannot listen at that address.
    pub fn gloo(store: &Store, rank: usize, world: usize, listen: &Listen, timeout: Duration) -> Result<Self> {
        let (Listen::Address(name) | Listen::Interface(name)) = listen;
        let (name, interface) = (CString::new(name.as_str())?, matches!(listen, Listen::Interface(_)));
        let (r, w, ms) = (rank as c_int, world as c_int, milliseconds(timeout));
        // SAFETY: the store and the text outlive the call.
        let connect = |out| unsafe { byol_group_gloo(store.as_ptr(), r, w, name.as_ptr(), interface.into(), ms, out) };
        Ok(Self { group: made(connect)?, rank, world, nccl: AtomicBool::new(false) })
    }

    /// Connects the GPUs of all processes, GPU number `device` for this one, over NCCL, which CUDA tensors use from now
    /// on; CPU tensors still use Gloo. The store is used by no other thread. A collective on CUDA tensors is
    /// asynchronous: work queued after it waits for its result, the host does not, so [`Self::failure`] reports
    /// those that take longer than `timeout`. This call has no timeout of its own.
    /// # Errors
    /// NCCL cannot be used here.
    pub fn connect(&self, store: &Store, device: usize, listen: &Listen, timeout: Duration) -> Result<()> {
        let nccl = nccl::backend(store, Peer { rank: self.rank, world: self.world, device }, listen, timeout)?;
        // SAFETY: the group is alive, and takes what was made for it.
        check(unsafe { byol_group_add_nccl(self.group.as_ptr(), nccl.as_ptr()) })?;
        self.nccl.store(true, SeqCst); // only now can another thread ask for failures
        let ones = Tensor::f_ones([1], (Kind::Float, Device::Cuda(device)))?;
        self.all_reduce(&ones)?;
        let sum = ones.f_double_value(&[0]).context("NCCL: the first sum over all processes")?;
        ensure!(sum == self.world as f64, "NCCL: found {sum} as the sum of {} ones", self.world);
        Ok(())
    }

    /// A failure of NCCL; nothing else reports it while the main thread waits for a GPU.
    pub fn failure(&self) -> Option<&'static str> {
        if !self.nccl.load(SeqCst) {
            return None;
        }
        let mut error = 0;
        // SAFETY: `error` outlives the call; c10d takes this call from any thread.
        match (unsafe { byol_group_nccl_error(self.group.as_ptr(), &mut error) }, error) {
            (0, 0) => None,
            (0, 1) => Some("NCCL: timed out waiting for the others"),
            _ => Some("NCCL: the connection to the others was lost"),
        }
    }

    /// Shuts NCCL down, if in use, after all queued work is done. CUDA tensors must not be used with this group any
    /// more.
    pub fn close(&self) -> Result<()> {
        if self.nccl.load(SeqCst) {
            // SAFETY: the group is alive.
            check(unsafe { byol_group_close_nccl(self.group.as_ptr()) })?;
            self.nccl.store(false, SeqCst);
        }
        Ok(())
    }

    /// Total time this process has waited in collectives, for data and for slower processes. Communication of the
    /// Reducer that overlaps the backward pass does not count: only the time from the last gradient to the end of the
    /// last bucket does (including copies of buckets in that time). Exact where collectives block, on the CPU. Not
    /// counted: the Reducer's agreement on the order of buckets, once, before the second averaged pass, and
    /// [`Self::broadcast`].
    pub fn waited(&self) -> Duration {
        // SAFETY: the group lives while it is borrowed; a counter is read under its lock.
        Duration::from_nanos(unsafe { byol_waited(self.group.as_ptr()) }.unsigned_abs())
    }

    /// Sums a tensor over all processes, in place.
    /// # Errors
    /// Another process was lost or timed out.
    pub fn all_reduce(&self, tensor: &Tensor) -> Result<()> {
        // SAFETY: the tensor is valid while borrowed; the call waits for the result, or makes work queued later wait.
        check(unsafe { byol_all_reduce(self.group.as_ptr(), tensor.as_ptr().cast_mut()) })
    }

    /// Gathers a tensor `[...]` of each process as `[world, ...]`; all have the same shape.
    /// # Errors
    /// Another process was lost or timed out.
    pub fn all_gather(&self, own: &Tensor) -> Result<Tensor> {
        let mut all = null_mut();
        // SAFETY: the tensor is valid while borrowed; the result is a new one that is handed over.
        unsafe {
            check(byol_all_gather(self.group.as_ptr(), own.as_ptr(), &mut all))?;
            Ok(Tensor::from_ptr(all))
        }
    }

    /// Broadcasts rank 0's values of these tensors.
    /// # Errors
    /// Another process was lost or timed out.
    pub fn broadcast(&self, tensors: &[Tensor]) -> Result<()> {
        let pointers: Vec<*mut C_tensor> = tensors.iter().map(|t| t.as_ptr().cast_mut()).collect();
        // SAFETY: the tensors are valid while borrowed.
        check(unsafe { byol_broadcast(self.group.as_ptr(), pointers.as_ptr(), pointers.len()) })
    }

    /// `torch.nn.SyncBatchNorm` in train mode: x `[N, C]` or `[N, C, H, W]`, N the same in every process; the
    /// batch statistics are those of all processes together, and so are the running ones.
    /// # Errors
    /// Another process was lost or timed out.
    pub fn batch_norm(
        &self,
        x: &Tensor,
        [weight, bias]: [&Tensor; 2],
        [running_mean, running_var]: [&Tensor; 2],
        momentum: f64,
        eps: f64,
    ) -> Result<Tensor> {
        ensure!(x.dim() >= 2, "found a tensor of {} dimensions, expected [N, C, ...]", x.dim());
        let mut y = null_mut();
        // SAFETY: all tensors are valid while borrowed, the graph takes handles of its own; the result is a new one
        // that is handed over.
        unsafe {
            check(byol_sync_batch_norm(
                self.group.as_ptr(),
                x.as_ptr(),
                weight.as_ptr(),
                bias.as_ptr(),
                running_mean.as_ptr(),
                running_var.as_ptr(),
                momentum,
                eps,
                &mut y,
            ))?;
            Ok(Tensor::from_ptr(y))
        }
    }
}

/// Averages gradients over all processes, overlapping with the backward pass: the engine of
/// `torch.nn.parallel.DistributedDataParallel`.
pub struct Reducer {
    reducer: NonNull<Opaque>,
    group: Arc<ProcessGroup>,
}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: made by the shim, and dropped once; it takes its hooks off the parameters.
        unsafe { byol_reducer_free(self.reducer.as_ptr()) }
    }
}

impl Reducer {
    /// For these parameters, all of which every averaged backward pass must reach.
    pub fn new(group: &Arc<ProcessGroup>, parameters: &[&Tensor]) -> Result<Self> {
        let pointers: Vec<*mut C_tensor> = parameters.iter().map(|t| t.as_ptr().cast_mut()).collect();
        // SAFETY: the tensors are valid while borrowed; the Reducer takes handles of its own.
        let new = |out| unsafe { byol_reducer_new(group.group.as_ptr(), pointers.as_ptr(), pointers.len(), out) };
        Ok(Self { reducer: made(new)?, group: group.clone() })
    }

    /// The next backward pass averages the accumulated gradients over all processes: its own and those of earlier
    /// passes that were not announced with this call. It fails if another process was lost or timed out.
    /// # Errors
    /// The last announced pass did not reach all parameters.
    pub fn prepare(&self) -> Result<()> {
        // SAFETY: the Reducer lives while it is borrowed, and its group with it.
        check(unsafe { byol_reducer_prepare(self.group.group.as_ptr(), self.reducer.as_ptr()) })
    }
}
