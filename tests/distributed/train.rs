//! Runs of several processes, with the real binary: the same result for any number of them, and what happens when one
//! dies, hangs, disagrees or is told to stop.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::time::Instant;

use crate::support::ranks::*;

/// Parameters and running statistics of both networks, each as one vector, within 1e-4 of its length.
///
/// A larger step would compare rounding, which training amplifies: at the tiny run's own rate one process with two
/// threads ends as far from one with one thread, half of the way, as two processes do. That nothing but rounding
/// differs is shown in f64, by `twenty_steps_in_f64_do_not_depend_on_the_number_of_processes`.
fn alike(a: &BTreeMap<String, Vec<f64>>, b: &BTreeMap<String, Vec<f64>>, what: &str) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for network in ["online.", "target."] {
        for running in [false, true] {
            let of = |all: &BTreeMap<String, Vec<f64>>| -> Vec<f64> {
                let named = |name: &String| name.starts_with(network) && name.contains(".running_") == running;
                all.iter().filter(|(name, _)| named(name)).flat_map(|(_, values)| values.clone()).collect()
            };
            let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
            let (a, b) = (of(a), of(b));
            let error = norm(&mut a.iter().zip(&b).map(|(x, y)| x - y)) / norm(&mut a.iter().copied());
            println!("{what}: {network} running statistics {running}: {error:.1e}");
            assert!(error < 1e-4, "{what}: {network} running statistics {running}: {error:.1e}");
        }
    }
}

#[test]
fn one_two_and_four_processes_end_with_the_same_weights() {
    let runs = Runs::new();
    let common = "monitor.knn_every=5 monitor.knn_k=5 monitor.log_every=1";
    succeeded(&runs.train("one", common));
    let one = runs.tensors("one", 20);
    for count in [2, 4] {
        let name = format!("{count}");
        let output = runs.train(&name, &format!("{common} --nproc {count}"));
        let stderr = succeeded(&output);
        assert!(stderr.contains(&format!("in each of {count} processes")), "{stderr}");
        for once in ["finished: step", "/encoder.safetensors, the encoder for other software; in Python:"] {
            assert_eq!(text(&output.stdout).matches(once).count(), 1, "one summary: {}", text(&output.stdout));
        }
        assert_eq!(stderr.matches("step 20/20").count(), 1, "one log: {stderr}");
        alike(&one, &runs.tensors(&name, 20), &format!("{count} processes"));
        // Before the first step the networks are the same, and so is what they are judged by.
        let quality = |name: &str| runs.records(name).into_iter().find(|record| record["effective_rank"].is_f64());
        let (first, other) = (quality("one").expect("measured"), quality(&name).expect("measured"));
        for key in ["effective_rank", "projection_rank", "alignment", "uniformity", "view_retrieval", "images"] {
            let [a, b] = [&first, &other].map(|record| record[key].as_f64().expect("a number"));
            assert!((a - b).abs() <= 1e-9 * a.abs(), "{key}: {a}, {count} processes {b}");
        }
        assert_eq!((first["step"].as_u64(), other["step"].as_u64()), (Some(0), Some(0)));
        // The log is the run's: the loss of the global batch, the accuracy over all images.
        for (a, b) in runs.records("one").iter().zip(runs.records(&name)) {
            assert_eq!((a["step"].as_u64(), a["lr"].as_f64()), (b["step"].as_u64(), b["lr"].as_f64()));
            for (key, limit) in [("loss", 1e-3), ("grad_norm", 5e-2), ("knn_top1", 0.04), ("z_std", 1e-3)] {
                let (a, b) = (a[key].as_f64().unwrap_or(0.0), b[key].as_f64().unwrap_or(0.0));
                assert!((a - b).abs() <= limit * a.abs().max(1.0), "{key}: {a} {b}");
            }
        }
    }
}

/// Stochastic depth draws for an image whatever process has it; a frozen parameter has no gradient to average.
#[test]
fn a_vit_ends_with_the_same_weights_in_one_and_two_processes() {
    let runs = Runs::new();
    let vit = "model.arch=vit_tiny model.stem=imagenet model.patch_size=4 model.drop_path=0.5 schedule.epochs=1 \
               model.freeze_patch_projection=true train.accumulation_steps=2 optimizer.name=sgd optimizer.base_lr=0.01";
    succeeded(&runs.train("one", vit));
    succeeded(&runs.train("two", &format!("{vit} --nproc 2")));
    alike(&runs.tensors("one", 4), &runs.tensors("two", 4), "a ViT");
}

