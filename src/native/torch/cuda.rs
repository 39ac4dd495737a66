//! Which device to run on. The binary links to libtorch's CPU libraries only; libtorch_cuda is loaded at
//! run time, before libtorch is first asked about CUDA (it remembers the answer for good), so that one
//! binary starts on a CPU-only libtorch and uses the GPU on a CUDA one.

use std::str::FromStr;

use anyhow::{Result, bail};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};
use tch::{Cuda, Device};

use super::shim::load_library;

/// `train.device`: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub enum DeviceChoice {
    /// The first GPU if one is usable, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// GPU number N; it is an error when it is not usable.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("found {text:?}, expected auto, cpu, cuda or cuda:N")),
        }
    }
}

// Not `try_from = "String"`: an error raised inside the visitor carries the line of the value.
impl<'de> Deserialize<'de> for DeviceChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = DeviceChoice;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("auto, cpu, cuda or cuda:N")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<DeviceChoice, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        match choice {
            DeviceChoice::Auto => "auto".into(),
            DeviceChoice::Cpu => "cpu".into(),
            DeviceChoice::Cuda(n) => format!("cuda:{n}"),
        }
    }
}

/// The folder of the libtorch that this process has loaded.
fn libtorch_folder() -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let folder = |line: &str| Some(line[line.find('/')?..].strip_suffix("/libtorch_cpu.so")?.to_string());
    maps.lines().find_map(folder)
}

/// Loads libtorch_cuda and counts the GPUs; the error says which of driver, library and device is missing. The
/// driver is checked first: without one there is no point in loading half a gigabyte.
fn load_cuda() -> Result<i64, String> {
    load_library("libcuda.so.1")
        .map_err(|loader| format!("the NVIDIA driver is missing: {loader}. Install driver 580 or newer"))?;
    load_library("libtorch_cuda.so").map_err(|loader| {
        format!(
            "the CUDA library is missing: {loader}. This libtorch ({}) is a CPU one; install the full torch 2.11.0 from \
             PyPI and point LIBTORCH at it",
            libtorch_folder().unwrap_or_default()
        )
    })?;
    match Cuda::device_count() {
        0 => Err("the driver reports no device. Check nvidia-smi and CUDA_VISIBLE_DEVICES".into()),
        count => Ok(count),
    }
}

/// Turns the choice into a device; call it before anything else asks libtorch about CUDA.
/// # Errors
/// `cuda` or `cuda:N` without that GPU: says which of driver, library and device is missing.
pub fn choose_device(choice: DeviceChoice) -> Result<Device> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto => Ok(match load_cuda() {
            Ok(_) => Device::Cuda(0),
            Err(why) => {
                log::debug!("no GPU: {why}");
                Device::Cpu
            }
        }),
        DeviceChoice::Cuda(n) => match load_cuda() {
            Ok(count) if (n as i64) < count => Ok(Device::Cuda(n)),
            Ok(count) => bail!("train.device: found cuda:{n}, but the machine has {count} GPU(s), numbered from 0"),
            Err(why) => bail!("train.device: {} cannot be used: {why}, or set train.device=cpu", String::from(choice)),
        },
    }
}

/// `cpu` or `cuda:N`.
pub fn describe_device(device: Device) -> String {
    match device {
        Device::Cuda(n) => format!("cuda:{n}"),
        _ => "cpu".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_libtorch_is_that_of_its_library() {
        let _ = tch::Tensor::from(1.0); // something of the library is used
        let folder = libtorch_folder().expect("loaded");
        assert!(std::path::Path::new(&folder).join("libtorch_cpu.so").exists(), "{folder}");
    }

    #[test]
    fn choices_read_and_write() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(String::from(text.parse::<DeviceChoice>().expect(text)), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert!("gpu".parse::<DeviceChoice>().is_err() && "cuda:x".parse::<DeviceChoice>().is_err());
    }
}
