//! `byol pack`: copies a data set into webdataset shards.

use std::io::Write;

use anyhow::{Context, Result};

use crate::cli::PackArgs;
use crate::config::Config;
use crate::data::pack::{Limit, PackOptions, pack};
use crate::files;
use crate::logging::progress::Bar;

/// Runs the command; the value is the process's exit code.
pub fn run(args: &PackArgs) -> Result<u8> {
    files::end_clean_on_signals()?;
    let config = Config::load(&args.source.config, &args.source.set)?;
    let limit = args.max_side.map(Limit::MaxSide).or(args.short_side.map(Limit::ShortSide));
    let options = PackOptions { limit, quality: args.quality, shard_size: args.shard_size };
    let mut bar: Option<(String, Bar)> = None;
    let packed = pack(&config.data, options, &args.output, |set, done, total| {
        if bar.as_ref().is_none_or(|(shown, _)| shown != set) {
            bar = Some((set.to_string(), Bar::new(format!("packing {set}"), total)));
        }
        bar.iter().for_each(|(_, bar)| bar.set(done));
    })?;
    drop(bar);
    let skipped = match packed.skipped {
        0 => String::new(),
        count => format!(", {count} unreadable images skipped"),
    };
    // Held-out shards are found beside those for training, unless the config names another place.
    let elsewhere = if config.data.eval_path.is_some() { ", data.eval_path: null" } else { "" };
    let output = args.output.display();
    let line = format!(
        "{output}: {} images, {} shards, {:.1} MB, read back{skipped}; use it with data.format: webdataset, \
         data.path: {output}{elsewhere}",
        packed.images,
        packed.shards,
        packed.bytes as f64 / 1e6
    );
    writeln!(std::io::stdout(), "{line}").context("cannot write to stdout")?;
    Ok(0)
}
