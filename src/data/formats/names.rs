//! Which files are images, and which folders belong to the system, by their names.

use std::path::Path;

/// File name extensions of supported images, in lower case.
pub(super) const IMAGE_ENDINGS: [&str; 16] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "qoi", "npy",
];

/// Folders that file managers, storage devices and archive tools create, in lower case.
const SYSTEM_FOLDERS: [&str; 8] = [
    "@eadir",
    "__macosx",
    "lost+found",
    "$recycle.bin",
    "system volume information",
    "#recycle",
    "@recycle",
    "__pycache__",
];

/// The extension of a file name in lower case, without the dot; empty if it has none.
pub(in crate::data) fn ending(path: &Path) -> String {
    path.extension().map(|text| text.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

/// Whether a file is an image, by its name.
pub(in crate::data) fn is_image_name(path: &Path) -> bool {
    IMAGE_ENDINGS.contains(&ending(path).as_str())
}

/// Whether a file is an array of numbers, by its name: an image, unless it lies beside pictures.
pub(super) fn is_array_name(path: &Path) -> bool {
    ending(path) == "npy"
}

/// Whether a file or folder is hidden or belongs to the system, such as `.thumbnails`, and those of [`SYSTEM_FOLDERS`].
pub(super) fn is_skipped(name: &Path) -> bool {
    let text = name.to_string_lossy();
    text.starts_with('.') || SYSTEM_FOLDERS.contains(&text.to_lowercase().as_str())
}
