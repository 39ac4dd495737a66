//! CIFAR-10 and CIFAR-100 in their binary version (<https://www.cs.toronto.edu/~kriz/cifar.html>), as the downloaded
//! `.tar.gz` or unpacked: records of one label byte (CIFAR-100: coarse, then fine) and 32 x 32 pixels, plane by
//! plane. A set is held in memory, 154 MB for training, so the compressed archive serves random access too.
//!
//! The Python version, which torchvision downloads, consists of pickles, which can run code and are not read here.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flate2::read::MultiGzDecoder;

use crate::data::decode::{caught, concise};
use crate::data::{DataConfig, Dataset, Format, digest};
use crate::files;
use crate::pixels::Pixels;

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const IMAGE: usize = 3 * PLANE;

/// Maximum size of a file in an archive; the largest one, CIFAR-100's training file, has 154 MB.
const MAX_BYTES: u64 = 256 << 20;

/// What differs between the two sets.
struct Variant {
    /// Folder of the unpacked archive.
    folder: &'static str,
    archive: &'static str,
    train: &'static [&'static str],
    test: &'static [&'static str],
    class_names: &'static str,
    classes: u8,
    /// Label bytes before the pixels; the last one is the class.
    label_bytes: usize,
}

const CIFAR10: Variant = Variant {
    folder: "cifar-10-batches-bin",
    archive: "cifar-10-binary.tar.gz",
    train: &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
    test: &["test_batch.bin"],
    class_names: "batches.meta.txt",
    classes: 10,
    label_bytes: 1,
};

const CIFAR100: Variant = Variant {
    folder: "cifar-100-binary",
    archive: "cifar-100-binary.tar.gz",
    train: &["train.bin"],
    test: &["test.bin"],
    class_names: "fine_label_names.txt",
    classes: 100,
    label_bytes: 2,
};

/// The training or the test images.
pub struct Cifar {
    variant: &'static Variant,
    /// The archive or the folder.
    source: PathBuf,
    /// Name and records of each file.
    files: Vec<(&'static str, Vec<u8>)>,
    classes: Vec<String>,
}

impl Cifar {
    /// Reads the training images of `data.path`: the archive, the unpacked folder, or the folder that holds either.
    pub fn open_train(config: &DataConfig) -> Result<Self> {
        let (variant, source) = locate(config)?;
        let place = source.display().to_string();
        Self::open(variant, source, variant.train)?.with_context(|| missing(variant, variant.train[0], &place))
    }

    /// Reads the test images beside the training images; `None` if there are none.
    pub fn open_eval(config: &DataConfig) -> Result<Option<Self>> {
        let (variant, source) = locate(config)?;
        Self::open(variant, source, variant.test)
    }

    /// Reads some files of the set; `None` if none of them exists.
    fn open(variant: &'static Variant, source: PathBuf, names: &[&'static str]) -> Result<Option<Self>> {
        let place = source.display().to_string();
        let wanted: Vec<&str> = names.iter().copied().chain([variant.class_names]).collect();
        let mut contents = if source.is_dir() {
            wanted.iter().map(|name| read_file(&source.join(name))).collect::<Result<Vec<_>>>()?
        } else {
            caught(|| read_archive(variant, &source, &wanted)).with_context(|| format!("cannot use {place}"))?
        };
        let text = contents.pop().flatten().unwrap_or_default();
        if contents.iter().all(Option::is_none) {
            return Ok(None);
        }
        let lines = String::from_utf8_lossy(&text).into_owned();
        let classes = lines.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_string).collect();
        let mut set = Self { variant, source, files: Vec::new(), classes };
        let size = set.record_bytes();
        for (&name, content) in names.iter().zip(contents) {
            let content = content.with_context(|| missing(variant, name, &place))?;
            ensure!(
                !content.is_empty() && content.len().is_multiple_of(size),
                "found {} bytes in {name} of {place}, expected a multiple of {size}: is the file truncated, or of \
                 another version of CIFAR?",
                content.len()
            );
            let labels = content.chunks_exact(size).map(|record| record[variant.label_bytes - 1]);
            if let Some((row, label)) = labels.enumerate().find(|(_, label)| *label >= variant.classes) {
                let most = variant.classes - 1;
                bail!(
                    "found label {label} in record {row} of {name} of {place}, expected 0 to {most}: another version \
                     of CIFAR?"
                );
            }
            set.files.push((name, content));
        }
        Ok(Some(set))
    }

    fn record_bytes(&self) -> usize {
        self.variant.label_bytes + IMAGE
    }

    /// The file with an image, the number of its record there, and the record.
    fn record(&self, index: usize) -> (&str, usize, &[u8]) {
        let mut start = index * self.record_bytes();
        let mut file = 0;
        while start >= self.files[file].1.len() {
            start -= self.files[file].1.len();
            file += 1;
        }
        let (name, records) = &self.files[file];
        (name, start / self.record_bytes(), &records[start..start + self.record_bytes()])
    }
}

impl Dataset for Cifar {
    fn len(&self) -> usize {
        self.files.iter().map(|(_, records)| records.len() / self.record_bytes()).sum()
    }

