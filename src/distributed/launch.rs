//! `--nproc N`: starts N copies of this process on this machine, each with its rank in the environment, and acts as
//! one command: one progress bar, one error line, one exit code.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write, pipe};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::DistConfig;
use super::env::named;
use crate::files;

/// Process id of the launcher.
const LAUNCHER: &str = "BYOL_LAUNCHER";
/// File descriptor on which the launcher reads the line that ends a process.
const REPORT: &str = "BYOL_REPORT_FD";
/// Variables of another launcher that the processes must not inherit.
const FOREIGN: &str = "TORCHELASTIC_USE_AGENT_STORE";

/// In a process that `--nproc` started: has it killed when the launcher exits, for whatever reason.
/// # Errors
/// The launcher has already exited.
pub fn end_with_launcher() -> Result<()> {
    let Some(launcher) = std::env::var(LAUNCHER).ok().and_then(|pid| pid.parse::<i32>().ok()) else { return Ok(()) };
    set_parent_process_death_signal(Some(Signal::KILL)).context("prctl(PR_SET_PDEATHSIG)")?;
    if getppid().map(Pid::as_raw_nonzero).map(i32::from) != Some(launcher) {
        bail!("the launcher (process {launcher}) has exited");
    }
    Ok(())
}

/// Whether `--nproc` started this process. Rank 0's standard input is its listening socket then.
pub fn launched() -> bool {
    std::env::var_os(LAUNCHER).is_some()
}

/// Sends the launcher the error line that this process would print; false without a launcher.
pub(super) fn tell_launcher(line: &str) -> bool {
    let Some(fd) = std::env::var(REPORT).ok().and_then(|fd| fd.parse::<u32>().ok()) else { return false };
    let rank = std::env::var("RANK").unwrap_or_default();
    let opened = File::options().write(true).open(format!("/proc/self/fd/{fd}"));
    opened.and_then(|mut pipe| writeln!(pipe, "{rank}\t{line}")).is_ok()
}

/// A running process, and its exit status.
struct Process {
    child: Child,
    status: Option<ExitStatus>,
}

/// Starts `count` processes with this one's arguments and waits for all; the value is their exit code.
/// # Errors
/// One line about the process that failed first, with `advice` if it was killed; all others are terminated.
pub fn launch(count: usize, config: &DistConfig, advice: &str) -> Result<u8> {
    let (mut reports, report) = pipe().context("--nproc")?;
    fcntl_setfd(&report, FdFlags::empty()).context("--nproc")?; // for the children
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGHUP]).context("signal handler")?;
    let mut processes = start(count, report.as_raw_fd())?;
    drop(report);
    let forwards: Vec<_> =
        processes.iter_mut().enumerate().map(|(rank, p)| forward_stderr(rank, &mut p.child)).collect();
    let first = wait(&mut processes, &mut signals, config.grace())?;
    forwards.into_iter().flatten().for_each(|thread| drop(thread.join()));
    let Some((rank, status)) = first else {
        let code = |status: ExitStatus| status.code().or(status.signal().map(|signal| 128 + signal));
        let code = processes.iter().filter_map(|p| code(p.status?)).max().unwrap_or(0);
        return Ok(code as u8);
    };
    if let Some(signal) = status.signal() {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let (who, process) = (named(rank, &host), processes[rank].child.id());
        bail!("{who} (process {process}) was killed by signal {signal}; the run has stopped, {advice}");
    }
    let mut lines = String::new();
    reports.read_to_string(&mut lines).context("--nproc")?;
    let line = lines.lines().next().and_then(|line| line.split_once('\t')).map(|(_, line)| line.to_string());
    Err(anyhow!(line.unwrap_or_else(|| format!("rank {rank} exited with {status} without an error message"))))
}

