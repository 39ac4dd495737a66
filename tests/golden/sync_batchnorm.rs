//! c10d from Rust, each process a thread here: collectives, the gradient Reducer, and BatchNorm over several processes
//! against PyTorch's single-process BatchNorm on the whole batch (fixture by `scripts/reference/sync_batchnorm.py`).

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{CPU, Fixture};
use byol::byol::{Byol, Ranks, Rates};
use byol::model::{Arch, BatchNorm, ModelConfig, Network, Params, Stem};
use byol::optim::{Algorithm, OptimizerConfig};
use native::{Autocast, Listen, ProcessGroup, Reducer, Store, channels_last};
use tch::{Kind, Tensor};

/// Runs `work` in `world` threads, each with its place in a group.
fn group<T: Send>(world: usize, work: impl Fn(Arc<ProcessGroup>) -> T + Sync) -> Vec<T> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let timeout = Duration::from_secs(30);
    let join = |rank: usize, listener: Option<TcpListener>| {
        tch::set_num_threads(1);
        let store = Store::open("127.0.0.1", port, listener, "test", timeout).expect("a store");
        let listen = Listen::Address("127.0.0.1".into());
        let group = ProcessGroup::gloo(&store, rank, world, &listen, timeout).expect("a group");
        (work(Arc::new(group)), store)
    };
    std::thread::scope(|scope| {
        let mut listener = Some(listener);
        let threads: Vec<_> = (0..world)
            .map(|rank| {
                let (listener, join) = (listener.take(), &join);
                scope.spawn(move || join(rank, listener))
            })
            .collect();
        let (results, _stores): (Vec<T>, Vec<Store>) = threads.into_iter().map(|t| t.join().expect("no panic")).unzip();
        results
    })
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.flatten(0, -1)).expect("floats")
}

#[test]
fn collectives_do_what_they_say() {
    let results = group(3, |group| {
        let own = group.rank as f32;
        let sum = Tensor::from_slice(&[own, 10.0 * own]);
        group.all_reduce(&sum).expect("summed");
        let all = group.all_gather(&Tensor::from_slice(&[own, -own])).expect("gathered");
        let strided = channels_last(&(Tensor::arange(12, (Kind::Float, CPU)) + own as f64).reshape([1, 2, 2, 3]));
        let number = Tensor::from_slice(&[7 + group.rank as i64]);
        group.broadcast(&[strided.shallow_clone(), number.shallow_clone()]).expect("broadcast");
        (floats(&sum), all.size(), floats(&all), floats(&strided), number.int64_value(&[0]))
    });
    for (sum, shape, all, strided, number) in results {
        assert_eq!((sum, shape, number), (vec![3.0, 30.0], vec![3, 2], 7));
        assert_eq!(all, [0.0, 0.0, 1.0, -1.0, 2.0, -2.0]);
        assert_eq!(strided, (0..12).map(|v| v as f32).collect::<Vec<_>>());
    }
}

/// The process that is late makes the other one wait: in a collective, and for the last bucket of a backward pass.
#[test]
fn waiting_for_a_late_process_is_counted() {
    let late = Duration::from_millis(400);
    let waits = group(2, |group| {
        let weights = [
            Tensor::ones([300_000], (Kind::Float, CPU)).set_requires_grad(true),
            Tensor::ones([3], (Kind::Float, CPU)).set_requires_grad(true),
        ];
        let reducer = Reducer::new(&group, &weights.iter().collect::<Vec<_>>()).expect("a reducer");
        let timed = |work: &dyn Fn()| {
            group.all_reduce(&Tensor::zeros([1], (Kind::Float, CPU))).expect("both are here");
            let before = group.waited();
            if group.rank == 1 {
                std::thread::sleep(late);
            }
            work();
            group.waited() - before
        };
        let backward = || {
            reducer.prepare().expect("prepared");
            (weights[0].sum(Kind::Float) + weights[1].sum(Kind::Float)).backward();
        };
        [
            timed(&|| drop(group.all_gather(&Tensor::ones([4], (Kind::Float, CPU))).expect("gathered"))),
            timed(&backward),
            {
                backward(); // before this one, once, the buckets are rearranged in both
                timed(&backward)
            },
        ]
    });
    for (prompt, tardy) in waits[0].iter().zip(&waits[1]) {
        assert!(*prompt > late * 9 / 10 && *prompt < late * 2, "{waits:?}");
        assert!(*tardy < late / 2, "{waits:?}");
    }
}

#[test]
fn the_store_tells_counts_and_waits() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let second = Duration::from_secs(1);
    let store = Store::open("127.0.0.1", port, Some(listener), "run", second).expect("a store");
    let other = store.try_clone().expect("a second connection");
    store.set("a", "1 2").expect("set");
    assert_eq!(other.get("a", second).expect("there"), "1 2");
    assert!(!other.has("b").expect("asked"));
    assert_eq!((store.count("n").expect("counted"), other.count("n").expect("counted")), (1, 2));
    let message = other.get("b", Duration::from_millis(50)).expect_err("nobody sets it").to_string();
    assert!(message.contains("imeout"), "{message}");
    assert_eq!(other.get("a", second).expect("usable afterwards"), "1 2");
    // Nothing listens but where it was told to.
    assert!(std::net::TcpStream::connect(("127.0.0.2", port)).is_err());
}

