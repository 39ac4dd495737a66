//! Opening files by the paths users give, without blocking on pipes and devices, and writing files atomically.

use std::fs::{File, FileType, OpenOptions, Permissions};
use std::io::{BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{MemfdFlags, memfd_create};
use signal_hook::consts::{SIGINT, SIGTERM};
use tempfile::{NamedTempFile, TempPath};

/// Prefix of the names of unfinished files.
pub const UNFINISHED: &str = ".partial-";

/// The unfinished files of this process, to be removed when a signal ends it.
static PENDING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn pending() -> MutexGuard<'static, Vec<PathBuf>> {
    PENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Content of pipes and the like that were read, by path, because they cannot be read twice.
static PIPED: Mutex<Vec<(PathBuf, Vec<u8>)>> = Mutex::new(Vec::new());

/// For processes started by `--nproc`: a pipe that the launcher has read, as `<file descriptor>:<path>`.
const PIPED_FD: &str = "BYOL_PIPED";

/// Timeouts for a writer to open a named pipe, and for more bytes from it.
const WRITER_TIMEOUT: Duration = Duration::from_secs(1);
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Opens a regular file for reading. Never blocks: anything else at the path is an error that names its type.
/// # Errors
/// No such file; a folder, pipe, socket or device; no permission.
pub fn open_regular(path: &Path) -> Result<File> {
    let file = open(path)?;
    let kind = file.metadata().context("cannot read the file")?.file_type();
    ensure!(kind.is_file(), "found {}, expected a file", name(kind));
    Ok(file)
}

/// The content of a regular file of at most `max_bytes`.
/// # Errors
/// As [`open_regular`]; more bytes.
pub fn read_regular(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let (file, mut bytes) = (open_regular(path)?, Vec::new());
    let size = file.metadata().context("cannot read the file")?.len();
    ensure!(size <= max_bytes, "found {size} bytes, expected at most {max_bytes}");
    bytes.try_reserve_exact(size as usize + 1).with_context(|| format!("no memory for its {size} bytes"))?;
    // It may grow meanwhile.
    file.take(max_bytes).read_to_end(&mut bytes).context("cannot read the file")?;
    Ok(bytes)
}

/// The content of a regular file or a pipe (`<(command)`, `/dev/stdin`) of at most `max_bytes`. A pipe must be opened
/// by a writer within a second and deliver bytes at least every half minute. Its content can be read again, also by
/// processes started with [`piped_for_children`].
/// # Errors
/// As [`open_regular`]; more bytes; a pipe timed out.
pub fn read_text_or_pipe(path: &Path, max_bytes: usize) -> Result<Vec<u8>> {
    if let Some(bytes) = piped(path)? {
        return Ok(bytes);
    }
    let file = open(path)?;
    let kind = file.metadata().context("cannot read the file")?.file_type();
    ensure!(kind.is_file() || kind.is_fifo(), "found {}, expected a file", name(kind));
    let bytes = read_all(&file, kind, max_bytes)?;
    // Standard input may be a regular file, but not of another process.
    if kind.is_fifo() || path.starts_with("/dev") || path.starts_with("/proc") {
        PIPED.lock().unwrap_or_else(PoisonError::into_inner).push((path.to_path_buf(), bytes.clone()));
    }
    Ok(bytes)
}

/// The content of a pipe that was read before, by this process or by its launcher.
fn piped(path: &Path) -> Result<Option<Vec<u8>>> {
    let read = PIPED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, bytes)) = read.iter().find(|(name, _)| name == path) {
        return Ok(Some(bytes.clone()));
    }
    let from_launcher = std::env::var_os(PIPED_FD).and_then(|value| {
        let (fd, name) = value.to_str()?.split_once(':')?;
        (Path::new(name) == path).then(|| format!("/proc/self/fd/{fd}"))
    });
    from_launcher.map(|copy| std::fs::read(copy).context("cannot read the launcher's copy")).transpose()
}

