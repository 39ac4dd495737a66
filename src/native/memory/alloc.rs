//! The heap: counts allocations on request, and keeps freed memory in the process.
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Cursor, Write};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use super::OOM_ADVICE;

static COUNTING: AtomicBool = AtomicBool::new(false);
static BYTES: AtomicU64 = AtomicU64::new(0);
/// Bytes allocated since counting began minus bytes freed; freeing older allocations can make it negative.
static LIVE: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);

/// The system's allocator with a counter, for `#[global_allocator]`.
pub struct Counted;

/// Bytes that Rust code has allocated since the first call, which returns 0. They are counted from then on
/// (if [`Counted`] is the allocator); freed bytes are not subtracted.
pub fn allocated_bytes() -> u64 {
    COUNTING.store(true, Ordering::Relaxed);
    BYTES.load(Ordering::Relaxed)
}

/// Runs `work` and returns its result, and the peak of heap bytes that Rust code (in all threads) held meanwhile beyond
/// what it held before; of concurrent calls only the last to start gets the right peak.
pub fn peak_bytes<T>(work: impl FnOnce() -> T) -> (T, u64) {
    COUNTING.store(true, Ordering::Relaxed);
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    (result, (PEAK.load(Ordering::Relaxed) - before).max(0) as u64)
}

fn count(taken: usize, given_back: usize) {
    if COUNTING.load(Ordering::Relaxed) {
        BYTES.fetch_add(taken.saturating_sub(given_back) as u64, Ordering::Relaxed);
        let change = taken as i64 - given_back as i64;
        let live = LIVE.fetch_add(change, Ordering::Relaxed) + change;
        if change > 0 {
            PEAK.fetch_max(live, Ordering::Relaxed);
        }
    }
}

/// Makes malloc keep freed memory for later allocations. Otherwise activations of several megabytes are returned to the
/// system every time and faulted in again, zeroed, page by page: a sixth of a training step on the CPU.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_MMAP_THRESHOLD, 1 << 30), (libc::M_TRIM_THRESHOLD, -1)] {
        // SAFETY: two integers in; the call changes thresholds of later calls, not existing allocations.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Larger requests can be retried smaller, or fail with a message of their own.
const SMALL: usize = 1 << 20;

/// Passes on what the system allocated. If even a small request fails, so will error handling: the process prints
/// one line and exits here.
fn or_end(memory: *mut u8, size: usize) -> *mut u8 {
    static ENDING: AtomicBool = AtomicBool::new(false);
    if memory.is_null() && size < SMALL {
        while ENDING.swap(true, Ordering::Relaxed) {
            std::thread::yield_now(); // another thread is already printing
        }
        let mut line = Cursor::new([0; 256]);
        let _ = writeln!(line, "error: out of memory: requested {size} bytes, none free; {OOM_ADVICE}");
        let length = line.position() as usize;
        // SAFETY: the bytes are on the stack and as many; after the second call nothing runs.
        unsafe {
            libc::write(libc::STDERR_FILENO, line.get_ref().as_ptr().cast(), length);
            libc::_exit(1)
        }
    }
    memory
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promises are those of `System`.
        or_end(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the same.
        or_end(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: the same.
        or_end(unsafe { System.realloc(old, layout, size) }, size)
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the same.
        unsafe { System.dealloc(old, layout) }
    }
}
