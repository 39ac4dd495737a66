//! NCCL between GPUs of several processes. Its shared object needs libtorch_cuda; it is embedded in this binary if the
//! build found the headers of CUDA and NCCL, and is loaded when first needed.
use std::ffi::{CString, c_char, c_int};
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::store::{Listen, Opaque, Store, milliseconds};
use crate::library::{Errors, Library};

/// The shared object; empty if it was not built.
static LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libbyol_nccl.so"));

/// The type of `byol_nccl_new`.
type New =
    unsafe extern "C" fn(*const Opaque, c_int, c_int, c_int, *const c_char, c_int, i64, *mut *mut Opaque) -> c_int;

/// Loads the shared object, once.
fn functions() -> Result<(Errors, New)> {
    static FUNCTIONS: OnceLock<Result<(Errors, New), String>> = OnceLock::new();
    let load = || {
        let headers = "nvidia-nccl-cu13, nvidia-cuda-runtime, nvidia-cuda-crt and nvidia-cuda-cccl";
        let library = Library::load("libbyol_nccl.so", LIBRARY, headers)?;
        // SAFETY: the type is that of the function in `nccl.cpp`, which was built with this file.
        Ok((library.errors()?, unsafe { library.symbol(c"byol_nccl_new") }?))
    };
    FUNCTIONS.get_or_init(load).clone().map_err(|why| anyhow!("NCCL cannot be used: {why}"))
}

/// One process of a group, and the number of its GPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub rank: usize,
    pub world: usize,
    pub device: usize,
}

/// A `c10d::ProcessGroupNCCL` for this process's GPU, to be added to a process group. Sets environment
/// variables that c10d and NCCL read.
/// # Errors
/// NCCL cannot be used here.
pub(super) fn backend(store: &Store, peer: Peer, listen: &Listen, timeout: Duration) -> Result<NonNull<Opaque>> {
    let (errors, new) = functions()?;
    let (Listen::Address(name) | Listen::Interface(name)) = listen;
    let (name, interface) = (CString::new(name.as_str())?, matches!(listen, Listen::Interface(_)));
    let [rank, world, device] = [peer.rank, peer.world, peer.device].map(|number| number as c_int);
    let (ms, mut out) = (milliseconds(timeout), null_mut());
    // SAFETY: the store and the text outlive the call; `out` is ours after success.
    let status = unsafe { new(store.as_ptr(), rank, world, device, name.as_ptr(), interface.into(), ms, &mut out) };
    errors.check(status).map_err(|why| anyhow!("NCCL: {why}"))?;
    NonNull::new(out).context("the shim made it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::shim::load_library;
    use std::net::TcpListener;

    #[test]
    fn the_library_was_built() {
        assert!(LIBRARY.starts_with(b"\x7fELF"), "built without NCCL's header, which scripts/test installs");
    }

    #[test]
    fn it_loads_beside_libtorch_cuda_and_refuses_without_a_gpu_in_one_line() -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (port, second) = (listener.local_addr()?.port(), Duration::from_secs(1));
        let store = Store::open("127.0.0.1", port, Some(listener), "byol", second)?;
        let listen = Listen::Address("127.0.0.1".into());
        let refused = || {
            backend(&store, Peer { rank: 0, world: 1, device: 0 }, &listen, second)
                .map(|_| ())
                .expect_err("no GPU")
                .to_string()
        };
        if let Err(why) = load_library("libtorch_cuda.so") {
            println!("skipped: {why}");
            let error = refused();
            assert!(error.starts_with("NCCL cannot be used: ") && error.contains("libtorch_cuda"), "{error}");
            return Ok(());
        }
        functions().expect("every symbol is found");
        if !tch::Cuda::is_available() {
            let error = refused();
            assert!(error.starts_with("NCCL: ") && error.lines().count() == 1, "{error}");
            println!("{error}");
        }
        Ok(())
    }
}
