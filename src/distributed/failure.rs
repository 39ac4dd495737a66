//! When one process fails, the others exit too, one of them prints the error in one line, and none hangs.
//!
//! The first process that sees an error (its own, or a failed collective) increments `failed` in the store and pings
//! the others: each process has a thread that answers, whatever its main thread is doing. A process that does not
//! answer has exited, is stopped, or is unreachable. If all answer, the error is the pinging process's own, or one of
//! the others hangs: the one whose progress lags behind. The pinging process prints the error; all others exit
//! silently. On a GPU the main thread may block on the device, and so on a collective, forever; a second thread detects
//! that.

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::env::named;
use super::{DistConfig, RankInfo, launch};
use crate::logging;
use native::{ProcessGroup, Store, one_line};

/// Interval of polling the store.
const POLL: Duration = Duration::from_millis(300);

/// The error of a process that prints nothing, because another process prints the cause.
#[derive(Debug)]
pub struct Reported;

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("another process reports the error")
    }
}

impl std::error::Error for Reported {}

/// Processes that did not join at startup.
#[derive(Debug)]
pub(super) struct Missing(pub String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// Prints the error line of a failed run, or sends it to the launcher.
pub fn say(message: &str) {
    let line = logging::one_line(message);
    if !launch::tell_launcher(&line) {
        // A closed stderr must not turn an error into a panic.
        let _ = writeln!(std::io::stderr(), "error: {line}");
    }
}

/// `rank 2 on host a` for a list of ranks; `host` gives the host of each.
fn named_all(ranks: &[usize], host: impl Fn(usize) -> String) -> String {
    ranks.iter().map(|&rank| named(rank, &host(rank))).collect::<Vec<_>>().join(", ")
}

/// What this process needs to know when something fails.
pub(super) struct Watch {
    rank_info: RankInfo,
    host: String,
    first_host: String,
    progress: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    /// Another process has reported a failure; it may have exited since, and the store with it.
    notified: Arc<AtomicBool>,
    started: Instant,
    timeout: Duration,
    /// How long the others have to answer.
    grace: Duration,
    /// What to do after a process was lost.
    advice: &'static str,
    /// A GPU is in use: a failure terminates the process.
    guarded: AtomicBool,
    /// Held by the thread that looks for the cause.
    explaining: Mutex<()>,
}

impl Watch {
    /// Starts the thread that answers for this process.
    pub fn start(
        store: &Store,
        rank_info: &RankInfo,
        host: String,
        config: &DistConfig,
        advice: &'static str,
    ) -> Result<Self> {
        let timeout = Duration::from_secs(config.timeout);
        let first_host = store.get("host/0", timeout).context("rank 0 did not join")?;
        let (progress, ended, notified) =
            (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let watch = Self {
            rank_info: rank_info.clone(),
            host,
            first_host,
            progress: progress.clone(),
            ended: ended.clone(),
            notified: notified.clone(),
            started: Instant::now(),
            timeout,
            grace: config.grace(),
            advice,
            guarded: AtomicBool::new(false),
            explaining: Mutex::new(()),
        };
        let (own, rank, grace) = (store.try_clone()?, rank_info.rank, watch.grace);
        let speaks = watch.reports_rank_0();
        let gone = format!("{} exited or cannot be reached; the run has stopped", named(0, &watch.first_host));
        std::thread::Builder::new().name("watch".into()).spawn(move || {
            let failed = loop {
                std::thread::sleep(POLL);
                match (ended.load(SeqCst), own.has("failed")) {
                    (true, _) => return,
                    (_, Ok(false)) => {}
                    (_, Ok(true)) => break true,
                    (_, Err(_)) => break false, // the store's process exited
                }
            };
            if failed {
                notified.store(true, SeqCst);
                let _ = own.set(&format!("alive/{rank}"), &progress.load(SeqCst).to_string());
            }
            // The main thread usually sees the failure too; if it hangs, this terminates it. Pings are answered by
            // then.
            std::thread::sleep(5 * grace / 2);
            if !ended.load(SeqCst) {
                if !failed && speaks {
                    say(&gone);
                }
                signal_hook::low_level::exit(1);
            }
        })?;
        Ok(watch)
    }

    pub fn advance(&self, progress: u64) {
        self.progress.store(progress, SeqCst);
    }

    pub fn stop(&self) {
        self.ended.store(true, SeqCst);
    }

    /// Time left for joining.
    pub fn left(&self) -> Duration {
        self.timeout.saturating_sub(self.started.elapsed()).max(Duration::from_millis(1))
    }

    /// One process on each machine reports the error if rank 0, which hosts the store, is lost.
    fn reports_rank_0(&self) -> bool {
        let next = if self.host == self.first_host { 1 } else { 0 };
        self.rank_info.local_rank == next && self.rank_info.rank != 0
    }

    /// Terminates this process when a collective on the GPU fails or takes longer than `patience`. So does connecting
    /// the GPUs, which starts now and is done when the returned flag is set.
    pub fn guard(
        self: &Arc<Self>,
        store: &Arc<Store>,
        group: &Arc<ProcessGroup>,
        patience: Duration,
    ) -> Result<Arc<AtomicBool>> {
        let (watch, store, group, connected) =
            (self.clone(), store.clone(), group.clone(), Arc::<AtomicBool>::default());
        let (over, until) = (connected.clone(), Instant::now() + patience);
        self.guarded.store(true, SeqCst);
        std::thread::Builder::new().name("gpu watch".into()).spawn(move || {
            while !watch.ended.load(SeqCst) {
                let late = !over.load(SeqCst) && Instant::now() > until;
                match group.failure().or(late.then_some("NCCL: timed out connecting the GPUs")) {
                    Some(cause) => drop(watch.explain(&store, anyhow!(cause))),
                    None => std::thread::sleep(POLL),
                }
            }
        })?;
        Ok(connected)
    }

    /// See [`super::Group::explain`].
    pub fn explain(&self, store: &Arc<Store>, error: anyhow::Error) -> anyhow::Error {
        // Both threads of a process may call this; the second call must not count as another process.
        let _one = self.explaining.lock().unwrap_or_else(PoisonError::into_inner);
        let error = self.explained(store, error);
        if self.guarded.load(SeqCst) {
            // Exit instead of returning: destructors that free GPU memory may wait for a collective, and the threads of
            // CUDA and NCCL may crash when main returns.
            if !error.is::<Reported>() {
                say(&one_line(&error));
            }
            signal_hook::low_level::exit(1);
        }
        error
    }

    fn explained(&self, store: &Arc<Store>, error: anyhow::Error) -> anyhow::Error {
        let (send, receive) = mpsc::channel();
        let (advice, first_host) = (self.advice, &self.first_host);
        let (store, rank_info, grace, own) =
            (store.clone(), self.rank_info.clone(), self.grace, self.progress.load(SeqCst));
        let cause = without_source(one_line(&error));
        let late = cause.contains("imed out");
        // In a thread, because an unreachable store may block the caller for minutes.
        std::thread::spawn(move || {
            let _ = send.send(ask(&store, &rank_info, grace, own, late));
        });
        let found = receive.recv_timeout(2 * self.grace);
        self.stop();
        match found {
            Ok(Ok(Verdict::Reported)) => Reported.into(),
            Ok(Ok(Verdict::Own)) => anyhow!("{}: {cause}", named(self.rank_info.rank, &self.host)),
            Ok(Ok(Verdict::Lost(_))) if error.is::<Missing>() => {
                anyhow!("{}: {error}", named(self.rank_info.rank, &self.host))
            }
            Ok(Ok(Verdict::Lost(who))) => {
                anyhow!("{who} exited or cannot be reached ({cause}); the run has stopped, {advice}")
            }
            Ok(Ok(Verdict::Hangs(who))) => {
                anyhow!(
                    "{who} hangs: it did not reach a step that all others have reached; the run has stopped, {advice}"
                )
            }
            Ok(Err(_)) | Err(_) if self.notified.load(SeqCst) => Reported.into(),
            Ok(Err(_)) | Err(_) if self.rank_info.rank == 0 => error, // its own store does not answer: the cause is unknown
            Ok(Err(_)) | Err(_) if self.reports_rank_0() => {
                anyhow!("{} exited or cannot be reached; the run has stopped, {advice}", named(0, first_host))
            }
            Ok(Err(_)) | Err(_) => Reported.into(),
        }
    }
}

/// The result of [`ask`].
enum Verdict {
    /// Another process is already checking.
    Reported,
    /// All answer and none lags behind.
    Own,
    /// These do not answer.
    Lost(String),
    /// This one lags behind.
    Hangs(String),
}

/// `own` is this process's progress; a process that lags behind is to blame only if this one timed out (`late`).
fn ask(store: &Store, rank_info: &RankInfo, grace: Duration, own: u64, late: bool) -> Result<Verdict> {
    if store.count("failed")? > 1 {
        store.set(&format!("alive/{}", rank_info.rank), &own.to_string())?;
        if rank_info.rank == 0 {
            let _ = store.get("reported", grace); // the store must outlive the other process's pings
        }
        return Ok(Verdict::Reported);
    }
    let until = Instant::now() + grace;
    let mut answers = Vec::new();
    for rank in (0..rank_info.world).filter(|&rank| rank != rank_info.rank) {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let answer = store.get(&format!("alive/{rank}"), left).ok();
        answers.push((rank, answer.and_then(|text| text.parse::<u64>().ok())));
    }
    let host = |rank: usize| {
        store.get(&format!("host/{rank}"), Duration::from_millis(200)).unwrap_or("an unknown host".into())
    };
    let gone: Vec<usize> = answers.iter().filter(|(_, answer)| answer.is_none()).map(|(rank, _)| *rank).collect();
    let behind: Vec<usize> =
        answers.iter().filter(|(_, a)| late && a.is_some_and(|a| a < own)).map(|(rank, _)| *rank).collect();
    let verdict = match (gone.as_slice(), behind.as_slice()) {
        ([], [_, ..]) => Verdict::Hangs(named_all(&behind, host)),
        ([], []) => Verdict::Own,
        (gone, _) => Verdict::Lost(named_all(gone, host)),
    };
    let _ = store.set("reported", "");
    Ok(verdict)
}

/// Gloo's messages without the source file and line.
fn without_source(mut message: String) -> String {
    if let Some(start) = message.find("[/")
        && let Some(length) = message[start..].find("] ")
    {
        message.replace_range(start..start + length + 2, "");
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn pinging_finds_which_process_was_lost_or_hangs_and_which_pinged_first() -> Result<()> {
        let second = Duration::from_secs(1);
        let rank_info = |rank| RankInfo {
            rank,
            world: 3,
            local_rank: rank,
            local_world: 3,
            master: "127.0.0.1".into(),
            port: 1,
            agent: None,
        };
        let asked = |answers: &[(usize, u64)], late| -> Result<(String, String)> {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let port = listener.local_addr()?.port();
            let store = Store::open("127.0.0.1", port, Some(listener), "byol", second)?;
            (0..3).try_for_each(|rank| store.set(&format!("host/{rank}"), &format!("h{rank}")))?;
            answers.iter().try_for_each(|(rank, at)| store.set(&format!("alive/{rank}"), &at.to_string()))?;
            let said = |verdict| match verdict {
                Verdict::Reported => "reported".into(),
                Verdict::Own => "own".into(),
                Verdict::Lost(who) => format!("lost: {who}"),
                Verdict::Hangs(who) => format!("hangs: {who}"),
            };
            let first = ask(&store, &rank_info(0), second / 10, 7, late)?;
            let other = ask(&store.try_clone()?, &rank_info(1), second / 10, 7, late)?;
            Ok((said(first), said(other)))
        };
        for (answers, late, expected) in [
            (&[(1, 7), (2, 7)][..], true, "own"),
            (&[(1, 7), (2, 6)], true, "hangs: rank 2 on h2"),
            (&[(1, 7), (2, 6)], false, "own"), // an error of this process's own: the others may lag
            (&[(1, 7)], true, "lost: rank 2 on h2"),
            (&[], false, "lost: rank 1 on h1, rank 2 on h2"),
        ] {
            assert_eq!(asked(answers, late)?, (expected.to_string(), "reported".to_string()));
        }
        Ok(())
    }

    #[test]
    fn a_process_that_waits_for_a_gpu_forever_is_ended_in_one_line() -> Result<()> {
        const CHILD: &str = "BYOL_TEST_WAITS_FOREVER";
        if std::env::var_os(CHILD).is_none() {
            let name = "distributed::failure::tests::a_process_that_waits_for_a_gpu_forever_is_ended_in_one_line";
            let mut command = std::process::Command::new(std::env::current_exe()?);
            let output = command.args(["--exact", "--nocapture", name]).env(CHILD, "1").output()?;
            let (stderr, host) = (String::from_utf8(output.stderr)?, rustix::system::uname());
            let expected = named(0, &host.nodename().to_string_lossy());
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            assert_eq!(stderr, format!("error: {expected}: NCCL: timed out connecting the GPUs\n"));
            return Ok(());
        }
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (port, second) = (listener.local_addr()?.port(), Duration::from_secs(1));
        let store = Arc::new(Store::open("127.0.0.1", port, Some(listener), "byol", second)?);
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        store.set("host/0", &host)?;
        let watch = Arc::new(Watch::start(&store, &RankInfo::single(), host, &DistConfig::default(), "")?);
        let listen = native::Listen::Address("127.0.0.1".into());
        let group = Arc::new(ProcessGroup::gloo(&store, 0, 1, &listen, second)?);
        watch.guard(&store, &group, second / 10)?;
        loop {
            std::thread::park(); // as in a call of CUDA's
        }
    }

    #[test]
    fn messages_of_gloo_lose_their_source() {
        let found = "step 3: [/a/gloo/pair.cc:538] Read error [127.0.0.1]:39: Connection reset by peer";
        let expected = "step 3: Read error [127.0.0.1]:39: Connection reset by peer";
        assert_eq!(without_source(found.into()), expected);
        assert_eq!(without_source("plain".into()), "plain");
    }
}
