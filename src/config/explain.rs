//! What a config key means, for `byol config explain` and the reference in the guide.

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

use super::schema::schema;
use super::wording::suggestion;
use super::{Config, join};

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
    let Some(keys) = at["properties"].as_object() else {
        let effect = match Config::default().has_effect(path) {
            true => "changes the result: a resumed run must keep it",
            false => "does not change the result of training: a resumed run may change it",
        };
        return Ok(format!("{path}: {}, default {}\n{}\n({effect})", accepted(at), at["default"], description(at)));
    };
    let lines = keys.iter().map(|(name, key)| {
        let default = key.get("default").map_or(String::new(), |default| format!(", default {default}"));
        format!("  {path}.{name}: {}{default}\n      {}", accepted(key), description(key))
    });
    Ok(format!("{path}: {}\n{}", description(at), lines.collect::<Vec<_>>().join("\n")))
}

/// All keys as a page in Markdown: the guide's reference.
pub fn reference() -> String {
    let mut page = "# Configuration reference\n\nEvery key, with what it accepts and its default. This page is the \
                    output of `byol config reference`;\n`byol config explain KEY` prints one key, and \
                    [Configuration](configuration.md) explains how keys are set.\n"
        .to_string();
    sections("", &schema(), &mut page);
    page
}

fn sections(path: &str, section: &Value, page: &mut String) {
    let keys = section["properties"].as_object();
    for (name, key) in keys.into_iter().flatten() {
        let path = join(path, name);
        if key.get("properties").is_some() {
            page.push_str(&format!("\n## {path}\n\n{}\n\n", description(key)));
            let leaves = key["properties"].as_object().into_iter().flatten();
            for (name, key) in leaves.filter(|(_, key)| key.get("properties").is_none()) {
                let (accepted, default) = (accepted(key), &key["default"]);
                page.push_str(&format!("- **{name}** ({accepted}; default `{default}`): {}\n", description(key)));
            }
            sections(&path, key, page);
        }
    }
}

/// A key's documentation, without the default where that stands beside it.
fn description(key: &Value) -> String {
    let text = key["description"].as_str().unwrap_or_default();
    let default = match &key["default"] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let shorter = text.trim_end_matches(&[' ', '.'][..]).strip_suffix(&format!("Default {default}"));
    shorter.map_or(text, str::trim_end).to_string()
}

/// Type, range or values in words.
fn accepted(key: &Value) -> String {
    if key.get("properties").is_some() {
        return "a section".into();
    }
    let mut kinds: Vec<String> = Vec::new();
    collect_kinds(key, &mut kinds);
    let mut seen = Vec::new();
    kinds.retain(|kind| !seen.contains(kind) && (seen.push(kind.clone()), true).1);
    kinds.sort_by_key(|kind| kind == "null"); // last
    kinds.join(", ")
}

fn collect_kinds(key: &Value, kinds: &mut Vec<String>) {
    let variants = ["oneOf", "anyOf"].iter().filter_map(|list| key[list].as_array()).flatten();
    let before = kinds.len();
    variants.for_each(|variant| collect_kinds(variant, kinds));
    let values = key["enum"].as_array().into_iter().flatten().chain(key.get("const"));
    kinds.extend(values.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_string)));
    if kinds.len() > before {
        return;
    }
    let named = match &key["type"] {
        Value::Array(several) => several.clone(),
        one => vec![one.clone()],
    };
    for kind in named.iter().filter_map(Value::as_str) {
        kinds.push(match kind {
            "string" => "text".into(),
            "boolean" => "true or false".into(),
            "array" => list(key),
            "integer" | "number" => format!("{kind}{}", range(key)),
            other => other.into(),
        });
    }
}

/// A list and what it is of.
fn list(key: &Value) -> String {
    let plural = match key["items"]["type"].as_str() {
        Some("number" | "integer") => format!("numbers{}", range(&key["items"])),
        Some("string") => "texts".into(),
        Some("array") => "such lists".into(),
        _ => return "list".into(),
    };
    match (key["minItems"].as_u64(), key["maxItems"].as_u64()) {
        (Some(low), Some(high)) if low == high => format!("list of {low} {plural}"),
        _ => format!("list of {plural}"),
    }
}

fn range(key: &Value) -> String {
    match (key.get("minimum"), key.get("maximum")) {
        (Some(low), Some(high)) => format!(" from {low} to {high}"),
        (Some(low), None) if *low != json!(0) || key["type"] == "number" => format!(" of at least {low}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn types_and_ranges_are_said_in_words() {
        let of = |key: &str| explain(key).unwrap().lines().next().unwrap().to_string();
        assert_eq!(of("data.channels"), "data.channels: auto, integer from 1 to 64, default \"auto\"");
        let range = "data.value_range: auto, full, list of 2 numbers, list of such lists, default \"auto\"";
        assert_eq!(of("data.value_range"), range);
        assert_eq!(of("data.exif_orientation"), "data.exif_orientation: true or false, default true");
        assert_eq!(of("data.workers"), "data.workers: integer from 1 to 1024, null, default null");
    }

    #[test]
    fn the_guides_reference_is_that_of_this_version() {
        let written = include_str!("../guide/reference.md");
        assert!(written == reference(), "write it anew: byol config reference > src/guide/reference.md");
    }
}
