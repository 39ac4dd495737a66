//! What a DICOM file says of its pixels.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use super::elements::{Element, Encoding, FRAME_GROUPS, FRAMES, META, PIXEL_DATA, Reader, Tag, first_item};
use super::syntax::{self, Packing};

const SYNTAX: Tag = 0x0002_0010;
const SAMPLES: Tag = 0x0028_0002;
const PHOTOMETRIC: Tag = 0x0028_0004;
const PLANAR: Tag = 0x0028_0006;
const ROWS: Tag = 0x0028_0010;
const COLUMNS: Tag = 0x0028_0011;
const ALLOCATED: Tag = 0x0028_0100;
const STORED: Tag = 0x0028_0101;
const HIGH_BIT: Tag = 0x0028_0102;
const SIGNED: Tag = 0x0028_0103;
const PADDING: Tag = 0x0028_0120;
const PADDING_LIMIT: Tag = 0x0028_0121;
const INTERCEPT: Tag = 0x0028_1052;
const SLOPE: Tag = 0x0028_1053;
/// Of red, then green and blue.
const PALETTE_SHAPE: Tag = 0x0028_1101;
const PALETTE: Tag = 0x0028_1201;

/// Sequences in which several frames have their slope and intercept: shared, of each, and the values.
const GROUPS: [Tag; 3] = [0x5200_9229, FRAME_GROUPS, 0x0028_9145];

pub(super) const NO_PIXELS: &str = "found a DICOM file without pixels (7FE0,0010), such as a report, expected an image";

/// The meaning of the samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Color {
    /// High is bright.
    Gray,
    /// High is dark.
    Inverted,
    Rgb,
    /// Luma and two chroma, each 0 to 255.
    Ybr,
    /// The same, with a chroma for two pixels each.
    HalfYbr,
    Palette,
}

/// The colors of a palette.
pub(super) struct Palette<'a> {
    /// The sample that has the first color.
    pub first: i64,
    pub count: usize,
    /// Of a color: 8 or 16.
    pub bits: u16,
    /// Red, green, blue.
    pub colors: [&'a [u8]; 3],
}

/// What is known of a file's pixels before they are read.
pub(super) struct Header<'a> {
    pub width: usize,
    pub height: usize,
    /// 1 or 3.
    pub samples: usize,
    pub color: Color,
    pub planar: bool,
    pub frames: usize,
    /// Bits of a sample with those that are not used, those that are, and the highest of these.
    pub allocated: u32,
    pub stored: u32,
    pub high: u32,
    pub signed: bool,
    /// First and last of the samples that stand for no measurement, as they are stored.
    pub padding: Option<[u32; 2]>,
    pub slope: f64,
    pub intercept: f64,
    pub palette: Option<Palette<'a>>,
    pub big: bool,
    pub packing: Packing,
    /// The value of the pixels' element, its length in the file, and whether the bytes of each two are swapped.
    pub pixels: &'a [u8],
    pub length: u32,
    pub swapped: bool,
}

/// Whether these are the bytes of a DICOM file.
pub(in crate::data) fn is_dicom(bytes: &[u8]) -> bool {
    bytes.get(128..132) == Some(b"DICM")
}

/// The values of elements, by tag.
struct Values<'a>(BTreeMap<Tag, &'a [u8]>, Encoding);

