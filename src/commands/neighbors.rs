//! `byol neighbors`: the images that an encoder finds most similar to some image.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tch::Tensor;

use crate::augment::{Scratch, eval_view};
use crate::cli::NeighborsArgs;
use crate::data::Dataset;
use crate::data::subset::spread;
use crate::eval::{Images, Nearest, Represent, View, extract_views};
use crate::files;
use crate::pixels::Pixels;
use crate::run::evaluation::{Evaluation, print};
use crate::run::pictures::{Named, write_png};
use crate::sheet::{self, Sheet};
use native::{ImageLayout, Normalizer};

/// Largest file of `--query`, bytes.
const MAX_FILE: u64 = 1 << 30;

/// Runs the command; the value is the process's exit code.
pub fn run(args: &NeighborsArgs) -> Result<u8> {
    write_png::check(args.output.as_deref(), args.force)?;
    let asked = |_: &_| {
        let (query, index, sample) = (&args.query, args.index, args.sample);
        json!({"command": "neighbors", "--split": format!("{:?}", args.split), "--query": query, "--index": index,
               "--sample": sample, "--top": args.top})
    };
    Evaluation::run(&args.encoder, asked, |evaluation| find(evaluation, args))
}

/// An image to find neighbors of.
struct Query {
    /// Its position among the features, if it is in the set.
    row: Option<usize>,
    name: String,
    class: Option<String>,
    image: Pixels,
}

fn find(evaluation: &Evaluation, args: &NeighborsArgs) -> Result<()> {
    let set = evaluation.images_of(args.split)?;
    if let Some(index) = args.index {
        ensure!(index < set.len(), "--index: found {index}, expected 0 to {}, the images of the set", set.len() - 1);
    }
    evaluation.check_memory(set.len(), "lower data.limit")?;
    log::info!("{}", evaluation.encoder_line());
    let Evaluation { encoder, options, config, .. } = evaluation;
    let outside = args.query.as_deref().map(|path| outside(evaluation, path)).transpose()?;
    let indices = (0..set.len() as u32).collect();
    let images = Images { dataset: &set, indices, view: View::Plain, augment: &config.augment };
    let (features, rows) = extract_views(encoder, images, options, "features")?;
    ensure!(!rows.is_empty(), "none of the images could be read, see the warnings; nothing was written");
    let named = Named::new(set.clone());
    let (queries, found) = match outside {
        Some((query, feature)) => {
            (vec![query], Nearest::new(&features.values, Some(&feature)).all(args.top, |_| options.check())?)
        }
        None => {
            let chosen = chosen(args, &set, &rows)?;
            let index = Tensor::from_slice(&chosen.iter().map(|&row| row as i64).collect::<Vec<_>>());
            let wanted = features.values.index_select(0, &index.to_device(features.values.device()));
            // One more than asked for: each finds itself.
            let mut found = Nearest::new(&features.values, Some(&wanted)).all(args.top + 1, |_| options.check())?;
            for (row, near) in chosen.iter().zip(&mut found) {
                near.retain(|(position, _)| position != row);
                near.truncate(args.top);
            }
            let query = |&row: &usize| -> Result<Query> {
                let at = rows[row] as usize;
                Ok(Query { row: Some(row), name: named.name(at), class: named.class(at), image: named.image(at)? })
            };
            (chosen.iter().map(query).collect::<Result<Vec<_>>>()?, found)
        }
    };
    if !evaluation.is_first() {
        return Ok(());
    }
    if let Some(output) = &args.output {
        let picture = draw(&queries, &found, &rows, &named, &evaluation.encoder_line())?;
        write_png::write(output, picture)?;
    }
    let report = report(evaluation, &queries, &found, &rows, &named)?;
    print(&if args.json { serde_json::to_string_pretty(&report)? } else { table(&report) })
}

/// The rows of the images asked for.
fn chosen(args: &NeighborsArgs, set: &Arc<dyn Dataset>, rows: &[u32]) -> Result<Vec<usize>> {
    match (args.index, args.sample) {
        (Some(index), _) => {
            let row = rows.binary_search(&(index as u32)).ok();
            Ok(vec![row.with_context(|| format!("--index: {} cannot be read", set.describe(index)))?])
        }
        (None, sample) => Ok(spread(rows.len(), sample.unwrap_or(1)).into_iter().map(|row| row as usize).collect()),
    }
}

