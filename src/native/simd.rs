//! The widest vector instructions of the processor, chosen at run time.
/// Whether the processor has AVX-512 as of 2019 (Ice Lake, Zen 4): older ones throttle when they use it.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn has_avx512() -> bool {
    std::arch::is_x86_feature_detected!("avx512vbmi")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512dq")
        && std::arch::is_x86_feature_detected!("avx512vl")
}

/// Runs `work` compiled for AVX-512 or AVX2 if the processor has it, else for the baseline.
/// Functions called by `work` must be inlined to benefit: mark them `#[inline(always)]`, closures too. Multiplications
/// and additions are never fused, so results are bit-identical.
#[inline(always)]
pub fn widest<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        // SAFETY: the processor was just asked.
        return unsafe { avx512(work) };
    } else if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor was just asked.
        return unsafe { avx2(work) };
    }
    work()
}

/// The instruction set that [`widest`] chooses on this machine.
pub fn level() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        return "avx512";
    } else if std::arch::is_x86_feature_detected!("avx2") {
        return "avx2";
    }
    "baseline"
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn avx512<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[inline(always)]
    fn sums(values: &[f32]) -> Vec<u32> {
        values.iter().zip(values.iter().rev()).map(|(a, b)| (a * b + a).to_bits()).collect()
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let values: Vec<f32> = (0..1000).map(|i| 1.0 / (i as f32 + 3.0)).collect();
        let expected = sums(&values);
        let fused = values.iter().zip(values.iter().rev()).map(|(a, b)| a.mul_add(*b, *a).to_bits());
        assert!(fused.ne(expected.iter().copied()), "these values could not tell");
        assert!(
            widest(
                #[inline(always)]
                || sums(&values)
            ) == expected,
            "{}",
            level()
        );
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor was just asked.
            let found = unsafe {
                avx2(
                    #[inline(always)]
                    || sums(&values),
                )
            };
            assert!(found == expected, "avx2");
        }
    }
}