impl<'a> Values<'a> {
    fn bytes(&self, tag: Tag) -> Option<&'a [u8]> {
        self.0.get(&tag).copied().filter(|value| !value.is_empty())
    }

    /// Number `at` of a list of 16-bit ones.
    fn short(&self, tag: Tag, at: usize) -> Option<u16> {
        let bytes = *self.bytes(tag)?.as_chunks().0.get(at)?;
        Some(if self.1.big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn text(&self, tag: Tag) -> Option<&'a str> {
        let text = str::from_utf8(self.bytes(tag)?).ok()?;
        Some(text.trim_matches(|c: char| c.is_whitespace() || c == '\0')).filter(|text| !text.is_empty())
    }

    fn number(&self, tag: Tag, name: &str) -> Result<Option<f64>> {
        let Some(text) = self.text(tag) else { return Ok(None) };
        let text = text.split('\\').next().unwrap_or_default().trim();
        let number = text.parse().ok().filter(|number: &f64| number.is_finite());
        number
            .map(Some)
            .with_context(|| format!("found {name} {:?}, expected a number", text.chars().take(20).collect::<String>()))
    }

    fn required(&self, tag: Tag, name: &str) -> Result<usize> {
        let number = self.short(tag, 0);
        number
            .map(usize::from)
            .with_context(|| format!("found a DICOM file without {name}: it has no image or is damaged"))
    }
}

/// The elements of a file behind those of group 2, and how its pixels are compressed.
pub(super) fn elements(bytes: &[u8]) -> Result<(Reader<'_>, Packing)> {
    let mut reader = Reader::new(bytes.get(132..).unwrap_or_default(), META);
    let mut meta = Values(BTreeMap::new(), META);
    while reader.group() == Some(2) {
        if let Some(element) = reader.next()? {
            meta.0.insert(element.tag, element.value);
        }
    }
    let (mut encoding, packing) = syntax::of(meta.text(SYNTAX).unwrap_or("1.2.840.10008.1.2"))?;
    // Some writers say so and leave the types out.
    encoding.explicit &= reader.has_type();
    Ok((Reader::new(reader.rest(), encoding), packing))
}

impl<'a> Header<'a> {
    /// Of the bytes of a file.
    pub fn read(bytes: &'a [u8]) -> Result<Self> {
        let (reader, packing) = elements(bytes)?;
        Self::behind(reader, packing)
    }

    /// The same from those elements.
    pub fn behind(reader: Reader<'a>, packing: Packing) -> Result<Self> {
        let (mut values, mut pixels) = (Values(BTreeMap::new(), reader.encoding), None);
        collect(reader, reader.encoding, &mut values.0, &mut pixels)?;
        let pixels = pixels.context(NO_PIXELS)?;
        let header = Self::of(&values, &pixels, packing)?;
        ensure!(
            pixels.undefined == (packing != Packing::None),
            "the DICOM file is damaged: its pixels are not of the kind that its transfer syntax says"
        );
        Ok(header)
    }

    fn of(values: &Values<'a>, pixels: &Element<'a>, packing: Packing) -> Result<Self> {
        let color = color(values)?;
        let samples = values.short(SAMPLES, 0).unwrap_or(1).into();
        let expected = if matches!(color, Color::Rgb | Color::Ybr | Color::HalfYbr) { 3 } else { 1 };
        ensure!(samples == expected, "found a DICOM image of {samples} samples per pixel, expected {expected}");
        let bits = |tag| values.short(tag, 0).map(u32::from);
        let allocated = values.required(ALLOCATED, "BitsAllocated")? as u32;
        let stored = bits(STORED).unwrap_or(allocated);
        let high = bits(HIGH_BIT).unwrap_or(stored.saturating_sub(1));
        let most = if samples == 3 { 16 } else { 32 };
        ensure!(
            [8, 16, 32].contains(&allocated)
                && allocated <= most
                && stored > 0
                && high + 1 >= stored
                && high < allocated,
            "found a DICOM image of {stored} of {allocated} bits, expected 8, 16 or 32 (color 8 or 16) that hold them"
        );
        let padding = values.short(PADDING, 0).map(u32::from);
        let slope = values.number(SLOPE, "RescaleSlope")?.unwrap_or(1.0);
        ensure!(slope != 0.0, "found RescaleSlope 0, expected another number");
        Ok(Self {
            width: values.required(COLUMNS, "Columns")?,
            height: values.required(ROWS, "Rows")?,
            samples,
            color,
            planar: values.short(PLANAR, 0) == Some(1),
            frames: values.number(FRAMES, "NumberOfFrames")?.unwrap_or(1.0).max(1.0) as usize,
            allocated,
            stored,
            high,
            signed: values.short(SIGNED, 0) == Some(1),
            padding: padding.map(|first| [first, values.short(PADDING_LIMIT, 0).map_or(first, u32::from)]),
            slope,
            intercept: values.number(INTERCEPT, "RescaleIntercept")?.unwrap_or(0.0),
            palette: if color == Color::Palette { Some(palette(values)?) } else { None },
            big: values.1.big,
            packing,
            pixels: pixels.value,
            length: pixels.length,
            swapped: pixels.words && values.1.big && allocated == 8,
        })
    }

