//! One frame of a DICOM file of several, as a file of its own, without reading the others: the elements before the pixels,
//! with one frame in `NumberOfFrames` and the groups of this one, and its pixels.

use std::ops::Range;

use anyhow::{Context, Result, ensure};

use super::elements::{DAMAGED, FRAME_GROUPS, FRAMES, ITEM, PIXEL_DATA, Reader, whole_item};
use super::header::{Header, NO_PIXELS, elements};
use super::syntax::Packing;
use super::{jpegs, stored};
use crate::data::decode::ensure_pixels;
use crate::data::decode::source::Source;

/// Bytes that are read at first; twice as many where the elements before the pixels take more, and so on.
const START: u64 = 1 << 16;

/// The group of the pixels, and of tables of where the frames are.
const PIXELS_GROUP: u32 = 0x7fe0;

const ITEM_HEAD: u64 = 8;
const EMPTY_ITEM: [u8; 8] = [0xfe, 0xff, 0, 0xe0, 0, 0, 0, 0];
const SEQUENCE_END: [u8; 8] = [0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0];

/// Number of frames.
/// # Errors
/// The file has fewer than it says.
pub fn count(source: &Source) -> Result<usize> {
    let bytes = start(source)?;
    let header = header(&bytes, source)?;
    if header.frames == 1 {
        return Ok(1);
    }
    let at = head(&bytes, 0)?.1;
    match header.packing {
        Packing::None => {
            let (frame, most) = (stored::length(&header)?, source.size.saturating_sub(at).min(header.length.into()));
            let found = most as usize / frame;
            ensure!(
                found >= header.frames,
                "found pixels of {found} frames, expected {}: the DICOM file is damaged or truncated",
                header.frames
            );
        }
        _ => _ = Fragments::open(source, at, header.frames)?,
    }
    Ok(header.frames)
}

/// Appends a file of frame `frame` to `out`.
pub fn read(source: &Source, frame: usize, out: &mut Vec<u8>) -> Result<()> {
    let bytes = start(source)?;
    let header = header(&bytes, source)?;
    let (before, at) = head(&bytes, frame)?;
    out.extend(before);
    if header.packing != Packing::None {
        out.extend(EMPTY_ITEM);
        Fragments::open(source, at, header.frames)?.copy(frame, out)?;
        out.extend(SEQUENCE_END);
        return Ok(());
    }
    let length = stored::length(&header)?;
    ensure!(!header.swapped || length.is_multiple_of(2), "found frames of an odd number of bytes in 16-bit words");
    let even = (length as u32).next_multiple_of(2);
    out.extend(if header.big { even.to_be_bytes() } else { even.to_le_bytes() });
    source.append(at + frame as u64 * length as u64, length as u64, out)?;
    out.resize(out.len() + length % 2, 0);
    Ok(())
}

/// The beginning of a file up to its pixels or some place in them.
fn start(source: &Source) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let found = bytes.len() as u64;
        source.append(found, found.max(START).min(source.size - found), &mut bytes)?;
        let mut reader = elements(&bytes)?.0.cut();
        while let Ok(Some(element)) = reader.next() {
            if element.tag == PIXEL_DATA {
                return Ok(bytes);
            }
        }
        ensure!((bytes.len() as u64) < source.size, NO_PIXELS);
    }
}

fn header<'a>(bytes: &'a [u8], source: &Source) -> Result<Header<'a>> {
    let (reader, packing) = elements(bytes)?;
    let header = Header::behind(reader.cut(), packing)?;
    ensure_pixels(header.width, header.height, source.options)?;
    Ok(header)
}

/// What comes before the pixels of a frame: up to their length, or of compressed ones with it. And where in the file
/// the pixels of all frames begin.
fn head(bytes: &[u8], frame: usize) -> Result<(Vec<u8>, u64)> {
    let mut reader = elements(bytes)?.0.cut();
    let place = |reader: &Reader| bytes.len() - reader.rest().len();
    let mut out = bytes[..place(&reader)].to_vec();
    loop {
        let start = place(&reader);
        let element = reader.next()?.context(NO_PIXELS)?;
        let end = place(&reader);
        let mark = if element.undefined && element.tag != PIXEL_DATA { SEQUENCE_END.len() } else { 0 };
        let value = end - mark - element.value.len();
        match element.tag {
            PIXEL_DATA => {
                out.extend(&bytes[start..if element.undefined { value } else { value - 4 }]);
                return Ok((out, value as u64));
            }
            FRAMES => {
                out.extend(&bytes[start..value]);
                out.extend(format!("{:<1$}", 1, element.value.len()).bytes());
            }
            FRAME_GROUPS if !element.value.is_empty() => {
                let item = whole_item(element.value, reader.encoding, frame)?;
                let length = item.len() as u32;
                out.extend(&bytes[start..value - 4]);
                out.extend(if reader.encoding.big { length.to_be_bytes() } else { length.to_le_bytes() });
                out.extend(item);
            }
            tag if tag >> 16 == PIXELS_GROUP => {}
            _ => out.extend(&bytes[start..end]),
        }
    }
}