/// For child processes with the same arguments: a copy of the pipe that was read, which they inherit, and the
/// environment variable that describes it. `None` if no pipe was read.
pub fn piped_for_children() -> Result<Option<(OwnedFd, [String; 2])>> {
    let read = PIPED.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((path, bytes)) = read.first() else { return Ok(None) };
    let copy = memfd_create(c"byol-config", MemfdFlags::empty()).context("memfd_create")?;
    let value = format!("{}:{}", copy.as_raw_fd(), path.display());
    let mut file = File::from(copy);
    file.write_all(bytes).context("memfd_create")?;
    Ok(Some((file.into(), [PIPED_FD.to_string(), value])))
}

fn read_all(file: &File, kind: FileType, max_bytes: usize) -> Result<Vec<u8>> {
    let (mut bytes, mut waiting) = (Vec::new(), Instant::now());
    loop {
        let before = bytes.len();
        let result = file.take((max_bytes + 1 - before) as u64).read_to_end(&mut bytes);
        if bytes.len() > before {
            waiting = Instant::now();
        }
        ensure!(bytes.len() <= max_bytes, "found more, expected at most {max_bytes} bytes; is this a config file?");
        match result {
            Ok(_) if kind.is_file() || !bytes.is_empty() => return Ok(bytes),
            Ok(_) if waiting.elapsed() > WRITER_TIMEOUT => bail!("found a pipe without a writer, expected a file"),
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error).context("cannot read the file"),
            Err(_) if waiting.elapsed() > READ_TIMEOUT => {
                bail!("found a pipe that sent nothing for {} s, expected a file", READ_TIMEOUT.as_secs())
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

/// A file that is written under a temporary name in the same folder and renamed once it is complete; dropped before
/// that, it is deleted. Two processes can write the same file: the last to finish wins.
pub struct Unfinished {
    file: BufWriter<File>,
    partial: TempPath,
    target: PathBuf,
}

impl Unfinished {
    /// Starts writing the file `target`.
    pub fn create(target: &Path) -> Result<Self> {
        let name = target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (file, partial) = loop {
            // The system applies the umask.
            let file = tempfile::Builder::new()
                .prefix(&format!("{UNFINISHED}{name}-"))
                .permissions(Permissions::from_mode(0o666))
                .tempfile_in(folder_of(target));
            let (file, partial) = file.map(NamedTempFile::into_parts).with_context(|| writing(target))?;
            // Locked as long as this process has it open, if the file system supports it; `remove_stale` of another
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
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| writing(&self.target))
    }

    /// Overwrites the first bytes of the file.
    pub fn write_start(&mut self, bytes: &[u8]) -> Result<()> {
        let mut put = || self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.write_all(bytes));
        put().with_context(|| writing(&self.target))
    }

    /// Syncs the file, renames it to its final name and syncs the folder. After an error the file is removed.
    pub fn finish(mut self) -> Result<()> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        synced.with_context(|| writing(&self.target))?;
        {
            // Under one lock, so that a signal never sees the file both renamed and pending.
            let mut pending = pending();
            std::fs::rename(&self.partial, &self.target).with_context(|| writing(&self.target))?;
            pending.retain(|path| *path != *self.partial);
        }
        let folder = folder_of(&self.target);
        File::open(folder).and_then(|folder| folder.sync_all()).with_context(|| writing(folder))
    }
}

/// Removes temporary files of `target` that killed processes left; those being written are locked and stay.
pub fn remove_stale(target: &Path) {
    let name = target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let prefix = format!("{UNFINISHED}{name}-");
    for path in std::fs::read_dir(folder_of(target)).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let own = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()));
        if own && open_regular(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            // Best effort.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Dropping the temporary path deletes the file.
        pending().retain(|path| *path != *self.partial);
    }
}

