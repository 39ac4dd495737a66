//! A run's images in its TensorBoard folder: their representations for the projector, and their augmented views.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use super::pictures::{TILE, png, tiles};
use super::views;
use crate::augment::AugmentConfig;
use crate::checkpoint::write_file;
use crate::config::Config;
use crate::data::Dataset;
use crate::data::loader::BadImages;
use crate::data::subset::spread;
use crate::eval::{ExtractOptions, Images, Interrupted, Represent, View, extract_views};
use crate::logging::tensorboard::EventWriter;
use crate::logging::{Sink, one_line};
use crate::run::pictures::Named;

/// The projector shows no picture of more than 8192 pixels a side, and slows down long before that.
const MOST: usize = 4000;

/// What the projector reads first (`tensorboard/plugins/projector/projector_config.proto`).
const CONFIG: &str = "\
embeddings {
  tensor_name: \"representations\"
  tensor_path: \"projector/vectors.tsv\"
  metadata_path: \"projector/metadata.tsv\"
  sprite { image_path: \"projector/sprite.png\" single_image_dim: SIDE single_image_dim: SIDE }
}
";

/// What a run with `monitor.tensorboard_images` shows, below its folder `tensorboard`.
pub struct RunImages {
    /// The run's folder `tensorboard`.
    pub folder: PathBuf,
    /// The images to represent.
    pub dataset: Arc<dyn Dataset>,
    /// How many of them.
    pub count: usize,
    /// Batches, threads, what to do with bad images, and the processes that share the work.
    pub options: ExtractOptions,
}

impl RunImages {
    /// Writes, in rank 0, what the encoder makes of the images, without augmentation; nothing if a signal arrives.
    /// # Errors
    /// Those of [`write_representations`].
    pub fn represent(&self, encoder: &impl Represent, augment: &AugmentConfig) -> Result<()> {
        let indices = spread(self.dataset.len(), self.count);
        let images = Images { dataset: &self.dataset, indices, view: View::Plain, augment };
        match extract_views(encoder, images, &self.options, "TensorBoard: images") {
            Err(error) if error.is::<Interrupted>() => Ok(()),
            Ok((features, rows)) if self.options.group.is_first() => {
                write_representations(&self.folder, &Named::new(self.dataset.clone()), &features.values, &rows)
            }
            other => other.map(|_| ()),
        }
    }
}

/// Writes the representations of images (`features`, [N, D]; `rows` are their positions in the set) for the projector.
/// # Errors
/// The folder cannot be written, or images cannot be read.
pub fn write_representations(folder: &Path, named: &Named, features: &Tensor, rows: &[u32]) -> Result<()> {
    let below = folder.join("projector");
    fs::create_dir_all(&below).with_context(|| format!("creating {}", below.display()))?;
    let chosen = spread(rows.len(), MOST);
    let images: Vec<usize> = chosen.iter().map(|&row| rows[row as usize] as usize).collect();
    write_file(&below.join("vectors.tsv"), vectors(features, &chosen)?.as_bytes())?;
    write_file(&below.join("metadata.tsv"), metadata(named, &images).as_bytes())?;
    let columns = ((images.len() as f64).sqrt().ceil() as usize).max(1);
    // The projector expects as many rows as columns.
    let sprite = tiles(images.iter().map(|&at| named.image(at)), columns * columns, columns, TILE)?;
    write_file(&below.join("sprite.png"), &png(&sprite)?)?;
    write_file(&folder.join("projector_config.pbtxt"), CONFIG.replace("SIDE", &TILE.to_string()).as_bytes())
}

/// Writes the views of some training images, as the networks see them, as a picture at `step`.
/// # Errors
/// As in [`write_representations`].
pub fn write_views(folder: &Path, config: &Config, train: &Arc<dyn Dataset>, bad: &BadImages, step: u64) -> Result<()> {
    let grid = views::grid(config, train, bad)?;
    let mut events = EventWriter::open(folder, None)?;
    events.picture("views", step, grid.dimensions(), png(&grid)?);
    events.flush()
}

fn vectors(features: &Tensor, chosen: &[u32]) -> Result<String> {
    let width = features.size()[1] as usize;
    let values = Vec::<f32>::try_from(features.to_kind(Kind::Float).to_device(tch::Device::Cpu).flatten(0, -1))?;
    let mut text = String::new();
    for &row in chosen {
        let row = &values[row as usize * width..][..width];
        for (at, value) in row.iter().enumerate() {
            let _ = write!(text, "{}{value}", if at > 0 { "\t" } else { "" });
        }
        text.push('\n');
    }
    Ok(text)
}

/// Name and class of each image; without classes the names alone, for which there is no header.
fn metadata(named: &Named, images: &[usize]) -> String {
    let cell = |text: &str| one_line(text).replace('\t', " ");
    let classes: Vec<Option<String>> = images.iter().map(|&at| named.class(at)).collect();
    let classified = classes.iter().any(Option::is_some);
    let lines = images.iter().zip(&classes).map(|(&at, class)| match classified {
        true => format!("{}\t{}\n", cell(&named.name(at)), cell(class.as_deref().unwrap_or(""))),
        false => cell(&named.name(at)) + "\n",
    });
    lines.fold(if classified { "name\tclass\n".into() } else { String::new() }, |text, line| text + &line)
}
