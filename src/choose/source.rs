//! Where the config of `byol train` comes from: a file, or the choice made for a set of images.

use std::fs;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Chosen, Request, choose, default_output};
use crate::cli::TrainArgs;
use crate::config::{Comments, Config, recipes};
use crate::distributed::{self, RankInfo};
use crate::files;

/// A config file and its overrides.
pub struct Source {
    /// The file, or the name of a recipe.
    pub config: PathBuf,
    /// Overrides of keys.
    pub set: Vec<String>,
}

impl Source {
    /// The config that `--config` names, or the one that is chosen for PATH; `None` with `--dry-run`.
    pub fn of(args: &TrainArgs) -> Result<Option<Self>> {
        let mut set = args.set.clone();
        set.extend(args.epochs.map(|epochs| format!("schedule.epochs={epochs}")));
        set.extend(args.hours.map(|hours| format!("schedule.hours={hours}")));
        if let Some(config) = &args.config {
            set.extend(args.output.iter().map(|dir| format!("output.dir={}", quoted(dir))));
            return Ok(Some(Self { config: config.clone(), set }));
        }
        let path = args.path.as_deref().context("found neither --config nor a path to images, expected one")?;
        let output = args.output.clone().unwrap_or_else(|| default_output(path));
        let output = files::expanded(&output)?;
        let config = output.join("config.yaml");
        // A run that is resumed has its config, and the processes of --nproc take that of their launcher.
        if (args.resume.is_some() || distributed::launched()) && config.exists() {
            set.extend(args.size.map(|size| format!("augment.size={size}")));
            return Ok(Some(Self { config, set }));
        }
        if RankInfo::from_env()?.is_some() {
            bail!(
                "PATH: another launcher started this process; choose first, with --dry-run, then train with --config"
            );
        }
        let chosen = Self::choose(args, path, output)?;
        if args.dry_run {
            for line in &chosen.table {
                writeln!(stdout(), "{line}").context("cannot write to stdout")?;
            }
            log::info!("wrote {0}; train with: byol train --config {0}", chosen.file.display());
            return Ok(None);
        }
        chosen.table.iter().for_each(|line| log::info!("{line}"));
        log::info!("wrote {}", chosen.file.display());
        Ok(Some(Self { config: chosen.file, set: Vec::new() }))
    }

    /// The YAML for the folder of the run: where that has the file itself, it keeps its comments.
    pub fn yaml(&self, config: &Config, folder: &Path) -> Result<String> {
        let own = folder.join("config.yaml");
        let same =
            |own: &PathBuf| own.canonicalize().ok().zip(self.config.canonicalize().ok()).is_some_and(|(a, b)| a == b);
        match Some(own).filter(same).map(fs::read_to_string) {
            Some(Ok(text)) => config.to_commented_yaml(&Comments::of(&text)),
            _ => config.to_yaml(),
        }
    }

    /// Where a key was set, for errors that depend on the data.
    pub fn place(&self, key: &str) -> String {
        Config::place(&self.config, &self.set, key)
    }

    fn choose(args: &TrainArgs, path: &Path, output: PathBuf) -> Result<Chosen> {
        let preset = args.preset.as_deref().map(recipes::get).transpose().context("--preset")?;
        let (path, size, set) = (&files::expanded(path)?, args.size, &args.set);
        choose(&Request { path, output, epochs: args.epochs, hours: args.hours, preset, size, set })
    }
}

/// A path as a YAML value.
fn quoted(path: &Path) -> String {
    serde_json::to_string(path).unwrap_or_else(|_| path.display().to_string())
}
