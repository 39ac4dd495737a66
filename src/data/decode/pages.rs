//! One page of a TIFF of several as a file of its own, without reading the others: its directory and its pixels.
//! Thumbnails, reduced copies and masks are no pages.

use std::collections::HashSet;

use anyhow::{Context, Result, bail, ensure};

use super::source::Source;

const SUBFILE: u16 = 254;
/// The chunks of pixels, strips or tiles: their offsets, and their lengths.
const OFFSETS: [u16; 2] = [273, 324];
const LENGTHS: [u16; 2] = [279, 325];
/// Offsets of other directories, such as EXIF, and of the pixels of a JPEG of the first TIFF 6.
const LEFT_OUT: [u16; 6] = [330, 513, 514, 34665, 34853, 40965];

/// Maximum entries of a directory.
const MAX_ENTRIES: u64 = 4096;

const DAMAGED: &str = "the TIFF is damaged or truncated";

/// How numbers are written.
#[derive(Clone, Copy)]
struct Layout {
    little: bool,
    /// The variant for files over 4 GB.
    big: bool,
}

/// A directory's entry. Its value may be elsewhere in the file.
struct Entry {
    tag: u16,
    kind: u16,
    count: u64,
    inside: Vec<u8>,
}

/// Whether a file is a TIFF, by its first bytes.
pub(super) fn is_tiff(start: &[u8]) -> bool {
    Layout::of(start).is_some()
}

/// Number of pages, at least 1.
/// # Errors
/// A directory is missing or one of another page.
pub(super) fn count(source: &Source) -> Result<usize> {
    let mut pages = 0;
    walk(source, |_, _| {
        pages += 1;
        Ok(true)
    })?;
    Ok(pages.max(1))
}

/// Appends a file of page `page` to `out`.
pub(super) fn read(source: &Source, page: usize, out: &mut Vec<u8>) -> Result<()> {
    let (mut at, mut found) = (0, None);
    walk(source, |layout, entries| {
        at += 1;
        if at <= page {
            return Ok(true);
        }
        found = Some((layout, std::mem::take(entries)));
        Ok(false)
    })?;
    let (layout, entries) = found.context(DAMAGED)?;
    layout.copy(source, entries, out)
}

/// Shows every page's directory to `see` until it returns false.
fn walk(source: &Source, mut see: impl FnMut(Layout, &mut Vec<Entry>) -> Result<bool>) -> Result<()> {
    let start = source.start(16)?;
    let layout = Layout::of(&start).context(DAMAGED)?;
    let mut at = layout.number(start.get(layout.header() - layout.offset()..layout.header()).context(DAMAGED)?);
    let mut seen = HashSet::new();
    while at != 0 {
        ensure!(seen.insert(at), "the directories of the TIFF form a circle: it is damaged");
        let (mut entries, next) = layout.directory(source, at)?;
        let subfile = entries.iter().find(|entry| entry.tag == SUBFILE).map_or(0, |entry| layout.first(entry));
        // Bit 0 is a reduced copy, bit 2 a mask.
        if subfile & 5 == 0 && !see(layout, &mut entries)? {
            return Ok(());
        }
        at = next;
    }
    Ok(())
}

impl Layout {
    fn of(start: &[u8]) -> Option<Self> {
        Some(match start.get(..4)? {
            b"II\x2a\0" => Self { little: true, big: false },
            b"MM\0\x2a" => Self { little: false, big: false },
            b"II\x2b\0" => Self { little: true, big: true },
            b"MM\0\x2b" => Self { little: false, big: true },
            _ => return None,
        })
    }

    /// Bytes of an offset, and of the number of an entry's values.
    fn offset(self) -> usize {
        if self.big { 8 } else { 4 }
    }

    fn header(self) -> usize {
        2 * self.offset()
    }

    /// Bytes of the number of entries.
    fn count(self) -> usize {
        if self.big { 8 } else { 2 }
    }

    fn entry(self) -> usize {
        4 + 2 * self.offset()
    }