/// An image from outside of the set, and its feature `[1, D]`.
fn outside(evaluation: &Evaluation, path: &Path) -> Result<(Query, Tensor)> {
    let place = || format!("--query: {}", path.display());
    let bytes = files::read_regular(path, MAX_FILE).with_context(place)?;
    let mut image = Pixels::default();
    evaluation.config.data.decode(&bytes, &mut image).with_context(place)?;
    let Evaluation { encoder, config, options, .. } = evaluation;
    let [height, width] = config.augment.size.shape();
    let mut view = vec![0; config.augment.view_bytes()];
    eval_view(&config.augment, &image, &mut Scratch::default(), &mut view);
    let layout = ImageLayout { channels_last: options.channels_last, bf16: false };
    let normalizer =
        Normalizer::new(config.augment.mean.values(), config.augment.std.values(), encoder.device, layout)?;
    let feature = encoder.represent(&normalizer.bytes(&view, [1, height, width, config.augment.channels() as i64])?)?;
    Ok((Query { row: None, name: path.display().to_string(), class: None, image }, feature))
}

fn report(
    evaluation: &Evaluation,
    queries: &[Query],
    found: &[Vec<(usize, f64)>],
    rows: &[u32],
    named: &Named,
) -> Result<Value> {
    let results: Vec<Value> = queries
        .iter()
        .zip(found)
        .map(|(query, near)| {
            let neighbor = |&(row, cosine): &(usize, f64)| {
                let at = rows[row] as usize;
                json!({"index": at, "name": named.name(at), "class": named.class(at), "cosine": cosine})
            };
            json!({
                "index": query.row.map(|row| rows[row]),
                "name": query.name,
                "class": query.class,
                "neighbors": near.iter().map(neighbor).collect::<Vec<_>>(),
            })
        })
        .collect();
    Ok(json!({
        "checkpoint": evaluation.encoder.source,
        "images": rows.len(),
        "images_skipped": evaluation.images_skipped()?,
        "results": results,
    }))
}

/// The report for humans; names on one line each.
fn table(report: &Value) -> String {
    let text = |value: &Value| crate::logging::one_line(value.as_str().unwrap_or_default());
    let class =
        |value: &Value| value["class"].as_str().map_or(String::new(), |_| format!("  [{}]", text(&value["class"])));
    let mut lines = Vec::new();
    for result in report["results"].as_array().into_iter().flatten() {
        lines.push(format!("{}{}", text(&result["name"]), class(result)));
        for near in result["neighbors"].as_array().into_iter().flatten() {
            let cosine = near["cosine"].as_f64().unwrap_or(f64::NAN);
            lines.push(format!("  {cosine:.4}  {}{}", text(&near["name"]), class(near)));
        }
    }
    lines.join("\n")
}

fn draw(
    queries: &[Query],
    found: &[Vec<(usize, f64)>],
    rows: &[u32],
    named: &Named,
    about: &str,
) -> Result<image::RgbImage> {
    let [most_rows, most_columns] = sheet::MAX;
    let columns = 1 + found.iter().map(Vec::len).max().unwrap_or(0).min(most_columns - 1);
    let mut sheet = Sheet::new(queries.len().min(most_rows), columns, "Nearest neighbors by cosine", about);
    for (row, (query, near)) in queries.iter().zip(found).take(most_rows).enumerate() {
        let class = query.class.as_deref().unwrap_or("query");
        sheet.image(row, 0, &query.image, [class, named.short(&query.name)]);
        for (column, &(position, cosine)) in (1..columns).zip(near) {
            let at = rows[position] as usize;
            let caption = match named.class(at) {
                Some(class) => format!("{cosine:.3} {class}"),
                None => format!("{cosine:.3}"),
            };
            sheet.image(row, column, &named.image(at)?, [&caption, named.short(&named.name(at))]);
        }
    }
    Ok(sheet.finish())
}
