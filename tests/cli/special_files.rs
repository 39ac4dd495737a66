//! What is no regular file (named pipes that nobody feeds, sockets, devices, folders) given as any input: refused in
//! one line, at once. A config may come through a pipe.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;

use byol::config::Config;
use byol::data::{DataConfig, Format, open_eval, open_train};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::run::PATIENCE;

/// The error of `work`, with `folder` as `.`; fails instead of hanging.
fn refused<T>(folder: &Path, work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> String {
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(work().map(drop).map_err(|error| format!("{error:#}"))).ok());
    let message =
        receiver.recv_timeout(PATIENCE).expect("an answer, not a wait for the pipe's other end").expect_err("an error");
    let message = message.replace(&folder.display().to_string(), ".");
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

/// A folder with `pipe`, `socket` and `folder`.
fn zoo() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    make_pipe(&folder.path().join("pipe"));
    drop(UnixListener::bind(folder.path().join("socket")).expect("a socket"));
    fs::create_dir(folder.path().join("folder")).expect("a folder");
    folder
}

fn make_pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("a named pipe");
}

#[test]
fn a_data_set_that_is_no_file_is_refused_at_once() {
    let folder = zoo();
    for (name, found) in [
        ("pipe", "found a named pipe, expected a file"),
        ("socket", "found a socket or a device without a driver, expected a file"),
        ("/dev/zero", "found a device, expected a file"),
    ] {
        let path = folder.path().join(name);
        let shown = if name.starts_with('/') { name.to_string() } else { format!("./{name}") };
        for (format, expected) in [
            (Format::Parquet, format!("cannot use {shown}: {found}")),
            (Format::Webdataset, format!("cannot use 1 of 1 shards: {shown}: {found}")),
            (Format::ImageFolder, format!("cannot read {shown}: {found}")),
            (Format::Cifar10, format!("cannot use {shown}: {found}")),
            (Format::Cifar100, format!("cannot use {shown}: {found}")),
            (
                Format::Stl10,
                format!(
                    "found no train_X.bin in {shown} or its folder stl10_binary, expected the unpacked stl10_binary.tar.gz"
                ),
            ),
        ] {
            let config = DataConfig { format, path: Some(path.clone().into()), ..Default::default() };
            assert_eq!(refused(folder.path(), move || open_train(&config)), expected, "{format:?}");
            if matches!(format, Format::Parquet | Format::Webdataset | Format::ImageFolder) {
                let training = Some(folder.path().join("folder").into());
                let config =
                    DataConfig { format, path: training, eval_path: Some(path.clone().into()), ..Default::default() };
                assert_eq!(refused(folder.path(), move || open_eval(&config)), expected, "{format:?}");
            }
        }
    }
}

/// The same inside the folders that hold a set, and beside a shard.
#[test]
fn parts_of_a_set_that_are_no_files_are_refused_at_once() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data");
    let folder = tempfile::tempdir().expect("a folder");
    for (format, name, expected) in [
        (
            Format::Cifar10,
            "data_batch_1.bin",
            "found neither cifar-10-binary.tar.gz nor data_batch_1.bin in ., expected one of them",
        ),
        (Format::Parquet, "train.parquet", "cannot use ./train.parquet: found a named pipe, expected a file"),
        (Format::Webdataset, "a.tar", "cannot use 1 of 1 shards: ./a.tar: found a named pipe, expected a file"),
    ] {
        let path = folder.path().join(name);
        make_pipe(&path);
        let config = DataConfig { format, path: Some(folder.path().into()), ..Default::default() };
        assert_eq!(refused(folder.path(), move || open_train(&config)), expected);
        fs::remove_file(path).expect("removed");
    }
    // A pipe where the index of a shard is kept: as good as none.
    fs::copy(fixtures.join("webdataset/train-000000.tar"), folder.path().join("a.tar")).expect("copied");
    make_pipe(&folder.path().join("a.tar.byol-index"));
    let config = DataConfig { format: Format::Webdataset, path: Some(folder.path().into()), ..Default::default() };
    assert_eq!(open_train(&config).expect("opens").len(), 3);
    // A pipe among the images of a folder is one bad image.
    let images = folder.path().join("images");
    fs::create_dir(&images).expect("a folder");
    make_pipe(&images.join("a.png"));
    let config = DataConfig { format: Format::ImageFolder, path: Some(images.into()), ..Default::default() };
    let load = move || open_train(&config)?.load(0, &mut byol::pixels::Pixels::default());
    assert_eq!(refused(folder.path(), load), "found a named pipe, expected a file");
}

