//! `byol data`: what is in a data set.

use std::io::{Write, stdout};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::cli::DataArgs;
use crate::config::Config;
use crate::data::formats::detect;
use crate::data::values::Channels;
use crate::data::{self, Dataset, Format};
use crate::eval::Interrupted;
use crate::files;
use crate::inspect::{self, Report};
use crate::run::image_list;
use crate::signals::Signals;

/// Runs the command.
pub fn run(args: &DataArgs) -> Result<u8> {
    let mut config = config(args)?;
    let signals = Signals::default();
    signals.listen()?;
    if args.clean_list.is_some() && config.data.format != Format::ImageFolder {
        bail!(
            "--clean-list: found format {}, expected image_folder: others have no files to list",
            json!(config.data.format)
        );
    }
    let mut set = data::open_train(&config.data).context("data.path")?;
    // What a run would find; mixed channels are an error there, and are counted here.
    match data::measure::measure(&*set, &config.data, true) {
        Ok((channels, range)) => (config.data.channels, config.data.value_range) = (Channels::Count(channels), range),
        Err(error) => log::warn!("{error:#}"),
    }
    set = data::converted(set, &config.data);
    let stop = || signals.exit_code().map_or(Ok(()), |code| Err(Interrupted(code).into()));
    let report = match inspect::inspect(&set, &config.data, config.augment.size, &stop) {
        Err(error) if error.is::<Interrupted>() => return Ok(error.downcast::<Interrupted>()?.0 as u8),
        result => result?,
    };
    let text = match args.json {
        true => serde_json::to_string(&report.json()?)? + "\n",
        false => report.lines().iter().fold(String::new(), |text, line| text + line + "\n"),
    };
    stdout().write_all(text.as_bytes()).context("cannot write to stdout")?;
    if let Some(file) = &args.clean_list {
        write_list(file, &*set, &report)?;
    }
    Ok(0)
}

fn config(args: &DataArgs) -> Result<Config> {
    let Some(path) = &args.path else {
        return Config::load_over(Config::default(), args.config.as_deref(), &args.set);
    };
    let path = files::expanded(path)?;
    let (format, _) = detect::format(&path).context("PATH")?;
    let mut given = vec![format!("data.format={}", json!(format)), format!("data.path={}", json!(path))];
    given.extend(args.set.iter().cloned());
    Config::load_over(Config::default(), None, &given)
}

/// Writes a list of the images without bad ones and without all duplicates but the first.
fn write_list(file: &Path, set: &dyn Dataset, report: &Report) -> Result<()> {
    let (names, here) = (set.class_names(), std::env::current_dir().context("the current folder")?);
    let line = |at: usize| {
        let class = set.label(at).filter(|label| *label >= 0).and_then(|label| names.get(label as usize).cloned());
        (here.join(set.describe(at)).display().to_string(), class)
    };
    let kept = (0..set.len()).filter(|at| !report.excluded.contains(&(*at as u32)));
    let kept = image_list::write(file, kept.map(line))?;
    log::info!("wrote {kept} of {} images to {}; train with: byol train {}", set.len(), file.display(), file.display());
    Ok(())
}
