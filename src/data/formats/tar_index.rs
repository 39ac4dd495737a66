//! Where the images of a webdataset shard (a plain tar file) lie, and what their labels are.
//!
//! As in the webdataset tool the members of a sample follow one another and share a key: the name up to the first
//! dot after the last slash. Keys are not kept, as ten million of them would take gigabytes; a message that needs
//! one reads it from the shard again.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use tar::{Archive, EntryType};

use super::names::is_image_name;
use crate::data::decode::concise;
use crate::files;

/// Tar files are made of blocks of this many bytes.
const BLOCK: u64 = 512;

/// Labels are digits, or a small JSON object.
const MAX_LABEL_BYTES: u64 = 1 << 20;

/// The images of one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// In the order of the shard.
    pub members: Vec<Member>,
    /// SHA-256 over the key and size of every image.
    pub digest: [u8; 32],
    /// What the user should know, in one line; mostly empty.
    pub note: String,
}

/// An image in a shard, in 16 bytes: ten million of them are 160 MB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Block at which its bytes begin.
    pub block: u32,
    /// Bytes, at most 4 GiB.
    pub size: u32,
    /// Class, -1 for none.
    pub label: i32,
    /// Blocks of headers before its bytes.
    pub headers: u16,
}

impl Member {
    /// Position of its first byte.
    pub fn offset(self) -> u64 {
        self.block as u64 * BLOCK
    }

    /// Its name, read from the shard.
    pub fn name(self, shard: &File) -> Result<String> {
        let at = self.offset() - self.headers as u64 * BLOCK;
        let mut archive = Archive::new(Positioned { file: shard, at });
        let entry = archive.entries()?.next().context("found no header")??;
        Ok(String::from_utf8_lossy(&entry.path_bytes()).into_owned())
    }
}

/// Reads a file from a place of its own: threads may share the file.
struct Positioned<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(out, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Positioned<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.file.metadata()?.len().checked_add_signed(by),
        };
        self.at = at.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Reads all headers and labels of a shard. Fails for what is no tar file, is compressed, damaged or cut off.
pub(super) fn scan(path: &Path) -> Result<Index> {
    let file = files::open_regular(path)?;
    let length = file.metadata()?.len();
    refuse_other_types(&file, path)?;
    let mut archive = Archive::new(Positioned { file: &file, at: 0 });
    let mut scan = Scan { index: Index::default(), digest: Sha256::new(), sample: Sample::default() };
    let mut end = 0;
    for entry in archive.entries_with_seek()? {
        // Of a damaged header the library repeats the bytes, line ends and all.
        let mut entry = entry.map_err(|error| concise(error.into())).with_context(|| {
            let kind = if end == 0 { "no tar file" } else { "damaged or cut off; get it again" };
            format!("found no valid header after byte {end} of {length}: {kind}")
        })?;
        let (start, bytes) = (end, entry.raw_file_position());
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let size = entry.size();
        let padded = bytes.checked_add(size).and_then(|end| end.checked_next_multiple_of(BLOCK));
        end = padded.unwrap_or(u64::MAX);
        ensure!(end <= length, "cut off: found {length} bytes, expected {end} up to member {name}; get it again");
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {}
            EntryType::GNUSparse => bail!("found sparse member {name}, expected plain files; pack it without --sparse"),
            _ => continue,
        }
        scan.add(&name, start, bytes, &mut entry)?;
    }
    scan.start_sample("");
    if end + BLOCK > length {
        scan.note(|| "it lacks the mark at the end of an archive; if it is cut off, images are missing".to_string());
    }
    scan.index.digest = scan.digest.finalize().into();
    scan.index.members.shrink_to_fit();
    Ok(scan.index)
}

struct Scan {
    index: Index,
    digest: Sha256,
    sample: Sample,
}

/// The members of one key so far.
#[derive(Default)]
struct Sample {
    key: String,
    suffixes: Vec<String>,
    /// And whether its suffix has no dots.
    image: Option<(Member, bool)>,
    label: Option<i32>,
}

impl Scan {
    /// Takes a member whose headers begin at `start` and whose own bytes begin at `bytes`.
    fn add(&mut self, name: &str, start: u64, bytes: u64, entry: &mut tar::Entry<impl Read>) -> Result<()> {
        let Some((key, suffix)) = split(name) else { return Ok(()) };
        self.start_sample(key);
        let sample = &mut self.sample;
        ensure!(!sample.suffixes.contains(&suffix), "found member {name} twice in a sample, expected it once");
        if suffix == "cls" || suffix == "json" {
            let mut text = String::new();
            let read = entry.take(MAX_LABEL_BYTES).read_to_string(&mut text);
            match read.ok().and_then(|_| if suffix == "cls" { number(&text) } else { from_json(&text) }) {
                // The plain number goes before the description.
                Some(label) if suffix == "cls" || sample.label.is_none() => sample.label = label,
                Some(_) => {}
                None => self.note(|| format!("member {name} holds no class number")),
            }
        } else if is_image_name(Path::new(name)) {
            let member = Member {
                block: (bytes / BLOCK).try_into().context("found more than 2 TB, expected smaller shards")?,
                // What is larger is refused by size when it is read.
                size: entry.size().try_into().unwrap_or(u32::MAX),
                label: -1,
                headers: ((bytes - start) / BLOCK).try_into().context("found headers of over 32 MB")?,
            };
            // `x.seg.png` comes with `x.png`, but an image may have dots in its name, too.
            let plain = !suffix.contains('.');
            let before = sample.image;
            if before.is_none_or(|(_, before_is_plain)| plain && !before_is_plain) {
                sample.image = Some((member, plain));
            }
            if before.is_some() {
                self.note(|| format!("several images have the key {key} (the name up to the first dot); one is used"));
            }
        }
        self.sample.suffixes.push(suffix);
        Ok(())
    }

