//! Assigns GPUs to processes, and checks that the backend fits the device.

use std::fs;

use anyhow::{Result, bail, ensure};
use tch::{Cuda, Device};

use super::{Backend, RankInfo};
use native::{self, Store};

impl Backend {
    /// Fails if the backend does not support this device.
    pub(super) fn check(self, device: Device) -> Result<()> {
        match (self, device.is_cuda()) {
            (Self::Nccl, false) => {
                bail!("dist.backend: found nccl, expected auto or gloo on the CPU (nccl is for train.device=cuda)")
            }
            (Self::Gloo, true) => {
                bail!("dist.backend: found gloo, expected auto or nccl on a GPU (gloo is for train.device=cpu)")
            }
            _ => Ok(()),
        }
    }
}

/// The device of one of several processes: its own GPU. `chosen` is the device for a single process.
/// # Errors
/// `chosen` is a numbered GPU; there are fewer GPUs than processes.
pub fn own_device(chosen: Device, rank_info: &RankInfo) -> Result<Device> {
    let Device::Cuda(number) = chosen else { return Ok(chosen) };
    own_gpu(number, rank_info, Cuda::device_count() as usize).map(Device::Cuda)
}

/// `count` is the number of GPUs visible to this process.
fn own_gpu(number: usize, rank_info: &RankInfo, count: usize) -> Result<usize> {
    let RankInfo { local_rank, local_world, .. } = *rank_info;
    if local_world == 1 {
        return Ok(number);
    }
    ensure!(
        number == 0,
        "train.device: found cuda:{number} for {local_world} processes of this machine, expected auto or cuda, which is \
         the GPU of its own for each (CUDA_VISIBLE_DEVICES leaves GPUs out)"
    );
    // The launcher may make only one visible to this process; `claim` detects a GPU that other processes use too.
    ensure!(
        count == 1 || count >= local_world,
        "train.device: found {count} GPUs for {local_world} processes of this machine, expected one for each; start fewer \
         processes, or set train.device=cpu"
    );
    Ok(if count == 1 { 0 } else { local_rank })
}

/// Fails if another process uses the same GPU, for which NCCL has no helpful message.
pub(super) fn claim(store: &Store, rank_info: &RankInfo, index: usize) -> Result<()> {
    let Some(bus) = native::device_bus(index) else { return Ok(()) };
    // Host names need not differ; the boot id is unique.
    let machine = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    claimed(store.count(&format!("gpu/{}/{bus}", machine.trim()))?, rank_info, index, &bus)
}

fn claimed(users: i64, rank_info: &RankInfo, index: usize, bus: &str) -> Result<()> {
    ensure!(
        users == 1,
        "train.device: cuda:{index} (PCI bus {bus}) is also used by another process; expected a GPU for each of {} processes of \
         this machine; start fewer, or set train.device=cpu",
        rank_info.local_world
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank_info(local_rank: usize, local_world: usize) -> RankInfo {
        RankInfo { local_rank, local_world, ..RankInfo::single() }
    }

    #[test]
    fn every_process_has_a_gpu_of_its_own() {
        let own =
            |number, rank, world, count| own_gpu(number, &rank_info(rank, world), count).map_err(|e| e.to_string());
        assert_eq!((own(0, 3, 4, 4), own(0, 3, 4, 8), own(2, 0, 1, 8)), (Ok(3), Ok(3), Ok(2)));
        assert_eq!(own(0, 3, 4, 1), Ok(0), "the launcher shows each process its own");
        assert!(own(0, 1, 4, 2).expect_err("two for four").starts_with("train.device: found 2 GPUs for 4 processes"));
        assert!(own(1, 0, 4, 4).expect_err("all on one").starts_with("train.device: found cuda:1 for 4 processes"));
        assert_eq!(own_device(Device::Cpu, &rank_info(1, 2)).expect("the CPU is everyone's"), Device::Cpu);
        assert!(claimed(1, &rank_info(0, 2), 0, "0000:17:00.0").is_ok());
        let error = claimed(2, &rank_info(1, 2), 0, "0000:17:00.0").expect_err("shared").to_string();
        assert!(error.contains("cuda:0 (PCI bus 0000:17:00.0) is also used by another process"), "{error}");
    }

    #[test]
    fn a_backend_is_for_its_device() {
        for (backend, cpu, gpu) in
            [(Backend::Auto, true, true), (Backend::Gloo, true, false), (Backend::Nccl, false, true)]
        {
            assert_eq!((backend.check(Device::Cpu).is_ok(), backend.check(Device::Cuda(0)).is_ok()), (cpu, gpu));
        }
    }
}