#[test]
fn accumulation_is_the_same_and_batchnorm_alone_is_not() {
    let runs = Runs::new();
    let accumulated = "schedule.epochs=2 train.accumulation_steps=2 model.sync_batchnorm=on";
    succeeded(&runs.train("one", accumulated));
    succeeded(&runs.train("two", &format!("{accumulated} --nproc 2")));
    let one = runs.tensors("one", 8);
    alike(&one, &runs.tensors("two", 8), "two micro-batches");
    succeeded(&runs.train("off", "schedule.epochs=2 train.accumulation_steps=2 model.sync_batchnorm=off --nproc 2"));
    let (name, off) = ("online.encoder.bn1.running_var", runs.tensors("off", 8));
    let difference: f64 = one[name].iter().zip(&off[name]).map(|(a, b)| (a - b).abs() / a).sum();
    assert!(difference / one[name].len() as f64 > 1e-2, "{difference}");
}

#[test]
fn a_batch_that_does_not_divide_is_refused() {
    let runs = Runs::new();
    failed(&runs.train("three", "--nproc 3"), &["train.batch_size", "found 16", "multiple of 3 processes"]);
    failed(&runs.train("parts", "--nproc 2 train.accumulation_steps=8"), &["2 processes times 8 micro-batches"]);
    assert!(!runs.dir("three").join("config.yaml").exists());
}

#[test]
fn a_run_goes_on_with_another_number_of_processes() {
    let runs = Runs::new();
    let epochs = "schedule.epochs=2";
    succeeded(&runs.train("whole", epochs));
    for (first, second) in [("--nproc 2", ""), ("", "--nproc 2")] {
        let name = format!("from{first}");
        succeeded(&runs.train(&name, &format!("{epochs} train.max_steps=3 {first}")));
        let stderr = succeeded(&runs.train(&name, &format!("{epochs} --resume auto {second}")));
        assert!(stderr.contains("step 3 of 8"), "{stderr}");
        alike(&runs.tensors("whole", 8), &runs.tensors(&name, 8), &format!("{first:?}, then {second:?}"));
        let stderr = succeeded(&runs.train(&name, &format!("{epochs} --resume auto {second}")));
        assert_eq!(stderr.matches("nothing left to do").count(), 1, "{stderr}");
    }
    failed(&runs.train("whole", &format!("{epochs} --nproc 2")), &["already contains a run"]);
}

#[test]
fn a_killed_process_ends_the_run_in_one_line_and_one_process_goes_on() {
    for (rank, world) in [(0, 2), (2, 4)] {
        let runs = Runs::new();
        let (child, ranks) = runs.started("run", &format!("--nproc {world} dist.timeout=30"), world);
        let at = Instant::now();
        send("-KILL", ranks[rank]);
        let output = child.wait_with_output().expect("ended");
        assert!(at.elapsed() < PATIENCE, "ended after {:?}", at.elapsed());
        let named = format!("rank {rank} on {}", host());
        failed(&output, &[&named, "killed by signal 9", "--resume auto"]);
        assert!(gone(&ranks));
    }
}

#[test]
fn a_process_that_hangs_ends_the_run_within_the_timeout() {
    let runs = Runs::new();
    let (child, ranks) = runs.started("run", "--nproc 2 dist.timeout=10", 2);
    let at = Instant::now();
    send("-STOP", ranks[1]);
    let output = child.wait_with_output().expect("ended");
    assert!(at.elapsed() < PATIENCE, "ended after {:?}", at.elapsed());
    failed(&output, &[&format!("rank 1 on {}", host()), "exited or cannot be reached", "--resume auto"]);
    assert!(gone(&ranks));
    // The last checkpoint is valid: one process resumes from it.
    let folder = runs.dir("run").join("checkpoints");
    let steps = fs::read_dir(folder).expect("listed").flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let last: u64 = steps.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).max().expect("a checkpoint");
    let more =
        format!("--resume auto schedule.epochs=100000 train.max_steps={} output.checkpoint_every_steps=5", last + 2);
    let stderr = succeeded(&runs.train("run", &more));
    assert!(stderr.contains(&format!("step {last} of")), "{stderr}");
}

