//! What reaches a terminal is lines of text, whatever files are called and whatever fails; and what a signal ends
//! leaves nothing behind.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::run::PATIENCE;

fn byol(args: &[&OsStr]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_byol")).args(args).output().expect("byol runs")
}

/// The lines of stderr, all of them text and none of them anything that a terminal obeys.
fn lines(output: &Output) -> Vec<String> {
    let text = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    let lines: Vec<String> = text.lines().map(str::to_string).collect();
    assert!(lines.iter().all(|line| !line.contains(|c: char| c.is_control())), "{text:?}");
    lines
}

/// Names that a careless program would let move the cursor, color the screen or forge a line of the log.
const NAMES: [&[u8]; 5] = [
    b"a\nerror: forged.png",
    b"b\x1b[31mred.png",
    b"c\r\x07\x9b1m.png",
    b"d\xff\xfe.png",
    "e\u{202e}gnp.png".as_bytes(),
];

#[test]
fn names_of_files_cannot_command_the_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    let images = folder.path().join("im\x1b[2Jages");
    fs::create_dir(&images).expect("a folder");
    for name in NAMES {
        fs::write(images.join(OsStr::from_bytes(name)), "dust").expect("written");
    }
    let good = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data/images/rgb.png");
    fs::copy(good, images.join("good.png")).expect("copied");
    let config = folder.path().join("c.yaml");
    fs::write(&config, "data: {format: image_folder}\naugment: {size: 32}\n").expect("written");
    let preview = |extra: &str| {
        let mut set = OsStr::from_bytes(b"data.path=").to_os_string();
        set.push(&images);
        let output = folder.path().join("views.png");
        let flags = ["preview", "--force", "--config", "--output", "--set", "--set"].map(OsStr::new);
        byol(&[
            flags[0],
            flags[1],
            flags[2],
            config.as_ref(),
            flags[3],
            output.as_ref(),
            flags[4],
            &set,
            flags[5],
            OsStr::new(extra),
        ])
    };
    let output = preview("data.on_bad_image=skip");
    let said = lines(&output);
    assert!(output.status.success() && said.len() == NAMES.len(), "{said:?}");
    assert!(said.iter().all(|line| line.starts_with("warning: skipping bad image ")), "{said:?}");
    for shown in [
        "/a\\nerror: forged.png: ",
        "/b\\u{1b}[31mred.png: ",
        "/c\\r\\u{7}\u{fffd}1m.png: ",
        "/d\u{fffd}\u{fffd}.png: ",
        "/e\\u{202e}gnp.png: ",
    ] {
        assert!(said.iter().any(|line| line.contains(shown)), "{shown} is not in {said:?}");
    }
    let output = preview("data.on_bad_image=fail");
    let said = lines(&output);
    assert!(!output.status.success() && said.len() == 1 && said[0].starts_with("error: "), "{said:?}");
    assert!(said[0].contains("im\\u{1b}[2Jages"), "{said:?}");
    // In what is wrong with the arguments themselves.
    let output = preview("train.seed=\x1b[31mred\n");
    assert!(!output.status.success() && lines(&output).len() == 1);
}

/// libtorch's operators panic by way of tch: here where the address space has no room for the weights.
#[test]
fn a_panic_of_libtorch_is_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("c.yaml");
    let wide = "model: {projector_hidden: 65536, projection_dim: 65536, predictor_hidden: 65536}\ntrain: {device: cpu, batch_size: 16, threads: 1}\nmonitor: {knn_every: 0}\n";
    fs::write(&config, wide).expect("written");
    let command = format!(
        "ulimit -v 8000000; exec '{}' -q train --config '{}' --set output.dir='{}'",
        env!("CARGO_BIN_EXE_byol"),
        config.display(),
        folder.path().join("run").display()
    );
    let output = Command::new("bash").args(["-c", &command]).output().expect("bash runs");
    let said = lines(&output);
    assert_eq!((output.status.code(), said.len()), (Some(1), 1), "{said:?}");
    assert!(said[0].starts_with("error: ") && said[0].len() < 400, "{said:?}");
}

/// Ends a command by SIGINT after `delay`; whether it was ended, with 130.
fn interrupted(args: &[&str], delay: Duration) -> bool {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byol"));
    let mut child = command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("byol runs");
    std::thread::sleep(delay);
    Command::new("kill").args(["-INT", &child.id().to_string()]).stderr(Stdio::null()).status().expect("kill");
    let sent = Instant::now();
    let status = child.wait().expect("ends");
    assert!(sent.elapsed() < PATIENCE, "{args:?} goes on for {:?} after SIGINT", sent.elapsed());
    // Before `main` the system's own handling is in force; what is finished is finished.
    assert!(matches!(status.code(), Some(0 | 130)) || status.signal() == Some(2), "{status}");
    status.code() == Some(130)
}

#[test]
fn a_signal_ends_a_command_with_130_and_leaves_nothing() {
    let run = crate::support::TinyRun::train(&[]);
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (dir, config) = (run.dir().display().to_string(), run.config().display().to_string());
    let exported = path("encoder.onnx");
    let picture = path("views.png");
    let export = ["-q", "export-encoder", "--checkpoint", &dir, "--format", "onnx", "--output", &exported];
    let preview = ["-q", "preview", "--config", &config, "--output", &picture, "--images", "64", "--draws", "16"];
    for (args, output) in [(&export[..], &exported), (&preview[..], &picture)] {
        // The machine may be busy: moments are parts of the time that the whole command takes now.
        let started = Instant::now();
        assert!(byol(&args.iter().map(OsStr::new).collect::<Vec<_>>()).status.success(), "{args:?}");
        let time = started.elapsed();
        let mut ended = 0;
        for moment in 0..32 {
            let _ = fs::remove_file(output);
            ended += usize::from(interrupted(args, time * (moment % 5 + 1) / 5));
            let left: Vec<_> = fs::read_dir(folder.path()).expect("listed").map(|e| e.expect("entry").path()).collect();
            assert!(left.iter().all(|path| path == Path::new(output)), "{left:?}");
            if moment >= 4 && ended > 0 {
                break;
            }
        }
        assert!(ended > 0, "{args:?}");
        let _ = fs::remove_file(output);
    }
    let bench = ["-q", "bench", "loader", "--config", &config, "--seconds", "60"];
    assert!((1..20).any(|seconds| interrupted(&bench, Duration::from_millis(1500 * seconds))));
}
