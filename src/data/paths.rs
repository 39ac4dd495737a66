//! `data.path`: one path, or a list of them.

use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{EnumAccess, Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One or more files or folders. A single one is written as plain text, several as a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths(Vec<PathBuf>);

impl Deref for Paths {
    type Target = [PathBuf];

    fn deref(&self) -> &[PathBuf] {
        &self.0
    }
}

impl DerefMut for Paths {
    fn deref_mut(&mut self) -> &mut [PathBuf] {
        &mut self.0
    }
}

impl<P: Into<PathBuf>> From<P> for Paths {
    fn from(path: P) -> Self {
        Self(vec![path.into()])
    }
}

impl FromIterator<PathBuf> for Paths {
    fn from_iter<I: IntoIterator<Item = PathBuf>>(paths: I) -> Self {
        Self(paths.into_iter().collect())
    }
}

/// The paths with commas between them.
impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (at, path) in self.0.iter().enumerate() {
            write!(f, "{}{}", if at > 0 { ", " } else { "" }, path.display())?;
        }
        Ok(())
    }
}

impl Serialize for Paths {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [only] => only.serialize(serializer),
            all => all.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Paths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PathsVisitor)
    }
}

impl JsonSchema for Paths {
    fn schema_name() -> Cow<'static, str> {
        "Paths".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "array"], "items": {"type": "string"}})
    }
}

struct PathsVisitor;

impl<'de> Visitor<'de> for PathsVisitor {
    type Value = Paths;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a path or a list of paths")
    }

    fn visit_str<E>(self, path: &str) -> Result<Paths, E> {
        Ok(Path::new(path).into())
    }

    /// A YAML tag.
    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Paths, A::Error> {
        Err(A::Error::invalid_type(Unexpected::Other("a word with a tag"), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Paths, A::Error> {
        let mut paths = Vec::new();
        while let Some(path) = list.next_element::<PathBuf>()? {
            paths.push(path);
        }
        Ok(Paths(paths))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_path_is_plain_text_and_several_are_a_list() {
        for (json, paths) in
            [(r#""a b""#, Paths::from("a b")), (r#"["a","b"]"#, ["a", "b"].map(PathBuf::from).into_iter().collect())]
        {
            assert_eq!(serde_json::from_str::<Paths>(json).unwrap(), paths);
            assert_eq!(serde_json::to_string(&paths).unwrap(), json);
        }
        assert_eq!(serde_json::from_str::<Paths>(r#"["a"]"#).unwrap(), Paths::from("a"));
        assert_eq!(serde_json::from_str::<Paths>(r#"["a", "b"]"#).unwrap().to_string(), "a, b");
        let message = serde_json::from_str::<Paths>("7").unwrap_err().to_string();
        assert!(message.starts_with("invalid type: integer `7`, expected a path or a list of paths"), "{message}");
    }
}
