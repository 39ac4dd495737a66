//! A text file that lists images, one a line: a path, absolute or relative to the file's folder, and after a tab, or
//! after a space behind a file name of an image, its class number if it has one. Blank lines and lines that begin with
//! `#` are passed over.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::names::is_image_name;
use crate::files;

/// Of so many images at the head of a list one must exist; else the paths are relative to another folder.
const MAX_MISSING: usize = 100;

/// A hundred million lines, all of which are held in memory.
const MAX_BYTES: u64 = 8 << 30;

/// The paths as they are in the list, and their classes (-1 for none; empty if no image has one).
pub(super) fn read(list: &Path) -> Result<(Vec<PathBuf>, Vec<i64>)> {
    let place = list.display();
    ensure!(!is_image_name(list), "found an image, expected a folder of images or a text file of paths: {place}");
    let bytes = files::read_regular(list, MAX_BYTES).with_context(|| format!("cannot read {place}"))?;
    let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    let text =
        text.with_context(|| format!("found no text, expected a folder of images or a text file of paths: {place}"))?;
    let (mut files, mut labels) = (Vec::new(), Vec::new());
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (file, label) = entry(line).with_context(|| format!("{place}:{}", number + 1))?;
        files.push(PathBuf::from(file));
        labels.push(label);
    }
    ensure!(!files.is_empty(), "no images in {place}, expected a path in each line");
    let folder = list.parent().unwrap_or(Path::new(""));
    if !files.iter().take(MAX_MISSING).any(|file| folder.join(file).exists()) {
        bail!("no such file: {} (the first in {place}; paths start at its folder)", folder.join(&files[0]).display());
    }
    if labels.iter().all(|&label| label < 0) {
        labels.clear();
    }
    Ok((files, labels))
}

/// Path and class, -1 for none, of a line.
fn entry(line: &str) -> Result<(&str, i64)> {
    let number = |text: &str| text.trim().parse::<i64>().ok().filter(|&number| number >= 0);
    if let Some((path, label)) = line.rsplit_once('\t') {
        let label = number(label).with_context(|| format!("found {label:?} after the tab, expected a class number"))?;
        return Ok((path.trim_end(), label));
    }
    // `scan 12` may be a file; `scan.png 12` is one of class 12.
    let spaced = line.rsplit_once(' ').map(|(path, label)| (path.trim_end(), number(label)));
    match spaced {
        Some((path, Some(label))) if is_image_name(Path::new(path)) => Ok((path, label)),
        _ => Ok((line, -1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_a_tab_or_an_image_and_a_space() {
        for (line, expected) in [
            ("a b.jpg", ("a b.jpg", -1)),
            ("a b.jpg 3", ("a b.jpg", 3)),
            ("a b.JPG\t3", ("a b.JPG", 3)),
            ("scan 3", ("scan 3", -1)),
            ("scan\t3", ("scan", 3)),
            ("scan 3.png", ("scan 3.png", -1)),
            ("a.png -1", ("a.png -1", -1)),
        ] {
            assert_eq!(entry(line).unwrap(), expected);
        }
        let message = entry("a.jpg\tcat").unwrap_err().to_string();
        assert_eq!(message, "found \"cat\" after the tab, expected a class number");
    }
}
