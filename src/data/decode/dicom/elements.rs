//! The elements that a DICOM file is a list of: tag, type, length and value. Nothing is allocated for what a length
//! says, and sequences in sequences are skipped without recursion, so that a damaged file costs no more than its bytes.

use anyhow::{Context, Result, bail, ensure};

/// Group and number of an element in one.
pub(super) type Tag = u32;

pub(super) const PIXEL_DATA: Tag = 0x7fe0_0010;
/// The groups of each frame.
pub(super) const FRAME_GROUPS: Tag = 0x5200_9230;
pub(super) const FRAMES: Tag = 0x0028_0008;
pub(super) const ITEM: Tag = 0xfffe_e000;
const ITEM_END: Tag = 0xfffe_e00d;
const SEQUENCE_END: Tag = 0xfffe_e0dd;

/// The length of a sequence, item or pixel data that ends with a delimiter instead.
const UNDEFINED: u32 = u32::MAX;

/// Value representations whose length has four bytes.
const LONG: [&[u8; 2]; 13] =
    [b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"];

pub(super) const DAMAGED: &str = "the DICOM file is damaged or truncated";

/// How elements are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Encoding {
    /// With the value representation of each element.
    pub explicit: bool,
    /// The highest byte of a number first.
    pub big: bool,
}

/// How a file's first elements, those of group 2, are written.
pub(super) const META: Encoding = Encoding { explicit: true, big: false };

/// An element.
pub(super) struct Element<'a> {
    pub tag: Tag,
    /// Without the delimiter; for pixel data of undefined length, all that follows.
    pub value: &'a [u8],
    /// The length that the file says it has.
    pub length: u32,
    /// Whether its length is undefined.
    pub undefined: bool,
    /// Whether the file says that it is made of 16-bit words.
    pub words: bool,
}

/// Tag, value representation and length of an element.
struct Head {
    tag: Tag,
    length: u32,
    /// The value representation is UN; within a UN of undefined length the elements are implicit (PS3.5, 6.2.2).
    unknown: bool,
    words: bool,
}

/// A place in a list of elements.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    pub encoding: Encoding,
    /// The bytes may end within the pixels.
    cut: bool,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8], encoding: Encoding) -> Self {
        Self { bytes, at: 0, encoding, cut: false }
    }

    /// The same of bytes that may end within the pixels.
    pub fn cut(self) -> Self {
        Self { cut: true, ..self }
    }

    /// The bytes that are left.
    pub fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at.min(self.bytes.len())..]
    }

    /// Whether the next element has a value representation, whatever the encoding says.
    pub fn has_type(&self) -> bool {
        self.rest().get(4..6).is_none_or(|kind| kind.iter().all(u8::is_ascii_uppercase))
    }

    /// The group of the next element, if there is one.
    pub fn group(&self) -> Option<u16> {
        self.rest().first_chunk().map(|bytes| self.short(*bytes))
    }

    /// The next element; none at the end.
    pub fn next(&mut self) -> Result<Option<Element<'a>>> {
        if self.rest().is_empty() {
            return Ok(None);
        }
        let Head { tag, length, unknown, words } = self.head(self.encoding.explicit)?;
        let undefined = length == UNDEFINED;
        let value = match (undefined, tag) {
            (false, PIXEL_DATA) if self.cut => self.take(self.rest().len().min(length as usize))?,
            (false, _) => self.take(length as usize)?,
            (true, PIXEL_DATA) => self.take(self.rest().len())?,
            (true, _) => self.until_end(unknown)?,
        };
        Ok(Some(Element { tag, value, length, undefined, words }))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, _) = self.rest().split_at_checked(length).context(DAMAGED)?;
        self.at += length;
        Ok(taken)
    }

    fn short(&self, bytes: [u8; 2]) -> u16 {
        if self.encoding.big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    }

    fn long(&mut self) -> Result<u32> {
        let bytes = *self.take(4)?.first_chunk().context(DAMAGED)?;
        Ok(if self.encoding.big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn head(&mut self, explicit: bool) -> Result<Head> {
        let [a, b, c, d] = *self.take(4)?.first_chunk().context(DAMAGED)?;
        let tag = u32::from(self.short([a, b])) << 16 | u32::from(self.short([c, d]));
        if !explicit || matches!(tag, ITEM | ITEM_END | SEQUENCE_END) {
            return Ok(Head { tag, length: self.long()?, unknown: false, words: false });
        }
        let kind: [u8; 2] = *self.take(2)?.first_chunk().context(DAMAGED)?;
        ensure!(kind.iter().all(u8::is_ascii_uppercase), DAMAGED);
        let size: [u8; 2] = *self.take(2)?.first_chunk().context(DAMAGED)?;
        let length = if LONG.contains(&&kind) { self.long()? } else { self.short(size).into() };
        Ok(Head { tag, length, unknown: &kind == b"UN", words: &kind == b"OW" })
    }

    /// The value of a sequence or item of undefined length, without its delimiter.
    fn until_end(&mut self, unknown: bool) -> Result<&'a [u8]> {
        let start = self.at;
        let mut depth = 1;
        // The depth from which on elements are implicit.
        let mut implicit = if unknown { 1 } else { usize::MAX };
        loop {
            let end = self.at;
            let head = self.head(self.encoding.explicit && depth < implicit)?;
            match head {
                Head { tag: ITEM_END | SEQUENCE_END, .. } => depth -= 1,
                Head { length: UNDEFINED, unknown, .. } => {
                    depth += 1;
                    implicit = if unknown { implicit.min(depth) } else { implicit };
                }
                Head { length, .. } => _ = self.take(length as usize)?,
            }
            if depth == 0 {
                return Ok(&self.bytes[start..end]);
            }
            implicit = if depth < implicit { usize::MAX } else { implicit };
        }
    }
}

