//! The processes of a run, seen from one of them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tch::{Device, Kind, Tensor};

use super::failure::{Missing, Watch};
use super::{DistConfig, RankInfo, gpu, launched};
use native::{Listen, ProcessGroup, Store};

/// The processes of a run. Every process must call the collectives in the same order; a single process opens no socket
/// and gets back its own values.
pub struct Group {
    /// This process's rank and world size.
    pub rank_info: RankInfo,
    connection: Option<Connection>,
}

/// To the other processes.
struct Connection {
    processes: Arc<ProcessGroup>,
    store: Arc<Store>,
    timeout: Duration,
    watch: Arc<Watch>,
}

/// What must be the same in every process before the run starts.
pub struct Agreement<'a> {
    /// What this process sends to the others.
    pub own: &'a str,
    /// What differs here, given what rank 0 has sent.
    pub differences: &'a dyn Fn(&str) -> Result<Vec<String>>,
}

impl Group {
    /// A single process.
    pub fn single() -> Self {
        Self { rank_info: RankInfo::single(), connection: None }
    }

    /// Joins the others at [`RankInfo::master`]. `advice` says what to do after a process was lost.
    /// # Errors
    /// Which ranks did not join, that this process cannot listen or reach rank 0, or what differs: in one process; the
    /// others fail with [`super::Reported`].
    pub fn join(
        rank_info: RankInfo,
        config: &DistConfig,
        device: Device,
        advice: &'static str,
        agreement: &Agreement,
    ) -> Result<Self> {
        config.backend.check(device)?;
        let (master, timeout) = (rank_info.master.as_str(), Duration::from_secs(config.timeout));
        let listener = (rank_info.rank == 0 && rank_info.agent.is_none()).then(|| listen(master, rank_info.port));
        let listener = listener.transpose()?;
        let port =
            listener.as_ref().map_or(Ok(rank_info.port), |listener| listener.local_addr().map(|at| at.port()))?;
        let prefix = rank_info.agent.as_deref().unwrap_or("byol");
        let late = || format!("rank {}: no answer from rank 0 at {master}:{port}", rank_info.rank);
        let store = Arc::new(Store::open(master, port, listener, prefix, timeout).with_context(late)?);
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        store.set(&format!("host/{}", rank_info.rank), &host)?;
        store.set(&format!("agreed/{}", rank_info.rank), agreement.own)?;
        let watch = Arc::new(Watch::start(&store, &rank_info, host, config, advice)?);
        // From here on errors are reported to the others.
        let joined = meet(&store, &rank_info, &watch, config, agreement)
            .and_then(|()| connect(&store, &RankInfo { port, ..rank_info.clone() }, &watch, config, device));
        match joined {
            Ok(processes) => Ok(Self { rank_info, connection: Some(Connection { processes, store, timeout, watch }) }),
            Err(error) => Err(watch.explain(&store, error)),
        }
    }

    /// Whether this process is the one that writes and prints.
    pub fn is_first(&self) -> bool {
        self.rank_info.rank == 0
    }

    /// From 0.
    pub fn rank(&self) -> usize {
        self.rank_info.rank
    }

    /// How many processes there are.
    pub fn world(&self) -> usize {
        self.rank_info.world
    }

    /// For gradients and BatchNorm; none for a single process.
    pub fn processes(&self) -> Option<&Arc<ProcessGroup>> {
        self.connection.as_ref().map(|connection| &connection.processes)
    }

    /// Marks progress: a process that hangs is found by lagging behind the others.
    pub fn advance(&self, progress: u64) {
        if let Some(connection) = &self.connection {
            connection.watch.advance(progress);
        }
    }

    /// Fails unless `value` equals rank 0's, for things that are known only after joining; a single process does not
    /// compute it.
    pub fn agree(&self, what: &str, value: impl FnOnce() -> Result<String>) -> Result<()> {
        let Some(Connection { store, timeout, .. }) = &self.connection else { return Ok(()) };
        let value = value()?;
        if self.is_first() {
            return store.set(what, &value);
        }
        let first = store.get(what, *timeout).with_context(|| format!("waiting for rank 0's {what}"))?;
        ensure!(first == value, "{what}: found {value}, rank 0 has {first}; all processes must have the same");
        Ok(())
    }

    /// Sums of each number over all processes.
    /// # Errors
    /// Another process was lost or timed out.
    pub fn sum(&self, numbers: &[f64]) -> Result<Vec<f64>> {
        let Some(processes) = self.processes() else { return Ok(numbers.to_vec()) };
        let tensor = Tensor::from_slice(numbers);
        processes.all_reduce(&tensor)?;
        Ok(Vec::try_from(tensor)?)
    }

    /// Broadcasts rank 0's values of these tensors.
    /// # Errors
    /// Another process was lost or timed out.
    pub fn broadcast(&self, tensors: &[Tensor]) -> Result<()> {
        self.processes().map_or(Ok(()), |processes| processes.broadcast(tensors))
    }

    /// Rank 0's numbers.
    /// # Errors
    /// Another process was lost or timed out.
    pub fn from_first(&self, numbers: &[f64]) -> Result<Vec<f64>> {
        let tensor = Tensor::from_slice(numbers);
        self.broadcast(&[tensor.shallow_clone()])?;
        Ok(Vec::try_from(tensor)?)
    }

