//! Wrong configs, each with its message: tests/fixtures/config/bad.txt, and what no text file can hold. Every message
//! is one line and comes at once.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use byol::config::Config;
use byol::logging::one_line;

/// A config that takes this long to refuse is not refused.
const MAX_TIME: Duration = Duration::from_secs(60);

/// What is said of a file in `folder`, as a terminal shows it, with `folder` as `.`.
fn refused(folder: &Path, bytes: &[u8], overrides: &[String]) -> String {
    let path = folder.join("c.yaml");
    fs::write(&path, bytes).expect("written");
    let started = Instant::now();
    let error = Config::load(&path, overrides).map(|_| ()).map_err(|error| format!("{error:#}"));
    assert!(started.elapsed() < MAX_TIME, "{:?}", started.elapsed());
    let message = error.err().unwrap_or_else(|| "loads".to_string());
    one_line(&message.replace(&folder.display().to_string(), "."))
}

/// Lists of all that is accepted grow with every new key: `(...)` stands for one.
fn shortened(message: &str) -> String {
    let mut text = message.to_string();
    for start in ["(accepted: ", "one of its keys ("] {
        if let Some((before, after)) = message.split_once(start) {
            let rest = after.split_once(')').expect("closed").1;
            text = format!("{before}{start}...){rest}");
        }
    }
    text
}

#[test]
fn every_wrong_config_has_its_message() {
    let table = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config/bad.txt"));
    let folder = tempfile::tempdir().expect("a folder");
    let (mut yaml, mut overrides, mut cases, mut wrong) = (String::new(), Vec::new(), 0, Vec::new());
    for line in table.expect("the table").lines() {
        if let Some(expected) = line.strip_prefix("=> ") {
            let found = shortened(&refused(folder.path(), yaml.as_bytes(), &overrides));
            if found != expected {
                wrong.push(format!("{yaml}{overrides:?}\n   found {found}\nexpected {expected}"));
            }
            cases += 1;
            yaml.clear();
            overrides.clear();
        } else if let Some(text) = line.strip_prefix("--set ") {
            overrides.push(text.to_string());
        } else if !line.starts_with("## ") && (!line.is_empty() || !yaml.is_empty()) {
            yaml += &format!("{line}\n");
        }
    }
    assert!(wrong.is_empty(), "{} of {cases} differ:\n{}", wrong.len(), wrong.join("\n\n"));
    assert!(cases > 180, "{cases}");
}

#[test]
fn files_that_are_no_text_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let utf16: Vec<u8> = "train: {seed: 1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut later = vec![b' '; 5000];
    later.extend(b"# caf\xe9");
    for (bytes, expected) in [
        (&[0xff, 0xfe, 0][..], "config ./c.yaml: byte 0 is not UTF-8; is this a text file?"),
        (&[&[0xff, 0xfe][..], &utf16].concat(), "config ./c.yaml: byte 0 is not UTF-8; is this a text file?"),
        (&later, "config ./c.yaml: byte 5005 is not UTF-8; is this a text file?"),
        (b"train:\n  seed: 1\0\n", "./c.yaml:2: not valid YAML: control characters are not allowed"),
        (&[0; 4096], "./c.yaml:1: not valid YAML: control characters are not allowed"),
        ("\u{feff}train: {batch_size: 0}\n".as_bytes(), "./c.yaml:1: train.batch_size: found 0, expected 2 to 1048576"),
        (
            "# a\n\u{feff}train: {batch_size: 0}\n".as_bytes(),
            "./c.yaml:2: train.batch_size: found 0, expected 2 to 1048576",
        ),
        (
            "\u{feff}train:\n  seed: 1\n\u{feff}ema:\n  \u{feff}base_tau: 2\n".as_bytes(),
            "./c.yaml:4: ema.base_tau: found 2, expected 0 to 1",
        ),
        (b"train:\r\n  batch_size: 0\r\n", "./c.yaml:2: train.batch_size: found 0, expected 2 to 1048576"),
    ] {
        assert_eq!(refused(folder.path(), bytes, &[]), expected);
    }
    assert_eq!(refused(folder.path(), b"", &[]), "loads");
    assert_eq!(refused(folder.path(), b"# only\n\n  # comments\n", &[]), "loads");
}

/// Each would take gigabytes, minutes or the whole stack if it were expanded.
#[test]
fn bombs_are_refused_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let too_large = "config ./c.yaml: found more, expected at most 1048576 bytes; is this a config file?";
    assert_eq!(refused(folder.path(), &vec![b'#'; 100 << 20], &[]), too_large);
    // Ten to the ninth values in a key that takes a list of numbers; the same as a section of its own.
    let mut laughs = "a: &a [1,1,1,1,1,1,1,1,1,1]\n".to_string();
    for (letter, before) in ('b'..='i').zip('a'..) {
        laughs += &format!("{letter}: &{letter} [{}]\n", vec![format!("*{before}"); 10].join(","));
    }
    let unknown = shortened(&refused(folder.path(), laughs.as_bytes(), &[]));
    assert_eq!(unknown, "./c.yaml:1: unknown key a (accepted: ...)");
    let inside = laughs.lines().map(|line| line.split_once(": ").expect("a key").1.to_string()).collect::<Vec<_>>();
    let inside = format!("linear_eval: {{learning_rates: [{}]}}\n", inside.join(", "));
    let expected = "./c.yaml:1: linear_eval.learning_rates[0]: found a list, expected a number";
    assert_eq!(refused(folder.path(), inside.as_bytes(), &[]), expected);
    for (open, close) in [("[", "]"), ("{a: ", "}")] {
        let deep = format!("train: {}{}\n", open.repeat(100_000), close.repeat(100_000));
        let found = "config ./c.yaml: found 100000 brackets, expected at most 1000; is this a config file?";
        assert_eq!(refused(folder.path(), deep.as_bytes(), &[]), found);
        let text = format!("train.seed={}", &deep[7..deep.len() - 1]);
        let message = refused(folder.path(), b"", &[text]);
        assert!(message.ends_with("is not a YAML value: more than 1000 brackets"), "{}", message.len());
        let deep = format!("train: {}{}\n", open.repeat(1000), close.repeat(1000));
        let message = refused(folder.path(), deep.as_bytes(), &[]);
        assert!(message.starts_with("./c.yaml:1: ") && message.len() < 300, "{message}");
    }
    let keys: String = (0..60_000).map(|number| format!("key{number}: 1\n")).collect();
    assert_eq!(
        shortened(&refused(folder.path(), keys.as_bytes(), &[])),
        "./c.yaml:1: unknown key key0 (accepted: ...)"
    );
    let long = format!("train: {{device: {}}}\n", "x".repeat(1_000_000));
    let message = refused(folder.path(), long.as_bytes(), &[]);
    assert!(message.len() < 600 && message.starts_with("./c.yaml:1: train.device: found \"xxx"), "{}", message.len());
}
