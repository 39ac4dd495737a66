//! The command line.

use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::eval::Branch;
use crate::export::{Format, ImageSize};

pub mod examples;
mod tools;

pub use tools::{CheckArgs, CompletionsArgs, ConfigCommand, ConfigsCommand, DataArgs, ManArgs, PackArgs, TrainArgs};

/// BYOL pre-training of vision encoders on your own unlabeled images.
#[derive(Debug, Parser)]
#[command(name = "byol", version, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// More detail on stderr.
    #[arg(long, short, global = true, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Only warnings and errors on stderr.
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// The command line, with examples at the end of every command's help.
pub fn command() -> clap::Command {
    examples::add(Cli::command())
}

/// The arguments of this process; wrong ones end it with a message.
pub fn parse() -> Cli {
    Cli::from_arg_matches(&command().get_matches()).unwrap_or_else(|error| error.exit())
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pre-train an encoder; the run folder gets checkpoints, metrics and a summary.
    Train(TrainArgs),
    /// Check a config before a long run: everything that train would refuse, memory, disk, and real steps for the time
    /// to the end. The exit code is 0 if the run can start.
    Check(CheckArgs),
    /// Describe a data set: sizes, labels, bad files, duplicates, mean and standard deviation.
    Data(DataArgs),
    /// Measure the speed of a part of the program on this machine; one line of JSON on stdout.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Linear evaluation of an encoder: top-1, top-5 and per-class accuracy; or fine-tuning on a fraction of the
    /// labels.
    LinearEval(LinearEvalArgs),
    /// Nearest-neighbor accuracy of an encoder.
    KnnEval(KnnEvalArgs),
    /// Find the images most similar to an image, by an encoder's features.
    Neighbors(NeighborsArgs),
    /// Find near-identical images: resized, recompressed or mirrored copies.
    Duplicates(DuplicatesArgs),
    /// Write one or several runs as one HTML page: curves, settings, views, a map of the images, neighbors.
    Report(ReportArgs),
    /// Write an encoder's features of a data set, with the images' names and labels, for pandas, numpy, PyTorch and the
    /// like.
    ExtractFeatures(ExtractFeaturesArgs),
    /// Export a trained encoder for other software; the file is read back and its outputs are compared.
    ExportEncoder(ExportArgs),
    /// Draw augmented views of your images into a PNG, to check the augmentations before training.
    Preview(PreviewArgs),
    /// Copy any data set into webdataset shards, large photos shrunk on request; can be resumed.
    Pack(PackArgs),
    /// List the built-in recipes, show one or copy it to a file; --config NAME takes one.
    Configs {
        /// What to do; without it the recipes are listed.
        #[command(subcommand)]
        command: Option<ConfigsCommand>,
    },
    /// Describe the keys of a config file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print completions of this command line for a shell.
    Completions(CompletionsArgs),
    /// Write man pages of all commands into a folder.
    Man(ManArgs),
}

impl Command {
    /// Whether several processes can share the work.
    pub fn shares_work(&self) -> bool {
        match self {
            Self::Train(_) | Self::Bench(BenchCommand::Step(_)) => true,
            Self::LinearEval(_) | Self::KnnEval(_) | Self::ExtractFeatures(_) => true,
            Self::Neighbors(_) | Self::Duplicates(_) => true,
            Self::Bench(BenchCommand::Loader(_)) | Self::ExportEncoder(_) | Self::Preview(_) | Self::Report(_) => false,
            Self::Check(_)
            | Self::Data(_)
            | Self::Pack(_)
            | Self::Configs { .. }
            | Self::Config(_)
            | Self::Completions(_)
            | Self::Man(_) => false,
        }
    }
}

/// A config file and its overrides.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Config file, or the name of a built-in recipe (byol configs), such as quickstart.
    #[arg(long, value_name = "FILE|NAME")]
    pub config: PathBuf,
    /// Override a key of the config; can be repeated. The value is YAML.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
}

/// Processes that share the work.
#[derive(Debug, Args)]
pub struct RanksArgs {
    /// Start N processes on this machine that share the work (for several machines use torchrun, srun or mpirun).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub nproc: Option<u32>,
}

/// What `byol bench` can measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// The data loader alone: images per second (decoded, two augmented views of each), and where the time goes.
    Loader(BenchLoaderArgs),
    /// Whole training steps: images per second, and where the time goes.
    Step(BenchStepArgs),
}

/// Arguments of `byol bench loader`.
#[derive(Debug, Args)]
pub struct BenchLoaderArgs {
    /// Which config.
    #[command(flatten)]
    pub source: ConfigArgs,
    /// Seconds to measure, roughly.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    pub seconds: f64,
    /// Threads that decode and augment, 1 to 1024 [default: data.workers, or one per core].
    #[arg(long, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub workers: Option<usize>,
}

