//! Where the images of a webdataset shard (a plain tar file) are, and what their labels are.
//!
//! The members of a sample share a key, by [`KeyRule`], wherever they are in the shard: `tar cf x.tar *.jpg *.cls`
//! writes all images first. Keys are not kept, as ten million of them would take gigabytes; a message that needs
//! one reads it from the shard again.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use tar::{Archive, EntryType};

use super::labels::Labels;
use super::names::{ending, is_array_name, is_image_name};
use super::tar_member::{class, from_json, label_rank, split};
use super::tar_report::Report;
use crate::data::KeyRule;
use crate::data::decode::concise;
use crate::data::decode::unsupported::{lfs_pointer, of_ending};
use crate::files;

/// Tar files are made of blocks of this many bytes.
pub(super) const BLOCK: u64 = 512;

/// Labels are a word or two, or a small JSON object.
const MAX_LABEL_BYTES: u64 = 1 << 20;

/// The images of one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// In the order of the shard.
    pub members: Vec<Member>,
    /// SHA-256 over the key and size of every image.
    pub digest: [u8; 32],
    /// The classes that labels are positions in, where any of them is a name; empty where all are numbers.
    pub classes: Vec<String>,
    /// What the user should know.
    pub report: Report,
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
    /// Checksum of the last of them, see [`check`].
    pub check: u16,
}

/// A short checksum of a member's header, which shows whether the shard is the one that was indexed.
pub(super) fn check(header: &[u8]) -> u16 {
    crc32c::crc32c(header) as u16
}

impl Member {
    /// Position of its first byte.
    pub fn offset(self) -> u64 {
        self.block as u64 * BLOCK
    }

    /// Fails if the block before its bytes is not the header that was there when the shard was indexed.
    pub fn ensure_header(self, header: &[u8]) -> Result<()> {
        ensure!(
            check(header) == self.check,
            "the shard has changed since it was indexed: found another header before byte {}; start the run again",
            self.offset()
        );
        Ok(())
    }

    /// Its name, read from the shard. Fails if the shard has changed.
    pub fn name(self, shard: &File) -> Result<String> {
        let mut header = [0; BLOCK as usize];
        shard.read_exact_at(&mut header, self.offset() - BLOCK)?;
        self.ensure_header(&header)?;
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

/// Reads all headers and labels of a shard. Fails for what is not a tar file, is compressed, damaged or truncated.
pub(super) fn scan(path: &Path, rule: KeyRule) -> Result<Index> {
    let file = files::open_regular(path)?;
    let length = file.metadata()?.len();
    refuse_other_types(&file, path)?;
    let mut archive = Archive::new(Positioned { file: &file, at: 0 });
    let mut scan = Scan { rule, ..Scan::default() };
    let mut end = 0;
    for entry in archive.entries_with_seek()? {
        // Of a damaged header the library repeats the bytes, line ends and all.
        let mut entry = entry.map_err(|error| concise(error.into())).with_context(|| {
            let kind = if end == 0 { "not a tar file" } else { "damaged or truncated; download it again" };
            format!("found no valid header after byte {end} of {length}: {kind}")
        })?;
        let (start, bytes) = (end, entry.raw_file_position());
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let size = entry.size();
        let padded = bytes.checked_add(size).and_then(|end| end.checked_next_multiple_of(BLOCK));
        end = padded.unwrap_or(u64::MAX);
        ensure!(
            end <= length,
            "truncated: found {length} bytes, expected {end} up to member {name}; download it again"
        );
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {}
            EntryType::GNUSparse => bail!("found sparse member {name}, expected plain files; pack it without --sparse"),
            _ => continue,
        }
        scan.add(&name, start, bytes, &mut entry)?;
    }
    scan.report.no_end = end + BLOCK > length;
    scan.finish()
}

#[derive(Default)]
struct Scan {
    rule: KeyRule,
    samples: Vec<Sample>,
    /// The newest sample of each key.
    by_key: HashMap<Arc<str>, u32>,
    /// The sample of the member before.
    last: Option<u32>,
    labels: Labels,
    report: Report,
}

/// The members of one key so far.
struct Sample {
    key: Arc<str>,
    /// Of its members, each with a slash behind it, which no suffix has.
    suffixes: String,
    /// And its rank among those of one key, the highest wins.
    image: Option<(Member, u8)>,
    label: Option<Label>,
}

struct Label {
    /// Among the texts of [`Scan::labels`]; none for "no class".
    id: Option<u32>,
    /// Which of several label members counts: the smallest.
    rank: u8,
    /// Name of the member.
    name: String,
}

impl Scan {
    /// Takes a member whose headers begin at `start` and whose own bytes begin at `bytes`.
    fn add(&mut self, name: &str, start: u64, bytes: u64, entry: &mut tar::Entry<impl Read>) -> Result<()> {
        let Some((key, suffix)) = split(name, self.rule) else { return Ok(()) };
        let at = self.sample(name, key, &suffix)?;
        let rank = label_rank(&suffix);
        if let Some(rank) = rank {
            let mut text = String::new();
            let read = entry.take(MAX_LABEL_BYTES).read_to_string(&mut text);
            match read.ok().and_then(|_| if rank < 2 { class(&text) } else { from_json(&text) }) {
                Some(class) => {
                    let id = class.map(|text| self.labels.id(&text));
                    let label = Label { id, rank, name: name.to_string() };
                    let before = &mut self.samples[at].label;
                    // The plain class goes before the description.
                    if before.as_ref().is_none_or(|before| before.id.is_none() || rank < before.rank && id.is_some()) {
                        *before = Some(label);
                    }
                }
                None => self.report.bad_labels.add(name),
            }
        } else if is_image_name(Path::new(name)) {
            let member = member(start, bytes, entry)?;
            // `x.seg.png` comes with `x.png`, but an image may have dots in its name, too. An array beside a picture is
            // something else.
            let rank = if is_array_name(Path::new(name)) { 0 } else { 1 + u8::from(!suffix.contains('.')) };
            let image = &mut self.samples[at].image;
            if rank > 0 && image.is_some_and(|(_, before)| before > 0) {
                self.report.same_key.add(name);
            }
            if image.is_none_or(|(_, before)| rank > before) {
                *image = Some((member, rank));
            }
        } else if of_ending(&ending(Path::new(name))).is_some() {
            *self.report.unread.entry(ending(Path::new(name))).or_default() += 1;
        }
        Ok(())
    }

