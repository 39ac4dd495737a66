//! How much memory the host and a GPU have, and the out-of-memory message.

pub mod alloc;

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};
use rustix::process::{Resource, getrlimit};
use tch::Device;

use crate::torch::shim;

/// Advice in the out-of-memory message.
pub(super) const OOM_ADVICE: &str = "lower train.batch_size, raise train.accumulation_steps, or take a smaller model";

/// Memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Total, within the limits of this process.
    pub total: u64,
    /// Available now.
    pub free: u64,
}

impl Memory {
    /// The machine's, or the limit of the cgroup or the process (`ulimit -v`) if that is lower; unlimited if unknown.
    pub fn of_host() -> Self {
        let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let bytes = |key: &str| {
            let kilobytes =
                info.lines().find_map(|line| line.strip_prefix(key)?.trim().split(' ').next()?.parse().ok());
            kilobytes.map_or(u64::MAX, |k: u64| k * 1024)
        };
        let host = Self { total: bytes("MemTotal:"), free: bytes("MemAvailable:") };
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let host = host.within_groups(&groups, Path::new("/sys/fs/cgroup"));
        let Some(limit) = getrlimit(Resource::As).current else { return host };
        // Address space, of which more is used than of memory: in pages of 4096 bytes.
        let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let taken = pages.split(' ').next().and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096;
        Self { total: host.total.min(limit), free: host.free.min(limit.saturating_sub(taken)) }
    }

    /// A GPU's, or the host's for the CPU.
    pub fn of(device: Device) -> Self {
        match device {
            Device::Cuda(n) => shim::cuda_memory(n)
                .map_or(Self { total: u64::MAX, free: u64::MAX }, |(free, total)| Self { total, free }),
            _ => Self::of_host(),
        }
    }

    /// The minimum of this and of the limits of the cgroup and its parents: version 2 (`0::/path` in
    /// /proc/self/cgroup) and version 1 (`4:memory:/path`). In a container the path may not exist; the root there is
    /// the container's own cgroup.
    fn within_groups(self, groups: &str, root: &Path) -> Self {
        let mut least = self;
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            let (base, limit, used, cache) = match controllers {
                "" => (root.to_path_buf(), "memory.max", "memory.current", "inactive_file "),
                "memory" => {
                    (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
                }
                _ => continue,
            };
            let number = |file: &Path| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
            let below = base.join(path.trim_start_matches('/'));
            for group in below.ancestors().take_while(|group| group.starts_with(&base)) {
                let Some(limit) = number(&group.join(limit)) else { continue };
                // Page cache that the kernel can reclaim is counted as used.
                let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
                let dropped = stat.lines().find_map(|line| line.strip_prefix(cache)?.parse().ok()).unwrap_or(0);
                let used = number(&group.join(used)).unwrap_or(0).saturating_sub(dropped);
                least.total = least.total.min(limit);
                least.free = least.free.min(limit.saturating_sub(used));
            }
        }
        least
    }
}

/// Swap space of the machine, or the cgroup's limit on it if that is lower; 0 with a limit on address space.
pub fn swap_bytes() -> u64 {
    if getrlimit(Resource::As).current.is_some() {
        return 0;
    }
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info.lines().find_map(|line| line.strip_prefix("SwapTotal:")?.trim().split(' ').next()?.parse().ok());
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    swap_within_groups(total.unwrap_or(0) * 1024, &groups, Path::new("/sys/fs/cgroup"))
}

/// Version 2 only: the limits of version 1 are on memory and swap together.
fn swap_within_groups(total: u64, groups: &str, root: &Path) -> u64 {
    let Some(path) = groups.lines().find_map(|line| line.strip_prefix("0::")) else { return total };
    let below = root.join(path.trim_start_matches('/'));
    let limit = |group: &Path| fs::read_to_string(group.join("memory.swap.max")).ok()?.trim().parse().ok();
    below.ancestors().take_while(|group| group.starts_with(root)).filter_map(limit).fold(total, u64::min)
}

/// `19.3 MB`, `2.0 GB`.
pub fn human_bytes(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.1} GB", bytes as f64 / 1e9),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// The message for a failed allocation of so many bytes.
pub fn no_memory_for(bytes: u64) -> String {
    ran_out(&human_bytes(bytes), Memory::of_host())
}

fn ran_out(requested: &str, Memory { total, free }: Memory) -> String {
    format!("out of memory: requested {requested}, {} of {} free; {OOM_ADVICE}", human_bytes(free), human_bytes(total))
}

