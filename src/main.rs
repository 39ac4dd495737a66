//! `byol`: parses the command line, runs the command, turns errors into one line and an exit code.

use std::process::ExitCode;
use std::sync::Arc;

use byol::cli::{self, BenchCommand, Command};
use byol::distributed::{Reported, refuse_ranks, say};
use byol::{commands, logging};
use native::{one_line, panic_line};

/// Counts allocations for `byol bench`.
#[global_allocator]
static ALLOCATOR: native::Counted = native::Counted;

fn main() -> ExitCode {
    byol::set_commit(option_env!("BYOL_COMMIT").unwrap_or("unknown")); // set by scripts/byol
    let cli = cli::parse();
    logging::init(match (cli.verbose, cli.quiet) {
        (true, _) => log::LevelFilter::Debug,
        (_, true) => log::LevelFilter::Warn,
        _ => log::LevelFilter::Info,
    });
    // At the file size limit (ulimit -f) SIGXFSZ would kill the process; if handled, the write fails with an error.
    let _ = signal_hook::flag::register(libc::SIGXFSZ, Arc::default());
    let _ = native::log_warnings();
    // tch panics when an operator fails; the message is printed in one line below instead.
    std::panic::set_hook(Box::new(|_| {}));
    let run = || match &cli.command {
        Command::Train(args) => commands::train::run(args),
        Command::Check(args) => commands::check::run(args),
        Command::Data(args) => commands::data::run(args),
        Command::Bench(BenchCommand::Loader(args)) => commands::bench_loader::run(args),
        Command::Bench(BenchCommand::Step(args)) => commands::bench_step::run(args),
        Command::LinearEval(args) => commands::linear_eval::run(args),
        Command::KnnEval(args) => commands::knn_eval::run(args),
        Command::ExtractFeatures(args) => commands::extract_features::run(args),
        Command::ExportEncoder(args) => commands::export_encoder::run(args),
        Command::Neighbors(args) => commands::neighbors::run(args),
        Command::Duplicates(args) => commands::duplicates::run(args),
        Command::Report(args) => commands::report::run(args),
        Command::Preview(args) => commands::preview::run(args),
        Command::Pack(args) => commands::pack::run(args),
        Command::Configs { command } => commands::configs::run(command.as_ref()),
        Command::Config(command) => commands::config::run(command),
        Command::Completions(args) => commands::completions::run(args),
        Command::Man(args) => commands::man::run(args),
    };
    let outcome = std::panic::catch_unwind(|| {
        if !cli.command.shares_work() {
            refuse_ranks()?; // each process would do all of the work and write the same file
        }
        run()
    });
    native::stop_sharing_cores();
    let message = match outcome {
        Ok(Ok(code)) => return ExitCode::from(code),
        Ok(Err(error)) if error.is::<Reported>() => return ExitCode::FAILURE,
        Ok(Err(error)) => one_line(&error),
        Err(panic) => panic_line(&*panic),
    };
    say(&message);
    if message.contains("CUDA error") {
        native::leave(1);
    }
    ExitCode::FAILURE
}
