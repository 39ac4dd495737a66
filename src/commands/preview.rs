//! `byol preview`: draws augmented views of a config's images, to check the augmentations before training.

use std::io::{Cursor, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use image::{ImageFormat, RgbImage};

use crate::augment::{Part, Scratch};
use crate::checkpoint;
use crate::cli::PreviewArgs;
use crate::config::Config;
use crate::data::Dataset;
use crate::data::loader::{BadImages, load_for_views};
use crate::data::subset::spread;
use crate::distributed::Group;
use crate::files;
use crate::pixels::Pixels;
use crate::preview::{Layout, Picture};
use crate::run::images;

/// Runs the command; the value is the process's exit code.
pub fn run(args: &PreviewArgs) -> Result<u8> {
    files::end_clean_on_signals()?;
    let mut config = Config::load(&args.source.config, &args.source.set)?;
    if !args.output.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
        bail!("--output: found {}, expected a name ending in .png", args.output.display());
    }
    checkpoint::check_output(&args.output, args.force)?;
    let place = || format!("{}: data.path", Config::place(&args.source.config, &args.source.set, "data.path"));
    let dataset = images::open_train(&mut config, &Group::single(), true).with_context(place)?;
    let channels = shown_channels(args.channels.as_deref(), config.channels())?;
    let bad = BadImages::new(config.data.on_bad_image);

    let indices = spread(dataset.len(), args.images as usize);
    let (augment, draws) = (&config.augment, args.draws as usize);
    let layout = Layout::new(indices.len(), draws, augment.size);
    let source = config.data.path.as_ref().map_or("drawn textures".to_string(), |paths| paths.to_string());
    let title = format!("{source}: {} images", dataset.len());
    let about = format!(
        "views of {} px, {}, exactly as drawn in training with seed {}",
        augment.size,
        layout.scale(),
        config.train.seed
    );
    let mut picture = Picture::new(layout, &title, &about);

    draw(&mut picture, &*dataset, &indices, &bad, &config, draws, channels)?;
    let picture = picture.finish();
    write(&picture, &args.output).context("--output")?;
    let skipped = match bad.count() {
        0 => String::new(),
        count => format!(", {count} unreadable images skipped"),
    };
    // The picture is written even if stdout is closed.
    let _ = writeln!(
        std::io::stdout(),
        "{}: {} of {} images, {draws} {} of each view, {} x {} px{skipped}",
        args.output.display(),
        indices.len(),
        dataset.len(),
        if draws == 1 { "draw" } else { "draws" },
        picture.width(),
        picture.height(),
    );
    Ok(0)
}

/// A row for each image: itself, then its views.
fn draw(
    picture: &mut Picture,
    dataset: &dyn Dataset,
    indices: &[u32],
    bad: &BadImages,
    config: &Config,
    draws: usize,
    channels: [usize; 3],
) -> Result<()> {
    let (augment, seed) = (&config.augment, config.train.seed);
    let names = dataset.class_names();
    let (mut image, mut scratch) = (Pixels::default(), Scratch::default());
    let mut views = [(); 2].map(|()| vec![0; augment.view_bytes()]);
    for (row, &wanted) in indices.iter().enumerate() {
        let (found, _) = bad.load_next(dataset, wanted as usize, &mut Part::whole, &mut image)?;
        let mut lines = label(dataset, &names, found, &image);
        if found != wanted as usize {
            lines.push(format!("replaces unreadable #{wanted}"));
        }
        picture.original(row, &lines, &colored(&image, channels));
        for draw in 0..draws {
            let [first, second] = &mut views;
            let (_, choices) = load_for_views(dataset, wanted, bad, augment, seed, draw as u64, &mut image)?;
            augment.apply(&image, &choices, &mut scratch, [first, second]);
            for (column, view) in [(1 + draw, first), (1 + draws + draw, second)] {
                picture.view(row, column, &colors(view, image.channels, channels));
            }
        }
    }
    Ok(())
}

fn write(picture: &RgbImage, file: &Path) -> Result<()> {
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png).context("cannot encode the picture")?;
    checkpoint::write_file(file, &png.into_inner())
}

/// The channels that are shown as red, green and blue: those asked for, the first three, or the first in gray.
fn shown_channels(asked: Option<&[u32]>, channels: usize) -> Result<[usize; 3]> {
    let shown = match asked {
        None if channels < 3 => [1; 3],
        None => [1, 2, 3],
        Some(&[one]) => [one; 3],
        Some(&[red, green, blue]) => [red, green, blue],
        Some(other) => bail!("--channels: found {} numbers, expected one or three", other.len()),
    };
    if let Some(channel) = shown.iter().find(|channel| **channel as usize > channels) {
        bail!("--channels: found {channel}, expected 1 to {channels}, the number of channels of the images");
    }
    Ok(shown.map(|channel| channel as usize - 1))
}

/// These channels of pixels of `channels` channels, as RGB.
fn colors(bytes: &[u8], channels: usize, shown: [usize; 3]) -> Vec<u8> {
    bytes.chunks_exact(channels).flat_map(|pixel| shown.map(|channel| pixel[channel])).collect()
}

fn colored(image: &Pixels, shown: [usize; 3]) -> Pixels {
    Pixels { channels: 3, data: colors(&image.data, image.channels, shown), ..*image }
}

/// The lines beside an image: its class if it has one, its name without folders, its index and size.
fn label(dataset: &dyn Dataset, names: &[String], index: usize, image: &Pixels) -> Vec<String> {
    let class = dataset.label(index).filter(|label| *label >= 0).map(|label| {
        let name = usize::try_from(label).ok().and_then(|label| names.get(label));
        name.cloned().unwrap_or_else(|| format!("class {label}"))
    });
    let name = dataset.describe(index);
    let name = name.rsplit('/').next().unwrap_or_default().to_string();
    let about = format!("#{index}, {} x {} px", image.width, image.height);
    class.into_iter().chain([name, about]).collect()
}
