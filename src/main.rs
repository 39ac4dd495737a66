//! `byol`: parses the command line, runs the command, turns errors into one line and an exit code.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use byol::backend::first_line;
use byol::cli::{BenchCommand, Cli, Command};
use byol::{commands, logging};
use clap::Parser;

/// Counts for `byol bench`.
#[global_allocator]
static ALLOCATOR: byol::backend::Counted = byol::backend::Counted;

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init(match (cli.verbose, cli.quiet) {
        (true, _) => log::LevelFilter::Debug,
        (_, true) => log::LevelFilter::Warn,
        _ => log::LevelFilter::Info,
    });
    // Beyond a limit on file sizes this signal would end the process; caught, the write fails and says so.
    let _ = signal_hook::flag::register(libc::SIGXFSZ, Arc::default());
    // tch panics where an operator fails; the message below says it in one line instead.
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = std::panic::catch_unwind(|| match &cli.command {
        Command::Train(args) => commands::train::run(args),
        Command::Bench(BenchCommand::Loader(args)) => commands::bench::loader::run(args),
        Command::Bench(BenchCommand::Step(args)) => commands::bench::step::run(args),
        Command::LinearEval(args) => commands::linear_eval::run(args),
        Command::KnnEval(args) => commands::knn_eval::run(args),
        Command::ExtractFeatures(args) => commands::extract_features::run(args),
        Command::ExportEncoder(args) => commands::export::run(args),
        Command::Preview(args) => commands::preview::run(args),
    });
    let message = match outcome {
        Ok(Ok(code)) => return ExitCode::from(code),
        Ok(Err(error)) => {
            let parts: Vec<String> = error
                .chain()
                .map(|cause| match cause.downcast_ref::<tch::TchError>() {
                    Some(torch) => first_line(&torch.to_string()),
                    None => cause.to_string(),
                })
                .collect();
            parts.join(": ")
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            first_line(text.unwrap_or("panicked without a message"))
        }
    };
    // A closed stderr must not turn an error into a panic.
    let _ = writeln!(std::io::stderr(), "error: {}", logging::one_line(&message));
    ExitCode::FAILURE
}
