//! A folder of image files at any depth, in the byte order of their relative paths, or the files that a text file
//! lists. As in torchvision's `ImageFolder` the folders of the first level are the classes, numbered in the
//! order of their names; unlike there, an image next to them makes the set unlabelled instead of
//! being overlooked.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::image_list;
use super::names::{IMAGE_ENDINGS, is_image_name};
use crate::augment::Crop;
use crate::data::decode::{DecodeOptions, decode_file};
use crate::data::{CropFor, DataConfig, Dataset, digest};
use crate::pixels::Pixels;

/// Subfolders with held-out images next to one called `train`, best first.
const EVAL_FOLDERS: [&str; 3] = ["val", "validation", "test"];

/// The images below one folder, or those of a list.
pub struct ImageFolder {
    root: PathBuf,
    /// Relative to `root`, or absolute.
    files: Vec<PathBuf>,
    classes: Vec<String>,
    /// One per file, -1 for none, or empty.
    labels: Vec<i64>,
    options: DecodeOptions,
}

impl ImageFolder {
    /// Indexes `data.path`: a list, a folder, or its subfolder `train` if there are but sets in it.
    pub fn open_train(config: &DataConfig) -> Result<Self> {
        let root = train_root(config)?;
        if config.path.as_ref() != Some(&root) {
            log::info!("training on {}", root.display());
        }
        Self::open(&root, class_folders(&root)?, config)
    }

    /// Indexes `data.eval_path`, or the subfolder `val`, `validation` or `test` next to `train`.
    /// Classes have the numbers of the training set.
    pub fn open_eval(config: &DataConfig) -> Result<Option<Self>> {
        let train = train_root(config)?;
        let root = match (&config.eval_path, &config.path) {
            (Some(path), _) => Some(path.clone()),
            (None, Some(path)) if *path != train => {
                EVAL_FOLDERS.iter().map(|name| path.join(name)).find(|folder| folder.is_dir())
            }
            _ => None,
        };
        let Some(root) = root else { return Ok(None) };
        let trained = class_folders(&train)?;
        // An unlabelled training set says nothing about the numbers.
        let classes = if trained.is_empty() { class_folders(&root)? } else { trained };
        Self::open(&root, classes, config).map(Some)
    }

    fn open(root: &Path, classes: Vec<String>, config: &DataConfig) -> Result<Self> {
        ensure!(root.exists(), "no such file or folder: {}", root.display());
        let options = config.decode_options();
        if !root.is_dir() {
            let (files, labels) = image_list::read(root)?;
            let root = root.parent().unwrap_or(Path::new("")).to_path_buf();
            return Ok(Self { root, files, classes: Vec::new(), labels, options });
        }
        let mut files = Vec::new();
        walk(root, Path::new(""), &mut Vec::new(), &mut files)?;
        ensure!(
            !files.is_empty(),
            "no images in {}, expected files ending in {}",
            root.display(),
            IMAGE_ENDINGS.join(", ")
        );
        files.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
        let labels = if files.iter().all(|file| file.components().count() > 1) {
            let numbers: HashMap<&str, i64> = classes.iter().map(String::as_str).zip(0..).collect();
            let label = |file: &PathBuf| {
                let class = class_of(file);
                numbers.get(class.as_str()).copied().with_context(|| {
                    format!(
                        "found class folder {class} in {}, expected one of the {} of the training set",
                        root.display(),
                        classes.len()
                    )
                })
            };
            files.iter().map(label).collect::<Result<_>>()?
        } else {
            Vec::new()
        };
        let classes = if labels.is_empty() { Vec::new() } else { classes };
        let root = root.to_path_buf();
        Ok(Self { root, files, classes, labels, options })
    }
}

impl Dataset for ImageFolder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn label(&self, index: usize) -> Option<i64> {
        self.labels.get(index).copied().filter(|&label| label >= 0)
    }

    fn class_names(&self) -> Vec<String> {
        self.classes.clone()
    }

    fn load(&self, index: usize, out: &mut Pixels) -> Result<()> {
        self.load_part(index, &mut Crop::whole, out).map(drop)
    }

    fn load_part(&self, index: usize, want: &mut CropFor, out: &mut Pixels) -> Result<Crop> {
        decode_file(&self.root.join(&self.files[index]), self.options, want, out)
    }

    fn describe(&self, index: usize) -> String {
        self.root.join(&self.files[index]).display().to_string()
    }

    fn fingerprint(&self) -> String {
        let size = |file| fs::metadata(self.root.join(file)).map(|data| data.len()).unwrap_or(0);
        digest(self.files.iter().map(|file| format!("{} {}", file.display(), size(file))))
    }
}

fn train_root(config: &DataConfig) -> Result<PathBuf> {
    let path = config.path.as_ref().context("data.path: found nothing, expected a folder or a list")?;
    // `train` is the training set only beside sets held out from it: there are classes of that name.
    let folders = class_folders(path)?;
    let sets = folders.iter().all(|name| ["train", "val", "validation", "test"].contains(&name.as_str()));
    if !sets || !folders.iter().any(|name| name == "train") {
        return Ok(path.clone());
    }
    Ok(path.join("train"))
}

/// Names of the folders directly in `root`, sorted by bytes.
fn class_folders(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    if root.is_dir() {
        for entry in read_folder(root)? {
            if entry.1.is_dir() {
                names.push(entry.0.to_string_lossy().into_owned());
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn class_of(file: &Path) -> String {
    let first = file.components().next();
    first.map(|name| name.as_os_str().to_string_lossy().into_owned()).unwrap_or_default()
}

/// Name and full path of everything in a folder that is not hidden.
fn read_folder(folder: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let context = || format!("cannot list folder {}", folder.display());
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            entries.push((entry.file_name().into(), entry.path()));
        }
    }
    Ok(entries)
}

/// Adds the images below `root/below`. `parents` holds the real paths of the folders on the way
/// there, so that a link back to one of them ends the descent.
fn walk(root: &Path, below: &Path, parents: &mut Vec<PathBuf>, files: &mut Vec<PathBuf>) -> Result<()> {
    let folder = root.join(below);
    let real = folder.canonicalize();
    let real = real.with_context(|| format!("cannot open folder {}", folder.display()))?;
    if parents.contains(&real) {
        return Ok(());
    }
    parents.push(real);
    for (name, path) in read_folder(&folder)? {
        let relative = below.join(name);
        if is_image_name(&relative) && !path.is_dir() {
            // Also dangling links: better a named bad image than a silently smaller set.
            files.push(relative);
        } else if path.is_dir() {
            walk(root, &relative, parents, files)?;
        }
    }
    parents.pop();
    Ok(())
}
