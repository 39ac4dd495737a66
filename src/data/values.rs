//! How many channels images have, and which of their values become 0 and 255: `data.channels`, `data.value_range`,
//! `data.axes`.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{EnumAccess, Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::section::{Problems, Shown, Words};

/// Maximum of `data.channels`.
pub const MAX_CHANNELS: usize = 64;

/// `data.channels`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Channels {
    /// From a look at the training images.
    #[default]
    Auto,
    /// So many.
    Count(usize),
}

/// `data.value_range`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ValueRange {
    /// From the training images.
    #[default]
    Auto,
    /// The whole range of the type that a file has: 8 bits unchanged, of 16 bits the high byte, of floats 0 to 1.
    Full,
    /// These values of every channel become 0 and 255.
    All([f64; 2]),
    /// The same for each channel.
    Each(Vec<[f64; 2]>),
}

impl JsonSchema for Channels {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Channels".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": MAX_CHANNELS}]})
    }
}

impl JsonSchema for ValueRange {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ValueRange".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let range = json_schema!({"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2});
        json_schema!({"anyOf": [{"enum": ["auto", "full"]}, range, {"type": "array", "items": range}]})
    }
}

/// `data.axes`: the order of the axes of a three-dimensional array.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Axes {
    /// Height, width, channels.
    #[default]
    Hwc,
    /// Channels, height, width.
    Chw,
}

/// What images become when they are decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    /// Channels of every image.
    pub channels: usize,
    /// `Auto` stands for `Full`.
    pub range: ValueRange,
    /// Of arrays.
    pub axes: Axes,
}

/// 8-bit RGB.
impl Default for Values {
    fn default() -> Self {
        Self { channels: 3, range: ValueRange::Full, axes: Axes::default() }
    }
}

impl Channels {
    /// The number, if it is known.
    pub fn count(self) -> Option<usize> {
        match self {
            Self::Auto => None,
            Self::Count(count) => Some(count),
        }
    }

    pub(super) fn check(self, problems: &mut Problems) {
        if let Self::Count(count) = self {
            let expected = format!("auto or 1 to {MAX_CHANNELS}");
            problems.require((1..=MAX_CHANNELS).contains(&count), "channels", count, expected);
        }
    }
}

impl ValueRange {
    /// The range of a channel; `None` for the whole range of the file's type.
    pub fn of(&self, channel: usize) -> Option<[f64; 2]> {
        match self {
            Self::Auto | Self::Full => None,
            Self::All(range) => Some(*range),
            Self::Each(ranges) => ranges.get(channel).copied(),
        }
    }

    pub(super) fn check(&self, channels: Channels, problems: &mut Problems) {
        let ranges: &[[f64; 2]] = match self {
            Self::Auto | Self::Full => return,
            Self::All(range) => std::slice::from_ref(range),
            Self::Each(ranges) => ranges,
        };
        let right = |[low, high]: &[f64; 2]| low.is_finite() && high.is_finite() && low < high;
        let expected = "auto, full, [low, high] with low < high, or such a pair for each channel";
        problems.require(!ranges.is_empty() && ranges.iter().all(right), "value_range", ranges, expected);
        if let (Self::Each(_), Some(count)) = (self, channels.count()) {
            let found = format!("{} ranges", ranges.len());
            let expected = format!("one for each of the {count} channels (data.channels)");
            problems.require(ranges.len() == count, "value_range", Words(&found), expected);
        }
    }
}

/// As in a config.
impl fmt::Display for ValueRange {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&match self {
            Self::Auto => "auto".into(),
            Self::Full => "full".into(),
            Self::All(range) => range.shown(),
            Self::Each(ranges) => ranges.shown(),
        })
    }
}

impl Serialize for Channels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => "auto".serialize(serializer),
            Self::Count(count) => count.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Channels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ChannelsVisitor)
    }
}

struct ChannelsVisitor;

