//! Folders of image files at any depth, in the byte order of their relative paths, or the files that text files list
//! ([`image_list`]). As in torchvision's `ImageFolder` the folders of the first level are the classes, numbered in the
//! order of their names; unlike there, images next to them are part of the set, without a label.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use super::image_list;
use super::labels::{Known, Labels};
use super::names::{IMAGE_ENDINGS, has_frames_name, is_array_name, is_image, is_image_name, is_skipped};
use super::shards;
use super::splits::{self, Set};
use super::unread::Unread;
use crate::augment::Part;
use crate::data::decode::{DecodeOptions, decode_of, frames_of, with_bytes_of, with_frame_of};
use crate::data::{DataConfig, Dataset, Frames, PartFor, digest};
use crate::pixels::Pixels;

/// The images below some folders, or those of some lists.
pub struct ImageFolder {
    roots: Vec<Root>,
    /// The root, or the folder of all roots.
    folder: PathBuf,
    /// Relative to their root, or absolute.
    files: Vec<PathBuf>,
    /// With `data.frames: all` the number of images up to and with those of each file.
    ends: Vec<usize>,
    classes: Vec<String>,
    /// One per file, -1 for none, or empty.
    labels: Vec<i64>,
    options: DecodeOptions,
}

/// A folder that paths start at.
struct Root {
    folder: PathBuf,
    /// Number of files up to and with this root's.
    end: usize,
}

impl ImageFolder {
    /// Indexes each of `data.path`: a list, a folder, or its training subfolder if it has one beside held-out ones.
    pub fn open_train(config: &DataConfig) -> Result<Self> {
        let roots = roots(config, Set::Train)?;
        for (path, root) in config.path.iter().flat_map(|paths| paths.iter()).zip(&roots) {
            announce(path, root, config)?;
        }
        Self::open(&roots, &Known::Nothing, config)
    }

    /// Indexes `data.eval_path`, or the held-out subfolder next to the training one.
    /// Classes have the numbers of the training set.
    pub fn open_eval(config: &DataConfig) -> Result<Option<Self>> {
        let roots = roots(config, Set::HeldOut)?;
        if roots.is_empty() {
            return Ok(None);
        }
        let mut trained = Labels::default();
        for root in self::roots(config, Set::Train)? {
            if root.is_dir() {
                class_folders(&root)?.iter().for_each(|class| trained.declare(class));
            } else if root.exists() {
                image_list::read(&root, list_folder(&root, config), &mut trained)?;
            }
        }
        Self::open(&roots, &trained.known()?, config).map(Some)
    }

    fn open(roots: &[PathBuf], known: &Known, config: &DataConfig) -> Result<Self> {
        let (mut set, mut labels) = (
            Self {
                roots: Vec::new(),
                folder: PathBuf::new(),
                files: Vec::new(),
                ends: Vec::new(),
                classes: Vec::new(),
                labels: Vec::new(),
                options: config.decode_options(),
            },
            Labels::default(),
        );
        for root in roots {
            ensure!(root.exists(), "no such file or folder: {}", root.display());
            let folder = if root.is_dir() {
                set.files.extend(index(root, &mut labels)?);
                root.clone()
            } else {
                let folder = list_folder(root, config);
                set.files.extend(image_list::read(root, folder, &mut labels)?);
                folder.to_path_buf()
            };
            set.roots.push(Root { folder, end: set.files.len() });
        }
        set.folder = shards::common_folder(set.roots.iter().map(|root| root.folder.as_path()));
        let places: Vec<String> = roots.iter().map(|root| root.display().to_string()).collect();
        (set.labels, set.classes) = labels.finish(known, &places.join(", "))?;
        if config.frames == Frames::All {
            set.count_frames(&places.join(", "));
        }
        Ok(set)
    }

    /// Finds out how many images each file has.
    fn count_frames(&mut self, place: &str) {
        let count = |file: usize| {
            let path = self.path(file);
            if has_frames_name(&path) { frames_of(&path, self.options) } else { Ok(1) }
        };
        let counts: Vec<Result<usize>> = (0..self.files.len()).into_par_iter().map(count).collect();
        let mut failed = counts.iter().enumerate().filter_map(|(at, count)| Some((at, count.as_ref().err()?)));
        if let Some((at, error)) = failed.next() {
            log::warn!(
                "{place}: of {} files only the first frame is used, such as {}: {error:#}",
                1 + failed.count(),
                self.path(at).display()
            );
        }
        let end = |end: &mut usize, count: Result<usize>| {
            *end += count.unwrap_or(1);
            Some(*end)
        };
        self.ends = counts.into_iter().scan(0, end).collect();
        log::info!("{place}: {} files have {} frames", self.files.len(), self.len());
    }

