//! The Rust side of `shim.cpp` and of `dlopen`, each call wrapped in a safe function.
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::Path;

use anyhow::{Result, bail};
use tch::Tensor;

unsafe extern "C" {
    fn byol_last_error() -> *const c_char;
    fn byol_libtorch_version() -> *const c_char;
    fn byol_cuda_memory(device: c_int, free: *mut u64, total: *mut u64) -> c_int;
    fn byol_autocast_bf16(cuda: c_int, enabled: c_int) -> c_int;
    fn byol_allow_tf32(allow: c_int) -> c_int;
    fn byol_deterministic(on: c_int) -> c_int;
    fn byol_clear_grad(tensor: *mut torch_sys::C_tensor) -> c_int;
    fn byol_take_warnings() -> c_int;
    fn byol_freeze_torchscript(path: *const c_char) -> c_int;
}

/// A shim function's status as a result; the error is the first line of its message.
pub(crate) fn check(status: c_int) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the shim returns a NUL-terminated thread-local string that lives until its next call.
    let message = unsafe { CStr::from_ptr(byol_last_error()) }.to_string_lossy().into_owned();
    bail!("libtorch: {}", crate::first_line(&message))
}

/// The version of libtorch, from the headers that the shim was compiled with, such as `2.11.0`.
pub fn libtorch_version() -> String {
    // SAFETY: a NUL-terminated literal of the shim.
    unsafe { CStr::from_ptr(byol_libtorch_version()) }.to_string_lossy().into_owned()
}

/// Free and total bytes of a GPU's memory.
pub fn cuda_memory(device: usize) -> Result<(u64, u64)> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: both pointers are valid for the call, which writes one number to each.
    check(unsafe { byol_cuda_memory(device as c_int, &mut free, &mut total) })?;
    Ok((free, total))
}

/// Enters or leaves bf16 autocast for this thread; see [`crate::Autocast`] for the guard.
pub(crate) fn autocast_bf16(cuda: bool, enabled: bool) -> Result<()> {
    // SAFETY: plain integers in, a status out.
    check(unsafe { byol_autocast_bf16(cuda.into(), enabled.into()) })
}

/// Allows or forbids TF32 in fp32 matrix products and convolutions on CUDA
/// (`torch.backends.cuda.matmul.allow_tf32`, `torch.backends.cudnn.allow_tf32`).
pub fn allow_tf32(allow: bool) -> Result<()> {
    // SAFETY: plain integer in, a status out.
    check(unsafe { byol_allow_tf32(allow.into()) })
}

/// Called by the shim for each of libtorch's warnings.
#[unsafe(no_mangle)]
extern "C" fn byol_warned(message: *const c_char) {
    // SAFETY: the shim passes a NUL-terminated string that lives until this returns.
    let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    log::debug!("libtorch: {}", crate::first_line(&message));
}

/// Logs this thread's warnings of libtorch at debug level from now on, its own and those of its backward passes. It
/// would print them itself, several lines each: after a GPU's error one for everything that is freed.
pub fn log_warnings() -> Result<()> {
    // SAFETY: a status out; the handler is static.
    check(unsafe { byol_take_warnings() })
}

/// Deterministic algorithms and no cuDNN autotuning, or the reverse (`torch.use_deterministic_algorithms`).
pub fn deterministic(on: bool) -> Result<()> {
    // SAFETY: plain integer in, a status out.
    check(unsafe { byol_deterministic(on.into()) })
}

/// Drops a parameter's gradient, so that the next backward pass stores into it instead of adding
/// (`optimizer.zero_grad(set_to_none=True)`).
pub fn clear_grad(parameter: &Tensor) -> Result<()> {
    // SAFETY: the pointer is valid while `parameter` is borrowed and the shim does not keep it.
    check(unsafe { byol_clear_grad(parameter.as_ptr().cast_mut()) })
}

/// Freezes the TorchScript module in a file, in place (`torch.jit.freeze`): its weights become constants,
/// and BatchNorm is folded into the convolutions.
pub fn freeze_torchscript(path: &Path) -> Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: `path` is NUL-terminated and outlives the call.
    check(unsafe { byol_freeze_torchscript(path.as_ptr()) })
}

/// Loads a shared library permanently, with global symbols (`RTLD_GLOBAL`); the error is the dynamic loader's message.
pub(crate) fn load_library(name: &str) -> Result<(), String> {
    let name = CString::new(name).map_err(|e| e.to_string())?;
    // SAFETY: `name` is NUL-terminated. The libraries loaded here (libtorch_cuda, the driver) may run
    // initializers; they are the ones that the user's PyTorch runs.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: after a failed dlopen dlerror returns a NUL-terminated string, or null.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return Err("unknown dlopen error".into());
    }
    // SAFETY: checked for null; copied before any other dl call of this thread.
    Err(unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned())
}

/// `cuDeviceGetName` of the NVIDIA driver, if that is loaded and initialized.
pub fn device_name(index: usize) -> Option<String> {
    device_text(c"cuDeviceGetName", index)
}

/// PCI bus id of a GPU, such as `0000:17:00.0` (`cuDeviceGetPCIBusId`).
pub fn device_bus(index: usize) -> Option<String> {
    device_text(c"cuDeviceGetPCIBusId", index)
}

/// Calls one of two driver functions that return a string about a device.
fn device_text(function: &CStr, index: usize) -> Option<String> {
    type Get = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    // SAFETY: a NUL-terminated name, looked up among what is loaded.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, function.as_ptr()) };
    if symbol.is_null() {
        return None;
    }
    let mut text = [0u8; 256];
    // SAFETY: the type is that of both functions in CUDA's driver interface (devices are numbered by integers); they
    // write a NUL-terminated string of at most the length given.
    let status = unsafe {
        std::mem::transmute::<*mut libc::c_void, Get>(symbol)(
            text.as_mut_ptr().cast(),
            text.len() as c_int,
            index as c_int,
        )
    };
    let text = CStr::from_bytes_until_nul(&text).ok()?;
    (status == 0).then(|| text.to_string_lossy().into_owned())
}