    fn label(&self, index: usize) -> Option<i64> {
        Some(self.record(index).2[self.variant.label_bytes - 1] as i64)
    }

    fn class_names(&self) -> Vec<String> {
        self.classes.clone()
    }

    fn load(&self, index: usize, out: &mut Pixels) -> Result<()> {
        let (red, rest) = self.record(index).2[self.variant.label_bytes..].split_at(PLANE);
        let (green, blue) = rest.split_at(PLANE);
        out.resize(SIDE, SIDE);
        for (pixel, ((&red, &green), &blue)) in out.data.chunks_exact_mut(3).zip(red.iter().zip(green).zip(blue)) {
            pixel.copy_from_slice(&[red, green, blue]);
        }
        Ok(())
    }

    fn describe(&self, index: usize) -> String {
        let (name, row, _) = self.record(index);
        format!("{} record {row}", self.source.join(name).display())
    }

    fn name(&self, index: usize) -> String {
        let (name, row, _) = self.record(index);
        format!("{name}/{row}")
    }

    fn fingerprint(&self) -> String {
        // The fingerprint is the same for the archive and the unpacked folder.
        digest(self.files.iter().map(|(name, records)| format!("{name} {}", records.len())))
    }
}

fn missing(variant: &Variant, name: &str, place: &str) -> String {
    format!("found no {name} in {place}, expected the whole of {}", variant.archive)
}

/// The archive or unpacked folder that `data.path` means.
fn locate(config: &DataConfig) -> Result<(&'static Variant, PathBuf)> {
    let variant = if config.format == Format::Cifar100 { &CIFAR100 } else { &CIFAR10 };
    let path = config.only_path().context("data.path: found nothing, expected an archive or a folder")?;
    ensure!(path.exists(), "no such file or folder: {}", path.display());
    if !path.is_dir() {
        return Ok((variant, path.clone()));
    }
    let folders = [path.clone(), path.join(variant.folder)];
    let found = folders.iter().find(|folder| folder.join(variant.train[0]).is_file());
    let archive = path.join(variant.archive);
    if let Some(found) = found.or(Some(&archive).filter(|archive| archive.is_file())) {
        return Ok((variant, found.clone()));
    }
    let pickles = [variant.archive.replace("binary", "python"), variant.folder.replace("-bin", "-py")];
    let pickle = pickles.iter().map(|name| path.join(name)).find(|path| path.exists());
    let pickled =
        pickle.or(Some(path.clone()).filter(|path| path.join(variant.train[0].trim_end_matches(".bin")).is_file()));
    if let Some(pickled) = pickled {
        bail!(pickle_message(variant, &pickled));
    }
    bail!("found neither {} nor {} in {}, expected one of them", variant.archive, variant.train[0], path.display())
}

fn pickle_message(variant: &Variant, path: &Path) -> String {
    format!(
        "found the Python version in {}, whose pickles are not read, expected the binary version: get \
         https://www.cs.toronto.edu/~kriz/{}",
        path.display(),
        variant.archive
    )
}

/// The content of a file; `None` if it does not exist.
fn read_file(path: &Path) -> Result<Option<Vec<u8>>> {
    // A dangling link exists, and is an error.
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    files::read_regular(path, MAX_BYTES).map(Some).with_context(|| format!("cannot read {}", path.display()))
}

/// The contents of the wanted files of a `.tar.gz` or `.tar`, whatever their folder; `None` for those it lacks.
fn read_archive(variant: &Variant, path: &Path, wanted: &[&str]) -> Result<Vec<Option<Vec<u8>>>> {
    let mut magic = [0; 2];
    files::open_regular(path)?.read_exact(&mut magic).context("found an empty file, expected an archive")?;
    let file = BufReader::with_capacity(1 << 16, files::open_regular(path)?);
    let plain: Box<dyn Read> = if magic == [0x1f, 0x8b] { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut archive = tar::Archive::new(plain);
    let mut contents = vec![None; wanted.len()];
    let mut pickled = false;
    let damaged = "is it truncated, or not an archive? download it again";
    // For a damaged header the library's message contains the raw bytes, newlines included.
    let damage = |error: std::io::Error| concise(error.into()).context(damaged);
    for entry in archive.entries().map_err(damage)? {
        let mut entry = entry.map_err(damage)?;
        let name = entry.path().map_err(damage)?.file_name().unwrap_or_default().display().to_string();
        pickled |= entry.header().entry_type().is_file()
            && wanted.iter().any(|wanted| wanted.strip_suffix(".bin") == Some(&name));
        if let Some(at) = wanted.iter().position(|wanted| *wanted == name) {
            let size = entry.size();
            ensure!(size <= MAX_BYTES, "found {size} bytes of {name}, expected at most {MAX_BYTES}");
            // Not preallocated: the header may declare more than there is.
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(damage)?;
            content.shrink_to_fit();
            ensure!(content.len() as u64 == size, "found {} of {} bytes of {name}: {damaged}", content.len(), size);
            contents[at] = Some(content);
        }
    }
    ensure!(!pickled || contents.iter().any(Option::is_some), pickle_message(variant, path));
    Ok(contents)
}
