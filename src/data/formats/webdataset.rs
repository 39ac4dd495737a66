//! Tar shards as the webdataset tool writes them: `key.jpg` (or png, webp and so on) with the class in `key.cls`, or
//! in `key.json` as `label` or `cls`. Their headers are read once and kept ([`super::index_cache`]); then any image is
//! one read at a known place.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;

use super::tar_index::{Index, Member};
use super::{index_cache, shards};
use crate::augment::Crop;
use crate::data::decode::{DecodeOptions, decode_part};
use crate::data::{CropFor, DataConfig, Dataset, digest};
use crate::files;
use crate::pixels::Pixels;

/// Compressed shards are found, too, to say what to do with them.
const ENDINGS: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz"];

/// Shards that stay open; of more the files are opened for each image, for there are limits on open files.
const MAX_OPEN: usize = 256;

/// Most shards that an error names.
const MAX_NAMED: usize = 5;

thread_local! {
    /// The encoded image.
    static BUFFER: RefCell<Vec<u8>> = RefCell::default();
}

/// The images of one or more shards, in the order of the shards and in them.
pub struct WebDataset {
    shards: Vec<Shard>,
    /// Number of images in the shards up to and with each.
    ends: Vec<usize>,
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
        Self::open(shards::train(config, &ENDINGS)?, config)
    }

    /// Opens `data.eval_path` (of a folder, the held-out shards or else all), or else the held-out shards next to
    /// the training shards.
    pub fn open_eval(config: &DataConfig) -> Result<Option<Self>> {
        let files = shards::held_out(config, &ENDINGS)?;
        if files.is_empty() { Ok(None) } else { Self::open(files, config).map(Some) }
    }

    fn open(files: Vec<PathBuf>, config: &DataConfig) -> Result<Self> {
        let first = files[0].display().to_string();
        let total = files.len();
        // All of them, so that one error names every shard to get again.
        let indices: Vec<Result<Index>> = files.par_iter().map(|path| index_cache::open(path)).collect();
        let (mut shards, mut bad) = (Vec::with_capacity(total), Vec::new());
        for (path, index) in files.into_iter().zip(indices) {
            match index {
                Ok(index) => {
                    let file = if shards.len() < MAX_OPEN { Some(files::open_regular(&path)?) } else { None };
                    shards.push(Shard { path, index, file });
                }
                Err(error) => bad.push(format!("{}: {error:#}", path.display())),
            }
        }
        if !bad.is_empty() {
            let more = bad.len().saturating_sub(MAX_NAMED);
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            let named = bad[..bad.len().min(MAX_NAMED)].join("; ");
            bail!("cannot use {} of {total} shards: {named}{more}", bad.len());
        }
        let mut notes = shards.iter().filter(|shard| !shard.index.note.is_empty());
        if let Some(shard) = notes.next() {
            let more = notes.count();
            let more = if more > 0 { format!(" (something of the kind in {more} more shards)") } else { String::new() };
            log::warn!("{}: {}{more}", shard.path.display(), shard.index.note);
        }
        let mut images = 0;
        let count = |shard: &Shard| {
            images += shard.index.members.len();
            images
        };
        let ends = shards.iter().map(count).collect();
        ensure!(images > 0, "no images in {first}{}", if total > 1 { " and the other shards" } else { "" });
        Ok(Self { shards, ends, options: config.decode_options() })
    }

    fn member(&self, index: usize) -> (&Shard, Member) {
        let at = self.ends.partition_point(|&end| end <= index);
        let first = if at == 0 { 0 } else { self.ends[at - 1] };
        (&self.shards[at], self.shards[at].index.members[index - first])
    }
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
        Vec::new()
    }

    fn load(&self, index: usize, out: &mut Pixels) -> Result<()> {
        self.load_part(index, &mut Crop::whole, out).map(drop)
    }

    fn load_part(&self, index: usize, want: &mut CropFor, out: &mut Pixels) -> Result<Crop> {
        let (shard, member) = self.member(index);
        let size = member.size as usize;
        let most = self.options.max_bytes;
        ensure!(size <= most, "found {size} bytes, expected at most {most} (data.max_bytes)");
        BUFFER.with_borrow_mut(|bytes| {
            bytes.resize(size, 0);
            let read = |file: &File| file.read_exact_at(bytes, member.offset()).context("cannot read the shard");
            shard.with_file(read)?;
            decode_part(bytes, self.options, want, out)
        })
    }

    fn describe(&self, index: usize) -> String {
        let (shard, member) = self.member(index);
        match shard.with_file(|file| member.name(file)) {
            Ok(name) => format!("{} member {name}", shard.path.display()),
            // The shard has changed or is gone.
            Err(_) => format!("{} byte {}", shard.path.display(), member.offset()),
        }
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
