//! When and how a run's checkpoints are written, and what becomes of one that cannot be.

use std::io::{self, ErrorKind};
use std::path::PathBuf;

use anyhow::{Result, bail};

use super::run_folder::InUse;
use super::{OnWriteError, OutputConfig, RunFolder};
use crate::byol::Byol;
use crate::checkpoint::{self, Manifest};

/// Writes the checkpoints of a run.
pub struct Saver {
    /// The run's folder.
    pub folder: RunFolder,
    output: OutputConfig,
    /// Steps of the last checkpoint that is on disk, as far as this run knows.
    saved: u64,
    /// Steps of the one that was tried last, and why it is not.
    failure: Option<(u64, String)>,
}

impl Saver {
    /// For a run that begins after `saved` steps.
    pub fn new(folder: RunFolder, output: OutputConfig, saved: u64) -> Self {
        Self { folder, output, saved, failure: None }
    }

    /// Whether the config asks for a checkpoint after `done` steps, of which an epoch has `steps_per_epoch`.
    pub fn due(&self, done: u64, steps_per_epoch: u64) -> bool {
        let epochs = self.output.checkpoint_every_epochs.map(|epochs| epochs.saturating_mul(steps_per_epoch));
        [epochs, self.output.checkpoint_every_steps].iter().flatten().any(|&steps| done.is_multiple_of(steps))
    }

    /// Writes a checkpoint of the state after `manifest.step` steps. Where the disk is full, older ones make room for
    /// it, but never the newest. One that cannot be written is warned of and left to the next time, unless the config
    /// says otherwise.
    /// # Errors
    /// It cannot be written and `output.on_write_error` is `stop`; another run has taken the folder.
    pub fn save(&mut self, byol: &Byol, manifest: &Manifest) -> Result<()> {
        if !self.folder.is_own() {
            self.saved = manifest.step;
            return Ok(());
        }
        match self.try_to_save(byol, manifest) {
            Ok(()) => {
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
                self.failure = Some((manifest.step, why));
                Ok(())
            }
        }
    }

    fn try_to_save(&mut self, byol: &Byol, manifest: &Manifest) -> Result<()> {
        let mut keep = self.output.keep_checkpoints;
        let checkpoints = self.folder.checkpoints();
        loop {
            self.folder.hold()?;
            let Err(error) = checkpoint::save(&checkpoints, byol, manifest.clone(), keep) else { return Ok(()) };
            let full = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
            let there = checkpoint::list(&checkpoints).len();
            if !matches!(full, Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded)) || there < 2 {
                return Err(error);
            }
            keep = there - 1;
            log::warn!("{error:#}; removing the oldest of {there} checkpoints to make room");
            checkpoint::clean(&checkpoints, keep);
            if checkpoint::list(&checkpoints).len() == there {
                return Err(error); // it cannot be removed, as was said
            }
        }
    }

    /// Whether the last try failed.
    pub fn failing(&self) -> bool {
        self.failure.is_some()
    }

    /// Whether the state after `step` steps is on disk, or was tried to be put there.
    pub fn tried(&self, step: u64) -> bool {
        step <= self.saved || self.failure.as_ref().is_some_and(|(tried, _)| *tried == step)
    }

    /// At the end of a run: is the state of its last step on disk?
    /// # Errors
    /// It is not: why, and what there is.
    pub fn finish(&self, step: u64) -> Result<()> {
        if let Some((_, why)) = &self.failure {
            let kept = self.kept();
            bail!("step {step}, the run's last, could not be saved: {why}; {kept}; make room, then add --resume auto");
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

    /// The last checkpoint that was written.
    pub fn last(&self) -> PathBuf {
        checkpoint::path_of(&self.folder.checkpoints(), self.saved)
    }
}
