//! `byol report`: runs as one HTML page.

use std::cell::RefCell;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::checkpoint;
use crate::cli::{EncoderArgs, RanksArgs, ReportArgs};
use crate::logging::one_line;
use crate::report::projection::MAX_POINTS;
use crate::report::{Extent, Look, Looks, RunFiles, distinguish, page};
use crate::run::evaluation::{Evaluation, print};

/// Runs the command; the value is the process's exit code.
pub fn run(args: &ReportArgs) -> Result<u8> {
    let html = args.output.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("html"));
    ensure!(html, "--output: found {}, expected a name ending in .html", args.output.display());
    checkpoint::check_output(&args.output, args.force)?;
    let mut runs: Vec<RunFiles> = args.runs.iter().map(|folder| RunFiles::read(folder)).collect::<Result<_>>()?;
    distinguish(&mut runs);
    let extent = Extent { images: args.images, points: (MAX_POINTS / runs.len()).clamp(16, args.images) };
    let mut looks = Vec::new();
    for folder in &args.runs {
        match look(args, folder, extent) {
            Ok((_, code)) if code != 0 => return Ok(code),
            Ok((look, _)) => looks.push(look),
            Err(error) => {
                log::warn!("{}: no images in the report: {error:#}", folder.display());
                looks.push(Err(format!("no images: {error:#}")));
            }
        }
    }
    let shown = looks.iter().flatten().count();
    let html = page(runs, looks)?;
    checkpoint::write_file(&args.output, html.as_bytes())?;
    print(&format!(
        "{}: {} of {} runs with images, {:.1} MB",
        one_line(&args.output.display().to_string()),
        shown,
        args.runs.len(),
        html.len() as f64 / 1e6
    ))?;
    Ok(0)
}

/// What a run's encoder makes of its images, and the exit code of a signal that arrived.
fn look(args: &ReportArgs, folder: &Path, extent: Extent) -> Result<(Look, u8)> {
    if args.curves_only {
        return Ok((Err("left out (--curves-only)".into()), 0));
    }
    let (checkpoint, set) = (folder.to_path_buf(), args.set.clone());
    let encoder = EncoderArgs { checkpoint, config: None, set, prefix: None, ranks: RanksArgs { nproc: None } };
    let found = RefCell::new(None);
    let asked = |_: &_| json!({"command": "report"});
    let code = Evaluation::run(&encoder, asked, |evaluation| {
        log::info!("{}", evaluation.encoder_line());
        let events = folder.join("tensorboard");
        found.replace(Some(Looks::of(evaluation, extent, args.tensorboard.then_some(&*events))?));
        Ok(())
    })?;
    Ok((found.take().ok_or_else(|| "stopped by a signal".to_string()), code))
}