/// Starts the processes; `report` is the file descriptor that they write their error to.
fn start(count: usize, report: RawFd) -> Result<Vec<Process>> {
    // Rank 0 gets the socket itself, so the port cannot be lost between the two.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("--nproc: no port on 127.0.0.1")?;
    let port = listener.local_addr()?.port();
    let mut socket = Some(OwnedFd::from(listener));
    let piped = files::piped_for_children().context("--nproc: the config")?;
    let program = std::env::current_exe().context("--nproc: the path of this program")?;
    let mut processes = Vec::with_capacity(count);
    for rank in 0..count {
        let mut command = Command::new(&program);
        command.args(std::env::args_os().skip(1)).process_group(0); // the launcher forwards signals from the terminal, once
        command.env_remove(FOREIGN);
        command.envs([
            ("RANK", rank.to_string()),
            ("LOCAL_RANK", rank.to_string()),
            ("WORLD_SIZE", count.to_string()),
            ("LOCAL_WORLD_SIZE", count.to_string()),
            ("MASTER_ADDR", Ipv4Addr::LOCALHOST.to_string()),
            ("MASTER_PORT", port.to_string()),
            (LAUNCHER, std::process::id().to_string()),
            (REPORT, report.to_string()),
        ]);
        command.envs(piped.iter().map(|(_, [name, value])| (name, value)));
        command.stdin(socket.take().map_or_else(Stdio::null, Stdio::from));
        if rank > 0 {
            command.stderr(Stdio::piped());
        }
        match command.spawn() {
            Ok(child) => processes.push(Process { child, status: None }),
            Err(error) => {
                send(&processes, Signal::KILL);
                return Err(error).with_context(|| format!("--nproc: starting process {rank} of {count}"));
            }
        }
    }
    Ok(processes)
}

/// Waits for all; after the first failure the others are terminated within `grace`. Returns the first that failed.
fn wait(processes: &mut [Process], signals: &mut Signals, grace: Duration) -> Result<Option<(usize, ExitStatus)>> {
    let mut first: Option<(usize, ExitStatus, Instant)> = None;
    let mut forwarded = Vec::new();
    let mut sent = None;
    loop {
        for (rank, process) in processes.iter_mut().enumerate().filter(|(_, p)| p.status.is_none()) {
            process.status = process.child.try_wait().context("--nproc")?;
            // 130 and 143: stopped by a signal, with a checkpoint; or by a forwarded one before there was anything to
            // save.
            let signaled = |s: &ExitStatus| s.signal().is_some_and(|signal| forwarded.contains(&signal));
            let ok = |s: &ExitStatus| matches!(s.code(), Some(0 | 130 | 143)) || signaled(s);
            if let Some(status) = process.status.filter(|s| !ok(s)) {
                first.get_or_insert((rank, status, Instant::now()));
            }
        }
        if processes.iter().all(|p| p.status.is_some()) {
            return Ok(first.map(|(rank, status, _)| (rank, status)));
        }
        for signal in signals.pending() {
            forwarded.push(signal);
            match signal {
                SIGINT => send(processes, Signal::INT),
                SIGTERM => send(processes, Signal::TERM),
                SIGUSR1 => send(processes, Signal::USR1),
                SIGUSR2 => send(processes, Signal::USR2),
                _ => {} // SIGHUP: closing the terminal does not stop a run
            }
        }
        let since = first.map(|(_, _, at)| at.elapsed()).unwrap_or_default();
        for (signal, after) in [(Signal::TERM, grace / 2), (Signal::KILL, grace)] {
            if since > after && sent < Some(after) {
                send(processes, signal);
                sent = Some(after);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a signal to all running processes.
fn send(processes: &[Process], signal: Signal) {
    for process in processes.iter().filter(|p| p.status.is_none()) {
        // It may have exited just now; until it is waited for, its process id is not reused.
        let _ = kill_process(Pid::from_child(&process.child), signal);
    }
}

/// Logs what a process other than rank 0 prints (warnings) with its rank.
fn forward_stderr(rank: usize, child: &mut Child) -> Option<std::thread::JoinHandle<()>> {
    let stderr = child.stderr.take()?;
    Some(std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            match line.strip_prefix("warning: ") {
                Some(warning) => log::warn!("rank {rank}: {warning}"),
                None => log::error!("rank {rank}: {line}"),
            }
        }
    }))
}
