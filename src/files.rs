//! Opening what a user names: a regular file, told apart before a read could wait for ever. And writing files that
//! appear under their names whole or not at all.

use std::fs::{File, FileType, OpenOptions, Permissions};
use std::io::{BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};
use tempfile::{NamedTempFile, TempPath};

/// How the names of unfinished files begin.
pub const UNFINISHED: &str = ".partial-";

/// The unfinished files of this process, for the end by a signal.
static PENDING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn pending() -> MutexGuard<'static, Vec<PathBuf>> {
    PENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A named pipe may wait for its writer for so long, and an open one for its bytes.
const NO_WRITER: Duration = Duration::from_secs(1);
const SLOW_WRITER: Duration = Duration::from_secs(30);

/// Opens a regular file for reading, or says what else is there. Never waits.
/// # Errors
/// No such file; no regular file; the system refuses.
pub fn open_regular(path: &Path) -> Result<File> {
    let file = open(path)?;
    let kind = file.metadata().context("cannot read the file")?.file_type();
    ensure!(kind.is_file(), "found {}, expected a file", name(kind));
    Ok(file)
}

/// The content of a regular file of at most `most` bytes.
/// # Errors
/// As [`open_regular`]; more bytes.
pub fn read_regular(path: &Path, most: u64) -> Result<Vec<u8>> {
    let (file, mut bytes) = (open_regular(path)?, Vec::new());
    let size = file.metadata().context("cannot read the file")?.len();
    ensure!(size <= most, "found {size} bytes, expected at most {most}");
    bytes.try_reserve_exact(size as usize + 1).with_context(|| format!("no memory for its {size} bytes"))?;
    // It may grow meanwhile.
    file.take(most).read_to_end(&mut bytes).context("cannot read the file")?;
    Ok(bytes)
}

/// The content of a regular file or of a pipe, as `<(command)` and `/dev/stdin` are, of at most `most` bytes. A pipe
/// has to have a writer within a second, and every read to bring something within half a minute.
/// # Errors
/// As [`open_regular`]; more bytes; a pipe that brings none.
pub fn read_text_or_pipe(path: &Path, most: usize) -> Result<Vec<u8>> {
    let file = open(path)?;
    let kind = file.metadata().context("cannot read the file")?.file_type();
    ensure!(kind.is_file() || kind.is_fifo(), "found {}, expected a file", name(kind));
    let (mut bytes, mut waiting) = (Vec::new(), Instant::now());
    loop {
        let before = bytes.len();
        let result = (&file).take((most + 1 - before) as u64).read_to_end(&mut bytes);
        if bytes.len() > before {
            waiting = Instant::now();
        }
        ensure!(bytes.len() <= most, "found more, expected at most {most} bytes; is this a config file?");
        match result {
            Ok(_) if kind.is_file() || !bytes.is_empty() => return Ok(bytes),
            Ok(_) if waiting.elapsed() > NO_WRITER => bail!("found a pipe that nobody writes to, expected a file"),
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error).context("cannot read the file"),
            Err(_) if waiting.elapsed() > SLOW_WRITER => {
                bail!("found a pipe that brings nothing for {} s, expected a file", SLOW_WRITER.as_secs())
            }
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn open(path: &Path) -> Result<File> {
    // Opening a pipe would otherwise wait for its writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    file.map_err(|error| match error.raw_os_error() {
        Some(libc::ENXIO) => anyhow::anyhow!("found a socket or a device without a driver, expected a file"),
        Some(libc::ENOENT) => anyhow::anyhow!("no such file"),
        _ => anyhow::Error::new(error).context("cannot open the file"),
    })
}

fn name(kind: FileType) -> &'static str {
    match kind {
        _ if kind.is_dir() => "a folder",
        _ if kind.is_fifo() => "a named pipe",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    }
}

/// A file that gets its name once it is whole; dropped before, it is gone. Until then it is beside its place, under a
/// name of its own: two processes that write the same file do not meet, the last to finish wins.
pub struct Unfinished {
    file: BufWriter<File>,
    partial: TempPath,
    target: PathBuf,
}

impl Unfinished {
    /// Begins the file that is to be `target`.
    /// # Errors
    /// What the system says, with the path.
    pub fn create(target: &Path) -> Result<Self> {
        let name = target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (file, partial) = loop {
            // The umask is taken off by the system.
            let file = tempfile::Builder::new()
                .prefix(&format!("{UNFINISHED}{name}-"))
                .permissions(Permissions::from_mode(0o666))
                .tempfile_in(folder_of(target));
            let (file, partial) = file.map(NamedTempFile::into_parts).with_context(|| writing(target))?;
            // Locked as long as this process has it open, where the file system can do that; `remove_stale` of another
            // one may have come first.
            let _ = file.try_lock();
            if partial.exists() {
                break (file, partial);
            }
        };
        pending().push(partial.to_path_buf());
        Ok(Self { file: BufWriter::new(file), partial, target: target.to_path_buf() })
    }