/// The fragments of compressed pixels, of which some in a row are a frame.
struct Fragments<'a> {
    source: &'a Source<'a>,
    /// Where the first begins.
    first: u64,
    how: Division,
}

/// Which of them.
enum Division {
    /// Those at the offsets of a table, of which the place and the number are known.
    Table(u64, usize),
    /// One each.
    One,
    /// Those from a JPEG's first mark to the next.
    Marks,
}

struct Fragment {
    at: u64,
    length: u64,
    /// Whether a JPEG begins here.
    marked: bool,
}

impl<'a> Fragments<'a> {
    fn open(source: &'a Source<'a>, at: u64, frames: usize) -> Result<Self> {
        let table = fragment(source, at..source.size)?.context(DAMAGED)?;
        let fragments = Self { source, first: table.end(), how: Division::Table(table.at + ITEM_HEAD, frames) };
        if frames as u64 * 4 == table.length {
            return Ok(fragments);
        }
        fragments.scanned(frames)
    }

    /// The same without a table.
    fn scanned(self, frames: usize) -> Result<Self> {
        let (mut all, mut begun) = (0, 0);
        for fragment in self.from(self.first..self.source.size) {
            all += 1;
            begun += usize::from(fragment?.marked || all == 1);
        }
        ensure!(
            all == frames || begun == frames,
            "found {all} fragments of compressed pixels in the DICOM file, expected one or more for each of {frames} \
             frames: it is damaged or truncated"
        );
        Ok(Self { how: if all == frames { Division::One } else { Division::Marks }, ..self })
    }

    fn from(&self, mut place: Range<u64>) -> impl Iterator<Item = Result<Fragment>> + use<'a> {
        let source = self.source;
        std::iter::from_fn(move || {
            let next = fragment(source, place.clone()).transpose()?;
            place.start = next.as_ref().map_or(place.end, Fragment::end);
            Some(next)
        })
    }

    /// Appends the fragments of a frame to `out`.
    fn copy(self, frame: usize, out: &mut Vec<u8>) -> Result<()> {
        let Division::Table(at, frames) = self.how else { return self.copy_counted(frame, out) };
        let offset = |frame: usize| -> Result<u64> {
            let mut bytes = Vec::new();
            self.source.append(at + frame as u64 * 4, 4, &mut bytes)?;
            Ok(self.first + u64::from(u32::from_le_bytes(*bytes.first_chunk().context(DAMAGED)?)))
        };
        let (start, end) = (offset(frame)?, if frame + 1 < frames { offset(frame + 1)? } else { self.source.size });
        let after = if frame == 0 { start == self.first } else { start > offset(frame - 1)? };
        let before = out.len();
        let copied = self.from(start..end).try_for_each(|fragment| self.append(&fragment?, out));
        if after && copied.is_ok() && out.len() > before {
            return Ok(());
        }
        // Some tables hold zeros, or offsets in files too large for them.
        out.truncate(before);
        self.scanned(frames)?.copy_counted(frame, out)
    }

    fn copy_counted(&self, frame: usize, out: &mut Vec<u8>) -> Result<()> {
        let mut number = None;
        for fragment in self.from(self.first..self.source.size) {
            let fragment = fragment?;
            let begins = matches!(self.how, Division::One) || fragment.marked || number.is_none();
            let current = number.map_or(0, |number| number + usize::from(begins));
            number = Some(current);
            if current > frame {
                break;
            }
            if current == frame {
                self.append(&fragment, out)?;
            }
        }
        Ok(())
    }

    fn append(&self, fragment: &Fragment, out: &mut Vec<u8>) -> Result<()> {
        self.source.append(fragment.at, ITEM_HEAD + fragment.length, out)
    }
}

impl Fragment {
    fn end(&self) -> u64 {
        self.at + ITEM_HEAD + self.length
    }
}

/// The fragment at the start of `place`, within it. There may be no delimiter.
fn fragment(source: &Source, place: Range<u64>) -> Result<Option<Fragment>> {
    let mut head = Vec::new();
    source.append(place.start, place.end.saturating_sub(place.start).min(ITEM_HEAD + 2), &mut head)?;
    let Some(item) = head.first_chunk::<8>() else { return Ok(None) };
    let [a, b, c, d, length @ ..] = *item;
    let length = u32::from_le_bytes(length);
    if item[..4] == SEQUENCE_END[..4] {
        return Ok(None);
    }
    let tag = u32::from(u16::from_le_bytes([a, b])) << 16 | u32::from(u16::from_le_bytes([c, d]));
    let found = Fragment { at: place.start, length: length.into(), marked: jpegs::begins(&head[8..]) };
    ensure!(tag == ITEM && found.end() <= place.end, DAMAGED);
    Ok(Some(found))
}
