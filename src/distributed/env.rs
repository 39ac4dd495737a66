//! The rank of this process and the number of processes, from the environment variables that torchrun, mpirun, srun and
//! `--nproc` set.

use anyhow::{Context, Result, bail, ensure};

/// This process's rank, and how to reach the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankInfo {
    /// Global rank, from 0.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
    /// Rank on this machine, from 0.
    pub local_rank: usize,
    /// Number of processes on this machine, if the launcher sets it.
    pub local_world: usize,
    /// Host of rank 0 (or of torchrun's agent).
    pub master: String,
    /// Its port.
    pub port: u16,
    /// torchrun's agent keeps the store, under this prefix for this attempt.
    pub agent: Option<String>,
}

/// The variables that one launcher sets.
struct Launcher {
    rank: &'static str,
    world: &'static str,
    local_rank: &'static str,
    local_world: &'static str,
    /// Identifies the job, so that every job gets a port of its own.
    job: &'static [&'static str],
}

const TORCHRUN: Launcher =
    Launcher { rank: "RANK", world: "WORLD_SIZE", local_rank: "LOCAL_RANK", local_world: "LOCAL_WORLD_SIZE", job: &[] };
const MPIRUN: Launcher = Launcher {
    rank: "OMPI_COMM_WORLD_RANK",
    world: "OMPI_COMM_WORLD_SIZE",
    local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    local_world: "OMPI_COMM_WORLD_LOCAL_SIZE",
    job: &["PMIX_NAMESPACE"],
};
const SRUN: Launcher = Launcher {
    rank: "SLURM_PROCID",
    world: "SLURM_NTASKS",
    local_rank: "SLURM_LOCALID",
    local_world: "SLURM_STEP_TASKS_PER_NODE",
    job: &["SLURM_JOB_ID", "SLURM_STEP_ID"],
};

impl RankInfo {
    /// Whether torchrun started this process with a world size of 1.
    pub fn launched_as_one() -> bool {
        std::env::var_os("WORLD_SIZE").is_some_and(|world| world == "1")
    }

    /// A single process; any free port.
    pub fn single() -> Self {
        let master = "127.0.0.1".into();
        Self { rank: 0, world: 1, local_rank: 0, local_world: 1, master, port: 0, agent: None }
    }