#[test]
fn a_main_thread_that_never_returns_does_not_keep_its_process() {
    let runs = Runs::new();
    let (endless, port) = ("dist.timeout=10 monitor.log_every=1 schedule.epochs=100000 monitor.knn_every=0", port());
    // Nobody reads what rank 0 logs, and 15 of the pipe's 16 pages are taken: soon writing to it waits for ever.
    let (mut log, mut pipe) = std::io::pipe().expect("a pipe");
    pipe.write_all(&[b'x'; 15 * 4096]).expect("room");
    let mut stuck = runs.rank_command("run", endless, 0, 2, port).stderr(pipe).spawn().expect("byol starts");
    let output = runs.rank("run", endless, 1, 2, port).wait_with_output().expect("ended");
    failed(&output, &[&format!("rank 0 on {} hangs", host()), "--resume auto"]);
    let at = Instant::now();
    assert_eq!(stuck.wait().expect("ended").code(), Some(1));
    assert!(at.elapsed() < PATIENCE, "ended after {:?}", at.elapsed());
    let mut said = String::new();
    log.read_to_string(&mut said).expect("text");
    assert!(said.contains("step 5/") && !said.contains("error: "), "{said}");
}

#[test]
fn nothing_is_left_running_when_the_launcher_is_killed() {
    let runs = Runs::new();
    let (mut child, ranks) = runs.started("run", "--nproc 2", 2);
    child.kill().expect("kill -9");
    child.wait().expect("ended");
    assert!(gone(&ranks));
}

#[test]
fn a_signal_to_the_launcher_or_to_any_process_stops_all_at_one_step() {
    for (to, signal, code) in [("launcher", "-TERM", 143), ("rank 1", "-INT", 130)] {
        let runs = Runs::new();
        let (child, ranks) = runs.started("run", "--nproc 2", 2);
        send(signal, if to == "launcher" { child.id() } else { ranks[1] });
        let output = child.wait_with_output().expect("ended");
        assert_eq!(output.status.code(), Some(code), "{to}: {}", text(&output.stderr));
        let stdout = text(&output.stdout);
        assert!(stdout.starts_with("stopped by a signal") && stdout.lines().count() == 1, "{stdout}");
        assert!(!text(&output.stderr).contains("error"), "{}", text(&output.stderr));
        let summary = fs::read(runs.dir("run").join("summary.json")).expect("a summary");
        let summary: serde_json::Value = serde_json::from_slice(&summary).expect("JSON");
        assert!(runs.checkpoint("run", summary["step"].as_u64().expect("a step")).exists());
        assert!(gone(&ranks));
    }
}

#[test]
fn it_listens_on_loopback_alone() {
    let runs = Runs::new();
    let (mut child, ranks) = runs.started("run", "--nproc 2", 2);
    let mut listening = 0;
    for pid in &ranks {
        let sockets: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("its files")
            .flatten()
            .filter_map(|fd| {
                fs::read_link(fd.path()).ok()?.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(String::from)
            })
            .collect();
        for (table, loopback) in [("tcp", "0100007F"), ("tcp6", "00000000000000000000000001000000")] {
            let table = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
            for line in table.lines().skip(1) {
                let columns: Vec<&str> = line.split_whitespace().collect();
                if columns[3] == "0A" && sockets.iter().any(|inode| inode == columns[9]) {
                    assert!(columns[1].starts_with(loopback), "{line}");
                    listening += 1;
                }
            }
        }
    }
    assert!(listening >= 3, "the store and a socket of each process, found {listening}");
    send("-KILL", child.id());
    child.wait().expect("ended");
}