/// Arguments of `byol bench step`.
#[derive(Debug, Args)]
pub struct BenchStepArgs {
    /// Which config.
    #[command(flatten)]
    pub source: ConfigArgs,
    /// Steps to measure, after a warm-up.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub steps: u32,
    /// Train on the same batch of noise in every step: without loader, no data needed.
    #[arg(long)]
    pub synthetic: bool,
    /// How many processes share each batch.
    #[command(flatten)]
    pub ranks: RanksArgs,
}

fn seconds(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value| (0.1..=86400.0).contains(value));
    value.ok_or_else(|| "expected 0.1 to 86400".to_string())
}

/// Arguments of `byol export-encoder`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A run's folder (its latest valid checkpoint), a checkpoint's folder, or a safetensors or PyTorch file of any
    /// trainer.
    #[arg(long, value_name = "RUN_OR_FILE")]
    pub checkpoint: PathBuf,
    /// Which of several encoders in a file: what the names of its tensors begin with, such as `teacher.backbone`, or a
    /// part of that between dots.
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// File format.
    #[arg(long)]
    pub format: Format,
    /// File to write, or the folder for timm and hf.
    #[arg(long, value_name = "FILE_OR_FOLDER")]
    pub output: PathBuf,
    /// Overwrite files that exist.
    #[arg(long)]
    pub force: bool,
    /// Which of the run's encoders; BatchNorm statistics of the target are recomputed on the images of --config.
    #[arg(long, default_value = "online")]
    pub network: Branch,
    /// Include normalization in the graph, which then takes RGB in 0 to 1 (default for onnx and torchscript).
    #[arg(long)]
    pub normalize: bool,
    /// Leave normalization out of the graph, which then takes normalized images.
    #[arg(long, conflicts_with = "normalize")]
    pub no_normalize: bool,
    /// onnx: fold BatchNorm into the convolutions.
    #[arg(long)]
    pub fold_batchnorm: bool,
    /// Side of the input, its height and width, or `dynamic` [default: augment.size]. The batch size is always free.
    #[arg(long, value_name = "PIXELS|HxW|dynamic")]
    pub image_size: Option<ImageSize>,
    /// With --network target: how many images to recompute BatchNorm statistics on.
    #[arg(long, default_value_t = 2048, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub batchnorm_images: u32,
    /// Config file: images for --network target; size, mean and std for a file that lacks them.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Override a key of the config; can be repeated. The value is YAML.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
}

/// Arguments of `byol preview`.
#[derive(Debug, Args)]
pub struct PreviewArgs {
    /// Which config.
    #[command(flatten)]
    pub source: ConfigArgs,
    /// PNG file to write.
    #[arg(long, value_name = "FILE.png")]
    pub output: PathBuf,
    /// Rows of the picture: images spread over the training set, the same ones every time.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub images: u32,
    /// Draws of each view: draw n is exactly what `byol train` uses in epoch n with the same config (for others change
    /// train.seed).
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub draws: u32,
    /// Channels to show as red, green and blue, from 1, or one to show in gray [default: 1,2,3, or 1 of one or two].
    #[arg(long, value_name = "R,G,B", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=64))]
    pub channels: Option<Vec<u32>>,
    /// Overwrite the output file if it exists.
    #[arg(long)]
    pub force: bool,
}

/// Which encoder, on which images.
#[derive(Debug, Args)]
pub struct EncoderArgs {
    /// A run's folder (its latest valid checkpoint), a checkpoint's folder, or a safetensors or PyTorch file of any
    /// trainer.
    #[arg(long, value_name = "RUN_OR_FILE")]
    pub checkpoint: PathBuf,
    /// Which of several encoders in a file: what the names of its tensors begin with, such as `teacher.backbone`, or a
    /// part of that between dots.
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// Config file whose sections replace those of the run. A file of weights needs this or --set data.path=...
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Override a key of the config; can be repeated. The value is YAML.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
    /// How many processes share the images.
    #[command(flatten)]
    pub ranks: RanksArgs,
}

/// Arguments of `byol linear-eval`.
#[derive(Debug, Args)]
pub struct LinearEvalArgs {
    /// Which encoder, on which images.
    #[command(flatten)]
    pub encoder: EncoderArgs,
    /// Train on this fraction of the labels only, the same in every class, such as 0.01 or 0.1.
    #[arg(long, value_name = "0..1")]
    pub fraction: Option<f64>,
    /// Train the encoder too (with --fraction: the paper's semi-supervised protocol).
    #[arg(long)]
    pub finetune: bool,
    /// Evaluate the encoder as it was before training (random weights), too.
    #[arg(long)]
    pub random_baseline: bool,
    /// Print a JSON report on stdout instead of the table.
    #[arg(long)]
    pub json: bool,
    /// Write the JSON report here [default: linear_eval.json in the run's folder].
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Overwrite the file of --output if it exists.
    #[arg(long, requires = "output")]
    pub force: bool,
}

