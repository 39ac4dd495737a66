//! Height and width of a view: `augment.size`.

use std::fmt::{Display, Formatter};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{EnumAccess, Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::section::Shown;

/// Height and width in pixels, in a config as `[height, width]`, or as one number if they are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Size {
    /// Pixels in all.
    pub fn pixels(self) -> usize {
        self.height * self.width
    }

    /// The shorter side.
    pub fn short(self) -> usize {
        self.height.min(self.width)
    }

    /// The longer side.
    pub fn long(self) -> usize {
        self.height.max(self.width)
    }

    /// Rows become columns.
    pub fn turned(self) -> Self {
        Self { height: self.width, width: self.height }
    }

    /// Height and width, as in a tensor's shape.
    pub fn shape(self) -> [i64; 2] {
        [self.height as i64, self.width as i64]
    }
}

/// A square.
impl From<usize> for Size {
    fn from(side: usize) -> Self {
        Self { height: side, width: side }
    }
}

/// `224`, or `160 x 320` with the height first.
impl Display for Size {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        if self.height == self.width {
            return write!(f, "{}", self.width);
        }
        write!(f, "{} x {}", self.height, self.width)
    }
}

impl Shown for Size {
    fn shown(&self) -> String {
        if self.height == self.width { self.width.shown() } else { [self.height, self.width].shown() }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.height == self.width {
            return self.width.serialize(serializer);
        }
        [self.height, self.width].serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Sides)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let sides = json_schema!({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2});
        json_schema!({"anyOf": [{"type": "integer"}, sides]})
    }
}

struct Sides;

impl<'de> Visitor<'de> for Sides {
    type Value = Size;

    fn expecting(&self, f: &mut Formatter) -> std::fmt::Result {
        f.write_str("a number of pixels or [height, width]")
    }

    fn visit_u64<E: Error>(self, side: u64) -> Result<Size, E> {
        let side = usize::try_from(side).map_err(|_| E::invalid_value(Unexpected::Unsigned(side), &self))?;
        Ok(side.into())
    }

    fn visit_i64<E: Error>(self, side: i64) -> Result<Size, E> {
        u64::try_from(side)
            .map_err(|_| E::invalid_value(Unexpected::Signed(side), &self))
            .and_then(|n| self.visit_u64(n))
    }

    /// A YAML tag.
    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Size, A::Error> {
        Err(A::Error::invalid_type(Unexpected::Other("a value with a tag"), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Size, A::Error> {
        let mut sides = Vec::new();
        while let Some(side) = list.next_element()? {
            sides.push(side);
        }
        let [height, width] = sides[..] else { return Err(A::Error::invalid_length(sides.len(), &self)) };
        Ok(Size { height, width })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_or_height_and_width() {
        let read = |text: &str| serde_json::from_str::<Size>(text).map_err(|error| error.to_string());
        assert_eq!(read("32"), Ok(Size { height: 32, width: 32 }));
        assert_eq!(read("[64, 128]"), Ok(Size { height: 64, width: 128 }));
        for text in ["32", "[64,128]"] {
            assert_eq!(serde_json::to_string(&read(text).unwrap()).unwrap(), text);
        }
        assert_eq!(serde_json::to_string(&read("[8, 8]").unwrap()).unwrap(), "8");
        for text in ["-3", "[1]", "[1, 2, 3]", "\"x\""] {
            let message = read(text).unwrap_err();
            assert!(message.contains("expected a number of pixels or [height, width]"), "{message}");
        }
        assert_eq!(
            (read("[64, 128]").unwrap().to_string(), Size::from(7).to_string()),
            ("64 x 128".into(), "7".into())
        );
    }
}