/// Writes a file atomically.
pub fn write_atomic(target: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = Unfinished::create(target)?;
    file.write(bytes)?;
    file.finish()
}

/// Creates the folder that `--output` names.
/// # Errors
/// Something else is there; its own folder cannot be written.
pub fn create_output_folder(folder: &Path) -> Result<()> {
    let name = folder.display();
    ensure!(
        !folder.exists() || folder.is_dir(),
        "--output: cannot create the folder {name}: something else is there; choose another name"
    );
    std::fs::create_dir_all(folder).with_context(|| format!("--output: cannot create {name}"))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn writing(path: &Path) -> String {
    format!("writing {}", path.display())
}

/// A path with `~` at its start, `$NAME` and `${NAME}` replaced as a shell does. A path that exists stays as it is.
/// # Errors
/// A variable that is not set.
pub fn expanded(path: &Path) -> Result<PathBuf> {
    let text = path.to_str().filter(|text| (text.starts_with('~') || text.contains('$')) && !path.exists());
    text.map_or_else(|| Ok(path.to_path_buf()), |text| expand(text, |name| std::env::var(name).ok()).map(PathBuf::from))
}

fn expand(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String> {
    let value = |name: &str| {
        let value = variable(name).filter(|value| !value.is_empty());
        value.with_context(|| format!("found {text}, but the environment variable {name} is not set"))
    };
    let home = text.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let (mut expanded, mut rest) = (if home.is_some() { value("HOME")? } else { String::new() }, home.unwrap_or(text));
    while let Some((before, after)) = rest.split_once('$') {
        let braced = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
        let (name, after) = braced.unwrap_or(after.split_at(end));
        let is_name = !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit());
        expanded += before;
        expanded += &if is_name { value(name)? } else { "$".to_string() };
        rest = if is_name { after } else { &rest[before.len() + 1..] };
    }
    Ok(expanded + rest)
}

/// Bytes as hexadecimal digits, as checksums are written.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// From now on SIGINT and SIGTERM end the process immediately, with exit code 130 or 143, and remove its unfinished
/// files.
/// For commands that have nothing else to save.
pub fn end_clean_on_signals() -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).context("signal handler")?;
    let wait = move || {
        let Some(signal) = signals.forever().next() else { return };
        // The lock is held until the exit: no file is finished or started after that.
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
    fn home_and_variables_are_replaced_in_paths() {
        let variable = |name: &str| {
            ["HOME=/home/me", "DATA_1=/data"].iter().find_map(|set| {
                set.split_once('=').filter(|(known, _)| *known == name).map(|(_, value)| value.to_string())
            })
        };
        for (text, expected) in [
            ("~/runs/x", "/home/me/runs/x"),
            ("~", "/home/me"),
            ("$HOME/x", "/home/me/x"),
            ("${DATA_1}-old/$DATA_1/train-{0..3}.tar", "/data-old//data/train-{0..3}.tar"),
            ("a/~/b", "a/~/b"),
            ("~other/x", "~other/x"),
            ("cost $5 or $", "cost $5 or $"),
        ] {
            assert_eq!(expand(text, variable).unwrap(), expected);
        }
        let message = expand("$SCRATCH/x", variable).unwrap_err().to_string();
        assert_eq!(message, "found $SCRATCH/x, but the environment variable SCRATCH is not set");
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("$HOME");
        assert_ne!(expanded(&odd).unwrap(), odd);
        std::fs::create_dir(&odd).unwrap();
        assert_eq!(expanded(&odd).unwrap(), odd);
    }

    #[test]
    fn files_of_killed_processes_are_removed_and_files_being_written_stay() {
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
    fn two_writers_of_one_file_do_not_interfere() {
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
        assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o600, 0o600);
        let error = write_atomic(&folder.path().join("no/a.bin"), b"").unwrap_err();
        assert!(format!("{error:#}").starts_with("writing ") && names(folder.path()) == ["a.bin"]);
    }
}
