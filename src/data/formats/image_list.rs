//! A text file that lists images, one per line: a path, absolute or relative to the file's folder (or `data.root`), and
//! after a tab, or after a space or comma if the path ends like an image, its class: a number or a name. Blank lines
//! and lines that start with `#` are skipped.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::labels::Labels;
use super::names::is_image_name;
use crate::files;

/// One of the first so many images of a list must exist; else the paths are relative to another folder.
const MAX_MISSING: usize = 100;

/// Maximum size of a list, which is held in memory: a hundred million lines.
const MAX_BYTES: u64 = 8 << 30;

/// Names of the first column in the header of a table.
const HEADINGS: [&str; 6] = ["file", "file_name", "filename", "image", "path", "image_path"];

/// The paths as in the list; their classes are added to `labels`. Relative paths start at `folder`.
pub(super) fn read(list: &Path, folder: &Path, labels: &mut Labels) -> Result<Vec<PathBuf>> {
    let place = list.display();
    ensure!(!is_image_name(list), "found an image, expected a folder of images or a text file of paths: {place}");
    let bytes = files::read_regular(list, MAX_BYTES).with_context(|| format!("cannot read {place}"))?;
    let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    let text =
        text.with_context(|| format!("found no text, expected a folder of images or a text file of paths: {place}"))?;
    let mut files = Vec::new();
    for line in text.trim_start_matches('\u{feff}').lines().map(str::trim) {
        let (file, label) = entry(line);
        let heading = files.is_empty() && HEADINGS.contains(&line.split([',', '\t']).next().unwrap_or_default());
        if line.is_empty() || line.starts_with('#') || heading && !folder.join(file).exists() {
            continue;
        }
        files.push(PathBuf::from(file));
        labels.push(label);
    }
    ensure!(!files.is_empty(), "no images in {place}, expected a path in each line");
    if !files.iter().take(MAX_MISSING).any(|file| folder.join(file).exists()) {
        let first = folder.join(&files[0]);
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder }.display();
        bail!(
            "no such file: {} (the first in {place}; paths start at {folder}, unless data.root names another folder)",
            first.display()
        );
    }
    Ok(files)
}

/// Path and class of a line.
fn entry(line: &str) -> (&str, Option<&str>) {
    if let Some((path, label)) = line.rsplit_once('\t') {
        return (path.trim_end(), Some(label));
    }
    if is_image_name(Path::new(line)) {
        return (line, None);
    }
    // `scan 12` may be a file; `scan.png 12` is one of class 12. Names of classes may have spaces, too.
    let ends = line.rmatch_indices([' ', ',']).map(|(at, _)| at);
    let path = ends.map(|at| line[..at].trim_end()).find(|path| is_image_name(Path::new(path)));
    match path {
        Some(path) => (path, Some(line[path.len()..].trim_start_matches([' ', ',']))),
        None => (line, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_a_tab_or_an_image_and_a_space_or_comma() {
        for (line, expected) in [
            ("a b.jpg", ("a b.jpg", None)),
            ("a b.jpg 3", ("a b.jpg", Some("3"))),
            ("a b.JPG\t3", ("a b.JPG", Some("3"))),
            ("a b.jpg golden retriever", ("a b.jpg", Some("golden retriever"))),
            ("a b.jpg\tgolden retriever", ("a b.jpg", Some("golden retriever"))),
            ("a b.jpg, cat", ("a b.jpg", Some("cat"))),
            ("a,b.png,7", ("a,b.png", Some("7"))),
            ("scan 3", ("scan 3", None)),
            ("scan\t3", ("scan", Some("3"))),
            ("scan 3.png", ("scan 3.png", None)),
            ("a.png -1", ("a.png", Some("-1"))),
        ] {
            assert_eq!(entry(line), expected);
        }
    }
}
