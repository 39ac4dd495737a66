//! `byol config`: the schema of config files, and what a key means.

use std::io::{Write, stdout};

use anyhow::{Context, Result};

use crate::cli::ConfigCommand;
use crate::config::{explain, schema};

/// Runs the command.
pub fn run(command: &ConfigCommand) -> Result<u8> {
    let text = match command {
        ConfigCommand::Schema => serde_json::to_string_pretty(&schema::schema())?,
        ConfigCommand::Explain { key } => explain::explain(key)?,
        ConfigCommand::Reference => explain::reference().trim_end().to_string(),
    };
    writeln!(stdout(), "{text}").context("cannot write to stdout")?;
    Ok(0)
}