    /// Reads the environment; `None` for a single process.
    /// # Errors
    /// Variables that are incomplete or contradict each other.
    pub fn from_env() -> Result<Option<Self>> {
        Self::read(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn read(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let launcher = if get(TORCHRUN.rank).is_some() || get(TORCHRUN.world).is_some() {
            TORCHRUN
        } else if get(MPIRUN.rank).is_some() {
            MPIRUN
        } else if get("SLURM_STEP_ID").is_some() && get(SRUN.rank).is_some() {
            SRUN // a batch script has SLURM_PROCID too, but is not a job step: a single process
        } else {
            return Ok(None);
        };
        let number = |name: &str, default: Option<usize>| match (get(name), default) {
            (Some(text), _) => {
                text.parse::<usize>().with_context(|| format!("{name}: found {text:?}, expected a number"))
            }
            (None, Some(default)) => Ok(default),
            (None, None) => {
                let (rank, world) = (launcher.rank, launcher.world);
                let there = if name == rank { world } else { rank };
                bail!(
                    "found {there} without {name}, expected both: start with torchrun, mpirun, srun or --nproc, or unset it"
                )
            }
        };
        let (rank, world) = (number(launcher.rank, None)?, number(launcher.world, None)?);
        ensure!(rank < world, "{}: found {rank}, expected less than {}={world}", launcher.rank, launcher.world);
        if world == 1 {
            return Ok(None);
        }
        let local_rank = number(launcher.local_rank, Some(0))?;
        let local_world = match (launcher.rank == SRUN.rank, get(launcher.local_world)) {
            (true, Some(text)) => tasks_of(&text, number("SLURM_NODEID", Some(0))?),
            _ => number(launcher.local_world, Some(1))?,
        };
        let local_world = local_world.clamp(local_rank + 1, world.max(local_rank + 1));
        let master = match (get("MASTER_ADDR"), get("SLURM_STEP_NODELIST").or(get("SLURM_NODELIST"))) {
            (Some(master), _) => master,
            (None, Some(nodes)) if launcher.rank == SRUN.rank => first_host(&nodes),
            (None, _) if launcher.rank == MPIRUN.rank && local_world == world => "127.0.0.1".into(),
            (None, _) => bail!("found {}={rank} without MASTER_ADDR, expected the host of rank 0 there", launcher.rank),
        };
        let port = match (get("MASTER_PORT"), launcher.job) {
            (Some(text), _) => {
                let port = text.parse().ok().filter(|&port| port > 0);
                port.with_context(|| format!("MASTER_PORT: found {text:?}, expected a port, 1 to 65535"))?
            }
            (None, []) => bail!("found {}={rank} without MASTER_PORT, expected a port of rank 0 there", launcher.rank),
            (None, job) => job_port(&job.iter().filter_map(|name| get(name)).collect::<Vec<_>>().join(".")),
        };
        // As torch.distributed's env:// does: the agent's store at that address, one prefix per attempt.
        let attempt = || get("TORCHELASTIC_RESTART_COUNT").unwrap_or("0".into());
        let agent = get("TORCHELASTIC_USE_AGENT_STORE").filter(|value| value == "True");
        let agent = agent.map(|_| format!("/worker/attempt_{}", attempt()));
        Ok(Some(Self { rank, world, local_rank, local_world, master, port, agent }))
    }
}

/// The first of a list of nodes in Slurm's notation, such as `gpu[03-07,12],login1`.
fn first_host(nodes: &str) -> String {
    let (mut host, mut inside, mut taken) = (String::new(), false, false);
    for c in nodes.chars() {
        match c {
            '[' => (inside, taken) = (true, false),
            ']' => inside = false,
            ',' | '-' if inside => taken = true,
            ',' => break,
            _ if inside && taken => {}
            _ => host.push(c),
        }
    }
    host
}

/// Tasks per node in Slurm's notation, such as `4(x2),3`: four, four and three; 1 if unknown.
fn tasks_of(nodes: &str, node: usize) -> usize {
    let parts = nodes.split(',').filter_map(|part| {
        let (tasks, times) = part.trim_end_matches(')').split_once("(x").unwrap_or((part, "1"));
        Some((tasks.parse().ok()?, times.parse::<usize>().ok()?))
    });
    parts.flat_map(|(tasks, times)| std::iter::repeat_n(tasks, times)).nth(node).unwrap_or(1)
}

/// A port derived from the job's id: the same in all processes of a job, likely another for other jobs.
fn job_port(job: &str) -> u16 {
    let hash = job.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    10_000 + (hash % 20_000) as u16 // below the ephemeral ports
}

/// `rank 2 on host a`.
pub(super) fn named(rank: usize, host: &str) -> String {
    format!("rank {rank} on {host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<RankInfo>> {
        let found = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        RankInfo::read(&found)
    }

    fn rank_info(variables: &[(&str, &str)]) -> RankInfo {
        read(variables).expect("readable").expect("several processes")
    }

    #[test]
    fn a_single_process_has_no_rank() {
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&[("MASTER_ADDR", "a"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]).unwrap(), None);
        assert_eq!(read(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), None);
    }

    #[test]
    fn torchrun_mpirun_and_srun_are_understood() {
        let torchrun = [
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("MASTER_ADDR", "node1"),
            ("MASTER_PORT", "29501"),
        ];
        let expected = RankInfo {
            rank: 5,
            world: 8,
            local_rank: 1,
            local_world: 4,
            master: "node1".into(),
            port: 29501,
            agent: None,
        };
        assert_eq!(rank_info(&torchrun), expected);
        let agent = [&torchrun[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        assert_eq!(rank_info(&agent).agent.as_deref(), Some("/worker/attempt_0"));

        let mpirun = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("PMIX_NAMESPACE", "1234"),
        ];
        let found = rank_info(&mpirun);
        assert_eq!((found.rank, found.world, found.master.as_str()), (1, 2, "127.0.0.1"));
        assert!((10_000..30_000).contains(&found.port));
        // Several machines: mpirun does not tell which one has rank 0.
        let spread =
            [&mpirun[..3], &[("OMPI_COMM_WORLD_LOCAL_SIZE", "1"), ("OMPI_COMM_WORLD_LOCAL_RANK", "0")]].concat();
        let error = read(&[&spread[..2], &spread[3..]].concat()).unwrap_err().to_string();
        assert!(error.contains("MASTER_ADDR"), "{error}");

        let srun = [
            ("SLURM_STEP_ID", "0"),
            ("SLURM_PROCID", "3"),
            ("SLURM_NTASKS", "4"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_NODELIST", "gpu[03-07,12],login1"),
            ("SLURM_JOB_ID", "77"),
            ("SLURM_NODEID", "2"),
            ("SLURM_STEP_TASKS_PER_NODE", "1(x2),2"),
        ];
        let found = rank_info(&srun);
        assert_eq!(found.local_world, 2);
        assert_eq!((found.rank, found.world, found.local_rank, found.master.as_str()), (3, 4, 1, "gpu03"));
        assert_eq!(found.port, job_port("77.0"));
    }

    #[test]
    fn slurms_tasks_of_each_node_are_read() {
        let tasks = |text| [0, 1, 2, 3].map(|node| tasks_of(text, node));
        assert_eq!(tasks("4(x2),3"), [4, 4, 3, 1]);
        assert_eq!(tasks("2,8(x3)"), [2, 8, 8, 8]);
        assert_eq!(tasks("x"), [1; 4]);
    }

    #[test]
    fn incomplete_variables_are_named() {
        for (variables, expected) in [
            (&[("RANK", "0")][..], "found RANK without WORLD_SIZE"),
            (&[("WORLD_SIZE", "2")], "found WORLD_SIZE without RANK"),
            (&[("RANK", "2"), ("WORLD_SIZE", "2")], "RANK: found 2, expected less than WORLD_SIZE=2"),
            (&[("RANK", "x"), ("WORLD_SIZE", "2")], "RANK: found \"x\", expected a number"),
            (&[("RANK", "0"), ("WORLD_SIZE", "2")], "found RANK=0 without MASTER_ADDR"),
            (&[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a")], "found RANK=0 without MASTER_PORT"),
            (
                &[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "0")],
                "MASTER_PORT: found \"0\"",
            ),
        ] {
            let message = read(variables).unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
        }
    }

    #[test]
    fn the_first_of_slurms_nodes() {
        for (nodes, first) in [
            ("a", "a"),
            ("a,b", "a"),
            ("n[1-3]", "n1"),
            ("n[007,9-11]x,m", "n007x"),
            ("r[1-2]n[5,6]", "r1n5"),
            ("a-b-1,c", "a-b-1"),
        ] {
            assert_eq!(first_host(nodes), first, "{nodes}");
        }
    }
}
