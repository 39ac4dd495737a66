//! `byol man`: man pages of all commands.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap_mangen::Man;

use crate::cli::{self, ManArgs};
use crate::files;

/// Runs the command.
pub fn run(args: &ManArgs) -> Result<u8> {
    let dir = files::expanded(&args.dir)?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut command = cli::command();
    command.build();
    let pages = write(&dir, &command, "byol")?;
    log::info!("wrote {pages} pages to {}; read one with: man {}/byol-train.1", dir.display(), dir.display());
    Ok(0)
}

/// The page of a command, and those of its subcommands; the value is their number.
fn write(dir: &Path, command: &clap::Command, name: &str) -> Result<usize> {
    let mut page = Vec::new();
    Man::new(command.clone()).title(name.to_uppercase()).render(&mut page).context("a man page")?;
    files::write_atomic(&dir.join(format!("{name}.1")), &page)?;
    let subcommands = command.get_subcommands().filter(|sub| sub.get_name() != "help");
    subcommands.map(|sub| write(dir, sub, &format!("{name}-{}", sub.get_name()))).try_fold(1, |sum, n| Ok(sum + n?))
}