    fn path(&self, file: usize) -> PathBuf {
        let root = self.roots.partition_point(|root| root.end <= file);
        self.roots[root].folder.join(&self.files[file])
    }

    /// The file of an image, and its frame in it if there are several.
    fn place(&self, index: usize) -> (usize, Option<usize>) {
        if self.ends.is_empty() {
            return (index, None);
        }
        let file = self.ends.partition_point(|&end| end <= index);
        let first = if file == 0 { 0 } else { self.ends[file - 1] };
        (file, (self.ends[file] - first > 1).then_some(index - first))
    }
}

impl Dataset for ImageFolder {
    fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(self.files.len())
    }

    fn label(&self, index: usize) -> Option<i64> {
        self.labels.get(self.place(index).0).copied().filter(|&label| label >= 0)
    }

    fn class_names(&self) -> Vec<String> {
        self.classes.clone()
    }

    fn load(&self, index: usize, out: &mut Pixels) -> Result<()> {
        self.load_part(index, &mut Part::whole, out).map(drop)
    }

    fn load_part(&self, index: usize, want: &mut PartFor, out: &mut Pixels) -> Result<Part> {
        decode_of(self, index, self.options, want, out)
    }

    fn with_encoded(&self, index: usize, work: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        let (file, frame) = self.place(index);
        match frame {
            Some(frame) => with_frame_of(&self.path(file), frame, self.options, work)?,
            None => with_bytes_of(&self.path(file), self.options, work)?,
        }
        Ok(true)
    }

    fn describe(&self, index: usize) -> String {
        let (file, frame) = self.place(index);
        let of = frame.map_or(String::new(), |frame| format!("frame {frame} of "));
        format!("{of}{}", self.path(file).display())
    }

    fn name(&self, index: usize) -> String {
        let (file, frame) = self.place(index);
        let path = self.path(file);
        let number = frame.map_or(String::new(), |frame| format!("/{frame}"));
        format!("{}{number}", path.strip_prefix(&self.folder).unwrap_or(&path).display())
    }

    fn fingerprint(&self) -> String {
        let size = |file| fs::metadata(self.path(file)).map(|data| data.len()).unwrap_or(0);
        let files = self.files.iter().enumerate().map(|(at, file)| format!("{} {}", file.display(), size(at)));
        digest(files.chain(self.ends.iter().map(usize::to_string)))
    }
}

/// The folders and lists of a set: those that the config names, or their subfolders with the set's name. Held-out ones
/// are next to the training ones unless `data.eval_path` names them; there may be none.
fn roots(config: &DataConfig, set: Set) -> Result<Vec<PathBuf>> {
    let paths = config.path.as_ref().context("data.path: found nothing, expected a folder or a list")?;
    let explicit = config.eval_path.as_ref().filter(|_| set == Set::HeldOut);
    let mut roots = Vec::new();
    for path in explicit.unwrap_or(paths).iter() {
        let split = splits::of_folders(&class_folders(path)?);
        match (set, split) {
            (Set::Train, Some(split)) => roots.push(path.join(split.train)),
            (Set::HeldOut, Some(splits::Split { held_out: Some(name), .. })) => roots.push(path.join(name)),
            (Set::HeldOut, _) if explicit.is_none() => {}
            _ => roots.push(path.clone()),
        }
    }
    Ok(roots)
}

/// Says in one line which folders of `data.path` are used and which are left out, or what looks like a mistake there.
fn announce(path: &Path, root: &Path, config: &DataConfig) -> Result<()> {
    let folders = class_folders(path)?;
    let Some(split) = splits::of_folders(&folders) else {
        let alike = splits::lookalikes(&folders);
        if !alike.is_empty() {
            log::warn!(
                "{}: folders {} are taken as classes, though they are named like training and held-out sets; if they \
                 are, set data.path to the training folder and data.eval_path to the held-out one",
                path.display(),
                quoted(&alike)
            );
        }
        return Ok(());
    };
    let mut text = format!("training on {}", root.display());
    let mut left_out: Vec<&String> = split.left_out.iter().collect();
    match &split.held_out {
        Some(name) if config.eval_path.is_none() => text += &format!(", held out: {name}"),
        other => left_out.extend(other),
    }
    if !left_out.is_empty() {
        text += &format!(", left out: {}", quoted(&left_out));
    }
    let beside = read_folder(path)?.iter().filter(|(name, path)| is_image_name(name) && !path.is_dir()).count();
    if beside > 0 {
        text += &format!(" and {beside} images beside these folders");
    }
    log::info!("{text}");
    Ok(())
}

