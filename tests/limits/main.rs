//! What damaged or huge input may cost: memory is counted, so these are a process of their own.

#[path = "../support/mod.rs"]
mod support;

mod containers;
mod images;
mod loader;
mod weights;

use std::sync::{Mutex, MutexGuard, PoisonError};

use native::Counted;

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Memory and log are the process's: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