// norm = nn.BatchNorm2d(C); y = norm(x); (y * G).sum().backward(), twice, on the whole batch
#[test]
fn sync_batchnorm_is_pytorchs_batchnorm_on_the_whole_batch() {
    for (case, shape) in [("heads", &[12, 7][..]), ("maps", &[12, 5, 3, 4])] {
        for (world, innermost) in [(1, false), (2, false), (2, true), (3, false), (4, true)] {
            let results = group(world, |group| {
                let fixture = Fixture::open("sync_batchnorm.safetensors");
                let mut params = Params::new(CPU, Some(0));
                let norm = BatchNorm::new(params.root(), shape[1], 1.0);
                fixture.fill_params(&format!("{case}."), &mut params);
                params.synchronize(&group);
                let (share, rank) = (shape[0] / world as i64, group.rank as i64);
                let mut found = Vec::new();
                for step in 0..2 {
                    let own = |name: &str| {
                        fixture.fill(&format!("{name}.{case}.{step}"), shape).narrow(0, rank * share, share)
                    };
                    let mut x = own("input") + 3.0;
                    if innermost && x.dim() == 4 {
                        x = channels_last(&x);
                    }
                    let x = x.detach().set_requires_grad(true);
                    params.parameters.iter_mut().for_each(|p| p.tensor.zero_grad());
                    let y = norm.forward(&x, true);
                    (&y * own("grad")).sum(None::<Kind>).backward();
                    let mut tensors = vec![("output", y.detach()), ("input.grad", x.grad())];
                    tensors.push(("weight.grad", params.parameters[0].tensor.grad().copy()));
                    tensors.push(("bias.grad", params.parameters[1].tensor.grad().copy()));
                    tensors.push(("running_mean", params.buffers[0].tensor.copy()));
                    tensors.push(("running_var", params.buffers[1].tensor.copy()));
                    found.push(tensors);
                }
                found
            });
            let fixture = Fixture::open("sync_batchnorm.safetensors");
            for step in 0..2 {
                for index in 0..6 {
                    let name = results[0][step][index].0;
                    let parts: Vec<&Tensor> = results.iter().map(|rank| &rank[step][index].1).collect();
                    let joined = match index {
                        0 | 1 => Tensor::cat(&parts, 0), // each rank's own images
                        2 | 3 => Tensor::stack(&parts, 0).sum_dim_intlist([0].as_slice(), false, None), // their gradients add
                        _ => {
                            assert!(
                                parts.iter().all(|part| part.equal(parts[0])),
                                "{case} {name} differs between ranks"
                            );
                            parts[0].shallow_clone()
                        }
                    };
                    let key = format!("{case}.{step}.{name}");
                    fixture.close(&format!("{key}, {world} processes"), &joined, fixture.get(&key));
                }
            }
        }
    }
}

#[test]
fn under_autocast_the_statistics_are_in_fp32() {
    let results = group(2, |group| {
        let mut params = Params::new(CPU, Some(0));
        let norm = BatchNorm::new(params.root(), 3, 1.0);
        params.synchronize(&group);
        let fixture = Fixture::open("sync_batchnorm.safetensors");
        let whole = (fixture.fill("input.bf16", &[64, 3]).to_kind(Kind::Float) + 5.0).to_kind(Kind::BFloat16);
        let x = whole.narrow(0, 32 * group.rank as i64, 32).detach().set_requires_grad(true);
        let autocast = Autocast::bf16(CPU, true).expect("on");
        let y = norm.forward(&x, true);
        drop(autocast);
        y.to_kind(Kind::Float).square().sum(None::<Kind>).backward();
        let exact = whole.to_kind(Kind::Float);
        let mean = exact.mean_dim(Some([0].as_slice()), false, None) * 0.1;
        let error = (&params.buffers[0].tensor - mean).abs().max().double_value(&[]);
        (y.kind(), x.grad().kind(), params.buffers[0].tensor.kind(), params.parameters[0].tensor.grad().kind(), error)
    });
    for (y, dx, running, dw, error) in results {
        assert_eq!((y, dx, running, dw), (Kind::BFloat16, Kind::BFloat16, Kind::Float, Kind::Float));
        assert!(error < 1e-6, "a mean of bf16 values summed in bf16: off by {error}");
    }
}

