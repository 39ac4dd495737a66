//! Timing of the parts of a step, for `byol bench step`; in training each [`lap`] only reads a flag.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use tch::{Cuda, Device};

/// The parts of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Bytes of the views to the device.
    Copy,
    /// Bytes to normalized numbers.
    Normalize,
    /// Encoder, projector and predictor on both views.
    OnlineForward,
    /// The target's encoder and projector on both views.
    TargetForward,
    /// Normalization of the vectors, the loss, the collapse statistic.
    Loss,
    /// Gradients.
    Backward,
    /// The optimizer's update.
    Optimizer,
    /// The target's update.
    Ema,
}

/// Time spent in each [`Part`], in their order.
pub type Times = [Duration; 8];

struct Laps {
    device: Device,
    since: Instant,
    times: Times,
}

thread_local! {
    static LAPS: RefCell<Option<Laps>> = const { RefCell::new(None) };
}

/// Runs `work` and returns the time of its parts. On a GPU each part is waited for, which makes the step slower.
pub fn measure<T>(device: Device, work: impl FnOnce() -> T) -> (T, Times) {
    LAPS.set(Some(Laps { device, since: Instant::now(), times: Times::default() }));
    let result = work();
    (result, LAPS.take().map_or(Times::default(), |laps| laps.times))
}

/// Counts the time since this thread's last lap as `part`.
pub fn lap(part: Part) {
    LAPS.with_borrow_mut(|laps| {
        let Some(laps) = laps else { return };
        if let Device::Cuda(index) = laps.device {
            Cuda::synchronize(index as i64);
        }
        let now = Instant::now();
        laps.times[part as usize] += now - laps.since;
        laps.since = now;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_belongs_to_the_part_that_it_ends_with() {
        lap(Part::Ema); // not measuring
        let pause = Duration::from_millis(5);
        let ((), times) = measure(Device::Cpu, || {
            std::thread::sleep(pause);
            lap(Part::Copy);
            lap(Part::Loss);
            std::thread::sleep(pause);
            lap(Part::Copy);
        });
        assert!(times[Part::Copy as usize] >= 2 * pause && times[Part::Loss as usize] < pause, "{times:?}");
        assert_eq!(times[Part::Ema as usize], Duration::ZERO);
    }
}