    /// Whether its samples are bytes that mean what they are.
    pub fn is_8_bit(&self) -> bool {
        let whole = (self.allocated, self.stored, self.signed) == (8, 8, false);
        self.color == Color::Palette || whole && (self.slope, self.intercept) == (1.0, 0.0)
    }

    /// Of the decoded image.
    pub fn channels(&self) -> usize {
        if self.color == Color::Palette { 3 } else { self.samples }
    }
}

/// Collects elements up to the pixels, also those of the first frame's groups: the first of each.
fn collect<'a>(
    mut reader: Reader<'a>,
    encoding: Encoding,
    values: &mut BTreeMap<Tag, &'a [u8]>,
    pixels: &mut Option<Element<'a>>,
) -> Result<()> {
    // A list of lists instead of a call for each: their depth is the file's choice.
    let mut groups: Vec<Reader<'a>> = Vec::new();
    loop {
        let Some(element) = reader.next()? else {
            let Some(above) = groups.pop() else { return Ok(()) };
            reader = above;
            continue;
        };
        match element.tag {
            PIXEL_DATA if groups.is_empty() => {
                *pixels = Some(element);
                return Ok(());
            }
            tag if GROUPS.contains(&tag) && groups.len() < GROUPS.len() => {
                if let Some(item) = first_item(element.value, encoding)? {
                    groups.push(std::mem::replace(&mut reader, Reader::new(item, encoding)));
                }
            }
            tag if matches!(tag >> 16, 0x0028) => _ = values.entry(tag).or_insert(element.value),
            _ => {}
        }
    }
}

fn color(values: &Values) -> Result<Color> {
    Ok(match values.text(PHOTOMETRIC).unwrap_or("MONOCHROME2") {
        "MONOCHROME2" => Color::Gray,
        "MONOCHROME1" => Color::Inverted,
        "RGB" | "YBR_ICT" | "YBR_RCT" => Color::Rgb,
        "YBR_FULL" => Color::Ybr,
        "YBR_FULL_422" => Color::HalfYbr,
        "PALETTE COLOR" => Color::Palette,
        other => bail!(
            "found PhotometricInterpretation {:?}, expected MONOCHROME1 or 2, RGB, YBR_FULL, YBR_FULL_422 or PALETTE \
             COLOR",
            other.chars().take(20).collect::<String>()
        ),
    })
}

fn palette<'a>(values: &Values<'a>) -> Result<Palette<'a>> {
    let missing = "found a DICOM image with a palette that is missing, segmented or damaged, expected a plain one";
    let [count, first, bits] = [0, 1, 2].map(|at| values.short(PALETTE_SHAPE, at));
    let (count, first, bits) = (count.context(missing)?, first.context(missing)?, bits.context(missing)?);
    let first = if values.short(SIGNED, 0) == Some(1) { i64::from(first as i16) } else { first.into() };
    // 65536 does not fit.
    let count = if count == 0 { 1 << 16 } else { count.into() };
    let colors = [0, 1, 2].map(|at| values.bytes(PALETTE + at));
    let [Some(red), Some(green), Some(blue)] = colors else { bail!(missing) };
    let colors = [red, green, blue];
    ensure!([8, 16].contains(&bits) && colors.iter().all(|color| color.len() >= count), missing);
    Ok(Palette { first, count, bits, colors })
}
