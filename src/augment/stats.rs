//! `augment.mean` and `augment.std`: a number for each channel, or `auto`.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{EnumAccess, Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number for each channel.
#[derive(Clone, Debug, PartialEq)]
pub enum PerChannel {
    /// Computed from the training images.
    Auto,
    /// These.
    Values(Vec<f64>),
}

impl PerChannel {
    /// The numbers; none while they are `auto`.
    pub fn values(&self) -> &[f64] {
        match self {
            Self::Auto => &[],
            Self::Values(values) => values,
        }
    }
}

impl JsonSchema for PerChannel {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PerChannel".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"const": "auto"}, {"type": "array", "items": {"type": "number"}}]})
    }
}

impl<const N: usize> From<[f64; N]> for PerChannel {
    fn from(values: [f64; N]) -> Self {
        Self::Values(values.to_vec())
    }
}

impl Serialize for PerChannel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => "auto".serialize(serializer),
            Self::Values(values) => values.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for PerChannel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PerChannelVisitor)
    }
}

struct PerChannelVisitor;

impl<'de> Visitor<'de> for PerChannelVisitor {
    type Value = PerChannel;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("auto or a list with a number for each channel")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<PerChannel, E> {
        match text {
            "auto" => Ok(PerChannel::Auto),
            _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }

    /// A YAML tag.
    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<PerChannel, A::Error> {
        Err(A::Error::invalid_type(Unexpected::Other("a word with a tag"), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<PerChannel, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(PerChannel::Values(values))
    }
}