#[test]
fn the_reducer_averages_announced_passes_and_leaves_others_alone() {
    let results = group(2, |group| {
        let weights: Vec<Tensor> =
            (1..=3).map(|n| Tensor::ones([n], (Kind::Float, CPU)).set_requires_grad(true)).collect();
        let reducer = Reducer::new(&group, &weights.iter().collect::<Vec<_>>()).expect("a reducer");
        let pass = |factor: f64| {
            let parts: Vec<Tensor> =
                weights.iter().map(|w| (w * factor * (group.rank + 1) as f64).sum(Kind::Float)).collect();
            Tensor::stack(&parts, 0).sum(Kind::Float).backward();
        };
        let mut seen = Vec::new();
        for _ in 0..3 {
            weights.iter().for_each(|w| native::clear_grad(w).expect("cleared"));
            pass(1.0); // accumulates here alone
            let alone = weights.iter().map(|w| w.grad().double_value(&[0])).collect::<Vec<_>>();
            reducer.prepare().expect("announced");
            pass(10.0);
            seen.push((alone, weights.iter().map(|w| w.grad().double_value(&[0])).collect::<Vec<_>>()));
        }
        seen
    });
    for (rank, steps) in results.into_iter().enumerate() {
        for (alone, averaged) in steps {
            assert_eq!(alone, [(rank + 1) as f64; 3]);
            assert_eq!(averaged, [16.5; 3]); // (11 + 22) / 2
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    steps: u64,
    micro_batches: usize,
    algorithm: Algorithm,
    channels_last: bool,
}

struct Trained {
    /// Both networks after the steps.
    end: Tensor,
    /// How far they moved.
    moved: Tensor,
    /// Of each step.
    z_std: Vec<f64>,
}

/// Views are the fixture's, split as the loader splits them.
fn trained(group: Option<&Arc<ProcessGroup>>, case: Case) -> Trained {
    let fixture = Fixture::open("sync_batchnorm.safetensors");
    let config = ModelConfig {
        arch: Arch::Resnet18,
        width: 0.25,
        stem: Stem::Cifar,
        projector_hidden: 24,
        projection_dim: 12,
        predictor_hidden: 24,
        ..ModelConfig::default()
    };
    let mut online = Network::online(&config, CPU, 7);
    let mut target = Network::target_of(&online, &config, CPU);
    for network in [&mut online, &mut target] {
        network.params.to_kind(Kind::Double);
        if case.channels_last {
            network.params.to_channels_last();
        }
        group.iter().for_each(|group| network.params.synchronize(group));
    }
    let all = |byol: &Byol| {
        let tensors = byol.model_tensors();
        Tensor::cat(&tensors.iter().map(|t| t.tensor.detach().contiguous().flatten(0, -1)).collect::<Vec<_>>(), 0)
    };
    let mut byol = Byol::new(online, target, &OptimizerConfig { name: case.algorithm, ..OptimizerConfig::default() });
    if let Some(group) = group {
        byol.ranks = Ranks::new(group, &byol.online.params).expect("a reducer");
    }
    let start = all(&byol);
    let (rank, world) = group.map_or((0, 1), |group| (group.rank as i64, group.world as i64));
    let parts = case.micro_batches;
    let step = |step: u64| {
        let view = |part: usize, view: usize| {
            let whole = fixture.fill(&format!("input.{step}.{part}.view{view}"), &[8 / parts as i64, 3, 8, 8]);
            let share = whole.size()[0] / world;
            let own = whole.narrow(0, rank * share, share).to_kind(Kind::Double);
            if case.channels_last { channels_last(&own) } else { own }
        };
        let micro_batches = (0..parts).map(|part| Ok([view(part, 1), view(part, 2)]));
        let output = byol.step(micro_batches, Rates { lr: 0.05, tau: 0.9, step }).expect("a step");
        output.z_std.double_value(&[])
    };
    let z_std = (0..case.steps).map(step).collect();
    let end = all(&byol);
    Trained { moved: &end - start, end, z_std }
}

// What the command's runs show in fp32 only until rounding has grown: in f64 nothing but the mathematics is left.
#[test]
fn twenty_steps_in_f64_do_not_depend_on_the_number_of_processes() {
    tch::set_num_threads(1);
    let case = |steps, micro_batches, algorithm, channels_last| Case { steps, micro_batches, algorithm, channels_last };
    for (worlds, case) in [
        (&[2, 4][..], case(20, 1, Algorithm::Sgd, false)),
        (&[2], case(5, 2, Algorithm::Lars, true)),
        (&[2], case(5, 1, Algorithm::Adamw, false)),
    ] {
        let one = trained(None, case);
        for &world in worlds {
            let all = group(world, |group| trained(Some(&group), case));
            assert!(all.iter().all(|other| other.end.equal(&all[0].end)), "the processes differ");
            // The deviation of projections is that of the whole batch.
            for (found, expected) in all[0].z_std.iter().zip(&one.z_std) {
                assert!((found - expected).abs() < 1e-6 * expected, "{world} processes: z_std {found}, not {expected}");
            }
            let error = (&all[0].end - &one.end).norm().double_value(&[]) / one.moved.norm().double_value(&[]);
            println!("{world} processes, {case:?}: {error:.1e} of the way");
            assert!(error < 1e-8, "{world} processes, {case:?}: off by {error:.1e} of the way");
        }
    }
}
