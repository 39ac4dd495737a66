//! The encoder that every run ends with, for other software.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use crate::support::run::{Random, Run, ended, from_environment, send, succeeded, text};
use byol::checkpoint;
use byol::eval::{Encoder, EncoderOptions};

const ENCODER: &str = "encoder.safetensors";
const RESUME: [&str; 2] = ["--resume", "auto"];

fn fingerprint(path: &Path) -> String {
    let encoder = Encoder::open(path, &EncoderOptions::default()).expect("opened");
    encoder.fingerprint().expect("a sum")
}

/// The lines of Python at the end, and the file's path.
fn printed(output: &Output) -> (String, String) {
    let stdout = text(&output.stdout);
    let (_, rest) = stdout.split_once('\n').expect("the summary's line");
    let (path, lines) = rest.split_once(", the encoder for other software; in Python:\n").expect("what it is");
    (path.to_string(), lines.to_string())
}

#[test]
fn every_run_ends_with_its_encoder() {
    let run = Run::new();
    let output = run.train(&["--set", "train.max_steps=6", "--set", "monitor.knn_every=null"]);
    succeeded(&output);
    let path = run.dir().join(ENCODER);
    let (named, lines) = printed(&output);
    assert_eq!(named, path.display().to_string());
    assert!(lines.contains(&format!("load_state_dict(load_file(\"{named}\"), strict=False)")), "{lines}");
    assert_eq!(fingerprint(&path), fingerprint(&run.checkpoint(6)));
    // The same bytes as of the command.
    let again = run.folder.path().join("again.safetensors");
    let export = |to: &Path| {
        let [from, to] = [&run.dir(), to].map(|path| path.display().to_string());
        let fixed = ["export-encoder", "--checkpoint", &from, "--format", "safetensors", "--output", &to, "--force"];
        let done = crate::support::run::byol(&fixed).output().expect("byol runs");
        succeeded(&done);
    };
    export(&again);
    assert!(fs::read(&path).expect("read") == fs::read(&again).expect("read"));
    assert!(!run.checkpoint(6).join(ENCODER).exists());

    // Continued, it ends with another one; on request every checkpoint has its own, with a checksum.
    let keys = ["--set", "output.checkpoint_encoders=true", "--set", "monitor.knn_every=null"];
    succeeded(&run.train(&[&keys[..], &RESUME].concat()));
    export(&again);
    let last = fs::read(&path).expect("read");
    assert!(last == fs::read(&again).expect("read"));
    assert!(last == fs::read(run.checkpoint(12).join(ENCODER)).expect("read"));
    assert_eq!(fingerprint(&run.checkpoint(8).join(ENCODER)), fingerprint(&run.checkpoint(8)));
    let sums = fs::read_to_string(run.checkpoint(8).join("SHA256SUMS")).expect("sums");
    let own = checkpoint::sha256(&fs::read(run.checkpoint(8).join(ENCODER)).expect("read"));
    assert!(sums.contains(&format!("{own}  {ENCODER}\n")), "{sums}");
}

#[test]
fn a_run_that_a_signal_ends_has_its_encoder_too() {
    let run = Run::new();
    let mut child = run.spawn_logged(&["--set", "schedule.epochs=10000", "--set", "output.keep_checkpoints=1000"]);
    run.wait_for(&run.checkpoint(8));
    send("-TERM", &child);
    assert_eq!(ended(&mut child).code(), Some(143));
    assert_eq!(fingerprint(&run.dir().join(ENCODER)), fingerprint(&run.dir()));
}

/// A disk that takes no such file: the error says that the checkpoint is there.
#[test]
fn an_encoder_that_cannot_be_written_is_an_error() {
    let run = Run::new();
    fs::create_dir_all(run.dir().join(ENCODER).join("in the way")).expect("made");
    let output = run.train(&["--set", "train.max_steps=2"]);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    let error = message.lines().last().expect("a line");
    assert!(error.starts_with("error: ") && error.contains("step-00000002 was written, but not all of"), "{error}");
    assert!(error.contains(ENCODER), "{error}");
    assert_eq!(run.summary()["ending"], "failed");
    fs::remove_dir_all(run.dir().join(ENCODER)).expect("removed");
    succeeded(&run.train(&[&RESUME[..], &["--set", "train.max_steps=2"]].concat()));
    assert_eq!(fingerprint(&run.dir().join(ENCODER)), fingerprint(&run.checkpoint(2)));
}

/// Killed while the run ends, there is no file, or all of it; resumed, the run ends as it would have.
#[test]
fn killed_in_its_last_second_a_run_leaves_no_half_file() {
    let kills = from_environment("BYOL_SOAK_KILLS", 5);
    let mut random = Random::new();
    let seed = format!("{random:?}");
    // A file of 11 MB takes long enough to be met.
    let settings = ["--set", "model.width=0.5", "--set", "train.max_steps=1", "--set", "monitor.knn_every=null"];
    let run = Run::new();
    succeeded(&run.train(&settings));
    let path = run.dir().join(ENCODER);
    let whole = fs::read(&path).expect("read");
    let partial = || {
        let mut entries = fs::read_dir(run.dir()).expect("listed").flatten();
        entries.any(|entry| entry.file_name().to_string_lossy().starts_with(".partial-encoder"))
    };
    let (mut in_a_write, resumed) = (0, [&settings[..], &RESUME].concat());
    for _ in 0..kills {
        fs::remove_file(&path).expect("removed");
        fs::remove_file(run.dir().join("summary.json")).expect("removed");
        let mut child = run.spawn_logged(&resumed);
        while !partial() && !path.exists() && child.try_wait().expect("waited").is_none() {}
        std::thread::sleep(Duration::from_secs_f64(0.02 * random.next()));
        let _ = child.kill(); // it may have ended
        child.wait().expect("ended");
        in_a_write += u64::from(partial());
        assert!(!path.exists() || fs::read(&path).expect("read") == whole, "{seed}: half a file");
        succeeded(&run.train(&resumed));
        assert!(fs::read(&path).expect("read") == whole, "{seed}: another file");
        run.assert_tidy(1);
    }
    println!("{kills} kills, {in_a_write} of them in a write");
    assert!(in_a_write > 0, "{seed}: no kill met a write");
}
