//! The JSON Schema of the config file, made from the types that the parser fills, their doc comments, their defaults
//! and the ranges that [`crate::section::Section::check`] checks.

use anyhow::{Result, bail};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::wording::suggestion;
use super::{Config, join};

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

/// What a key means, what it accepts, its default; of a section, all of its keys.
/// # Errors
/// No such key, with the nearest one.
pub fn explain(path: &str) -> Result<String> {
    let (root, mut walked) = (schema(), String::new());
    let mut at = &root;
    for part in path.split('.') {
        let keys: Vec<String> = at["properties"].as_object().into_iter().flat_map(Map::keys).cloned().collect();
        if !keys.iter().any(|key| key == part) {
            let within = if walked.is_empty() { "the config" } else { &walked };
            bail!("unknown key {part} in {within}{}", suggestion(part, &keys));
        }
        walked = join(&walked, part);
        at = &at["properties"][part];
    }
    let description = at["description"].as_str().unwrap_or_default();
    let Some(keys) = at["properties"].as_object() else {
        let effect = match Config::default().has_effect(path) {
            true => "changes the result: a resumed run must keep it",
            false => "does not change the result of training: a resumed run may change it",
        };
        return Ok(format!("{path}: {}, default {}\n{description}\n({effect})", accepted(at), at["default"]));
    };
    let lines = keys.iter().map(|(name, key)| {
        let text = key["description"].as_str().unwrap_or_default();
        let default = key.get("default").map_or(String::new(), |default| format!(", default {default}"));
        format!("  {path}.{name}: {}{default}\n      {text}", accepted(key))
    });
    Ok(format!("{path}: {description}\n{}", lines.collect::<Vec<_>>().join("\n")))
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

/// Type, range or values in words.
fn accepted(key: &Value) -> String {
    if key.get("properties").is_some() {
        return "a section".into();
    }
    let mut kinds: Vec<String> = Vec::new();
    collect_kinds(key, &mut kinds);
    kinds.dedup();
    let mut text = kinds.join(", ");
    match (key.get("minimum"), key.get("maximum")) {
        (Some(low), Some(high)) => text += &format!(" from {low} to {high}"),
        (Some(low), None) => text += &format!(", at least {low}"),
        _ => {}
    }
    text
}

fn collect_kinds(key: &Value, kinds: &mut Vec<String>) {
    for list in ["oneOf", "anyOf", "enum"] {
        for variant in key[list].as_array().into_iter().flatten() {
            match variant {
                Value::Object(_) => collect_kinds(variant, kinds),
                Value::String(text) => kinds.push(text.clone()),
                other => kinds.push(other.to_string()),
            }
        }
    }
    if let Some(value) = key.get("const").and_then(Value::as_str) {
        kinds.push(value.into());
    } else if kinds.is_empty() || key.get("type") == Some(&json!("null")) {
        match &key["type"] {
            Value::String(kind) => kinds.push(kind.clone()),
            Value::Array(several) => kinds.extend(several.iter().filter_map(Value::as_str).map(str::to_string)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_key_is_explained_and_an_unknown_one_is_an_error() {
        let text = explain("train.batch_size").unwrap();
        assert!(
            text.contains("from 2 to 1048576, default 4096") && text.contains("Images per optimizer step"),
            "{text}"
        );
        assert!(
            explain("optimizer.name").unwrap().contains("lars, sgd, adamw"),
            "{}",
            explain("optimizer.name").unwrap()
        );
        assert!(explain("ema").unwrap().contains("ema.base_tau: number"), "{}", explain("ema").unwrap());
        let error = explain("train.batchsize").unwrap_err().to_string();
        assert!(error.starts_with("unknown key batchsize in train, did you mean batch_size?"), "{error}");
    }
}