    /// A number of up to 8 bytes.
    fn number(self, bytes: &[u8]) -> u64 {
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        if self.little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) }
    }

    fn bytes(self, number: u64, length: usize) -> Vec<u8> {
        if self.little { number.to_le_bytes()[..length].to_vec() } else { number.to_be_bytes()[8 - length..].to_vec() }
    }

    /// The entries at `at`, and where the next directory is.
    fn directory(self, source: &Source, at: u64) -> Result<(Vec<Entry>, u64)> {
        let mut bytes = Vec::new();
        source.append(at, self.count() as u64, &mut bytes)?;
        let count = self.number(&bytes);
        ensure!(
            count <= MAX_ENTRIES,
            "found a directory of {count} entries in the TIFF, expected at most {MAX_ENTRIES}"
        );
        bytes.clear();
        let length = count as usize * self.entry();
        source.append(at.saturating_add(self.count() as u64), (length + self.offset()) as u64, &mut bytes)?;
        let entries = bytes[..length].chunks(self.entry()).map(|entry| Entry {
            tag: self.number(&entry[..2]) as u16,
            kind: self.number(&entry[2..4]) as u16,
            count: self.number(&entry[4..4 + self.offset()]),
            inside: entry[4 + self.offset()..].to_vec(),
        });
        Ok((entries.collect(), self.number(&bytes[length..])))
    }

    fn first(self, entry: &Entry) -> u64 {
        size(entry.kind).map_or(0, |size| self.number(&entry.inside[..size.min(self.offset())]))
    }

    /// The bytes of an entry's values.
    fn value(self, source: &Source, entry: &Entry) -> Result<Vec<u8>> {
        let size = size(entry.kind).context(DAMAGED)? as u64;
        let length = size.checked_mul(entry.count).context(DAMAGED)?;
        if length <= self.offset() as u64 {
            return Ok(entry.inside[..length as usize].to_vec());
        }
        let mut bytes = Vec::new();
        source.append(self.number(&entry.inside), length, &mut bytes)?;
        Ok(bytes)
    }

    fn numbers(self, source: &Source, entries: &[Entry], tags: [u16; 2]) -> Result<Vec<u64>> {
        let entry = entries.iter().find(|entry| tags.contains(&entry.tag)).context("found a page without pixels")?;
        let size = size(entry.kind).context(DAMAGED)?;
        Ok(self.value(source, entry)?.chunks(size).map(|bytes| self.number(bytes)).collect())
    }

    /// Appends a file of a directory: the header, the entries, the values that are not in them, and the chunks.
    fn copy(self, source: &Source, mut entries: Vec<Entry>, out: &mut Vec<u8>) -> Result<()> {
        entries.retain(|entry| size(entry.kind).is_some() && !LEFT_OUT.contains(&entry.tag));
        let (places, lengths) = (self.numbers(source, &entries, OFFSETS)?, self.numbers(source, &entries, LENGTHS)?);
        ensure!(places.len() == lengths.len(), "{DAMAGED}");
        let start = out.len();
        let directory = self.header() + self.count() + entries.len() * self.entry() + self.offset();
        let (mut heads, mut values, mut offsets_at) = (Vec::new(), Vec::new(), None);
        for entry in &entries {
            let is_offsets = OFFSETS.contains(&entry.tag);
            // Offsets are as wide as they can be.
            let (kind, mut value) = match is_offsets {
                true => (if self.big { 16 } else { 4 }, vec![0; places.len() * self.offset()]),
                false => (entry.kind, self.value(source, entry)?),
            };
            heads.extend([self.bytes(entry.tag.into(), 2), self.bytes(kind.into(), 2)].concat());
            heads.extend(self.bytes(entry.count, self.offset()));
            let elsewhere = value.len() > self.offset();
            let place = if elsewhere { directory + values.len() } else { self.header() + self.count() + heads.len() };
            if is_offsets {
                offsets_at = Some(place);
            }
            if elsewhere {
                heads.extend(self.bytes(place as u64, self.offset()));
                // At even places.
                value.resize(value.len().next_multiple_of(2), 0);
                values.extend(value);
            } else {
                value.resize(self.offset(), 0);
                heads.extend(value);
            }
        }
        let marks: [&[u8]; 4] = [b"II\x2a\0", b"MM\0\x2a", b"II\x2b\0\x08\0\0\0", b"MM\0\x2b\0\x08\0\0"];
        out.extend(marks[2 * usize::from(self.big) + usize::from(!self.little)]);
        out.extend(self.bytes(self.header() as u64, self.offset()));
        out.extend(self.bytes(entries.len() as u64, self.count()));
        out.extend(heads);
        out.extend(self.bytes(0, self.offset()));
        out.extend(values);
        let Some(offsets_at) = offsets_at else { bail!(DAMAGED) };
        for (number, (place, length)) in places.into_iter().zip(lengths).enumerate() {
            let moved = (out.len() - start) as u64;
            ensure!(self.big || moved <= u32::MAX.into(), "found a page of more than 4 GB");
            let at = start + offsets_at + number * self.offset();
            // GDAL leaves out chunks of nothing.
            if length > 0 {
                out[at..at + self.offset()].copy_from_slice(&self.bytes(moved, self.offset()));
                source.append(place, length, out)?;
            }
        }
        Ok(())
    }
}

/// Bytes of a value of this kind.
fn size(kind: u16) -> Option<usize> {
    Some(match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16 | 17 | 18 => 8,
        _ => return None,
    })
}