    /// Ends the sample before, unless this is still the same.
    fn start_sample(&mut self, key: &str) {
        if self.sample.key == key {
            return;
        }
        let sample = std::mem::replace(&mut self.sample, Sample { key: key.to_string(), ..Default::default() });
        if let Some((member, _)) = sample.image {
            self.digest.update(format!("{}\0{}\0", sample.key, member.size));
            self.index.members.push(Member { label: sample.label.unwrap_or(-1), ..member });
        }
    }

    /// Keeps the first thing to say.
    fn note(&mut self, text: impl FnOnce() -> String) {
        if self.index.note.is_empty() {
            self.index.note = text();
        }
    }
}

fn refuse_other_types(file: &File, path: &Path) -> Result<()> {
    let mut magic = [0; 4];
    ensure!(file.read_at(&mut magic, 0)? > 0, "found an empty file, expected a tar file");
    let unpack = match magic {
        [0x1f, 0x8b, ..] => "gunzip",
        [0x28, 0xb5, 0x2f, 0xfd] => "unzstd",
        [0xfd, b'7', b'z', b'X'] => "unxz",
        [b'B', b'Z', b'h', _] => "bunzip2",
        _ => return Ok(()),
    };
    bail!(
        "found a compressed archive, expected a plain .tar, because its images are read one by one: {unpack} {}",
        path.display()
    )
}

/// Key and suffix (in lower case) of a member; `None` for what belongs to no sample: hidden files and those whose
/// name begins with a part such as `__info__`.
fn split(name: &str) -> Option<(&str, String)> {
    let first = name.split('/').next().unwrap_or_default();
    if first.len() >= 4 && first.starts_with("__") && first.ends_with("__") {
        return None;
    }
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].find('.').filter(|&dot| dot > 0)?;
    Some((&name[..dot], name[dot + 1..].to_lowercase()))
}

/// The class in a text: `Some(None)` for a number that means no class.
fn number(text: &str) -> Option<Option<i32>> {
    let number = text.trim().parse::<i32>().ok()?;
    Some(Some(number).filter(|&number| number >= 0))
}

/// The same of `label` or `cls` in a JSON object; `Some(None)` where it has neither.
fn from_json(text: &str) -> Option<Option<i32>> {
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    match json.get("label").or_else(|| json.get("cls")) {
        None | Some(serde_json::Value::Null) => Some(None),
        Some(value) => number(&value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_end_at_the_first_dot_of_the_base_name() {
        let split = |name| split(name).map(|(key, suffix)| format!("{key} {suffix}"));
        for (name, expected) in [
            ("a.jpg", Some("a jpg")),
            ("./x.y/a.B.JPG", Some("./x.y/a b.jpg")),
            ("dir/a", None),
            ("dir/._a.jpg", None),
            (".jpg", None),
            ("__info__/a.jpg", None),
            ("x/__info__.jpg", Some("x/__info__ jpg")),
            ("__a.jpg", Some("__a jpg")),
        ] {
            assert_eq!(split(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn labels_are_numbers_or_in_json() {
        assert_eq!((number(" 7\n"), number("-1"), number("cat")), (Some(Some(7)), Some(None), None));
        assert_eq!(from_json(r#"{"cls": 3, "caption": "x"}"#), Some(Some(3)));
        assert_eq!(from_json(r#"{"label": 4, "cls": 3}"#), Some(Some(4)));
        assert_eq!(from_json(r#"{"caption": "x"}"#), Some(None));
        assert_eq!(from_json(r#"{"label": null}"#), Some(None));
        assert_eq!((from_json(r#"{"label": "cat"}"#), from_json("{")), (None, None));
    }

    #[test]
    fn what_may_be_a_mistake_is_noted() {
        let folder = tempfile::tempdir().unwrap();
        let shard = folder.path().join("a.tar");
        let note = |members: &[(&str, &str)], marked: bool| {
            let mut builder = tar::Builder::new(Vec::new());
            for (name, text) in members {
                let mut header = tar::Header::new_gnu();
                header.set_size(text.len() as u64);
                builder.append_data(&mut header, name, text.as_bytes()).unwrap();
            }
            let mut bytes = builder.into_inner().unwrap();
            bytes.truncate(if marked { bytes.len() } else { bytes.len() - 1024 });
            std::fs::write(&shard, bytes).unwrap();
            let index = scan(&shard).unwrap();
            (index.members.iter().map(|member| member.label).collect::<Vec<_>>(), index.note)
        };
        let whole = [("a.png", ""), ("a.cls", "1"), ("a.txt", "text"), ("b.json", "{\"cls\": 2}"), ("b.png", "")];
        assert_eq!(note(&whole, true), (vec![1, 2], String::new()));
        let (labels, text) = note(&whole, false);
        assert!(labels == [1, 2] && text.starts_with("it lacks the mark at the end"), "{text}");
        let (labels, text) = note(&[("a.png", ""), ("a.cls", "cat"), ("b.png", ""), ("b.cls", "3")], true);
        assert!(labels == [-1, 3] && text.starts_with("member a.cls holds no class number"), "{text}");
        // The plain name wins, be it first or not.
        for order in [["a.png", "a.seg.png"], ["a.depth.png", "a.png"], ["a.1.png", "a.2.png"]] {
            let (labels, text) = note(&order.map(|name| (name, "")), true);
            assert!(labels == [-1] && text.starts_with("several images have the key a "), "{text}");
            let (file, index) = (File::open(&shard).unwrap(), scan(&shard).unwrap());
            let used = if order.contains(&"a.png") { "a.png" } else { "a.1.png" };
            assert_eq!(index.members[0].name(&file).unwrap(), used);
        }
    }
}
