//! `metrics.jsonl`: one JSON object per line, one line per write, so that a killed run loses at most the last line.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::append::AppendFile;
use super::{Metrics, Sink};

/// An append-only file of JSON lines.
pub struct MetricsFile(AppendFile);

impl MetricsFile {
    /// Starts an empty file, or with `resume_from_step` continues the existing one as it was at that step: records
    /// of later steps and lines that are not JSON (the last one of a killed run) are dropped.
    pub fn open(path: &Path, resume_from_step: Option<u64>) -> Result<Self> {
        let rewritten = path.with_extension("jsonl.tmp");
        // The old file stays intact until its replacement is on disk.
        let written = rewrite(path, resume_from_step, &rewritten)
            .and_then(|()| fs::rename(&rewritten, path).with_context(|| format!("writing {}", path.display())));
        if let Err(error) = written {
            let _ = fs::remove_file(&rewritten); // frees its space, if the disk is full
            return Err(error);
        }
        let file = OpenOptions::new().append(true).open(path);
        AppendFile::new(path, file.with_context(|| format!("writing {}", path.display()))?, Vec::new()).map(Self)
    }

    /// Appends `record`; a number that is not finite becomes `null`.
    /// # Errors
    /// Why nothing could be written; the record stays pending.
    pub fn write(&mut self, record: &impl Serialize) -> Result<()> {
        let mut line =
            serde_json::to_vec(record).with_context(|| format!("encoding a record of {}", self.0.path().display()))?;
        line.push(b'\n');
        self.0.append(line)
    }
}

impl Sink for MetricsFile {
    fn record(&mut self, record: &Metrics) -> Result<()> {
        self.write(record)
    }

    fn flush(&mut self) -> Result<()> {
        self.0.flush()
    }
}

/// The records of a metrics file, those of a run that is being written included; lines that are not whole are left out.
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path) -> Result<Vec<serde_json::Value>> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(bytes.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

fn rewrite(path: &Path, resume_from_step: Option<u64>, rewritten: &Path) -> Result<()> {
    let place = || format!("writing {}", rewritten.display());
    let mut kept = BufWriter::new(File::create(rewritten).with_context(place)?);
    if let Some(step) = resume_from_step {
        copy_until(path, step, &mut kept).with_context(|| format!("copying {}", path.display()))?;
    }
    kept.into_inner().map_err(|error| error.into_error()).and_then(|file| file.sync_all()).with_context(place)
}

fn copy_until(path: &Path, last_step: u64, kept: &mut impl Write) -> Result<()> {
    let mut lines = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut line = Vec::new();
    let mut damaged = 0;
    while lines.read_until(b'\n', &mut line)? > 0 {
        match serde_json::from_slice::<serde_json::Value>(&line) {
            // Without its newline even a line that parses may be truncated ("step": 12 of 1234).
            Ok(record) if line.ends_with(b"\n") => {
                if record.get("step").and_then(|step| step.as_u64()).is_none_or(|step| step <= last_step) {
                    kept.write_all(&line)?;
                }
            }
            _ => damaged += 1,
        }
        line.clear();
    }
    if damaged > 0 {
        log::warn!("{}: dropped {damaged} incomplete record(s) of the interrupted run", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[derive(Serialize)]
    struct Line {
        step: u64,
        loss: f64,
    }

    fn written(dir: &Path, steps: &[u64]) -> PathBuf {
        let path = dir.join("metrics.jsonl");
        let mut file = MetricsFile::open(&path, None).unwrap();
        for &step in steps {
            file.write(&Line { step, loss: 0.5 }).unwrap();
        }
        path
    }

    fn steps(path: &Path) -> Vec<u64> {
        let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap();
        fs::read_to_string(path).unwrap().lines().map(step).collect()
    }

    #[test]
    fn a_resumed_file_reads_as_one_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), &[1, 2, 3, 4]);
        let mut file = MetricsFile::open(&path, Some(2)).unwrap();
        file.write(&Line { step: 3, loss: 0.25 }).unwrap();
        let expected = "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":0.5}\n{\"step\":3,\"loss\":0.25}\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn torn_lines_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        for torn in ["{\"step\":3,\"lo", "{\"step\":3,\"loss\":1}", "\0\0\0\0\n", "\n"] {
            let path = written(dir.path(), &[1, 2]);
            OpenOptions::new().append(true).open(&path).unwrap().write_all(torn.as_bytes()).unwrap();
            let mut file = MetricsFile::open(&path, Some(9)).unwrap();
            file.write(&Line { step: 10, loss: 0.5 }).unwrap();
            assert_eq!(steps(&path), [1, 2, 10], "{torn:?}");
        }
    }

    #[test]
    fn a_new_run_starts_empty_and_a_missing_log_does_not_stop_a_resume() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), &[1, 2]);
        drop(MetricsFile::open(&path, None).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        fs::remove_file(&path).unwrap();
        drop(MetricsFile::open(&path, Some(5)).unwrap());
        assert!(path.exists());
    }

    #[test]
    fn numbers_that_are_not_finite_stay_valid_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        MetricsFile::open(&path, None).unwrap().write(&Line { step: 1, loss: f64::NAN }).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1,\"loss\":null}\n");
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/metrics.jsonl");
        let error = MetricsFile::open(&path, None).err().unwrap();
        assert!(format!("{error:#}").contains("missing/metrics.jsonl"), "{error:#}");
    }
}
