//! Arguments of `byol train`, and of the commands around configs.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand};
use clap_complete::Shell;

use super::{ConfigArgs, RanksArgs};

/// Arguments of `byol train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Images to train on, for which a config is chosen: a folder of images (at any depth; subfolders are classes), a
    /// text file of paths, parquet or tar shards, or CIFAR's or STL-10's binary version.
    #[arg(value_name = "PATH", conflicts_with = "config")]
    pub path: Option<PathBuf>,
    /// Config file, or the name of a built-in recipe (byol configs), such as quickstart.
    #[arg(long, value_name = "FILE|NAME", required_unless_present = "path")]
    pub config: Option<PathBuf>,
    /// Override a key of the config; can be repeated. The value is YAML.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
    /// The run's folder (output.dir) [default with PATH: runs/ and the name of PATH].
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Passes over the training images (schedule.epochs).
    #[arg(long, value_name = "N", conflicts_with = "hours")]
    pub epochs: Option<u64>,
    /// Train for this many hours (schedule.hours): the number of epochs is set once the speed is known.
    #[arg(long, value_name = "H")]
    pub hours: Option<f64>,
    /// With PATH: a built-in recipe (byol configs) to take model, optimizer and length from.
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub preset: Option<String>,
    /// With PATH: side of a view in pixels (augment.size).
    #[arg(long, value_name = "PX", conflicts_with = "config")]
    pub size: Option<usize>,
    /// With PATH: choose, write config.yaml, and stop before training.
    #[arg(long, conflicts_with = "config")]
    pub dry_run: bool,
    /// Resume from a checkpoint: `auto` for the latest valid one in the run's folder (a new run if there is none), or
    /// the folder of a run or of a checkpoint.
    #[arg(long, value_name = "auto|FOLDER")]
    pub resume: Option<String>,
    /// How many processes share each batch.
    #[command(flatten)]
    pub ranks: RanksArgs,
    /// Resume even if keys that change the result differ from the checkpoint's config.
    #[arg(long, requires = "resume")]
    pub allow_config_change: bool,
}

/// Arguments of `byol check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Which config.
    #[command(flatten)]
    pub source: ConfigArgs,
    /// Check a run that will be resumed: its folder may hold checkpoints.
    #[arg(long)]
    pub resume: bool,
    /// Steps to measure on real batches, after a warm-up.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub steps: u32,
}

/// Arguments of `byol data`.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// The images, as byol train takes them; the format is detected.
    #[arg(value_name = "PATH", conflicts_with = "config")]
    pub path: Option<PathBuf>,
    /// Config file, or the name of a built-in recipe, whose images are described.
    #[arg(long, value_name = "FILE|NAME", required_unless_present = "path")]
    pub config: Option<PathBuf>,
    /// Override a key of the config; can be repeated. The value is YAML.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
    /// Print one JSON object with everything.
    #[arg(long)]
    pub json: bool,
    /// Write a list of the images without bad ones and without duplicates, which data.path and byol train take.
    #[arg(long, value_name = "FILE")]
    pub clean_list: Option<PathBuf>,
}

/// Arguments of `byol pack`.
#[derive(Debug, Args)]
pub struct PackArgs {
    /// Which config; only its section data is used.
    #[command(flatten)]
    pub source: ConfigArgs,
    /// Folder for the shards: train-000000.tar and so on, val-000000.tar for held-out images. It is data.path of format
    /// webdataset then. The same command again continues a packing that was interrupted.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Shrink images whose longer side has more pixels; all others are copied byte for byte, and so are those of more than
    /// 8 bits or other channels than gray or RGB.
    #[arg(long, value_name = "N", conflicts_with = "short_side", value_parser = side())]
    pub max_side: Option<usize>,
    /// The same for the shorter side.
    #[arg(long, value_name = "N", value_parser = side())]
    pub short_side: Option<usize>,
    /// Quality of shrunk JPEGs, 1 to 100; other formats become PNG.
    #[arg(long, value_name = "Q", default_value_t = 92, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub quality: u8,
    /// A shard ends with the image that reaches this size: bytes, or a number with MB, GB, MiB or GiB.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30, value_parser = bytes)]
    pub shard_size: u64,
}

/// A number of bytes, at least 1.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let factor = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "kb" => Some(1000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        "kib" => Some(1 << 10),
        "mib" => Some(1 << 20),
        "gib" => Some(1 << 30),
        _ => None,
    };
    let number =
        digits.trim_end().parse().ok().zip(factor).and_then(|(number, factor): (u64, u64)| number.checked_mul(factor));
    number.filter(|number| *number > 0).ok_or_else(|| "expected a number of bytes, such as 500MB or 1GiB".to_string())
}

/// Pixels that a side of a JPEG can have.
fn side() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(8..=65500)
}

/// What `byol configs` can do.
#[derive(Debug, Subcommand)]
pub enum ConfigsCommand {
    /// Print a recipe.
    Show {
        /// Its name.
        name: String,
    },
    /// Copy a recipe to a file, to change it.
    Copy {
        /// Its name.
        name: String,
        /// File to write.
        file: PathBuf,
        /// Overwrite the file if it exists.
        #[arg(long)]
        force: bool,
    },
}

/// What `byol config` can do.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the JSON Schema of config files, with defaults, ranges and the documentation of every key, for editors.
    Schema,
    /// Print what a key, or every key of a section, means and accepts.
    Explain {
        /// The key, such as train.batch_size, or a section.
        #[arg(value_name = "KEY")]
        key: String,
    },
    /// Print the reference of all keys in Markdown, as it stands in the guide.
    Reference,
}

/// Arguments of `byol completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    pub shell: Shell,
}

/// Arguments of `byol man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Folder for the pages, such as ~/.local/share/man/man1; created if it does not exist.
    pub dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [("5", 5), ("7 B", 7), ("500MB", 500_000_000), ("2kb", 2000), ("1GiB", 1 << 30)] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "0", "-1", "1.5GB", "GB", "9 parsecs", "99999999999GiB"] {
            assert_eq!(bytes(text), Err("expected a number of bytes, such as 500MB or 1GiB".into()), "{text}");
        }
    }
}
