//! `byol configs`: the recipes that are part of the program.

use std::io::{Write, stdout};

use anyhow::{Context, Result, bail};

use crate::cli::ConfigsCommand;
use crate::config::recipes::{self, ALL, Recipe};
use crate::files;

/// Runs the command.
pub fn run(command: Option<&ConfigsCommand>) -> Result<u8> {
    match command {
        None => {
            let widest = ALL.iter().map(|recipe| recipe.name.len()).max().unwrap_or(0);
            let line = |recipe: &Recipe| format!("{:<widest$}  {}\n", recipe.name, recipe.summary());
            print(&ALL.iter().map(line).collect::<String>())?;
        }
        Some(ConfigsCommand::Show { name }) => print(recipes::get(name)?.portable())?,
        Some(ConfigsCommand::Copy { name, file, force }) => {
            let recipe = recipes::get(name)?;
            if file.exists() && !force {
                bail!("{} already exists; choose another name, or add --force", file.display());
            }
            files::write_atomic(file, recipe.portable().as_bytes())?;
            log::info!("wrote {}; train with: byol train --config {}", file.display(), file.display());
        }
    }
    Ok(0)
}

fn print(text: &str) -> Result<()> {
    stdout().write_all(text.as_bytes()).context("cannot write to stdout")
}
