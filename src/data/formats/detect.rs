//! The format of what a path holds, by the names of its files.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::names::{ending, is_image, is_image_name, is_skipped};
use crate::data::Format;

/// Depth of folders that are searched, and the number of files after which the search ends.
const MAX_DEPTH: usize = 8;
const MAX_FILES: usize = 20_000;

/// Names that only one data set's files have.
const MARKS: [(&str, Format); 9] = [
    ("data_batch_1.bin", Format::Cifar10),
    ("cifar-10-batches-bin", Format::Cifar10),
    ("cifar-10-binary.tar.gz", Format::Cifar10),
    ("fine_label_names.txt", Format::Cifar100),
    ("cifar-100-binary", Format::Cifar100),
    ("cifar-100-binary.tar.gz", Format::Cifar100),
    ("stl10_binary", Format::Stl10),
    ("unlabeled_X.bin", Format::Stl10),
    ("train_X.bin", Format::Stl10),
];

/// Endings of tar shards, compressed or not.
const TAR: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz"];

/// The format of a folder, a file or a brace pattern of shards, and how it shows.
/// # Errors
/// Nothing there, or nothing that is a data set.
pub fn format(path: &Path) -> Result<(Format, String)> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let place = path.display();
    if let Some((mark, format)) = MARKS.iter().find(|(mark, _)| *mark == name) {
        return Ok((*format, format!("named {mark}")));
    }
    if path.is_dir() {
        return of_folder(path);
    }
    let pattern = name.contains('{');
    ensure!(pattern || path.exists(), "no such file or folder: {place}");
    let (name, what) = (name.to_lowercase(), if pattern { "files" } else { "a file" });
    if name.ends_with(".parquet") {
        return Ok((Format::Parquet, format!("{what} ending in .parquet")));
    }
    if TAR.iter().any(|ending| name.ends_with(ending)) {
        return Ok((Format::Webdataset, format!("{what} ending in .{}", ending(path))));
    }
    ensure!(!is_image_name(path), "{place} is one image, expected a folder of images or a text file that lists them");
    Ok((Format::ImageFolder, "a text file of paths".into()))
}

#[derive(Default)]
struct Counts {
    images: usize,
    parquet: usize,
    tar: usize,
    other: usize,
}

fn of_folder(folder: &Path) -> Result<(Format, String)> {
    if let Some((mark, format)) = MARKS.iter().find(|(mark, _)| folder.join(mark).exists()) {
        return Ok((*format, format!("it has {mark}")));
    }
    let mut counts = Counts::default();
    count(folder, MAX_DEPTH, &mut counts);
    let Counts { images, parquet, tar, other } = counts;
    let beside = |own: usize| match images + parquet + tar - own {
        0 => String::new(),
        rest => format!(", beside {rest} others that are not read"),
    };
    if parquet > 0 && parquet + tar >= images && parquet >= tar {
        return Ok((Format::Parquet, format!("{parquet} parquet files{}", beside(parquet))));
    }
    if tar > 0 && tar >= images {
        return Ok((Format::Webdataset, format!("{tar} tar shards{}", beside(tar))));
    }
    if images == 0 {
        bail!(
            "{}: found no images, parquet files or tar shards in this folder ({other} other files); expected one of \
             these, or name the format with --set data.format=...",
            folder.display()
        );
    }
    let more = if images + parquet + tar + other >= MAX_FILES { " and more" } else { "" };
    Ok((Format::ImageFolder, format!("{images} image files{more}{}", beside(images))))
}

fn count(folder: &Path, depth: usize, counts: &mut Counts) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if counts.images + counts.other >= MAX_FILES || is_skipped(Path::new(&name)) {
            continue;
        }
        let name = name.to_string_lossy().to_lowercase();
        if path.is_dir() {
            if depth > 1 {
                count(&path, depth - 1, counts);
            }
        } else if is_image(&path) {
            counts.images += 1;
        } else if name.ends_with(".parquet") {
            counts.parquet += 1;
        } else if TAR.iter().any(|ending| name.ends_with(ending)) {
            counts.tar += 1;
        } else {
            counts.other += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_shows_in_the_names() {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "x").unwrap();
        };
        for name in
            ["a/x/1.jpg", "a/2.PNG", "p/data/train-0.parquet", "p/readme.md", "t/0.tar", "t/1.tar", "n/notes.txt"]
        {
            put(name);
        }
        for name in
            ["c/data_batch_1.bin", "both/1.tar", "both/1.jpg", "both/2.jpg", "cifar-10-binary.tar.gz", "list.txt"]
        {
            put(name);
        }
        for (name, expected) in [
            ("a", Format::ImageFolder),
            ("p", Format::Parquet),
            ("t", Format::Webdataset),
            ("t/0.tar", Format::Webdataset),
            ("t/{0..1}.tar", Format::Webdataset),
            ("p/data/train-0.parquet", Format::Parquet),
            ("c", Format::Cifar10),
            ("cifar-10-binary.tar.gz", Format::Cifar10),
            ("both", Format::ImageFolder),
            ("list.txt", Format::ImageFolder),
        ] {
            assert_eq!(format(&root.path().join(name)).unwrap().0, expected, "{name}");
        }
        for (name, part) in [("n", "no images"), ("none", "no such file"), ("a/2.PNG", "one image")] {
            let error = format(&root.path().join(name)).unwrap_err().to_string();
            assert!(error.contains(part), "{name}: {error}");
        }
    }
}
