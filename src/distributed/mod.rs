//! Data-parallel runs: this process's [`RankInfo`] among the others, the [`Group`] that they form, and what happens when
//! one of them fails. The engine is c10d (`backend::{Store, ProcessGroup, Reducer}`); each process has its own share of
//! every batch, and all end each step with the same weights.

mod env;
mod failure;
mod gpu;
mod launch;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::section::{Keys, Problems, Section};
pub use env::RankInfo;
use failure::{Missing, Watch, named};
pub use failure::{Reported, say};
pub use gpu::own_device;
pub use launch::{end_with_launcher, launch, launched};
use native::{Listen, ProcessGroup, Store};

/// `dist.backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistConfig {
    /// auto, nccl or gloo. Default auto. With nccl `--nproc 1` makes a group, too: of one.
    pub backend: Backend,
    /// Seconds within which the run ends when a process dies, hangs or cannot be reached. No step, no checkpoint and, in
    /// evaluations, no batch of images may take half of it. Default 600.
    pub timeout: u64,
    /// Network interface for what the processes send each other, such as eth0. Default null: that of the way to MASTER_ADDR.
    pub interface: Option<String>,
}

impl Default for DistConfig {
    fn default() -> Self {
        Self { backend: Backend::Auto, timeout: 600, interface: None }
    }
}

impl DistConfig {
    /// How long processes get to answer, and then to end, once one has failed.
    fn grace(&self) -> Duration {
        (Duration::from_secs(self.timeout) / 6).min(Duration::from_secs(5))
    }

    /// Longest wait of a collective: what is left of `timeout` is for finding out who is to blame.
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

/// For commands that do not share their work.
/// # Errors
/// A launcher has started this process as one of several.
pub fn refuse_ranks() -> Result<()> {
    if let Some(place) = RankInfo::from_env()? {
        let (rank, world) = (place.rank, place.world);
        bail!(
            "found rank {rank} of {world} processes, expected one: this command does not share its work; start it by itself"
        );
    }
    Ok(())
}

/// The processes of a run, seen from one of them.
pub struct Group {
    /// For gradients and BatchNorm.
    pub processes: Arc<ProcessGroup>,
    /// Which one this is.
    pub place: RankInfo,
    store: Arc<Store>,
    timeout: Duration,
    watch: Arc<Watch>,
}

impl Group {
    /// Joins the others at [`RankInfo::master`]. What `agreed` says must be the same in every process: `differences` tells,
    /// from rank 0's, what is not. `advice` says what to do after a process was lost.
    /// # Errors
    /// Who did not come, where this process cannot listen or reach rank 0, or what differs: in one process; the others
    /// fail with [`Reported`].
    pub fn join(
        place: RankInfo,
        config: &DistConfig,
        device: Device,
        advice: &'static str,
        (agreed, differences): (&str, impl Fn(&str) -> Result<Vec<String>>),
    ) -> Result<Self> {
        config.backend.check(device)?;
        let (master, timeout) = (place.master.as_str(), Duration::from_secs(config.timeout));
        let listener = (place.rank == 0 && place.agent.is_none()).then(|| listen(master, place.port)).transpose()?;
        let port = listener.as_ref().map_or(Ok(place.port), |listener| listener.local_addr().map(|at| at.port()))?;
        let prefix = place.agent.as_deref().unwrap_or("byol");
        let late = || format!("rank {}: nobody answers at {master}:{port}, where rank 0 should be", place.rank);
        let store = Arc::new(Store::open(master, port, listener, prefix, timeout).with_context(late)?);
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        store.set(&format!("host/{}", place.rank), &host)?;
        store.set(&format!("agreed/{}", place.rank), agreed)?;
        let watch = Arc::new(Watch::start(&store, &place, host, config, advice)?);
        // From here on an error is told to the others.
        let joined = || -> Result<Arc<ProcessGroup>> {
            if place.rank == 0 {
                let missing: Vec<usize> =
                    (1..place.world).filter(|r| store.get(&format!("agreed/{r}"), watch.left()).is_err()).collect();
                if !missing.is_empty() {
                    let missing = missing.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
                    bail!(Missing(format!("rank {missing} did not come within {} s", config.timeout)));
                }
                store.set("all here", "")?;
            } else {
                store.get("all here", timeout).context("the other processes did not come")?;
                let differences = differences(&store.get("agreed/0", timeout)?)?;
                ensure!(differences.is_empty(), "differs from rank 0: {}", differences.join("; "));
            }
            let listen = match &config.interface {
                Some(name) => Listen::Interface(name.clone()),
                None => Listen::Address(own_address(master, port)?.to_string()),
            };
            let group = ProcessGroup::gloo(&store, place.rank, place.world, &listen, config.patience())
                .with_context(|| format!("dist.interface: connecting the processes over {listen:?}"))?;
            let group = Arc::new(group);
            group.all_reduce(&Tensor::from_slice(&[1f32]))?; // all agree, or this fails
            if let Device::Cuda(index) = device {
                gpu::claim(&store, &place, index)?;
                let connected = watch.guard(&store, &group, config.patience())?;
                group.connect(&store.try_clone()?, index, &listen, config.patience())?;
                connected.store(true, SeqCst);
            }
            Ok(group)
        };
        match joined() {
            Ok(processes) => Ok(Self { processes, place, store, timeout, watch }),
            Err(error) => Err(watch.explain(&store, error)),
        }
    }

