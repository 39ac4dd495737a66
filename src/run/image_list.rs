//! Lists of images for `data.path`: a path in each line, and a class after a tab.

use std::path::Path;

use anyhow::Result;

use crate::files;

/// Writes a list, and says how many images it names. Left out, with a warning, are those that no line can hold: their
/// names are not text, or have control characters.
/// # Errors
/// The file cannot be written.
pub fn write(file: &Path, images: impl Iterator<Item = (String, Option<String>)>) -> Result<usize> {
    let (mut text, mut kept, mut odd) = (String::new(), 0, 0);
    for (path, class) in images {
        // What is not text was replaced by this character.
        if path.contains(|c: char| c.is_control() || c == char::REPLACEMENT_CHARACTER) {
            odd += 1;
            continue;
        }
        text += &class.map_or(format!("{path}\n"), |class| format!("{path}\t{class}\n"));
        kept += 1;
    }
    files::write_atomic(file, text.as_bytes())?;
    if odd > 0 {
        log::warn!(
            "{odd} images are left out of the list, because their paths are not text or have control characters"
        );
    }
    Ok(kept)
}
