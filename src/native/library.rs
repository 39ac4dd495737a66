//! Shared objects that need libtorch_cuda: embedded in this binary if the build found CUDA's headers, and loaded when
//! first needed.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, IntoRawFd};

/// A shared object, never unloaded.
pub(crate) struct Library(*mut c_void);

impl Library {
    /// Loads one from its `bytes`, which are empty if it could not be built, for lack of these `headers`.
    /// # Errors
    /// Not part of this build, or libtorch_cuda is missing (the dynamic loader's message).
    pub fn load(name: &str, bytes: &[u8], headers: &str) -> Result<Self, String> {
        if bytes.is_empty() {
            return Err(format!(
                "this binary was built without CUDA's headers (pip install {headers} beside torch, then build again)"
            ));
        }
        let memory = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC);
        let mut file = File::from(memory.map_err(|e| e.to_string())?);
        file.write_all(bytes).map_err(|e| e.to_string())?;
        let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|e| e.to_string())?;
        // SAFETY: `path` names a file of this build. Its dependencies are those of libtorch_cuda, loaded before; all
        // symbols are resolved now or not at all.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: after a failed dlopen a NUL-terminated string, copied before any other dl call of this thread.
            return Err(unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy().into_owned());
        }
        // Left open: the loader knows a library by its path, /proc/self/fd/N, and would take the next one at the same N
        // for this one.
        let _ = file.into_raw_fd();
        Ok(Self(handle))
    }

    /// One of its functions.
    /// # Safety
    /// `F` is the function's pointer type.
    pub unsafe fn symbol<F: Copy>(&self, name: &CStr) -> Result<F, String> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        // SAFETY: the library is loaded, `name` is NUL-terminated.
        let symbol = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        if symbol.is_null() {
            return Err(format!("{} is missing", name.to_string_lossy()));
        }
        // SAFETY: both are pointers; the caller promises the type.
        Ok(unsafe { std::mem::transmute_copy(&symbol) })
    }

    /// Its function that returns the last error.
    pub fn errors(&self) -> Result<Errors, String> {
        // SAFETY: every library of this build has this function, of this type.
        Ok(Errors(unsafe { self.symbol(c"byol_library_error") }?))
    }
}

/// A library's error messages.
#[derive(Clone, Copy)]
pub(crate) struct Errors(unsafe extern "C" fn() -> *const c_char);

impl Errors {
    /// A function's status as a result; the error is the first line of its message.
    pub fn check(self, status: c_int) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: a NUL-terminated thread-local string that lives until the next call.
        let message = unsafe { CStr::from_ptr((self.0)()) }.to_string_lossy().into_owned();
        Err(message.lines().next().unwrap_or_default().to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn two_libraries_in_one_process_are_two() {
        let folder = tempfile::tempdir().expect("a folder");
        let libraries = [3, 4].map(|number: c_int| {
            let (source, library) = (folder.path().join("number.c"), folder.path().join("number.so"));
            std::fs::write(&source, format!("int number(void) {{ return {number}; }}\n")).expect("written");
            let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
            assert!(built.expect("a compiler").success());
            let bytes = std::fs::read(&library).expect("a library");
            Library::load("number", &bytes, "none").expect("loaded")
        });
        let numbers = libraries.each_ref().map(|library| {
            // SAFETY: that is its type.
            let number: unsafe extern "C" fn() -> c_int = unsafe { library.symbol(c"number") }.expect("a function");
            // SAFETY: it takes nothing and returns a number.
            unsafe { number() }
        });
        assert_eq!(numbers, [3, 4]);
    }
}