/// Arguments of `byol knn-eval`.
#[derive(Debug, Args)]
pub struct KnnEvalArgs {
    /// Which encoder, on which images.
    #[command(flatten)]
    pub encoder: EncoderArgs,
    /// Number of neighbors; several values, such as 10,20,200, take one pass.
    #[arg(long, value_name = "K,...", value_delimiter = ',', default_values_t = [200])]
    pub k: Vec<usize>,
    /// A neighbor's weight is exp(cosine similarity / temperature).
    #[arg(long, default_value_t = 0.1)]
    pub temperature: f64,
    /// Print a JSON report on stdout instead of the table.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `byol neighbors`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("of").required(true))]
pub struct NeighborsArgs {
    /// Which encoder, on which images.
    #[command(flatten)]
    pub encoder: EncoderArgs,
    /// The training images or the held-out ones.
    #[arg(long, value_enum, default_value_t)]
    pub split: SplitName,
    /// Find the neighbors of the image in this file.
    #[arg(long, value_name = "FILE", group = "of")]
    pub query: Option<PathBuf>,
    /// Find the neighbors of image N of the set, from 0.
    #[arg(long, value_name = "N", group = "of")]
    pub index: Option<usize>,
    /// Find the neighbors of K images spread over the set, the same ones every time.
    #[arg(long, value_name = "K", group = "of", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub sample: Option<usize>,
    /// How many neighbors of each.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    pub top: usize,
    /// Print a JSON report on stdout instead of the table.
    #[arg(long)]
    pub json: bool,
    /// Draw a contact sheet, a PNG file, of up to 64 images and 15 neighbors of each.
    #[arg(long, value_name = "FILE.png")]
    pub output: Option<PathBuf>,
    /// Overwrite the file of --output if it exists.
    #[arg(long, requires = "output")]
    pub force: bool,
}

/// Arguments of `byol duplicates`.
#[derive(Debug, Args)]
pub struct DuplicatesArgs {
    /// Which encoder, on which images.
    #[command(flatten)]
    pub encoder: EncoderArgs,
    /// The training images or the held-out ones.
    #[arg(long, value_enum, default_value_t)]
    pub split: SplitName,
    /// Images with at least this cosine similarity are near-identical. Each is compared together with its mirror image.
    #[arg(long, default_value_t = 0.97)]
    pub threshold: f64,
    /// Print a JSON report on stdout instead of the groups.
    #[arg(long)]
    pub json: bool,
    /// Draw a contact sheet, a PNG file, of up to 64 groups and 16 images of each.
    #[arg(long, value_name = "FILE.png")]
    pub output: Option<PathBuf>,
    /// Write the names of the images without the duplicates, a list that data.path takes if they are files. Of each
    /// group the image with the most pixels stays.
    #[arg(long, value_name = "FILE.txt")]
    pub keep_list: Option<PathBuf>,
    /// Overwrite files that exist.
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `byol report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Folders of runs, finished or not.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// HTML file to write: one file that needs nothing else.
    #[arg(long, value_name = "FILE.html", default_value = "report.html")]
    pub output: PathBuf,
    /// Overwrite the file if it exists.
    #[arg(long)]
    pub force: bool,
    /// Held-out images (training images where there are none) to encode, of all runs together at most 4000.
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(16..=100_000))]
    pub images: usize,
    /// Leave out everything that needs the encoder and the images.
    #[arg(long)]
    pub curves_only: bool,
    /// Also write the encoded images into the run's TensorBoard folder: for the projector, and their augmented views.
    #[arg(long, conflicts_with = "curves_only")]
    pub tensorboard: bool,
    /// Override a key of the runs' configs, such as data.path or train.device; can be repeated. The value is YAML.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
}

/// Arguments of `byol extract-features`.
#[derive(Debug, Args)]
pub struct ExtractFeaturesArgs {
    /// Which encoder, on which images.
    #[command(flatten)]
    pub encoder: EncoderArgs,
    /// The training images or the held-out ones.
    #[arg(long, value_enum, default_value_t)]
    pub split: SplitName,
    /// FILE.parquet, FILE.csv or FILE.safetensors, or a folder for features.npy, labels.npy, indices.npy and names.txt.
    #[arg(long, value_name = "FILE_OR_FOLDER")]
    pub output: PathBuf,
    /// Scale each vector to length 1.
    #[arg(long)]
    pub normalize: bool,
    /// Overwrite files that exist.
    #[arg(long)]
    pub force: bool,
}

/// A part of the data.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum SplitName {
    /// The images of `data.path`.
    #[default]
    Train,
    /// The held-out images.
    Eval,
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_valid() {
        super::command().debug_assert();
    }

    /// Doc comments are what `--help` prints, and links in them only rustdoc understands.
    #[test]
    fn no_help_has_links_of_rustdoc() {
        fn check(command: &mut clap::Command) {
            let help = command.render_long_help().to_string();
            for mark in ["[`", "`]", "](", "::"] {
                assert!(!help.contains(mark), "{mark} in {help}");
            }
            command.get_subcommands_mut().for_each(check);
        }
        let mut command = super::command();
        command.build();
        check(&mut command);
    }
}