#[test]
fn processes_that_disagree_or_do_not_come_say_so() {
    let runs = Runs::new();
    let pair = |args: [&str; 2]| {
        let port = port();
        (0..2).map(|rank| runs.rank("run", args[rank], rank, 2, port)).collect::<Vec<_>>()
    };
    one_failed(
        pair(["dist.timeout=12", "dist.timeout=12 optimizer.base_lr=0.25"]),
        &["rank 1 on", "differs from rank 0", "optimizer.base_lr: 0.25, was 0.005"],
    );
    // The same config, but another machine's folder holds other images.
    for (folder, count) in [("a", 16), ("b", 17)] {
        let folder = runs.dir(folder);
        fs::create_dir_all(&folder).expect("made");
        (0..count).for_each(|i| {
            let pixels = image::RgbImage::from_pixel(20, 20, image::Rgb([i as u8 * 9, 7, 7]));
            pixels.save(folder.join(format!("{i}.png"))).expect("written");
        });
    }
    let path = |name: &str| format!("dist.timeout=12 data.format=image_folder data.path={}", runs.dir(name).display());
    one_failed(pair([&path("a"), &path("b")]), &["rank 1 on", "data: found 17 images", "rank 0 has 16 images"]);
    // An error of rank 0 alone, which takes the store with it: no other speaks of its end.
    succeeded(&runs.train("run", "train.max_steps=1"));
    one_failed(pair(["dist.timeout=12"; 2]), &["rank 0 on", "already contains a run"]);
    one_failed(
        vec![runs.rank("run", "dist.timeout=5", 0, 2, port())],
        &["rank 0 on", "rank 1 did not join within 5 s"],
    );
    one_failed(
        vec![runs.rank("run", "dist.timeout=5", 1, 2, port())],
        &["rank 1", "no answer from rank 0 at 127.0.0.1"],
    );
}

#[test]
fn an_error_of_one_process_is_the_runs() {
    let runs = Runs::new();
    let folder = runs.dir("images");
    fs::create_dir_all(&folder).expect("made");
    for i in 0..16 {
        let pixels = image::RgbImage::from_pixel(20, 20, image::Rgb([i as u8 * 9, 7, 7]));
        pixels.save(folder.join(format!("{i:02}.png"))).expect("written");
    }
    fs::write(folder.join("07.png"), b"no image").expect("written");
    let args = format!("--nproc 2 data.format=image_folder data.path={} data.on_bad_image=fail", folder.display());
    failed(&runs.train("run", &args), &["rank ", &format!("on {}", host()), "07.png"]);
}

#[test]
fn half_an_environment_is_refused() {
    let runs = Runs::new();
    let output = runs.command("run", "").env("RANK", "0").output().expect("byol runs");
    failed(&output, &["found RANK without WORLD_SIZE"]);
    // A command that runs in one process only would do its work several times and write the same file.
    let mut alone = std::process::Command::new(env!("CARGO_BIN_EXE_byol"));
    alone.args(["preview", "--config", "nowhere", "--output", "x.png"]).env("RANK", "1").env("WORLD_SIZE", "2");
    let output = alone.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", "1").output().expect("byol runs");
    failed(&output, &["found rank 1 of 2 processes, expected one: this command runs in one process only"]);
}

#[test]
fn one_gpu_takes_the_whole_path_over_nccl() {
    let runs = Runs::new();
    let cuda = "train.device=cuda schedule.epochs=2 dist.timeout=120";
    let alone = runs.train("alone", cuda);
    if text(&alone.stderr).contains("cannot be used") {
        println!("skipped: {}", text(&alone.stderr).trim());
        return;
    }
    succeeded(&alone);
    let stderr = succeeded(&runs.train("group", &format!("{cuda} dist.backend=nccl --nproc 1")));
    assert!(stderr.contains("no CUDA graph: a step communicates with other processes"), "{stderr}");
    assert!(runs.checkpoint("group", 8).exists());
    let demanded = runs.train("graph", &format!("{cuda} dist.backend=nccl --nproc 1 train.cuda_graph=on"));
    failed(&demanded, &["train.cuda_graph: found on", "a step communicates with other processes"]);
    failed(&runs.train("gloo", &format!("{cuda} dist.backend=gloo --nproc 2")), &["dist.backend: found gloo"]);
}

#[test]
fn nccl_is_refused_on_the_cpu() {
    let runs = Runs::new();
    for processes in ["--nproc 1", "--nproc 2"] {
        let output = runs.train("run", &format!("train.device=cpu dist.backend=nccl {processes}"));
        failed(&output, &["dist.backend: found nccl, expected auto or gloo on the CPU"]);
    }
}