    /// Adds bytes at the end.
    /// # Errors
    /// What the system says, with the path.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| writing(&self.target))
    }

    /// Puts `bytes` over the first ones of the file, however much came after.
    /// # Errors
    /// What the system says, with the path.
    pub fn write_start(&mut self, bytes: &[u8]) -> Result<()> {
        let mut put = || self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.write_all(bytes));
        put().with_context(|| writing(&self.target))
    }

    /// Syncs the file, gives it its name and syncs the folder.
    /// # Errors
    /// What the system says, with the path; the file is gone then.
    pub fn finish(mut self) -> Result<()> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        synced.with_context(|| writing(&self.target))?;
        {
            // Together: a signal finds the file unfinished or named.
            let mut pending = pending();
            std::fs::rename(&self.partial, &self.target).with_context(|| writing(&self.target))?;
            pending.retain(|path| *path != *self.partial);
        }
        let folder = folder_of(&self.target);
        File::open(folder).and_then(|folder| folder.sync_all()).with_context(|| writing(folder))
    }
}

/// Removes what killed processes left of the file `target`; those that are being written are locked and stay.
pub fn remove_stale(target: &Path) {
    let name = target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let prefix = format!("{UNFINISHED}{name}-");
    for path in std::fs::read_dir(folder_of(target)).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let own = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()));
        if own && open_regular(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            // Not worth more than a try.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // The temporary path removes itself.
        pending().retain(|path| *path != *self.partial);
    }
}

/// Writes a file whole or not at all.
/// # Errors
/// What the system says, with the path.
pub fn write_atomic(target: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = Unfinished::create(target)?;
    file.write(bytes)?;
    file.finish()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn writing(path: &Path) -> String {
    format!("writing {}", path.display())
}

/// Removes what killed processes left unfinished in a folder that nobody else writes to.
pub fn remove_unfinished(folder: &Path) {
    for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes())) {
            // Not worth more than a try.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// From now on SIGINT and SIGTERM end the process at once, with 130 or 143, and remove its unfinished files. For
/// commands that have nothing else to save.
/// # Errors
/// The system refuses.
pub fn end_clean_on_signals() -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).context("signal handler")?;
    let wait = move || {
        let Some(signal) = signals.forever().next() else { return };
        // Never unlocked: nothing is finished or begun any more.
        for path in pending().iter() {
            let _ = std::fs::remove_file(path);
        }
        signal_hook::low_level::exit(128 + signal);
    };
    std::thread::Builder::new().name("byol-signals".into()).spawn(wait).context("signal handler")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn what_a_killed_process_left_goes_and_what_is_being_written_stays() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.bin");
        for stale in [".partial-a.bin-Xy12z9", ".partial-b.bin-Xy12z9", "a.bin-other"] {
            std::fs::write(folder.path().join(stale), "half").unwrap();
        }
        let living = Unfinished::create(&target).unwrap();
        remove_stale(&target);
        assert!(!folder.path().join(".partial-a.bin-Xy12z9").exists());
        assert_eq!(names(folder.path()).len(), 3, "{:?}", names(folder.path()));
        living.finish().unwrap();
        assert!(target.exists());
    }

    #[test]
    fn two_writers_of_one_name_do_not_meet() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.bin");
        let (mut first, mut second) = (Unfinished::create(&target).unwrap(), Unfinished::create(&target).unwrap());
        let third = Unfinished::create(&target).unwrap();
        first.write(b"....first").unwrap();
        second.write(b"....second").unwrap();
        assert!(names(folder.path()).iter().all(|name| name.starts_with(".partial-a.bin-")));
        first.write_start(b"1111").unwrap();
        first.finish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"1111first");
        second.finish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"....second");
        drop(third);
        assert_eq!(names(folder.path()), ["a.bin"]);
        std::fs::write(folder.path().join(".partial-a.bin-1"), "killed").unwrap();
        remove_unfinished(folder.path());
        assert_eq!(names(folder.path()), ["a.bin"]);
        assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o600, 0o600);
        let error = write_atomic(&folder.path().join("no/a.bin"), b"").unwrap_err();
        assert!(format!("{error:#}").starts_with("writing ") && names(folder.path()) == ["a.bin"]);
    }
}
