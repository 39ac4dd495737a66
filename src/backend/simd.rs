//! The widest vector instructions of the processor, chosen at run time.
#![allow(unsafe_code)]

/// Runs `work` compiled for AVX2 where the processor has it, else for the baseline (AVX-512 was tried: no faster).
/// What is to profit must be inlined into `work`: mark it `#[inline(always)]`. Multiplications and additions are
/// never fused, so both give the same bits.
#[inline(always)]
pub fn widest<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor was just asked.
        return unsafe { avx2(work) };
    }
    work()
}

/// What [`widest`] chooses here.
pub fn level() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return "avx2";
    }
    "baseline"
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<R>(work: impl FnOnce() -> R) -> R {
    work()
}
