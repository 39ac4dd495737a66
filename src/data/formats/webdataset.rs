//! Tar shards as the webdataset tool writes them: `key.jpg` (or png, webp and so on) with the class, a number or a
//! name, in `key.cls`, or in `key.json` as `label` or `cls`. Their headers are read once and the index is cached
//! ([`super::index_cache`]); then any image is one read at a known position.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;

use super::labels::{Known, Labels};
use super::splits::Set;
use super::tar_index::{BLOCK, Index, Member};
use super::tar_report::Report;
use super::{index_cache, shards};
use crate::augment::Part;
use crate::data::decode::{DecodeOptions, decode_of};
use crate::data::{DataConfig, Dataset, PartFor, digest};
use crate::files;
use crate::pixels::Pixels;

/// Compressed shards are found, too, to say what to do with them.
const ENDINGS: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz"];

/// Shards that stay open; the files of further ones are opened for each image, as the number of open files is limited.
const MAX_OPEN: usize = 256;

/// Most shards that an error names.
const MAX_NAMED: usize = 5;

thread_local! {
    /// A header and the encoded image.
    static BUFFER: RefCell<Vec<u8>> = RefCell::default();
}

/// The images of one or more shards, in the order of the shards and in them.
pub struct WebDataset {
    shards: Vec<Shard>,
    /// The folder of all shards.
    folder: PathBuf,
    /// Number of images in the shards up to and with each.
    ends: Vec<usize>,
    classes: Vec<String>,
    options: DecodeOptions,
}

struct Shard {
    path: PathBuf,
    index: Index,
    file: Option<File>,
}

impl WebDataset {
    /// Opens `data.path`: a shard, a brace pattern, or the shards of a folder named `train*`, or all of them.
    pub fn open_train(config: &DataConfig) -> Result<Self> {
        shards::announce(config, &ENDINGS)?;
        Self::open(shards::train(config, &ENDINGS)?, Set::Train, config)
    }

    /// Opens `data.eval_path` (of a folder, the held-out shards or else all), or else the held-out shards next to
    /// the training shards. Classes have the numbers of the training set.
    pub fn open_eval(config: &DataConfig) -> Result<Option<Self>> {
        let files = shards::held_out(config, &ENDINGS)?;
        if files.is_empty() { Ok(None) } else { Self::open(files, Set::HeldOut, config).map(Some) }
    }

    /// Opens the shards of a set; held-out classes are numbered as those of the training shards.
    fn open(files: Vec<PathBuf>, set: Set, config: &DataConfig) -> Result<Self> {
        let first = files[0].display().to_string();
        let total = files.len();
        let mut indices = open_indices(&files, config)?;
        let known = match set {
            Set::HeldOut => known_classes(&open_indices(&shards::train(config, &ENDINGS)?, config)?)?,
            Set::Train => Known::Nothing,
        };
        let classes = number_classes(&mut indices, &known, &first)?;
        let mut images = 0;
        let count = |index: &Index| {
            images += index.members.len();
            images
        };
        let ends = indices.iter().map(count).collect();
        report(&files, &indices, config);
        if images == 0 {
            let mut all = Report::default();
            indices.iter().for_each(|index| all.merge(&index.report, ""));
            let shards = if total > 1 { " and the other shards" } else { "" };
            bail!("no images in {first}{shards}{}", all.unread().instead());
        }
        let folder = shards::common_folder(files.iter().filter_map(|file| file.parent()));
        let shard = |(number, (path, index)): (usize, (PathBuf, Index))| {
            let file = if number < MAX_OPEN { Some(files::open_regular(&path)?) } else { None };
            Ok(Shard { path, index, file })
        };
        let shards = files.into_iter().zip(indices).enumerate().map(shard).collect::<Result<_>>()?;
        Ok(Self { shards, folder, ends, classes, options: config.decode_options() })
    }

    fn member(&self, index: usize) -> (&Shard, Member) {
        let at = self.ends.partition_point(|&end| end <= index);
        let first = if at == 0 { 0 } else { self.ends[at - 1] };
        (&self.shards[at], self.shards[at].index.members[index - first])
    }
}

/// The indices of all shards, or one error that names every shard to get again.
fn open_indices(files: &[PathBuf], config: &DataConfig) -> Result<Vec<Index>> {
    let opened: Vec<Result<Index>> = files.par_iter().map(|path| index_cache::open(path, config.key)).collect();
    let failed = files.iter().zip(&opened).filter_map(|(path, index)| Some((path, index.as_ref().err()?)));
    let bad: Vec<String> = failed.map(|(path, error)| format!("{}: {error:#}", path.display())).collect();
    if !bad.is_empty() {
        let more = bad.len().saturating_sub(MAX_NAMED);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        let named = bad[..bad.len().min(MAX_NAMED)].join("; ");
        bail!("cannot use {} of {} shards: {named}{more}", bad.len(), files.len());
    }
    opened.into_iter().collect()
}

/// Logs what was left out of the set, one line for each kind.
fn report(files: &[PathBuf], indices: &[Index], config: &DataConfig) {
    let (mut all, mut images, mut unlabelled) = (Report::default(), 0, 0);
    for (path, index) in files.iter().zip(indices) {
        all.merge(&index.report, &path.file_name().unwrap_or_default().to_string_lossy());
        images += index.members.len();
        unlabelled += index.members.iter().filter(|member| member.label < 0).count();
    }
    let first = files[0].display();
    let place =
        if files.len() > 1 { format!("{first} and {} more shards", files.len() - 1) } else { first.to_string() };
    all.lines(config.key, images, unlabelled).iter().for_each(|line| log::warn!("{place}: {line}"));
    if let (true, Some(at)) = (all.no_end, indices.iter().position(|index| index.report.no_end)) {
        let shard = files[at].display();
        log::warn!("{shard}: the end-of-archive marker is missing; if the file is truncated, images are missing");
    }
    all.unread().log(&place, images);
}