    /// Whether this process is the one that writes and speaks.
    pub fn is_first(&self) -> bool {
        self.place.rank == 0
    }

    /// Says that this process got further: when one hangs, it is the one that lags behind.
    pub fn advance(&self, progress: u64) {
        self.watch.advance(progress);
    }

    /// Fails unless `value` is rank 0's, for things that are known only after joining.
    /// # Errors
    /// What differs.
    pub fn agree(&self, what: &str, value: &str) -> Result<()> {
        if self.is_first() {
            return self.store.set(what, value);
        }
        let first = self.store.get(what, self.timeout).with_context(|| format!("waiting for rank 0's {what}"))?;
        ensure!(first == value, "{what}: found {value}, rank 0 has {first}; all processes need the same");
        Ok(())
    }

    /// Sums of each number over all processes.
    /// # Errors
    /// A process is gone, or late.
    pub fn sum(&self, numbers: &[f64]) -> Result<Vec<f64>> {
        let tensor = Tensor::from_slice(numbers);
        self.processes.all_reduce(&tensor)?;
        Ok(Vec::try_from(tensor)?)
    }

    /// Rank 0's numbers.
    /// # Errors
    /// A process is gone, or late.
    pub fn from_first(&self, numbers: &[f64]) -> Result<Vec<f64>> {
        let tensor = Tensor::from_slice(numbers);
        self.processes.broadcast(&[tensor.shallow_clone()])?;
        Ok(Vec::try_from(tensor)?)
    }

    /// The rows `[n, ...]` of each process, in the order of ranks; n may differ.
    /// # Errors
    /// A process is gone, or late.
    pub fn gather_rows(&self, rows: &Tensor) -> Result<Vec<Tensor>> {
        let counts = self.processes.all_gather(&Tensor::from_slice(&[rows.size()[0]]))?;
        let counts: Vec<i64> = Vec::try_from(counts.flatten(0, -1))?;
        let mut shape = rows.size();
        shape[0] = counts.iter().copied().max().unwrap_or(0);
        if shape[0] == 0 {
            return Ok(counts.iter().map(|_| rows.shallow_clone()).collect());
        }
        let padded = Tensor::f_zeros(&shape, (rows.kind(), rows.device()))?;
        padded.narrow(0, 0, rows.size()[0]).f_copy_(rows)?;
        let all = self.processes.all_gather(&padded)?; // [world, most, ...]
        Ok(counts.iter().enumerate().map(|(rank, &n)| all.get(rank as i64).narrow(0, 0, n)).collect())
    }

    /// The texts of all processes, each once, in order.
    /// # Errors
    /// A process is gone, or late.
    pub fn union(&self, texts: &BTreeSet<String>) -> Result<BTreeSet<String>> {
        let bytes: Vec<u8> = texts.iter().flat_map(|text| text.bytes().chain([0])).collect();
        let mut all = BTreeSet::new();
        for part in self.gather_rows(&Tensor::from_slice(&bytes))? {
            let bytes: Vec<u8> = Vec::try_from(part)?;
            let texts = bytes.split(|&byte| byte == 0).filter(|text| !text.is_empty());
            all.extend(texts.map(|text| String::from_utf8_lossy(text).into_owned()));
        }
        Ok(all)
    }

    /// What a failure of this process's run comes to: the error for the one process that is to print it, [`Reported`]
    /// for the others. Where processes are gone they are named in it.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        self.watch.explain(&self.store, error)
    }

    /// Ends the group once every process has come here.
    /// # Errors
    /// A process is gone, or late.
    pub fn leave(&self) -> Result<()> {
        // Until all are here this process answers for itself: one that fails before asks who is there.
        self.processes.all_reduce(&Tensor::zeros([1], (Kind::Float, Device::Cpu)))?;
        self.processes.close()?;
        self.watch.stop();
        Ok(())
    }
}

/// Rank 0's socket, at that address and no other: the one that the launcher bound and made its standard input, or one
/// of its own.
fn listen(master: &str, port: u16) -> Result<TcpListener> {
    if launched() {
        return Ok(TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?));
    }
    TcpListener::bind((master, port)).with_context(|| {
        format!("MASTER_ADDR, MASTER_PORT: rank 0 cannot listen at {master}:{port}; choose a free port and an address of its machine")
    })
}

/// The address of this machine on the way to rank 0.
fn own_address(master: &str, port: u16) -> Result<IpAddr> {
    let place = || format!("MASTER_ADDR: no way to {master}");
    // Connecting a datagram socket sends nothing; it chooses the interface.
    let any: IpAddr = Ipv4Addr::UNSPECIFIED.into();
    let socket = UdpSocket::bind((any, 0)).with_context(place)?;
    socket.connect((master, port)).with_context(place)?;
    Ok(socket.local_addr().with_context(place)?.ip())
}

/// `rank 2 on host a` for a list of ranks; `host` tells where each is.
fn ranks(ranks: &[usize], host: impl Fn(usize) -> String) -> String {
    ranks.iter().map(|&rank| named(rank, &host(rank))).collect::<Vec<_>>().join(", ")
}
