//! Sharing the cores with other processes. OpenMP threads wait for each other by spinning (libgomp: 300 000 iterations,
//! about 3 ms), which is fastest on an idle machine. Next to other busy processes it is ruinous: a thread spins away
//! its share of a core while the thread it waits for is not scheduled, and a step takes ten times as long (in PyTorch
//! too).
//!
//! libgomp has a remedy, sleeping after 100 iterations, but uses it only if OpenMP has more threads than the machine
//! has cores (GCC's manual, `GOMP_SPINCOUNT`). So while other processes keep this one's threads waiting for a core, a
//! second team of idle threads oversubscribes the cores on purpose. How threads wait does not change what is computed.

use std::fs;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

/// How often the threads' waiting time is checked.
const EVERY: Duration = Duration::from_millis(500);

/// Fractions of time spent waiting for a core, summed over the threads: above the first the cores count as crowded,
/// below the second no longer.
const CROWDED: [f64; 2] = [0.2, 0.04];

/// Cores that other processes use, above and below which the same holds: this process's own threads, loader workers among
/// them, wait for each other, too.
const OTHERS: [f64; 2] = [0.25, 0.1];

/// The watch of this process.
static WATCH: Mutex<Option<Guarded>> = Mutex::new(None);

/// Shares the cores with other processes from now on: a thread watches whether they are crowded, and makes the `threads`
/// threads of libtorch's operators on `device` sleep instead of spin while they are. `crowded` is called the first time.
/// Call [`stop_sharing_cores`] before the process ends.
pub fn share_cores(device: Device, threads: usize, crowded: fn()) {
    stop_sharing_cores();
    let contention = Contention::new(device, threads);
    if contention.possible {
        let watch = Guarded::start("cores", move |ended| watch(contention, crowded, ended));
        *WATCH.lock().unwrap_or_else(PoisonError::into_inner) = watch;
    }
}

/// Ends what [`share_cores`] began.
pub fn stop_sharing_cores() {
    WATCH.lock().unwrap_or_else(PoisonError::into_inner).take();
}

/// A step may take seconds, so the watch does not wait for its end.
fn watch(mut contention: Contention, crowded: fn(), ended: &Receiver<()>) {
    let mut said = false;
    while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
        if contention.observe() && !std::mem::replace(&mut said, true) {
            crowded();
        }
    }
}

/// Detects contention with other processes, and makes the threads sleep instead of spin while it lasts.
struct Contention {
    seen: Instant,
    delay: Duration,
    others: f64,
    crowd: Option<Guarded>,
    /// OpenMP can have more threads than there are cores, and the system reports how long threads wait.
    possible: bool,
}

impl Contention {
    /// For `threads` threads of libtorch's operators on `device`; does nothing for a GPU or a single thread.
    fn new(device: Device, threads: usize) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let delay = run_delay();
        let possible = device == Device::Cpu && threads > 1 && 2 * threads - 1 > cores && delay.is_some();
        let others = others_seconds().unwrap_or_default();
        Self { seen: Instant::now(), delay: delay.unwrap_or_default(), others, crowd: None, possible }
    }

    /// Checks the time since the last call. True if the cores have just become crowded.
    fn observe(&mut self) -> bool {
        let elapsed = self.seen.elapsed();
        if !self.possible || elapsed < EVERY {
            return false;
        }
        let (delay, others) = (run_delay().unwrap_or(self.delay), others_seconds().unwrap_or(self.others));
        let share = delay.saturating_sub(self.delay).as_secs_f64() / elapsed.as_secs_f64();
        let cores = (others - self.others) / elapsed.as_secs_f64();
        (self.seen, self.delay, self.others) = (Instant::now(), delay, others);
        match (self.crowd.is_some(), crowded(self.crowd.is_some(), share, cores)) {
            (false, true) => {
                self.crowd = Guarded::start("idle", idle);
                return self.crowd.is_some();
            }
            (true, false) => self.crowd = None,
            _ => {}
        }
        false
    }
}

/// Whether the cores are crowded, from whether they were: threads wait for a core, and other processes use some.
fn crowded(before: bool, waiting: f64, others: f64) -> bool {
    let at = usize::from(before);
    waiting > CROWDED[at] && others > OTHERS[at]
}

/// Total time that this process's threads were runnable without a core; `None` if the system does not report it.
fn run_delay() -> Option<Duration> {
    let mut nanoseconds = 0;
    for task in fs::read_dir("/proc/self/task").ok()?.flatten() {
        // Time on a core, time waiting for one, time slices. A thread may just have exited.
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        nanoseconds += text.split(' ').nth(1)?.parse::<u64>().ok()?;
    }
    Some(Duration::from_nanos(nanoseconds))
}