/// The classes of some shards as text, those that are numbers included.
fn collect_classes(indices: &[Index]) -> Labels {
    let mut labels = Labels::default();
    for index in indices {
        for class in &index.classes {
            labels.id(class);
        }
        if index.classes.is_empty() {
            let numbers: std::collections::BTreeSet<i32> = index.members.iter().map(|member| member.label).collect();
            for number in numbers.into_iter().filter(|&number| number >= 0) {
                labels.id(&number.to_string());
            }
        }
    }
    labels
}

fn known_classes(indices: &[Index]) -> Result<Known> {
    let named = indices.iter().any(|index| !index.classes.is_empty());
    let labelled = |index: &Index| index.members.iter().any(|member| member.label >= 0);
    match (named, indices.iter().any(labelled)) {
        (true, _) => collect_classes(indices).known(),
        (false, true) => Ok(Known::Numbers),
        (false, false) => Ok(Known::Nothing),
    }
}

/// Makes the labels of all shards numbers of the same classes, and returns the names of these, if they have any.
fn number_classes(indices: &mut [Index], known: &Known, place: &str) -> Result<Vec<String>> {
    let named = indices.iter().any(|index| !index.classes.is_empty());
    if !named && !matches!(known, Known::Names(_)) {
        return Ok(Vec::new());
    }
    let mut labels = collect_classes(indices);
    let (numbers, names) = labels.numbers(known, place)?;
    for index in indices {
        let classes = std::mem::take(&mut index.classes);
        for member in index.members.iter_mut().filter(|member| member.label >= 0) {
            let id = match classes.get(member.label as usize) {
                Some(class) => labels.id(class),
                None => labels.id(&member.label.to_string()),
            };
            member.label = numbers[id as usize] as i32;
        }
    }
    Ok(names)
}

impl Shard {
    fn with_file<T>(&self, work: impl FnOnce(&File) -> Result<T>) -> Result<T> {
        match &self.file {
            Some(file) => work(file),
            None => work(&files::open_regular(&self.path)?),
        }
    }
}

impl Dataset for WebDataset {
    fn len(&self) -> usize {
        self.ends[self.ends.len() - 1]
    }

    fn label(&self, index: usize) -> Option<i64> {
        Some(self.member(index).1.label as i64).filter(|&label| label >= 0)
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
        let (shard, member) = self.member(index);
        let size = member.size as usize;
        let most = self.options.max_bytes;
        ensure!(size <= most, "found {size} bytes, expected at most {most} (data.max_bytes)");
        BUFFER.with_borrow_mut(|bytes| {
            // With the header before it, which shows whether the shard is still the one that was indexed.
            bytes.resize(BLOCK as usize + size, 0);
            let start = member.offset() - BLOCK;
            shard.with_file(|file| file.read_exact_at(bytes, start).context("cannot read the shard"))?;
            let (header, bytes) = bytes.split_at(BLOCK as usize);
            member.ensure_header(header)?;
            work(bytes)
        })?;
        Ok(true)
    }

    fn describe(&self, index: usize) -> String {
        let (shard, member) = self.member(index);
        match shard.with_file(|file| member.name(file)) {
            Ok(name) => format!("{} member {name}", shard.path.display()),
            // The shard has changed or is gone.
            Err(_) => format!("{} byte {}", shard.path.display(), member.offset()),
        }
    }

    fn name(&self, index: usize) -> String {
        let (shard, member) = self.member(index);
        let name = shard.with_file(|file| member.name(file));
        let name = name.unwrap_or_else(|_| member.offset().to_string());
        format!("{}/{name}", shard.path.strip_prefix(&self.folder).unwrap_or(&shard.path).display())
    }

    fn fingerprint(&self) -> String {
        let shard =
            |shard: &Shard| format!("{} {}", shards::name_and_size(&shard.path), files::hex(&shard.index.digest));
        digest(self.shards.iter().map(shard))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// More shards than stay open, and more bad ones than an error names.
    #[test]
    fn any_number_of_shards_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data/webdataset/train-000000.tar");
        let total = MAX_OPEN + 20;
        for number in 0..total {
            std::fs::copy(&fixture, folder.path().join(format!("{number:04}.tar"))).unwrap();
        }
        let config = DataConfig { path: Some(folder.path().into()), ..Default::default() };
        let set = WebDataset::open_train(&config).unwrap();
        assert_eq!(set.len(), 3 * total);
        let mut out = Pixels::default();
        for index in [0, 3 * MAX_OPEN - 1, 3 * MAX_OPEN, 3 * total - 1] {
            set.load(index, &mut out).unwrap();
            let member = ["000000.png", "000001.jpg", "000002.jpeg"][index % 3];
            assert!(set.describe(index).ends_with(&format!("{:04}.tar member {member}", index / 3)));
            assert_eq!(set.label(index), [Some(7), Some(0), Some(3)][index % 3]);
        }
        for number in 0..7 {
            std::fs::write(folder.path().join(format!("{number:04}.tar")), "no tar").unwrap();
        }
        let message = format!("{:#}", WebDataset::open_train(&config).err().expect("an error"));
        assert!(message.starts_with(&format!("cannot use 7 of {total} shards: ")), "{message}");
        assert!(message.contains("0004.tar: ") && !message.contains("0005.tar"), "{message}");
        assert!(message.ends_with("; and 2 more"), "{message}");
    }
}
