//! Data-parallel runs: this process's [`RankInfo`], the [`Group`] of all processes, and what happens when one of them
//! fails. c10d does the communication (`native::{Store, ProcessGroup, Reducer}`); each process has its own share of
//! every batch, and all end each step with the same weights.

mod env;
mod failure;
mod gpu;
mod group;
mod launch;

use std::time::Duration;

use anyhow::{Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::section::{Keys, Problems, Section};
pub use env::RankInfo;
pub use failure::{Reported, say};
pub use gpu::own_device;
pub use group::{Agreement, Group};
pub use launch::{end_with_launcher, launch, launched};

/// `dist.backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// gloo on the CPU, nccl on CUDA.
    Auto,
    /// NVIDIA's, for CUDA.
    Nccl,
    /// For the CPU.
    Gloo,
}

/// Section `dist`: runs of several processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DistConfig {
    /// auto, nccl or gloo. Default auto. With nccl `--nproc 1` makes a process group of one.
    pub backend: Backend,
    /// Seconds within which the run stops when a process dies, hangs or cannot be reached. No step, no checkpoint and,
    /// in evaluations, no batch of images may take half of it. Default 600.
    pub timeout: u64,
    /// Network interface for traffic between processes, such as eth0. Default null: the one that routes to MASTER_ADDR.
    pub interface: Option<String>,
}

impl Default for DistConfig {
    fn default() -> Self {
        Self { backend: Backend::Auto, timeout: 600, interface: None }
    }
}

impl DistConfig {
    /// How long processes have to answer, and then to exit, once one has failed.
    fn grace(&self) -> Duration {
        (Duration::from_secs(self.timeout) / 6).min(Duration::from_secs(5))
    }

    /// Longest wait of a collective: the rest of `timeout` is for finding out which process failed.
    fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout) / 2
    }
}

impl Section for DistConfig {
    fn check(&self, problems: &mut Problems) {
        problems.require((5..=86400).contains(&self.timeout), "timeout", self.timeout, "5 to 86400 seconds");
        let named = self.interface.as_deref() != Some("");
        problems.require(named, "interface", "", "null or a name such as eth0");
    }

    fn no_effect(&self) -> Keys {
        Keys::All
    }
}

/// For commands that run in one process only.
/// # Errors
/// A launcher started this process as one of several.
pub fn refuse_ranks() -> Result<()> {
    if let Some(RankInfo { rank, world, .. }) = RankInfo::from_env()? {
        bail!(
            "found rank {rank} of {world} processes, expected one: this command runs in one process only; start it without a launcher"
        );
    }
    Ok(())
}