    /// The rows `[n, ...]` of each process, in the order of ranks; n may differ.
    /// # Errors
    /// Another process was lost or timed out.
    pub fn gather_rows(&self, rows: &Tensor) -> Result<Vec<Tensor>> {
        let Some(processes) = self.processes() else { return Ok(vec![rows.shallow_clone()]) };
        let counts = processes.all_gather(&Tensor::from_slice(&[rows.size()[0]]))?;
        let counts: Vec<i64> = Vec::try_from(counts.flatten(0, -1))?;
        let mut shape = rows.size();
        shape[0] = counts.iter().copied().max().unwrap_or(0);
        if shape[0] == 0 {
            return Ok(counts.iter().map(|_| rows.shallow_clone()).collect());
        }
        let padded = Tensor::f_zeros(&shape, (rows.kind(), rows.device()))?;
        padded.narrow(0, 0, rows.size()[0]).f_copy_(rows)?;
        let all = processes.all_gather(&padded)?; // [world, most, ...]
        Ok(counts.iter().enumerate().map(|(rank, &n)| all.get(rank as i64).narrow(0, 0, n)).collect())
    }

    /// The texts of all processes, each once, in order.
    /// # Errors
    /// Another process was lost or timed out.
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

    /// Total time this process has waited for the others, see [`ProcessGroup::waited`].
    pub fn waited(&self) -> Duration {
        self.processes().map_or(Duration::ZERO, |processes| processes.waited())
    }

    /// What to return when this process's work has failed: the error for the one process that prints it,
    /// [`super::Reported`] for the others. It names the processes that were lost.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        match &self.connection {
            Some(Connection { watch, store, .. }) => watch.explain(store, error),
            None => error,
        }
    }

    /// Closes the group once every process has called this.
    /// # Errors
    /// Another process was lost or timed out.
    pub fn leave(&self) -> Result<()> {
        let Some(Connection { processes, watch, .. }) = &self.connection else { return Ok(()) };
        // Until all have called this, this process still answers others that fail.
        processes.all_reduce(&Tensor::zeros([1], (Kind::Float, Device::Cpu)))?;
        processes.close()?;
        watch.stop();
        Ok(())
    }
}

/// Waits until all processes have joined, and compares them with rank 0.
fn meet(store: &Store, rank_info: &RankInfo, watch: &Watch, config: &DistConfig, agreement: &Agreement) -> Result<()> {
    if rank_info.rank == 0 {
        let missing = |rank: &usize| store.get(&format!("agreed/{rank}"), watch.left()).is_err();
        let missing: Vec<String> = (1..rank_info.world).filter(missing).map(|rank| rank.to_string()).collect();
        if !missing.is_empty() {
            bail!(Missing(format!("rank {} did not join within {} s", missing.join(", "), config.timeout)));
        }
        return store.set("all here", "");
    }
    let timeout = Duration::from_secs(config.timeout);
    store.get("all here", timeout).context("the other processes did not join")?;
    let differences = (agreement.differences)(&store.get("agreed/0", timeout)?)?;
    ensure!(differences.is_empty(), "differs from rank 0: {}", differences.join("; "));
    Ok(())
}

/// Connects the processes over Gloo, and their GPUs over NCCL. `rank_info` has the port that rank 0 listens at.
fn connect(
    store: &Arc<Store>,
    rank_info: &RankInfo,
    watch: &Arc<Watch>,
    config: &DistConfig,
    device: Device,
) -> Result<Arc<ProcessGroup>> {
    let listen = match &config.interface {
        Some(name) => Listen::Interface(name.clone()),
        None => Listen::Address(own_address(&rank_info.master, rank_info.port)?.to_string()),
    };
    let group = ProcessGroup::gloo(store, rank_info.rank, rank_info.world, &listen, config.patience())
        .with_context(|| format!("dist.interface: connecting the processes over {listen:?}"))?;
    let group = Arc::new(group);
    group.all_reduce(&Tensor::from_slice(&[1f32]))?; // all agree, or this fails
    if let Device::Cuda(index) = device {
        gpu::claim(store, rank_info, index)?;
        let connected = watch.guard(store, &group, config.patience())?;
        group.connect(&store.try_clone()?, index, &listen, config.patience())?;
        connected.store(true, SeqCst);
    }
    Ok(group)
}

/// Rank 0's socket, on this address only: the one that the launcher bound and passed as standard input, or a new one.
fn listen(master: &str, port: u16) -> Result<TcpListener> {
    if launched() {
        return Ok(TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?));
    }
    TcpListener::bind((master, port)).with_context(|| {
        format!("MASTER_ADDR, MASTER_PORT: rank 0 cannot listen at {master}:{port}; choose a free port and an address of its machine")
    })
}

/// The address of this machine's interface towards rank 0.
fn own_address(master: &str, port: u16) -> Result<IpAddr> {
    let unreachable = || format!("MASTER_ADDR: no route to {master}");
    // Connecting a datagram socket sends nothing; it chooses the interface.
    let any: IpAddr = Ipv4Addr::UNSPECIFIED.into();
    let socket = UdpSocket::bind((any, 0)).with_context(unreachable)?;
    socket.connect((master, port)).with_context(unreachable)?;
    Ok(socket.local_addr().with_context(unreachable)?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectives_of_a_single_process_return_what_they_are_given() -> Result<()> {
        let group = Group::single();
        let rows = Tensor::from_slice(&[1.5f32, 0.1]);
        group.broadcast(&[rows.shallow_clone()])?;
        assert!(group.gather_rows(&rows)?.iter().eq([&rows]));
        assert_eq!(
            (group.sum(&[0.1])?, group.from_first(&[2.0, f64::INFINITY])?),
            (vec![0.1], vec![2.0, f64::INFINITY])
        );
        let names = BTreeSet::from(["a".to_string(), "b".to_string()]);
        assert_eq!(group.union(&names)?, names);
        group.agree("data", || panic!("a single process must not compute it"))?;
        assert!(group.is_first() && group.processes().is_none() && group.waited().is_zero());
        assert_eq!(group.explain(anyhow::anyhow!("why")).to_string(), "why");
        group.leave()
    }
}
