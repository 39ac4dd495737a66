//! SIGINT and SIGTERM: the first asks the run to end after the current step, with a checkpoint; a second one
//! ends it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// What has arrived; clones see the same.
#[derive(Clone)]
pub struct Signals(Arc<AtomicUsize>);

impl Signals {
    /// Takes over SIGINT and SIGTERM of the process.
    /// # Errors
    /// The system refuses.
    pub fn listen() -> Result<Self> {
        let (arrived, code) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        for signal in [SIGINT, SIGTERM] {
            let place = "signal handler";
            // In this order: the second arrival finds the flag that the first one set.
            flag::register_conditional_shutdown(signal, 128 + signal, arrived.clone()).context(place)?;
            flag::register(signal, arrived.clone()).context(place)?;
            flag::register_usize(signal, code.clone(), 128 + signal as usize).context(place)?;
        }
        Ok(Self(code))
    }

    /// The exit code that the signal asks for, once one has arrived: 130 or 143.
    pub fn exit_code(&self) -> Option<i32> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            code => Some(code as i32),
        }
    }
}
