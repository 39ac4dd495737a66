//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// BYOL pre-training of vision encoders on your own unlabelled images.
#[derive(Debug, Parser)]
#[command(name = "byol", version, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Say more on stderr.
    #[arg(long, short, global = true, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Say only warnings and errors on stderr.
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pre-train an encoder; the run folder gets checkpoints, metrics and a summary.
    Train(TrainArgs),
    /// Draw what the augmentations make of your images, as a picture to look at before training.
    Preview(PreviewArgs),
    /// Measure how fast a part of the program is here; one line of JSON on stdout.
    #[command(subcommand)]
    Bench(BenchCommand),
}

/// What `byol bench` can measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// The loader alone: decoded, augmented pairs of views a second, and where the time goes.
    Loader(BenchLoaderArgs),
}

/// Arguments of `byol bench loader`.
#[derive(Debug, Args)]
pub struct BenchLoaderArgs {
    /// Config file, such as configs/cifar10_resnet18.yaml.
    #[arg(long)]
    pub config: PathBuf,
    /// Override a key of the config; may be given again. The value is YAML.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
    /// About how long to measure.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    pub seconds: f64,
    /// Threads that decode and augment, 1 to 1024 [default: data.workers, or one per core].
    #[arg(long, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub workers: Option<usize>,
}

fn seconds(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value| (0.1..=86400.0).contains(value));
    value.ok_or_else(|| "expected 0.1 to 86400".to_string())
}

/// Arguments of `byol train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Config file, such as configs/quickstart.yaml.
    #[arg(long)]
    pub config: PathBuf,
    /// Override a key of the config; may be given again. The value is YAML.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
    /// `auto` goes on from the newest good checkpoint of the run folder (and starts where there is none);
    /// a folder names the checkpoint.
    #[arg(long, value_name = "auto|FOLDER")]
    pub resume: Option<String>,
    /// Resume although keys that change the result differ from the checkpoint's.
    #[arg(long, requires = "resume")]
    pub allow_config_change: bool,
}

/// Arguments of `byol preview`.
#[derive(Debug, Args)]
pub struct PreviewArgs {
    /// Config file, such as configs/cifar10_cpu.yaml.
    #[arg(long)]
    pub config: PathBuf,
    /// Override a key of the config; may be given again. The value is YAML.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
    /// PNG file to write.
    #[arg(long, value_name = "FILE.png")]
    pub output: PathBuf,
    /// Rows of the picture: images spread over the training set, the same ones every time.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub images: u32,
    /// Draws of each view. They are the run's own: draw n shows what `byol train` makes of the image in its epoch n,
    /// with the same config (change train.seed for others).
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub draws: u32,
    /// Replace the output file if it exists.
    #[arg(long)]
    pub force: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