/// CPU seconds of all processes together and of this one; `None` if the system does not report them.
fn cpu_seconds() -> Option<[f64; 2]> {
    let number = |text: &str| text.parse::<u64>().ok();
    let seconds = |ticks: u64| ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    // User, nice, system, idle, waiting for a disk, and two kinds of interrupts (proc_stat(5)).
    let text = fs::read_to_string("/proc/stat").ok()?;
    let times: Vec<u64> = text.lines().next()?.split_whitespace().skip(1).map_while(number).collect();
    let all = [0, 1, 2, 5, 6].iter().filter_map(|&at| times.get(at)).sum();
    // User and system are fields 14 and 15 (proc_pid_stat(5)); the second is a name in parentheses, of any characters.
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    let own = text.rsplit_once(')')?.1.split_whitespace().skip(11).take(2).filter_map(number).sum();
    Some([seconds(all), seconds(own)])
}

fn others_seconds() -> Option<f64> {
    cpu_seconds().map(|[all, own]| all - own)
}

/// A thread that ends, and is waited for, when this is dropped.
struct Guarded {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Guarded {
    fn start(name: &str, work: impl FnOnce(&Receiver<()>) + Send + 'static) -> Option<Self> {
        let (end, ended) = channel();
        let thread = thread::Builder::new().name(name.into()).spawn(move || work(&ended)).ok()?;
        Some(Self { end: Some(end), thread: Some(thread) })
    }
}

/// A team of idle OpenMP threads: an operation large enough for libtorch to use every thread; then they sleep.
fn idle(ended: &Receiver<()>) {
    let _ = Tensor::ones([1 << 18], (Kind::Float, Device::Cpu)).f_exp();
    let _ = ended.recv();
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.end.take();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Busy(Vec<Child>);

    impl Busy {
        fn start(count: usize) -> Self {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]);
            Self((0..count).map(|_| command.spawn().expect("a shell")).collect())
        }
    }

    impl Drop for Busy {
        fn drop(&mut self) {
            for child in &mut self.0 {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }

    fn work() -> Tensor {
        let x = Tensor::arange(1 << 18, (Kind::Float, Device::Cpu)).view([512, 512]) / 1e6;
        (0..4).fold(x, |x, _| x.matmul(&x).sin())
    }

    #[test]
    fn only_other_processes_crowd_the_cores() {
        for (now, waiting, others, expected) in [
            (false, 0.5, 1.0, true),
            (false, 0.1, 1.0, false),
            (false, 0.5, 0.05, false), // this process's own threads wait for each other
            (true, 0.1, 0.2, true),
            (true, 0.01, 1.0, false),
            (true, 0.5, 0.05, false),
        ] {
            assert_eq!(crowded(now, waiting, others), expected, "{now} {waiting} {others}");
        }
    }

    #[test]
    fn own_time_is_part_of_all() {
        let Some([all, own]) = cpu_seconds() else { return println!("skipped: the system does not report CPU times") };
        let (start, mut now) = (Instant::now(), [all, own]);
        while now[1] < own + 0.3 {
            assert!(start.elapsed() < Duration::from_secs(300), "0.3 s of CPU time never came");
            now = cpu_seconds().expect("as before");
        }
        assert!(now[0] > all + 0.2, "{all} {now:?}");
    }

    #[test]
    fn threads_yield_while_others_take_the_cores_and_compute_the_same() {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        tch::set_num_threads(2.max(cores as i32));
        let mut contention = Contention::new(Device::Cpu, 2.max(cores));
        if !contention.possible {
            println!("skipped: the system does not report how long threads wait for a core");
            return;
        }
        let expected = work();
        let busy = Busy::start(2 * cores);
        let start = Instant::now();
        while !contention.observe() {
            assert!(work().equal(&expected));
            assert!(start.elapsed() < Duration::from_secs(300), "nobody waited for a core");
        }
        assert!(contention.crowd.is_some() && work().equal(&expected));
        // The watch sees the same.
        static SAID: AtomicBool = AtomicBool::new(false);
        share_cores(Device::Cpu, 2.max(cores), || SAID.store(true, Ordering::SeqCst));
        while !SAID.load(Ordering::SeqCst) {
            assert!(work().equal(&expected));
            assert!(start.elapsed() < Duration::from_secs(300), "the watch saw nothing");
        }
        stop_sharing_cores();
        assert!(work().equal(&expected));
        drop(busy);
        assert!(!Contention::new(Device::Cuda(0), 8).possible && !Contention::new(Device::Cpu, 1).possible);
    }
}
