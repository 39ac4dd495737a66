//! Which files are images, by their names.

use std::path::Path;

/// Endings of the images that can be decoded, in lower case.
pub(super) const IMAGE_ENDINGS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"];

/// The ending of a file's name in lower case, without the dot; empty if it has none.
pub(super) fn ending(path: &Path) -> String {
    path.extension().map(|text| text.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

/// Whether a file is an image, by its name.
pub(super) fn is_image_name(path: &Path) -> bool {
    IMAGE_ENDINGS.contains(&ending(path).as_str())
}
