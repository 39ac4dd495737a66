//! When and how a run's checkpoints are written, and what becomes of one that cannot be.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::run_folder::InUse;
use super::{Byol, OnWriteError, OutputConfig, RunFolder};
use crate::checkpoint::{self, Manifest};

/// Writes the checkpoints of a run.
pub struct Saver {
    /// The run's folder.
    pub folder: RunFolder,
    output: OutputConfig,
    /// Steps of the last checkpoint that is on disk, as far as this run knows.
    saved: u64,
    /// Why the last one is not.
    failure: Option<String>,
}

impl Saver {
    /// For a run that begins after `saved` steps.
    pub fn new(folder: RunFolder, output: OutputConfig, saved: u64) -> Self {
        Self { folder, output, saved, failure: None }
    }

    /// Whether the config asks for a checkpoint after `done` steps, of which an epoch has `steps_per_epoch`.
    pub fn due(&self, done: u64, steps_per_epoch: u64) -> bool {
        let (epochs, steps) = (self.output.checkpoint_every_epochs, self.output.checkpoint_every_steps);
        let by_epoch =
            done.is_multiple_of(steps_per_epoch) && epochs > 0 && (done / steps_per_epoch).is_multiple_of(epochs);
        by_epoch || (steps > 0 && done.is_multiple_of(steps))
    }

    /// Writes a checkpoint of the state after `manifest.step` steps. One that cannot be written is warned of and
    /// left to the next time, unless the config says otherwise; those before it stay.
    /// # Errors
    /// It cannot be written and `output.on_write_error` is `stop`; another run has taken the folder.
    pub fn save(&mut self, byol: &Byol, manifest: &Manifest) -> Result<()> {
        if !self.folder.is_own() {
            self.saved = manifest.step;
            return Ok(());
        }
        let keep = self.output.keep_checkpoints;
        let checkpoints = self.folder.checkpoints();
        let written = self.folder.hold().and_then(|()| checkpoint::save(&checkpoints, byol, manifest.clone(), keep));
        match written {
            Ok(_) => {
                if self.failure.take().is_some() {
                    log::info!("the checkpoint of step {} could be written again", manifest.step);
                }
                self.saved = manifest.step;
                Ok(())
            }
            Err(error) if error.is::<InUse>() || self.output.on_write_error == OnWriteError::Stop => Err(error),
            Err(error) => {
                let why = format!("{error:#}");
                log::warn!("{why}; {}; trying again at the next one (output.on_write_error: retry)", self.kept());
                self.failure = Some(why);
                Ok(())
            }
        }
    }

    /// Whether the last try failed.
    pub fn failing(&self) -> bool {
        self.failure.is_some()
    }

    /// At the end of a run: is the state of its last step on disk?
    /// # Errors
    /// It is not: why, and what there is.
    pub fn finish(&self, step: u64) -> Result<()> {
        if let Some(why) = &self.failure {
            let kept = self.kept();
            bail!(
                "step {step}, the run's last, could not be saved: {why}; {kept}: make room, go on with --resume auto"
            );
        }
        Ok(())
    }

    /// What there is to go on from, in words.
    pub fn kept(&self) -> String {
        match checkpoint::list(&self.folder.checkpoints()).first() {
            Some(path) => format!("the last good checkpoint is {}", path.display()),
            None => "there is no checkpoint yet".into(),
        }
    }

    /// Steps of the last checkpoint that was written, or from which the run began.
    pub fn saved(&self) -> u64 {
        self.saved
    }

    /// The last checkpoint that was written.
    pub fn last(&self) -> PathBuf {
        checkpoint::path_of(&self.folder.checkpoints(), self.saved)
    }
}
