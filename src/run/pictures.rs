//! What commands that show images share: names and classes of a set's images, and PNG files.

use std::sync::Arc;

use anyhow::Result;

use crate::data::Dataset;
use crate::pixels::Pixels;

/// A data set with the names of its images and classes.
pub struct Named {
    set: Arc<dyn Dataset>,
    classes: Vec<String>,
}

impl Named {
    /// The names of `set`.
    pub fn new(set: Arc<dyn Dataset>) -> Self {
        let classes = set.class_names();
        Self { set, classes }
    }

    /// An image's name.
    pub fn name(&self, index: usize) -> String {
        self.set.describe(index)
    }

    /// A name without its folders.
    pub fn short<'a>(&self, name: &'a str) -> &'a str {
        name.rsplit('/').next().unwrap_or(name)
    }

    /// The name of an image's class, if it has a class.
    pub fn class(&self, index: usize) -> Option<String> {
        self.set.label(index).filter(|label| *label >= 0).map(|label| self.class_name(label))
    }

    /// The name of a class.
    pub fn class_name(&self, label: i64) -> String {
        let name = usize::try_from(label).ok().and_then(|label| self.classes.get(label));
        name.cloned().unwrap_or_else(|| format!("class {label}"))
    }

    /// An image, whole.
    /// # Errors
    /// It cannot be read.
    pub fn image(&self, index: usize) -> Result<Pixels> {
        let mut image = Pixels::default();
        self.set.load(index, &mut image)?;
        Ok(image)
    }
}

/// Writing a picture to the file of `--output`.
pub mod write_png {
    use std::io::Cursor;
    use std::path::Path;

    use anyhow::{Context, Result, ensure};
    use image::{ImageFormat, RgbImage};

    use crate::checkpoint;

    /// Checks, before any work, that the file can be written.
    /// # Errors
    /// Its name does not end in `.png`; it exists and `force` is not set; its folder cannot be written.
    pub fn check(output: Option<&Path>, force: bool) -> Result<()> {
        let Some(output) = output else { return Ok(()) };
        let png = output.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
        ensure!(png, "--output: found {}, expected a name ending in .png", output.display());
        checkpoint::check_output(output, force)
    }

    /// Writes it.
    /// # Errors
    /// It cannot be written.
    pub fn write(output: &Path, picture: RgbImage) -> Result<()> {
        let mut png = Cursor::new(Vec::new());
        picture.write_to(&mut png, ImageFormat::Png).context("--output: cannot encode the picture")?;
        checkpoint::write_file(output, &png.into_inner()).context("--output")
    }
}
