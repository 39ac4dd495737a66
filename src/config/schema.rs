//! The JSON Schema of the config file, made from the types that the parser fills, their doc comments, their defaults
//! and the ranges that [`crate::section::Section::check`] checks.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::Config;

/// The schema of a config file (draft 7), for editors.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let root = settings.into_generator().into_root_schema_for::<Config>();
    let mut schema = root.to_value();
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    finish(&mut schema, &defaults);
    schema["title"] = json!("byol config");
    for range in Config::ranges() {
        let Some(key) = property(&mut schema, &range.key) else { continue };
        // A list is checked as a whole.
        let number = |value: f64| if value.fract() == 0.0 { json!(value as i64) } else { json!(value) };
        key.insert("minimum".into(), number(range.low));
        if let Some(high) = range.high {
            key.insert("maximum".into(), number(high));
        }
    }
    schema
}

/// Sets the default of every key, also where two sections of one type differ in theirs, and joins wrapped lines.
fn finish(schema: &mut Value, default: &Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    for list in ["oneOf", "anyOf"] {
        let variants = schema.get_mut(list).and_then(Value::as_array_mut);
        variants.into_iter().flatten().for_each(|variant| finish(variant, &Value::Null));
    }
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (name, property) in properties {
        finish(property, &default[name]);
        if !default[name].is_object() {
            property["default"] = default[name].clone();
        } else if let Some(section) = property.as_object_mut() {
            section.remove("default");
        }
    }
}

/// The schema of a key by its dotted path.
fn property<'a>(schema: &'a mut Value, path: &str) -> Option<&'a mut Map<String, Value>> {
    let mut at = schema;
    for part in path.split('.') {
        at = at.get_mut("properties")?.get_mut(part)?;
    }
    at.as_object_mut()
}

/// The first sentence of a key's documentation.
pub(super) fn first_sentence(root: &Value, path: &str) -> Option<String> {
    let mut at = root;
    for part in path.split('.') {
        at = at["properties"].get(part)?;
    }
    let text = at["description"].as_str()?;
    let end = text.find(". ").unwrap_or(text.len());
    Some(text[..end].trim_end_matches('.').to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What editors read, as the first line of the files in `configs/` says.
    #[test]
    fn the_written_schema_is_that_of_this_version() {
        let written: Value = serde_json::from_str(include_str!("schema.json")).unwrap();
        assert!(written == schema(), "write it anew: byol config schema > src/config/schema.json");
        for recipe in super::super::recipes::ALL {
            let first = recipe.text.lines().next();
            assert_eq!(first, Some("# yaml-language-server: $schema=../src/config/schema.json"), "{}", recipe.name);
        }
    }

    /// Every key that the parser reads is in the schema, documented, with the parser's default.
    #[test]
    fn the_schema_has_every_key_with_its_default_and_a_description() {
        let mut schema = schema();
        for (path, default) in super::super::leaves(&serde_json::to_value(Config::default()).unwrap()) {
            let key = property(&mut schema, &path).unwrap_or_else(|| panic!("{path}"));
            assert_eq!(key["default"].to_string(), default, "{path}");
            assert!(key.get("description").is_some_and(|text| text.as_str().unwrap().len() > 8), "{path}: {key:?}");
        }
        assert_eq!(property(&mut schema, "train.batch_size").unwrap()["minimum"], 2);
        assert_eq!(property(&mut schema, "augment.view2.blur_prob").unwrap()["default"], 0.1);
        assert_eq!(property(&mut schema, "data.workers").unwrap()["maximum"], 1024);
    }
}
