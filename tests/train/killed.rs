//! Runs that are killed or stopped at random moments, again and again, end with the bits of one that was left alone.
//! `scripts/soak` does the same for longer: BYOL_SOAK_KILLS, BYOL_SOAK_STOPS; BYOL_SEED repeats a run of this test.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use crate::support::run::{Random, Run, ended, from_environment, send, succeeded};

/// 170 steps of four images.
const SHORT_STEPS: [&str; 6] =
    ["--set", "train.batch_size=4", "--set", "schedule.epochs=10", "--set", "monitor.knn_every=0"];
const RESUME: [&str; 2] = ["--resume", "auto"];

fn newest(run: &Run) -> u64 {
    let entries = fs::read_dir(run.dir().join("checkpoints")).into_iter().flatten().flatten();
    let steps = entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok());
    steps.max().unwrap_or(0)
}

/// Whether a checkpoint is being written, or was when the run was killed.
fn is_writing(run: &Run) -> bool {
    let mut entries = fs::read_dir(run.dir().join("checkpoints")).into_iter().flatten().flatten();
    entries.any(|entry| entry.file_name().to_string_lossy().starts_with(".partial"))
}

/// What must be true of a run at its end, however it came there.
fn assert_as_if_nothing_had_happened(run: &Run, whole: &Run, last: u64, seed: &str) {
    assert!(run.weights(last) == whole.weights(last), "{seed}: weights or optimizer state differ");
    run.assert_tidy(3);
    let log = fs::read_to_string(run.log()).unwrap_or_default();
    assert!(!log.contains("skipping a checkpoint") && !log.contains("set aside"), "{seed}: {log}");
    let losses = |run: &Run| -> Vec<(u64, String)> {
        let with_loss = run.records().into_iter().filter(|record| record["loss"].is_f64());
        with_loss.map(|r| (r["step"].as_u64().expect("a step"), r["loss"].to_string())).collect()
    };
    let (found, expected) = (losses(run), losses(whole));
    // A killed run logs its first step, and where it was stopped, besides; a step is there once.
    assert!(expected.iter().all(|record| found.contains(record)), "{seed}: {found:?}");
    assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "{seed}: {found:?}");
}

#[test]
fn killed_at_random_moments_a_run_ends_with_the_same_bits() {
    let kills = from_environment("BYOL_SOAK_KILLS", 24);
    let mut random = Random::new();
    let seed = format!("{random:?}");
    let whole = Run::new();
    succeeded(&whole.train(&[&SHORT_STEPS[..], &["--set", "output.keep_checkpoints=3"]].concat()));
    let every_step = [&SHORT_STEPS[..], &RESUME, &["--set", "output.checkpoint_every_steps=1"]].concat();
    let (mut run, mut killed, mut in_a_write, mut runs) = (Run::new(), 0, 0, 0);
    while killed < kills {
        let before = newest(&run);
        let mut child = run.spawn_logged(&every_step);
        // In the middle of a write, between steps, or at the start.
        let (moment, start) = (random.next(), Instant::now());
        let awaited = || if moment < 0.4 { is_writing(&run) } else { moment > 0.75 || newest(&run) > before };
        while !awaited() && child.try_wait().expect("waited").is_none() {
            assert!(start.elapsed() < crate::support::run::PATIENCE, "{seed}: no checkpoint in {:?}", start.elapsed());
            std::thread::sleep(Duration::from_micros(200));
        }
        let most = if moment < 0.4 { 0.02 } else { 0.3 };
        std::thread::sleep(Duration::from_secs_f64(most * random.next()));
        if child.try_wait().expect("waited").is_none() {
            child.kill().expect("kill -9");
            killed += 1;
        }
        let status = child.wait().expect("ended");
        assert!(status.success() || status.signal() == Some(9), "{seed}: {status}");
        in_a_write += is_writing(&run) as u64;
        if status.success() || killed == kills {
            succeeded(&run.train(&[&SHORT_STEPS[..], &RESUME].concat()));
            assert_as_if_nothing_had_happened(&run, &whole, 170, &seed);
            (run, runs) = (Run::new(), runs + 1);
        }
    }
    println!("{killed} kills, {in_a_write} of them in a write, {runs} runs, no difference");
    assert!(in_a_write > 0, "{seed}: no kill met a write");
}

#[test]
fn stopped_at_random_moments_a_run_never_hangs() {
    let stops = from_environment("BYOL_SOAK_STOPS", 8);
    let mut random = Random::new();
    let seed = format!("{random:?}");
    let (whole, start) = (Run::new(), Instant::now());
    succeeded(&whole.train(&[]));
    // Start-up, k-NN, steps, checkpoints and the end: anywhere.
    let longest = start.elapsed().as_secs_f64();
    let saving = [&RESUME[..], &["--set", "output.checkpoint_every_steps=2"]].concat();
    let (mut run, mut slowest, mut runs) = (Run::new(), Duration::ZERO, 0);
    for stop in 1..=stops {
        let mut child = run.spawn_logged(&saving);
        std::thread::sleep(Duration::from_secs_f64(longest * random.next()));
        if child.try_wait().expect("waited").is_none() {
            send(if random.next() < 0.5 { "-INT" } else { "-TERM" }, &child);
        }
        let sent = Instant::now();
        let status = ended(&mut child);
        slowest = slowest.max(sent.elapsed());
        // Before there is anything to save a signal just ends the process.
        let by_signal = matches!(status.code(), Some(0 | 130 | 143)) || matches!(status.signal(), Some(2 | 15));
        assert!(by_signal, "{seed}: {status}: {}", fs::read_to_string(run.log()).unwrap_or_default());
        if status.success() || stop == stops {
            succeeded(&run.train(&RESUME));
            assert_as_if_nothing_had_happened(&run, &whole, 12, &seed);
            (run, runs) = (Run::new(), runs + 1);
        }
    }
    println!("{stops} stops, the slowest took {:.2} s, {runs} runs, no difference", slowest.as_secs_f64());
}
