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

/// The processes of a run (`torch.distributed.ProcessGroup`). Collectives must come in the same order in each; they
/// fail when a process dies or does not take part within the timeout.
#[derive(Debug)]
pub struct ProcessGroup {
    group: NonNull<Opaque>,
    /// This process, from 0.
    pub rank: usize,
    /// How many there are.
    pub world: usize,
    /// NCCL is at work; only [`ProcessGroup::close`] ends it well.
    nccl: AtomicBool,
}

// SAFETY: c10d's process groups take calls from any thread; the order is the caller's.
unsafe impl Send for ProcessGroup {}
// SAFETY: as above.
unsafe impl Sync for ProcessGroup {}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // NCCL that is not closed waits for others that may be gone: the end of the process is its end, too.
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

    /// Connects the GPUs of all processes, this one's being number `device`, over NCCL: CUDA tensors go that way from now
    /// on, those of the CPU still over Gloo. The store is used by no other thread. A collective on CUDA tensors does
    /// not wait for its result, but what is queued after it does; so [`Self::failure`] reports those that
    /// take longer than `timeout`. This call has no limit of its own.
    /// # Errors
    /// NCCL cannot be used here.
    pub fn connect(&self, store: &Store, device: usize, listen: &Listen, timeout: Duration) -> Result<()> {
        let nccl = nccl::backend(store, Peer { rank: self.rank, world: self.world, device }, listen, timeout)?;
        self.nccl.store(true, SeqCst);
        // SAFETY: the group is alive, and takes what was made for it.
        check(unsafe { byol_group_add_nccl(self.group.as_ptr(), nccl.as_ptr()) })?;
        let ones = Tensor::f_ones([1], (Kind::Float, Device::Cuda(device)))?;
        self.all_reduce(&ones)?;
        let sum = ones.f_double_value(&[0]).context("NCCL: the first sum over all processes")?;
        ensure!(sum == self.world as f64, "NCCL: found {sum} as the sum of {} ones", self.world);
        Ok(())
    }

    /// A failure of NCCL: while the main thread waits for a GPU, nothing else reports it.
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

    /// Ends NCCL, if it is at work, once all that was queued is done. Nothing may use CUDA tensors with this group any more.
    pub fn close(&self) -> Result<()> {
        if self.nccl.load(SeqCst) {
            // SAFETY: the group is alive.
            check(unsafe { byol_group_close_nccl(self.group.as_ptr()) })?;
            self.nccl.store(false, SeqCst);
        }
        Ok(())
    }

    /// How long this process has waited for the others so far, in all collectives: for numbers to arrive, and for
    /// processes that come later. What the Reducer sends while the backward pass still runs is no waiting: of it
    /// counts the time from the last gradient to the end of the last bucket (copying a bucket back in that time
    /// included). Exact where waiting blocks, which is on the CPU. Agreeing on the order of the buckets, once, before the
    /// second averaged pass, and [`Self::broadcast`] are not counted.
    pub fn waited(&self) -> Duration {
        // SAFETY: the group lives while it is borrowed; a counter is read under its lock.
        Duration::from_nanos(unsafe { byol_waited(self.group.as_ptr()) }.unsigned_abs())
    }

    /// Sums a tensor over all processes, in place.
    /// # Errors
    /// Another process was lost or timed out.
    pub fn all_reduce(&self, tensor: &Tensor) -> Result<()> {
        // SAFETY: the tensor is valid while borrowed; the call waits for the result, or has what is queued next wait.
        check(unsafe { byol_all_reduce(self.group.as_ptr(), tensor.as_ptr().cast_mut()) })
    }

    /// Tensors of one shape `[...]`, a process each, as `[world, ...]`.
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

    /// Gives all processes the values that rank 0 has in these tensors.
    /// # Errors
    /// Another process was lost or timed out.
    pub fn broadcast(&self, tensors: &[Tensor]) -> Result<()> {
        let pointers: Vec<*mut C_tensor> = tensors.iter().map(|t| t.as_ptr().cast_mut()).collect();
        // SAFETY: the tensors are valid while borrowed.
        check(unsafe { byol_broadcast(self.group.as_ptr(), pointers.as_ptr(), pointers.len()) })
    }

    /// `torch.nn.SyncBatchNorm` in train mode: x `[N, C]` or `[N, C, H, W]`, N the same in every process; the
    /// statistics are those of all processes' values, and so are the running ones afterwards.
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

/// Averages gradients over all processes while the backward pass still runs: the engine of
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

    /// The next backward pass averages, over all processes, what is in the gradients by its end: its own and that of
    /// passes before, which were not announced. It fails when a process is gone, or late.
    /// # Errors
    /// The last announced pass did not reach all parameters.
    pub fn prepare(&self) -> Result<()> {
        // SAFETY: the Reducer lives while it is borrowed, and its group with it.
        check(unsafe { byol_reducer_prepare(self.group.group.as_ptr(), self.reducer.as_ptr()) })
    }
}