/// [`Vec::resize`], with an error instead of an abort if memory runs out.
/// # Errors
/// The message of [`no_memory_for`].
pub fn resize<T: Clone>(values: &mut Vec<T>, length: usize, value: T) -> Result<()> {
    if values.try_reserve_exact(length.saturating_sub(values.len())).is_err() {
        bail!(no_memory_for(length.saturating_mul(size_of::<T>()) as u64));
    }
    values.resize(length, value);
    Ok(())
}

/// The message for an out-of-memory error of libtorch: how much was requested, and what is free.
pub fn out_of_memory(message: &str) -> Option<String> {
    if message.contains("DefaultCPUAllocator") || message.contains("std::bad_alloc") {
        let requested =
            message.split("tried to allocate ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
        return Some(ran_out(&requested.map_or("more memory".to_string(), human_bytes), Memory::of_host()));
    }
    let host = Memory::of_host();
    if message.contains("could not create a primitive") && host.free < host.total / 8 {
        return Some(ran_out("more memory", host)); // oneDNN does not report the cause
    }
    // "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.50 GiB is
    // free. [how it is used, and advice on PyTorch's allocator]"
    let cuda = &message[message.find("CUDA out of memory")?..];
    let end = cuda.find("is free").map_or(cuda.len(), |at| at + "is free".len());
    Some(format!("{}; {OOM_ADVICE}", &cuda[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_cgroup_counts() {
        let root = tempfile::tempdir().expect("a folder");
        let group = |path: &str, files: &[(&str, &str)]| {
            let folder = root.path().join(path);
            fs::create_dir_all(&folder).expect("made");
            files.iter().for_each(|(name, text)| fs::write(folder.join(name), text).expect("written"));
        };
        let machine = Memory { total: 1000, free: 900 };
        let within = |groups: &str| machine.within_groups(groups, root.path());
        assert_eq!(within("0::/job/step"), machine);
        group(
            "job",
            &[("memory.max", "800\n"), ("memory.current", "300\n"), ("memory.stat", "anon 9\ninactive_file 100\n")],
        );
        group("job/step", &[("memory.max", "max\n"), ("memory.current", "20\n")]);
        assert_eq!(within("0::/job/step"), Memory { total: 800, free: 600 });
        group("memory", &[("memory.limit_in_bytes", "9223372036854771712\n"), ("memory.usage_in_bytes", "100\n")]);
        group("memory/a", &[("memory.limit_in_bytes", "500\n"), ("memory.usage_in_bytes", "100\n")]);
        assert_eq!(within("5:cpu:/a\n4:memory:/a\n0::/job"), Memory { total: 500, free: 400 });
        assert_eq!(within("4:memory:/elsewhere"), machine);
        assert!(Memory::of_host().total > 1 << 28);
    }

    #[test]
    fn swap_is_limited_by_the_cgroups() {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(root.path().join("job/step")).expect("made");
        fs::write(root.path().join("job/memory.swap.max"), "300\n").expect("written");
        fs::write(root.path().join("job/step/memory.swap.max"), "max\n").expect("written");
        let within = |groups: &str| swap_within_groups(1000, groups, root.path());
        assert_eq!((within("0::/job/step"), within("0::/other"), within("4:memory:/job")), (300, 1000, 1000));
    }

    #[test]
    fn out_of_memory_is_reported_in_one_line() {
        let cpu = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to \
                   allocate 17179869184 bytes. Error code 12 (Cannot allocate memory)";
        let said = out_of_memory(cpu).expect("memory");
        assert!(said.starts_with("out of memory: requested 17.2 GB, ") && said.contains("train.batch_size"), "{said}");
        let cuda = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which \
                    1.50 GiB is free. Including non-PyTorch memory, this process has 77.59 GiB memory in use.";
        let said = out_of_memory(cuda).expect("memory");
        assert!(
            said.contains("allocate 2.00 GiB")
                && said.contains("1.50 GiB is free; lower")
                && !said.contains("Including")
        );
        assert_eq!(out_of_memory("could not create a primitive"), None); // there is plenty
        assert_eq!(out_of_memory("mat1 and mat2 shapes cannot be multiplied"), None);
    }

    #[test]
    fn a_vector_that_cannot_grow_is_an_error() -> Result<()> {
        let mut values = vec![1, 2];
        resize(&mut values, 3, 7)?;
        assert_eq!(values, [1, 2, 7]);
        let error = resize(&mut values, 1 << 60, 0).expect_err("too much").to_string();
        assert!(error.starts_with("out of memory: requested 4611686018.4 GB, "), "{error}");
        assert_eq!((values.len(), human_bytes(19_267_584)), (3, "19.3 MB".to_string()));
        Ok(())
    }
}
