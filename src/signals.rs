//! The signals of a run. The first SIGINT or SIGTERM ends it after the current step, with a checkpoint; a second one
//! ends it at once. SIGUSR1 and SIGUSR2, which batch schedulers send some time before they kill a job (Slurm's
//! `--signal`, SGE's `-notify`, LSF at the run limit), write a checkpoint after the current step, and the run
//! continues. SIGHUP, which a closed terminal sends, is ignored.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::flag;

/// The signals that have arrived; shared between clones.
#[derive(Clone, Default)]
pub struct Signals {
    end: Arc<AtomicUsize>,
    checkpoint: Arc<AtomicBool>,
}

impl Signals {
    /// Handles the signals that must not end a run, not even one that has just started: SIGUSR1, SIGUSR2 and SIGHUP.
    pub fn install_nonfatal(&self) -> Result<()> {
        for signal in [SIGUSR1, SIGUSR2] {
            flag::register(signal, self.checkpoint.clone()).context("signal handler")?;
        }
        flag::register(SIGHUP, Arc::default()).context("signal handler")?;
        Ok(())
    }

    /// Handles SIGINT and SIGTERM; until there is something to save, their default action loses nothing.
    pub fn listen(&self) -> Result<()> {
        let arrived = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the second arrival finds the flag that the first one set.
            flag::register_conditional_shutdown(signal, 128 + signal, arrived.clone())
                .and_then(|_| flag::register(signal, arrived.clone()))
                .and_then(|_| flag::register_usize(signal, self.end.clone(), 128 + signal as usize))
                .context("signal handler")?;
        }
        Ok(())
    }

    /// The exit code of a SIGINT or SIGTERM that has arrived: 130 or 143.
    pub fn exit_code(&self) -> Option<i32> {
        match self.end.load(Ordering::Relaxed) {
            0 => None,
            code => Some(code as i32),
        }
    }

    /// Whether a checkpoint was requested since the last call.
    pub fn take_checkpoint_request(&self) -> bool {
        self.checkpoint.swap(false, Ordering::Relaxed)
    }
}
