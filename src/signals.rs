//! What a run does when it is signalled. SIGINT and SIGTERM: the first asks the run to end after the current step,
//! with a checkpoint; a second one ends it at once. SIGUSR1 asks for a checkpoint. SIGHUP, which a closed terminal
//! sends, is ignored.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

/// What has arrived; clones see the same.
#[derive(Clone, Default)]
pub struct Signals {
    end: Arc<AtomicUsize>,
    checkpoint: Arc<AtomicBool>,
}

impl Signals {
    /// Takes over the signals that must not end a run, not even one that has just begun: SIGUSR1 and SIGHUP.
    /// # Errors
    /// The system refuses.
    pub fn install_nonfatal(&self) -> Result<()> {
        flag::register(SIGUSR1, self.checkpoint.clone()).context("signal handler")?;
        flag::register(SIGHUP, Arc::default()).context("signal handler")?;
        Ok(())
    }

    /// Takes over SIGINT and SIGTERM, whose own effect, the end, loses nothing until there is something to save.
    /// # Errors
    /// The system refuses.
    pub fn listen(&self) -> Result<()> {
        let arrived = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            let place = "signal handler";
            // In this order: the second arrival finds the flag that the first one set.
            flag::register_conditional_shutdown(signal, 128 + signal, arrived.clone()).context(place)?;
            flag::register(signal, arrived.clone()).context(place)?;
            flag::register_usize(signal, self.end.clone(), 128 + signal as usize).context(place)?;
        }
        Ok(())
    }

    /// The exit code that the signal asks for, once one has arrived: 130 or 143.
    pub fn exit_code(&self) -> Option<i32> {
        match self.end.load(Ordering::Relaxed) {
            0 => None,
            code => Some(code as i32),
        }
    }

    /// Whether a checkpoint was asked for since the last call.
    pub fn checkpoint_asked(&self) -> bool {
        self.checkpoint.swap(false, Ordering::Relaxed)
    }
}
