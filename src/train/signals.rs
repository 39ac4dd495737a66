//! SIGINT and SIGTERM: the first asks the run to end after the current step, with a checkpoint; a second one
//! ends it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// What has arrived.
pub struct Signals(Vec<(i32, Arc<AtomicBool>)>);

impl Signals {
    /// Takes over SIGINT and SIGTERM of the process.
    /// # Errors
    /// The system refuses.
    pub fn listen() -> Result<Self> {
        let mut flags = Vec::new();
        for signal in [SIGINT, SIGTERM] {
            let arrived = Arc::new(AtomicBool::new(false));
            // In this order: the second arrival finds the flag that the first one set.
            flag::register_conditional_shutdown(signal, 128 + signal, arrived.clone()).context("signal handler")?;
            flag::register(signal, arrived.clone()).context("signal handler")?;
            flags.push((128 + signal, arrived));
        }
        Ok(Self(flags))
    }

    /// The exit code that the first signal to arrive asks for: 130 or 143.
    pub fn exit_code(&self) -> Option<i32> {
        self.0.iter().find(|(_, arrived)| arrived.load(Ordering::Relaxed)).map(|(code, _)| *code)
    }
}
