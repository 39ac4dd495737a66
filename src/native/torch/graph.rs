//! CUDA graphs: work that is captured once and then replayed with a single launch. The shared object for it needs
//! libtorch_cuda; it is embedded in this binary if the build found CUDA's headers, and is loaded when the first graph
//! is captured.
use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use anyhow::{Result, anyhow};

use crate::library::{Errors, Library};

/// The shared object; empty if it was not built.
static LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libbyol_graph.so"));

/// The functions of `graph.cpp`.
struct Functions {
    errors: Errors,
    begin: unsafe extern "C" fn(*mut *mut c_void) -> c_int,
    end: unsafe extern "C" fn(*mut c_void) -> c_int,
    replay: unsafe extern "C" fn(*mut c_void) -> c_int,
    free: unsafe extern "C" fn(*mut c_void),
}

impl Functions {
    fn check(&self, status: c_int) -> Result<()> {
        self.errors.check(status).map_err(|why| anyhow!("CUDA graph: {why}"))
    }
}

/// Loads the shared object, once.
/// # Errors
/// Not part of this build, or libtorch_cuda is missing (the dynamic loader's message).
fn functions() -> Result<&'static Functions> {
    static FUNCTIONS: OnceLock<Result<Functions, String>> = OnceLock::new();
    FUNCTIONS.get_or_init(load).as_ref().map_err(|why| anyhow!("CUDA graphs cannot be used: {why}"))
}

fn load() -> Result<Functions, String> {
    let headers = "nvidia-cuda-runtime, nvidia-cuda-crt and nvidia-cuda-cccl";
    let library = Library::load("libbyol_graph.so", LIBRARY, headers)?;
    // SAFETY: the types are those of the functions in `graph.cpp`, which was built with this file.
    unsafe {
        Ok(Functions {
            errors: library.errors()?,
            begin: library.symbol(c"byol_graph_begin")?,
            end: library.symbol(c"byol_graph_end")?,
            replay: library.symbol(c"byol_graph_replay")?,
            free: library.symbol(c"byol_graph_free")?,
        })
    }
}

/// Captured work. The tensors that it reads and writes must be alive, at the same addresses, when it is replayed.
pub struct Graph {
    raw: *mut c_void,
    functions: &'static Functions,
}

impl Graph {
    /// Captures what `work` queues on the current stream, see [`own_stream`](super::stream::own_stream), without
    /// running it. Memory allocated in it belongs to the graph. `work` must not synchronize with the device.
    /// # Errors
    /// CUDA graphs cannot be used here; work that cannot be captured; errors and panics of `work`.
    pub fn capture<T>(work: impl FnOnce() -> Result<T>) -> Result<(Self, T)> {
        let functions = functions()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` outlives the call; after success it is ours to free.
        functions.check(unsafe { (functions.begin)(&mut raw) })?;
        let graph = Self { raw, functions };
        let result = crate::caught(work);
        // SAFETY: `raw` is alive and capturing; that must end, whatever `work` came to.
        let ended = functions.check(unsafe { (functions.end)(graph.raw) });
        let result = result?;
        ended?;
        Ok((graph, result))
    }

    /// Replays the captured work on the current stream.
    pub fn replay(&self) -> Result<()> {
        // SAFETY: `raw` is alive and was captured to its end.
        self.functions.check(unsafe { (self.functions.replay)(self.raw) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `begin` and freed once.
        unsafe { (self.functions.free)(self.raw) }
    }
}

/// Whether CUDA graphs can be captured in this process: `Ok`, or why not.
/// # Errors
/// The binary lacks the shared object, or libtorch_cuda is not loaded.
pub fn available() -> Result<()> {
    functions().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_was_built() {
        assert!(LIBRARY.starts_with(b"\x7fELF"), "built without CUDA's headers, which scripts/libtorch.sh installs");
    }

    #[test]
    fn it_loads_beside_libtorch_cuda_and_refuses_without_a_gpu_in_one_line() {
        if let Err(why) = crate::torch::shim::load_library("libtorch_cuda.so") {
            println!("skipped: {why}");
            let error = available().expect_err("libtorch_cuda cannot be loaded").to_string();
            assert!(error.starts_with("CUDA graphs cannot be used: ") && error.contains("libtorch_cuda"), "{error}");
            return;
        }
        available().expect("every symbol is found");
        if !tch::Cuda::is_available() {
            let error = Graph::capture(|| Ok(())).map(|_| ()).expect_err("no GPU").to_string();
            assert!(error.starts_with("CUDA graph: ") && error.lines().count() == 1, "{error}");
        }
    }
}
