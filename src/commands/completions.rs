//! `byol completions`: completions of the command line for a shell.

use std::io::{Write, stdout};

use anyhow::{Context, Result};

use crate::cli::{self, CompletionsArgs};

/// Runs the command.
pub fn run(args: &CompletionsArgs) -> Result<u8> {
    let mut script = Vec::new(); // generate() panics where it cannot write
    clap_complete::generate(args.shell, &mut cli::command(), "byol", &mut script);
    stdout().write_all(&script).context("cannot write to stdout")?;
    Ok(0)
}
