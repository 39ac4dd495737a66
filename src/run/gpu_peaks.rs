//! Peak FLOP/s of GPUs by their data sheets, to compare with what a step reaches.

use tch::Device;

/// Dense TFLOP/s in bf16 and in TF32 by NVIDIA's data sheets (the figures with
/// sparsity, which those of Hopper and Blackwell give, halved). The first name contained in the device's name counts.
const PEAKS: [(&str, f64, f64); 10] = [
    ("H100 PCIe", 756.5, 378.0),
    ("H100 NVL", 835.5, 417.5),
    ("H100", 989.5, 494.7),
    ("H200 NVL", 835.5, 417.5),
    ("H200", 989.5, 494.7),
    ("B200", 2250.0, 1100.0),
    ("A100", 312.0, 156.0),
    ("A6000", 154.8, 77.4),
    ("L40S", 362.05, 183.0),
    ("L4", 121.0, 60.0),
];

/// The peak of `device` in bf16 or else TF32; `None` for fp32 without TF32, for the CPU, and if it is not
/// known.
pub fn tflops(device: Device, bf16: bool, tf32: bool) -> Option<f64> {
    let Device::Cuda(index) = device else { return None };
    of(&native::device_name(index)?, bf16, tf32)
}

fn of(name: &str, bf16: bool, tf32: bool) -> Option<f64> {
    let (_, in_bf16, in_tf32) = PEAKS.into_iter().find(|(part, ..)| name.contains(part))?;
    if bf16 { Some(in_bf16) } else { tf32.then_some(in_tf32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_counts() {
        assert_eq!(of("NVIDIA H100 80GB HBM3", true, true), Some(989.5));
        assert_eq!(of("NVIDIA H100 PCIe", true, true), Some(756.5));
        assert_eq!(of("NVIDIA L40S", false, true), Some(183.0));
        assert_eq!((of("NVIDIA H200", false, false), of("Tesla T4", true, true)), (None, None));
        assert_eq!(tflops(Device::Cpu, true, true), None);
    }
}