#[test]
fn a_config_that_is_no_file_is_refused_at_once() {
    let folder = zoo();
    for (name, expected) in [
        ("pipe", "config ./pipe: found a pipe without a writer, expected a file"),
        ("socket", "config ./socket: found a socket or a device without a driver, expected a file"),
        ("folder", "config ./folder: found a folder, expected a file"),
        ("none", "config ./none: no such file"),
        ("/dev/zero", "config /dev/zero: found a device, expected a file"),
        ("/dev/null", "config /dev/null: found a device, expected a file"),
    ] {
        let path = folder.path().join(name);
        assert_eq!(refused(folder.path(), move || Config::load(&path, &[])), expected);
    }
}

/// The launcher of `--nproc` reads the pipe; the processes that it starts get what it has read.
#[test]
fn several_processes_share_a_config_from_a_pipe() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = crate::support::TinyRun::CONFIG;
    fs::write(folder.path().join("c.yaml"), config).expect("written");
    let train = "\"$1\" train --nproc 2 --set train.max_steps=1";
    for (name, shell) in [
        ("substituted", format!("{train} --set output.dir=substituted --config <(cat c.yaml)")),
        ("piped", format!("cat c.yaml | {train} --set output.dir=piped --config /dev/stdin")),
        ("redirected", format!("{train} --set output.dir=redirected --config /dev/stdin < c.yaml")),
    ] {
        let mut command = Command::new("bash");
        command.args(["-c", &shell, "bash", env!("CARGO_BIN_EXE_byol")]).current_dir(folder.path());
        let output = command.stdin(Stdio::null()).output().expect("bash runs");
        assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
        let manifest = fs::read(folder.path().join(name).join("manifest.json")).expect("a manifest");
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
        assert_eq!((&manifest["processes"], &manifest["config"]["train"]["seed"]), (&2.into(), &7.into()), "{shell}");
    }
}

/// `--config <(command)` and `--config /dev/stdin`; and the place of what is wrong with the data does not need them
/// again.
#[test]
fn a_config_may_come_through_a_pipe() {
    let missing = "data: {format: parquet, path: missing.parquet}\n";
    let command = |shell: &str| {
        let mut command = Command::new("bash");
        command.args(["-c", shell, "bash", env!("CARGO_BIN_EXE_byol"), missing]).stdin(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().expect("bash runs");
        child.stdin.take().expect("piped").write_all(missing.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("ends");
        String::from_utf8(output.stderr).expect("text")
    };
    for shell in [
        r#""$1" preview --output /dev/shm/no.png --config <(printf %s "$2")"#,
        r#""$1" preview --output /dev/shm/no.png --config <(sleep 0.3; printf %s "$2"; sleep 0.3; echo)"#,
        r#""$1" preview --output /dev/shm/no.png --config /dev/stdin"#,
    ] {
        let said = command(shell);
        assert!(said.starts_with("error: /dev/") && said.lines().count() == 1, "{shell}: {said}");
        assert!(said.contains(": data.path: no such file or folder: missing.parquet"), "{shell}: {said}");
    }
    let said = command(r#"yes | "$1" preview --output /dev/shm/no.png --config /dev/stdin"#);
    let expected = "error: config /dev/stdin: found more, expected at most 1048576 bytes; is this a config file?\n";
    assert_eq!(said, expected);
}