    /// The position of the sample that a member belongs to.
    fn sample(&mut self, name: &str, key: &str, suffix: &str) -> Result<usize> {
        let known = self.by_key.get(key).copied();
        let has = |at: u32| self.samples[at as usize].suffixes.split('/').any(|each| each == suffix);
        let at = match known {
            Some(at) if !has(at) => at,
            found => {
                ensure!(
                    found.is_none() || found != self.last,
                    "found member {name} twice in a sample, expected it once"
                );
                // The same names later in the shard are another sample.
                let (key, at) = (Arc::<str>::from(key), self.samples.len() as u32);
                self.by_key.insert(key.clone(), at);
                self.samples.push(Sample { key, suffixes: String::new(), image: None, label: None });
                at
            }
        };
        self.last = Some(at);
        let suffixes = &mut self.samples[at as usize].suffixes;
        *suffixes += suffix;
        suffixes.push('/');
        Ok(at as usize)
    }

    fn finish(mut self) -> Result<Index> {
        let (numbers, classes) = self.labels.numbers(&Default::default(), "")?;
        let mut digest = Sha256::new();
        let mut members = Vec::new();
        self.samples.sort_by_key(|sample| sample.image.map(|(member, _)| member.block));
        for Sample { key, image, label, .. } in self.samples {
            match (image, label) {
                (Some((member, _)), label) => {
                    digest.update(format!("{key}\0{}\0", member.size));
                    let label = label.and_then(|label| numbers.get(label.id? as usize).copied());
                    members.push(Member { label: label.map_or(-1, |label| label as i32), ..member });
                }
                // A description without a class is none that is lost.
                (None, Some(label)) if label.id.is_some() || label.rank < 2 => self.report.orphans.add(&label.name),
                (None, _) => {}
            }
        }
        members.shrink_to_fit();
        Ok(Index { members, digest: digest.finalize().into(), classes, report: self.report })
    }
}

/// Where an image member is.
fn member(start: u64, bytes: u64, entry: &tar::Entry<impl Read>) -> Result<Member> {
    Ok(Member {
        block: (bytes / BLOCK).try_into().context("found more than 2 TB, expected smaller shards")?,
        // What is larger is refused by size when it is read.
        size: entry.size().try_into().unwrap_or(u32::MAX),
        label: -1,
        headers: ((bytes - start) / BLOCK).try_into().context("found headers of over 32 MB")?,
        check: check(entry.header().as_bytes()),
    })
}

fn refuse_other_types(file: &File, path: &Path) -> Result<()> {
    let mut start = [0; 64];
    ensure!(file.read_at(&mut start, 0)? > 0, "found an empty file, expected a tar file");
    let unpack = match start {
        [0x1f, 0x8b, ..] => "gunzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "unzstd",
        [0xfd, b'7', b'z', b'X', ..] => "unxz",
        [b'B', b'Z', b'h', ..] => "bunzip2",
        _ => return lfs_pointer(&start).map_or(Ok(()), Err),
    };
    bail!(
        "found a compressed archive, expected a plain .tar, because its images are read one by one: {unpack} {}",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The index of a shard with these members, and the names of its images.
    fn indexed(members: &[(&str, &str)], rule: KeyRule) -> (Index, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let shard = folder.path().join("a.tar");
        let mut builder = tar::Builder::new(File::create(&shard).unwrap());
        for (name, text) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            builder.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap();
        let (index, file) = (scan(&shard, rule).unwrap(), File::open(&shard).unwrap());
        let names = index.members.iter().map(|member| member.name(&file).unwrap()).collect();
        (index, names)
    }

    fn labels(index: &Index) -> Vec<i32> {
        index.members.iter().map(|member| member.label).collect()
    }

    #[test]
    fn members_are_paired_by_key_wherever_they_are() {
        let apart = [("a.png", ""), ("b.input.png", ""), ("c.png", ""), ("c.cls", "3"), ("a.json", r#"{"cls": 1}"#)];
        let (index, names) =
            indexed(&[&apart[..], &[("b.output.cls", "2"), ("d.cls", "9")]].concat(), KeyRule::FirstDot);
        assert_eq!(names, ["a.png", "b.input.png", "c.png"]);
        assert_eq!((labels(&index), &index.classes[..]), (vec![1, 2, 3], &[][..]));
        assert_eq!((index.report.orphans.count, index.report.orphans.example.as_str()), (1, "d.cls"));
        // Labels that come first, and the better of two.
        let first = [("b.cls", "5"), ("a.json", r#"{"cls": 1}"#), ("a.cls", "4"), ("a.png", ""), ("b.png", "")];
        assert_eq!(labels(&indexed(&first, KeyRule::FirstDot).0), [4, 5]);
        // The same name again is another sample.
        let again = [("a.png", ""), ("b.png", ""), ("a.png", "x"), ("a.cls", "1")];
        assert_eq!(labels(&indexed(&again, KeyRule::FirstDot).0), [-1, -1, 1]);
    }

    #[test]
    fn class_names_are_kept_as_text() {
        let members =
            [("a.png", ""), ("a.cls", "dog\n"), ("b.png", ""), ("b.cls", "7"), ("c.png", ""), ("c.cls", "-1")];
        let (index, _) = indexed(&members, KeyRule::FirstDot);
        assert_eq!((labels(&index), index.classes), (vec![1, 0, -1], vec!["7".to_string(), "dog".to_string()]));
    }

    #[test]
    fn what_may_be_a_mistake_is_counted() {
        let dotted =
            [("a.0.png", ""), ("a.0.cls", "1"), ("a.1.png", ""), ("a.1.cls", "2"), ("a.2.png", ""), ("a.2.cls", "3")];
        let (index, names) = indexed(&dotted, KeyRule::FirstDot);
        assert_eq!((names, index.report.same_key.count), (vec!["a.0.png".to_string()], 2));
        let (index, names) = indexed(&dotted, KeyRule::LastDot);
        assert_eq!((names.len(), labels(&index), index.report), (3, vec![1, 2, 3], Report::default()));
        let (index, _) = indexed(&[("a.png", ""), ("a.cls", "a\tb"), ("b.heic", "")], KeyRule::FirstDot);
        assert_eq!((labels(&index), index.report.bad_labels.count), (vec![-1], 1));
        assert_eq!(index.report.unread["heic"], 1);
        // The plain name wins, be it first or not.
        for (order, used) in [(["a.png", "a.seg.png"], "a.png"), (["a.depth.png", "a.png"], "a.png")] {
            let (index, names) = indexed(&order.map(|name| (name, "")), KeyRule::FirstDot);
            assert_eq!((names, index.report.same_key.count), (vec![used.to_string()], 1));
        }
    }
}
