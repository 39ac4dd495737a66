//! c10d's key-value store, through which the processes of a run find each other, and helpers for this folder's shims.

use std::ffi::{CString, c_char, c_int};
use std::net::TcpListener;
use std::os::fd::IntoRawFd;
use std::ptr::{NonNull, null, null_mut};
use std::time::Duration;

use anyhow::Result;

use crate::torch::shim::check;

/// The target of an opaque pointer from `c10d.cpp`.
#[repr(C)]
pub(super) struct Opaque([u8; 0]);

unsafe extern "C" {
    fn byol_store_open(
        host: *const c_char,
        port: c_int,
        listen_fd: c_int,
        prefix: *const c_char,
        timeout_ms: i64,
        out: *mut *mut Opaque,
    ) -> c_int;
    fn byol_store_clone(store: *const Opaque, out: *mut *mut Opaque) -> c_int;
    fn byol_store_free(store: *mut Opaque);
    fn byol_store_set(store: *mut Opaque, key: *const c_char, bytes: *const u8, length: usize) -> c_int;
    fn byol_store_get(
        store: *mut Opaque,
        key: *const c_char,
        timeout_ms: i64,
        bytes: *mut *const u8,
        length: *mut usize,
    ) -> c_int;
    fn byol_store_check(store: *mut Opaque, key: *const c_char, there: *mut c_int) -> c_int;
    fn byol_store_add(store: *mut Opaque, key: *const c_char, amount: i64, value: *mut i64) -> c_int;
}

/// Calls `make` with room for a pointer.
pub(super) fn made(make: impl FnOnce(*mut *mut Opaque) -> c_int) -> Result<NonNull<Opaque>> {
    let mut out = null_mut();
    check(make(&mut out))?;
    Ok(NonNull::new(out).expect("the shim made it"))
}

pub(super) fn milliseconds(duration: Duration) -> i64 {
    duration.as_millis().max(1) as i64
}

/// A connection to the key-value store of a run (`torch.distributed.TCPStore`).
#[derive(Debug)]
pub struct Store(NonNull<Opaque>);

// SAFETY: c10d's stores lock a mutex around every operation.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by the shim, and dropped once.
        unsafe { byol_store_free(self.0.as_ptr()) }
    }
}

impl Store {
    /// The raw pointer for the other shims, valid while the store is borrowed.
    pub(super) fn as_ptr(&self) -> *mut Opaque {
        self.0.as_ptr()
    }

    /// Connects to the store at `host:port`, whose keys get a prefix; with `listener`, which must be bound to that
    /// place, as its server.
    /// # Errors
    /// No connection within `timeout`.
    pub fn open(host: &str, port: u16, listener: Option<TcpListener>, prefix: &str, timeout: Duration) -> Result<Self> {
        let (host, prefix) = (CString::new(host)?, CString::new(prefix)?);
        let fd = listener.map_or(-1, IntoRawFd::into_raw_fd); // owned by c10d from now on
        // SAFETY: both texts are NUL-terminated and outlive the call.
        let open = |out| unsafe {
            byol_store_open(host.as_ptr(), port.into(), fd, prefix.as_ptr(), milliseconds(timeout), out)
        };
        Ok(Self(made(open)?))
    }

    /// A second connection, so that one thread can block while another makes requests.
    /// # Errors
    /// The store's process was lost.
    pub fn try_clone(&self) -> Result<Self> {
        // SAFETY: the store lives while it is borrowed.
        Ok(Self(made(|out| unsafe { byol_store_clone(self.0.as_ptr(), out) })?))
    }

    /// Sets a key.
    /// # Errors
    /// The store's process was lost.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        let key = CString::new(key)?;
        // SAFETY: key and value outlive the call, which copies them.
        check(unsafe { byol_store_set(self.0.as_ptr(), key.as_ptr(), value.as_ptr(), value.len()) })
    }

    /// Waits for a key and returns its value.
    /// # Errors
    /// The key is not set within `timeout`; the store's process was lost.
    pub fn get(&self, key: &str, timeout: Duration) -> Result<String> {
        let key = CString::new(key)?;
        let (mut bytes, mut length) = (null(), 0);
        // SAFETY: the key outlives the call; the shim keeps the value until this thread's next call.
        let value = unsafe {
            let status = byol_store_get(self.0.as_ptr(), key.as_ptr(), milliseconds(timeout), &mut bytes, &mut length);
            check(status)?;
            if length == 0 { &[] } else { std::slice::from_raw_parts(bytes, length) }
        };
        Ok(String::from_utf8_lossy(value).into_owned())
    }

    /// Whether a key is set.
    /// # Errors
    /// The store's process was lost.
    pub fn has(&self, key: &str) -> Result<bool> {
        let key = CString::new(key)?;
        let mut there = 0;
        // SAFETY: the key outlives the call.
        check(unsafe { byol_store_check(self.0.as_ptr(), key.as_ptr(), &mut there) })?;
        Ok(there != 0)
    }

    /// Increments a counter, shared by all processes, and returns its value: 1 the first time.
    /// # Errors
    /// The store's process was lost.
    pub fn count(&self, key: &str) -> Result<i64> {
        let key = CString::new(key)?;
        let mut value = 0;
        // SAFETY: the key outlives the call.
        check(unsafe { byol_store_add(self.0.as_ptr(), key.as_ptr(), 1, &mut value) })?;
        Ok(value)
    }
}

/// Where a process listens for connections of its group.
#[derive(Clone, Debug)]
pub enum Listen {
    /// On this address of the machine.
    Address(String),
    /// On the network interface of this name.
    Interface(String),
}
