//! Which operators libtorch runs, for tests of what a GPU would be asked to do.
use std::ffi::{CStr, c_char, c_int};

use anyhow::Result;

use super::shim::check;

unsafe extern "C" {
    fn byol_observe_start(handle: *mut u64) -> c_int;
    fn byol_observe_end(handle: u64, lines: *mut *const c_char) -> c_int;
}

/// An operator, who called it and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// The operators within which it ran, outermost first, and its own name last, such as `aten::item`.
    pub path: Vec<String>,
    /// Number of calls.
    pub count: u64,
}

impl Operator {
    /// Its own name.
    pub fn name(&self) -> &str {
        self.path.last().map_or("", String::as_str)
    }
}

/// What `work` returns, and the operators that ran meanwhile in this thread, which is where backward
/// passes on the CPU run (`torch.profiler.profile`).
/// # Errors
/// libtorch cannot observe; `work` failed.
pub fn observe<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Vec<Operator>)> {
    let mut handle = 0;
    // SAFETY: the pointer is valid for the call, which writes one number.
    check(unsafe { byol_observe_start(&mut handle) })?;
    let done = work();
    let mut lines = std::ptr::null();
    // SAFETY: a handle of `byol_observe_start`, ended once; the pointer is valid for the call.
    check(unsafe { byol_observe_end(handle, &mut lines) })?;
    // SAFETY: after success a NUL-terminated string that lives until this thread's next call.
    let lines = unsafe { CStr::from_ptr(lines) }.to_string_lossy().into_owned();
    let operator = |line: &str| {
        let (path, count) = line.rsplit_once(' ')?;
        Some(Operator { path: path.split('>').map(Into::into).collect(), count: count.parse().ok()? })
    };
    Ok((done?, lines.lines().filter_map(operator).collect()))
}
