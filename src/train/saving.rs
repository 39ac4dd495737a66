//! When and how a run's checkpoints are written, and how failures to do so are handled.

use std::io::{self, ErrorKind};
use std::path::PathBuf;

use anyhow::{Result, bail};

use super::run_folder::InUse;
use super::{OnWriteError, OutputConfig, RunFolder};
use crate::byol::Byol;
use crate::checkpoint::{self, Manifest};
use crate::eval::Encoder;
use crate::export::{self, ExportOptions, Format};

/// The encoder for other software, in the run's folder, and in each checkpoint if the config asks for it.
const ENCODER: &str = "encoder.safetensors";

/// Writes the checkpoints of a run.
pub struct Saver {
    /// The run's folder.
    pub folder: RunFolder,
    output: OutputConfig,
    /// Step of the last checkpoint that was written.
    saved: u64,
    /// Step and error of the last attempt, if it failed.
    failure: Option<(u64, String)>,
}

impl Saver {
    /// For a run that begins after `saved` steps.
    pub fn new(folder: RunFolder, output: OutputConfig, saved: u64) -> Self {
        Self { folder, output, saved, failure: None }
    }

    /// Whether the config asks for a checkpoint after `done` steps, the last one of epoch `epoch` (from 1) where there
    /// is one.
    pub fn due(&self, done: u64, epoch: Option<u64>) -> bool {
        let due = |count: Option<u64>, every: Option<u64>| {
            every.zip(count).is_some_and(|(every, count)| count.is_multiple_of(every))
        };
        due(epoch, self.output.checkpoint_every_epochs) || due(Some(done), self.output.checkpoint_every_steps)
    }

    /// Writes a checkpoint of the state after `manifest.step` steps. Where the disk is full, the oldest ones are
    /// removed to make room, but never the newest. A failure is logged, and the next checkpoint tries again.
    /// # Errors
    /// It cannot be written and `output.on_write_error` is `stop`; another run has locked the folder.
    pub fn save(&mut self, byol: &Byol, manifest: &Manifest) -> Result<()> {
        if !self.folder.is_own() {
            self.saved = manifest.step;
            return Ok(());
        }
        match self.try_to_save(byol, manifest) {
            Ok(()) => {
                if self.failure.take().is_some() {
                    log::info!("the checkpoint of step {} was written after an earlier failure", manifest.step);
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
            let others = match self.output.checkpoint_encoders {
                true => vec![(ENCODER, export::encoder_file(&self.encoder(byol, manifest)?)?)],
                false => Vec::new(),
            };
            let saved = checkpoint::save(&checkpoints, byol, manifest.clone(), others, keep);
            let Err(error) = saved else { return Ok(()) };
            let full = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
            let there = checkpoint::list(&checkpoints).len();
            if !matches!(full, Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded)) || there < 2 {
                return Err(error);
            }
            keep = there - 1;
            log::warn!("{error:#}; removing the oldest of {there} checkpoints to make room");
            checkpoint::clean(&checkpoints, keep);
            if checkpoint::list(&checkpoints).len() == there {
                return Err(error); // it could not be removed, which was logged
            }
        }
    }

    /// Writes the online encoder of the last checkpoint for other software, in rank 0 only; its path, and the lines of
    /// Python that load it.
    /// # Errors
    /// It cannot be written.
    pub fn export(&self, byol: &Byol, manifest: &Manifest) -> Result<Option<(PathBuf, String)>> {
        if !self.folder.is_own() {
            return Ok(None);
        }
        let (encoder, path) = (self.encoder(byol, manifest)?, self.folder.path().join(ENCODER));
        let (format, options) = (Format::SAFETENSORS, ExportOptions::default());
        export::write(&encoder, format, &options, &path)?;
        let lines = export::load_in_python(&encoder, format, &options, &path);
        Ok(Some((path, lines)))
    }

    fn encoder(&self, byol: &Byol, manifest: &Manifest) -> Result<Encoder> {
        let checkpoint = checkpoint::path_of(&self.folder.checkpoints(), manifest.step);
        Encoder::of_online(byol, manifest.clone(), &checkpoint)
    }

    /// Whether the last attempt failed.
    pub fn failing(&self) -> bool {
        self.failure.is_some()
    }

    /// Whether a checkpoint of step `step` was written, or attempted.
    pub fn tried(&self, step: u64) -> bool {
        step <= self.saved || self.failure.as_ref().is_some_and(|(tried, _)| *tried == step)
    }

    /// At the end of a run.
    /// # Errors
    /// The checkpoint of the last step could not be written: why, and which is the last valid one.
    pub fn finish(&self, step: u64) -> Result<()> {
        if let Some((_, why)) = &self.failure {
            let kept = self.kept();
            bail!(
                "step {step}, the run's last, could not be saved: {why}; {kept}; free some space, then add --resume auto"
            );
        }
        Ok(())
    }

    /// The checkpoint that a resumed run would start from, in words.
    pub fn kept(&self) -> String {
        match checkpoint::list(&self.folder.checkpoints()).first() {
            Some(path) => format!("the last valid checkpoint is {}", path.display()),
            None => "there is no checkpoint yet".into(),
        }
    }

    /// The last checkpoint that was written.
    pub fn last(&self) -> PathBuf {
        checkpoint::path_of(&self.folder.checkpoints(), self.saved)
    }
}