/// The images below a folder; their labels are added to `labels`.
fn index(root: &Path, labels: &mut Labels) -> Result<Vec<PathBuf>> {
    let (mut files, mut unread) = (Vec::new(), Unread::default());
    walk(root, Path::new(""), &mut Vec::new(), &mut files, &mut unread)?;
    if files.iter().any(|file| !is_array_name(file)) {
        // Arrays beside pictures are features, masks and the like.
        files.retain(|file| !is_array_name(file));
    }
    ensure!(
        !files.is_empty(),
        "no images in {}, expected files ending in {}{}",
        root.display(),
        IMAGE_ENDINGS.join(", "),
        unread.instead()
    );
    unread.log(&root.display().to_string(), files.len());
    files.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    let beside: Vec<&PathBuf> = files.iter().filter(|file| class_of(file).is_none()).collect();
    if beside.len() < files.len() {
        class_folders(root)?.iter().for_each(|class| labels.declare(class));
        warn_of_inner_splits(root, &files);
    }
    if let (Some(first), true) = (beside.first(), beside.len() < files.len()) {
        log::warn!(
            "{}: {} of {} images, such as {}, are next to the class folders and count as unlabeled",
            root.display(),
            beside.len(),
            files.len(),
            first.display()
        );
    }
    for file in &files {
        labels.push_name(class_of(file).as_deref());
    }
    Ok(files)
}

/// Sets inside the class folders, as in `images/train` and `images/val`, would be trained on as a whole.
fn warn_of_inner_splits(root: &Path, files: &[PathBuf]) {
    let inner = files.iter().filter_map(|file| {
        let mut parts = file.parent()?.components().skip(1);
        Some(parts.next()?.as_os_str().to_string_lossy().into_owned())
    });
    let inner: std::collections::BTreeSet<String> = inner.filter(|name| splits::is_set_name(name)).collect();
    let inner: Vec<String> = inner.into_iter().collect();
    if splits::of_folders(&inner).is_some_and(|split| split.held_out.is_some()) {
        log::warn!(
            "{}: its folders have folders {} in them, and all of these are trained on; if they are training and \
             held-out sets, set data.path to the folder with the training images and data.eval_path to the other",
            root.display(),
            quoted(&inner.iter().collect::<Vec<_>>())
        );
    }
}

fn quoted(names: &[&String]) -> String {
    names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Where the paths in a list start.
fn list_folder<'a>(list: &'a Path, config: &'a DataConfig) -> &'a Path {
    config.root.as_deref().or(list.parent()).unwrap_or(Path::new(""))
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

/// The first folder of a relative path; none for a file on its own.
fn class_of(file: &Path) -> Option<String> {
    let mut parts = file.components();
    let first = parts.next().map(|name| name.as_os_str().to_string_lossy().into_owned());
    first.filter(|_| parts.next().is_some())
}

/// Name and full path of everything in a folder that is neither hidden nor the system's.
fn read_folder(folder: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let context = || format!("cannot list folder {}", folder.display());
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        let name = PathBuf::from(entry.file_name());
        if !is_skipped(&name) {
            entries.push((name, entry.path()));
        }
    }
    Ok(entries)
}

/// Adds the images below `root/below`. `parents` holds the real paths of the folders on the way
/// there, so that a link back to one of them ends the descent.
fn walk(
    root: &Path,
    below: &Path,
    parents: &mut Vec<PathBuf>,
    files: &mut Vec<PathBuf>,
    unread: &mut Unread,
) -> Result<()> {
    let folder = root.join(below);
    let real = folder.canonicalize();
    let real = real.with_context(|| format!("cannot open folder {}", folder.display()))?;
    if parents.contains(&real) {
        return Ok(());
    }
    parents.push(real);
    for (name, path) in read_folder(&folder)? {
        let relative = below.join(name);
        if path.is_dir() {
            walk(root, &relative, parents, files, unread)?;
        } else if is_image(&path) {
            // Also dangling links: better a named bad image than a silently smaller set.
            files.push(relative);
        } else {
            unread.add(&relative);
        }
    }
    parents.pop();
    Ok(())
}
