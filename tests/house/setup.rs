//! `scripts/libtorch.sh`, of which only a fresh machine runs the rest.

use std::process::Command;
use std::time::{Duration, Instant};

/// Runs `line` after the script was read, its output not a terminal.
fn sourced(line: &str) -> (Option<i32>, String) {
    let script = concat!("root=", env!("CARGO_MANIFEST_DIR"), "; set -euo pipefail; . $root/scripts/libtorch.sh; ");
    let output = Command::new("bash").args(["-c", &format!("{script}{line}")]).output().expect("bash runs");
    (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
}

#[test]
fn a_long_installation_says_every_minute_that_it_still_runs() {
    let (status, said) = sourced("minute=0.2; patiently sleep 1");
    assert_eq!(status, Some(0), "{said}");
    assert!(said.starts_with("byol: still at work after 1 min\nbyol: still at work after 2 min\n"), "{said}");
    assert_eq!(sourced("patiently sh -c 'echo wrong >&2; exit 7'"), (Some(7), "wrong\n".to_string()));
}

/// Whoever reads what a command prints waits until nobody can write to it any more.
#[test]
fn nothing_of_it_outlives_the_command() {
    let start = Instant::now();
    assert_eq!(sourced("minute=3600; patiently true").0, Some(0));
    assert!(start.elapsed() < Duration::from_secs(600));
}