impl<'de> Visitor<'de> for ChannelsVisitor {
    type Value = Channels;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "auto or 1 to {MAX_CHANNELS}")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Channels, E> {
        if text == "auto" { Ok(Channels::Auto) } else { Err(E::invalid_value(Unexpected::Str(text), &self)) }
    }

    fn visit_u64<E>(self, count: u64) -> Result<Channels, E> {
        Ok(Channels::Count(count as usize))
    }

    /// A YAML tag.
    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Channels, A::Error> {
        Err(A::Error::invalid_type(Unexpected::Other("a word with a tag"), &self))
    }
}

impl Serialize for ValueRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => "auto".serialize(serializer),
            Self::Full => "full".serialize(serializer),
            Self::All(range) => range.serialize(serializer),
            Self::Each(ranges) => ranges.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ValueRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RangeVisitor)
    }
}

struct RangeVisitor;

impl<'de> Visitor<'de> for RangeVisitor {
    type Value = ValueRange;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("auto, full, [low, high], or such a pair for each channel")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<ValueRange, E> {
        match text {
            "auto" => Ok(ValueRange::Auto),
            "full" => Ok(ValueRange::Full),
            _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }

    /// A YAML tag.
    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<ValueRange, A::Error> {
        Err(A::Error::invalid_type(Unexpected::Other("a word with a tag"), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ValueRange, A::Error> {
        let (mut numbers, mut pairs) = (Vec::new(), Vec::new());
        while let Some(item) = list.next_element::<Item>()? {
            match item {
                Item::Number(number) => numbers.push(number),
                Item::List(pair) => pairs.push(pair),
            }
        }
        match (&numbers[..], &pairs[..]) {
            (&[low, high], []) => return Ok(ValueRange::All([low, high])),
            ([], pairs) => {
                let ranges: Option<Vec<[f64; 2]>> = pairs.iter().map(|pair| pair[..].try_into().ok()).collect();
                if let Some(ranges) = ranges.filter(|ranges| !ranges.is_empty()) {
                    return Ok(ValueRange::Each(ranges));
                }
            }
            _ => {}
        }
        Err(A::Error::invalid_value(Unexpected::Other("a list of another form"), &self))
    }
}

/// A number, or a list of numbers.
enum Item {
    Number(f64),
    List(Vec<f64>),
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a number or [low, high]")
    }

    fn visit_f64<E>(self, number: f64) -> Result<Item, E> {
        Ok(Item::Number(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Item, E> {
        Ok(Item::Number(number as f64))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Item, E> {
        Ok(Item::Number(number as f64))
    }

    /// A YAML tag.
    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Item, A::Error> {
        Err(A::Error::invalid_type(Unexpected::Other("a word with a tag"), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Item, A::Error> {
        let mut numbers = Vec::new();
        while let Some(number) = list.next_element()? {
            numbers.push(number);
        }
        Ok(Item::List(numbers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_and_written_as_in_a_config() {
        for (json, range) in [
            (r#""auto""#, ValueRange::Auto),
            (r#""full""#, ValueRange::Full),
            ("[0.0,4095.0]", ValueRange::All([0.0, 4095.0])),
            ("[[-1000.0,3000.0],[0.0,1.0]]", ValueRange::Each(vec![[-1000.0, 3000.0], [0.0, 1.0]])),
        ] {
            assert_eq!(serde_json::from_str::<ValueRange>(json).unwrap(), range);
            assert_eq!(serde_json::to_string(&range).unwrap(), json);
        }
        assert_eq!(serde_json::from_str::<ValueRange>("[-1, 7]").unwrap(), ValueRange::All([-1.0, 7.0]));
        for wrong in ["[1]", "[1, 2, 3]", "[]", "[[1, 2], 3]", "[[1]]", "7", "\"all\"", "null"] {
            let message = serde_json::from_str::<ValueRange>(wrong).unwrap_err().to_string();
            assert!(message.contains("expected auto, full, [low, high], or such a pair"), "{wrong}: {message}");
        }
        for (json, channels) in [("\"auto\"", Channels::Auto), ("12", Channels::Count(12))] {
            assert_eq!(serde_json::from_str::<Channels>(json).unwrap(), channels);
            assert_eq!(serde_json::to_string(&channels).unwrap(), json);
        }
        assert!(serde_json::from_str::<Channels>("-1").is_err() && serde_json::from_str::<Channels>("\"3\"").is_err());
    }
}
