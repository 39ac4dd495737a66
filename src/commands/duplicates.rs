//! `byol duplicates`: groups of images that an encoder can hardly tell apart.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tch::{Device, Tensor};

use crate::checkpoint;
use crate::cli::DuplicatesArgs;
use crate::eval::{Encoder, Images, Represent, View, duplicates, extract_views};
use crate::logging::one_line;
use crate::pixels::Pixels;
use crate::run::evaluation::{Evaluation, print};
use crate::run::image_list;
use crate::run::pictures::{Named, write_png};
use crate::sheet::{self, Sheet};

/// Runs the command; the value is the process's exit code.
pub fn run(args: &DuplicatesArgs) -> Result<u8> {
    let threshold = args.threshold;
    ensure!((-1.0..=1.0).contains(&threshold), "--threshold: found {threshold:?}, expected -1 to 1");
    write_png::check(args.output.as_deref(), args.force)?;
    if let Some(list) = &args.keep_list {
        checkpoint::check_file("--keep-list", list, args.force)?;
    }
    let asked =
        |_: &_| json!({"command": "duplicates", "--split": format!("{:?}", args.split), "--threshold": threshold});
    Evaluation::run(&args.encoder, asked, |evaluation| find(evaluation, args))
}

/// The mean of the representations of an image and of its mirror image, which both have.
struct Unmirrored<'a>(&'a Encoder);

impl Represent for Unmirrored<'_> {
    fn represent(&self, images: &Tensor) -> Result<Tensor> {
        Ok((self.0.represent(images)? + self.0.represent(&images.f_flip([3])?)?) / 2.0)
    }

    fn device(&self) -> Device {
        self.0.device
    }

    fn feature_dim(&self) -> i64 {
        self.0.net.feature_dim
    }
}

/// One image of a group.
struct Member {
    index: usize,
    cosine: f64,
    image: Pixels,
}

fn find(evaluation: &Evaluation, args: &DuplicatesArgs) -> Result<()> {
    let set = evaluation.images_of(args.split)?;
    evaluation.check_memory(set.len(), "lower data.limit")?;
    log::info!("{}", evaluation.encoder_line());
    let Evaluation { encoder, options, config, .. } = evaluation;
    let indices = (0..set.len() as u32).collect();
    let images = Images { dataset: &set, indices, view: View::Plain, augment: &config.augment };
    let (features, rows) = extract_views(&Unmirrored(encoder), images, options, "features")?;
    ensure!(!rows.is_empty(), "none of the images could be read, see the warnings; nothing was written");
    let bar = options.bar("comparing images", rows.len());
    let groups = duplicates(&features.values, args.threshold, |done| {
        bar.iter().for_each(|bar| bar.set(done));
        options.check()
    })?;
    drop(bar);
    if !evaluation.is_first() {
        return Ok(());
    }
    let named = Named::new(set.clone());
    let groups: Vec<Vec<Member>> =
        groups.iter().map(|group| members(group, &features.values, &rows, &named)).collect::<Result<_>>()?;
    if let Some(list) = &args.keep_list {
        write_list(list, &groups, &rows, &named)?;
    }
    if let Some(output) = &args.output {
        write_png::write(output, draw(&groups, &named, &evaluation.encoder_line()))?;
    }
    let report = report(evaluation, args.threshold, &groups, &rows, &named)?;
    print(&if args.json { serde_json::to_string_pretty(&report)? } else { table(&report) })
}

/// A group's images, the one to keep first: that with the most pixels, of several the first.
fn members(group: &[usize], features: &Tensor, rows: &[u32], named: &Named) -> Result<Vec<Member>> {
    let mut images: Vec<(usize, Pixels)> =
        group.iter().map(|&row| Ok((row, named.image(rows[row] as usize)?))).collect::<Result<_>>()?;
    images.sort_by_key(|(row, image)| (Reverse(image.width * image.height), *row));
    let kept = features.get(images[0].0 as i64);
    let cosine = |row: usize| Tensor::cosine_similarity(&kept, &features.get(row as i64), 0, 1e-12).double_value(&[]);
    Ok(images
        .into_iter()
        .map(|(row, image)| Member { index: rows[row] as usize, cosine: cosine(row), image })
        .collect())
}

/// Writes the names of all images but the duplicates, with their classes: a list of images for `data.path`.
fn write_list(list: &Path, groups: &[Vec<Member>], rows: &[u32], named: &Named) -> Result<()> {
    let dropped: HashSet<usize> = groups.iter().flat_map(|group| &group[1..]).map(|member| member.index).collect();
    let kept = rows.iter().map(|&row| row as usize).filter(|index| !dropped.contains(index));
    image_list::write(list, kept.map(|index| (named.name(index), named.class(index)))).context("--keep-list").map(drop)
}

fn report(
    evaluation: &Evaluation,
    threshold: f64,
    groups: &[Vec<Member>],
    rows: &[u32],
    named: &Named,
) -> Result<Value> {
    let member = |member: &Member| {
        let Member { index, cosine, image } = member;
        json!({"index": index, "name": named.name(*index), "class": named.class(*index), "cosine": cosine,
               "width": image.width, "height": image.height})
    };
    Ok(json!({
        "checkpoint": evaluation.encoder.source,
        "threshold": threshold,
        "images": rows.len(),
        "images_skipped": evaluation.images_skipped()?,
        "duplicates": groups.iter().map(|group| group.len() - 1).sum::<usize>(),
        "groups": groups.iter().map(|group| group.iter().map(member).collect()).collect::<Vec<Vec<Value>>>(),
    }))
}

/// The report for humans; names on one line each.
fn table(report: &Value) -> String {
    let groups = report["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut lines = vec![format!(
        "{} images, {} groups with {} duplicates (cosine of at least {})",
        report["images"],
        groups.len(),
        report["duplicates"],
        report["threshold"]
    )];
    for group in groups {
        lines.push(String::new());
        for member in group.as_array().into_iter().flatten() {
            let (name, cosine) = (member["name"].as_str().unwrap_or_default(), member["cosine"].as_f64());
            let size = format!("{} x {}", member["width"], member["height"]);
            lines.push(format!("  {:.4}  {size:>11}  {}", cosine.unwrap_or(f64::NAN), one_line(name)));
        }
    }
    lines.join("\n")
}

fn draw(groups: &[Vec<Member>], named: &Named, about: &str) -> image::RgbImage {
    let [most_rows, most_columns] = sheet::MAX;
    let columns = groups.iter().map(Vec::len).max().unwrap_or(0).clamp(1, most_columns);
    let mut sheet = Sheet::new(groups.len().min(most_rows), columns, "Near-identical images", about);
    for (row, group) in groups.iter().take(most_rows).enumerate() {
        for (column, member) in group.iter().take(columns).enumerate() {
            let caption = if column == 0 { "kept".to_string() } else { format!("{:.4}", member.cosine) };
            sheet.image(row, column, &member.image, [&caption, named.short(&named.name(member.index))]);
        }
    }
    sheet.finish()
}