/// The first item of a sequence.
pub(super) fn first_item(value: &[u8], encoding: Encoding) -> Result<Option<&[u8]>> {
    let item = Reader::new(value, encoding).next()?;
    Ok(item.filter(|item| item.tag == ITEM).map(|item| item.value))
}

/// Item number `number` of a sequence, with its head.
pub(super) fn whole_item(value: &[u8], encoding: Encoding, number: usize) -> Result<&[u8]> {
    let mut reader = Reader::new(value, encoding);
    for _ in 0..number {
        reader.next()?.context(DAMAGED)?;
    }
    let start = reader.rest();
    reader.next()?.filter(|item| item.tag == ITEM).context(DAMAGED)?;
    Ok(&start[..start.len() - reader.rest().len()])
}

/// The offset table and the fragments of compressed pixel data, which has an undefined length and is always
/// little-endian. Its delimiter may be missing.
pub(super) fn fragments(value: &[u8]) -> Result<(&[u8], Vec<&[u8]>)> {
    let mut reader = Reader::new(value, META);
    let mut parts = Vec::new();
    while let Some(item) = reader.fragment()? {
        parts.push(item);
    }
    ensure!(parts.len() > 1, "found no fragments of compressed pixels in the DICOM file: it is damaged or truncated");
    let table = parts.remove(0);
    Ok((table, parts))
}

impl<'a> Reader<'a> {
    fn fragment(&mut self) -> Result<Option<&'a [u8]>> {
        if self.rest().len() < 8 {
            return Ok(None);
        }
        match self.head(false)? {
            Head { tag: SEQUENCE_END, .. } => Ok(None),
            Head { tag: ITEM, length, .. } if length != UNDEFINED => self.take(length as usize).map(Some),
            _ => bail!(DAMAGED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPLICIT: Encoding = META;

    fn undefined(bytes: &[u8]) -> Vec<u8> {
        [bytes, &[0xff; 4]].concat()
    }

    #[test]
    fn sequences_in_sequences_are_skipped_without_recursion() {
        let sequence = undefined(&[&[8, 0, 0x40, 0x11][..], b"SQ\0\0"].concat());
        let item = undefined(&[0xfe, 0xff, 0, 0xe0]);
        let ends = [&[0xfe, 0xff, 0x0d, 0xe0, 0, 0, 0, 0][..], &[0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0]].concat();
        let deep = 100_000;
        let bytes = [[sequence, item].concat().repeat(deep), ends.repeat(deep)].concat();
        let mut reader = Reader::new(&bytes, EXPLICIT);
        let element = reader.next().expect("whole").expect("one");
        assert_eq!((element.tag, element.value.len()), (0x0008_1140, bytes.len() - 20));
        assert!(reader.next().expect("the end").is_none());
        let error = Reader::new(&bytes[..bytes.len() - 1], EXPLICIT).next().err().expect("an error");
        assert_eq!(error.to_string(), DAMAGED);
    }

    #[test]
    fn elements_of_an_unknown_open_one_have_no_types() {
        let unknown = undefined(&[&[9, 0, 1, 0x10][..], b"UN\0\0"].concat());
        let item = undefined(&[0xfe, 0xff, 0, 0xe0]);
        let implicit = [9, 0, 2, 0x10, 2, 0, 0, 0, b'A', b'B'];
        let ends = [&[0xfe, 0xff, 0x0d, 0xe0, 0, 0, 0, 0][..], &[0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0]].concat();
        let after = [&[0x10, 0, 0x10, 0][..], b"PN", &[2, 0], b"XY"].concat();
        let bytes = [unknown, item, implicit.to_vec(), ends, after].concat();
        let mut reader = Reader::new(&bytes, EXPLICIT);
        assert_eq!(reader.next().expect("whole").expect("one").tag, 0x0009_1001);
        assert_eq!(reader.next().expect("whole").expect("one").value, b"XY");
    }

    #[test]
    fn a_length_beyond_the_end_is_an_error() {
        let bytes = [&[8, 0, 0x40, 0x11][..], b"UT\0\0", &0xf000_0000_u32.to_le_bytes(), b"hello"].concat();
        assert_eq!(Reader::new(&bytes, EXPLICIT).next().err().expect("an error").to_string(), DAMAGED);
    }
}
