//! serde's errors in plain words: what was found, what is expected, and the nearest known key.

use super::{Config, join, leaves};
use crate::section::Shown;

/// The key path in front of a message, if any, and the rest.
pub(super) fn split_path(message: &str) -> (&str, &str) {
    message.split_once(": ").filter(|(path, _)| !path.contains(' ')).unwrap_or(("", message))
}

/// Whether a message, without its path, is about keys and values, not about what YAML looks like.
pub(super) fn is_about_values(rest: &str) -> bool {
    ["invalid ", "unknown field", "unknown variant", "duplicate "].iter().any(|start| rest.starts_with(start))
        || rest.contains(", expected ")
}

/// A message in plain words, with its path.
pub(super) fn plain(message: &str) -> String {
    let (key, rest) = split_path(message);
    let null = if may_be_null(key) { "null or " } else { "" };
    let path = if key.is_empty() { String::new() } else { format!("{key}: ") };
    let named = |kind: &str| {
        let (name, known) = rest.strip_prefix(kind)?.strip_prefix(" `")?.split_once("`, ")?;
        let known = known.split('`').skip(1).step_by(2);
        // serde lists former names, too.
        let current = |name: &&str| current_name(&join(key, name)) == join(key, name);
        let known: Vec<String> = known.filter(current).map(str::to_string).collect();
        Some((short(name), known))
    };
    if let Some((name, known)) = named("unknown field") {
        return format!("{path}unknown key {name}{}", suggestion(&name, &known));
    }
    if let Some((name, known)) = named("unknown variant") {
        let near = nearest(&name, &known).map_or(String::new(), |near| format!("; did you mean {near}?"));
        return format!("{path}found {name}, expected {}{near}", list(&known));
    }
    if let Some(name) = rest.strip_prefix("duplicate field `") {
        return format!("{path}found key {} twice, expected it once", name.trim_end_matches('`'));
    }
    let kinds = ["invalid type: ", "invalid value: ", "invalid length "];
    let Some((kind, (found, expected))) =
        kinds.iter().find_map(|kind| Some((*kind, rest.strip_prefix(kind)?.rsplit_once(", expected ")?)))
    else {
        let (found, expected) = rest.rsplit_once(", expected ").unwrap_or((rest, ""));
        let comma = if expected.is_empty() { "" } else { ", expected " };
        return format!("{path}{}{comma}{expected}", short(found));
    };
    let length = if kind == kinds[2] { "a list of " } else { "" };
    let found = short(&as_found(found));
    format!("{path}found {length}{found}, expected {null}{}", as_expected(expected, &found))
}

/// Whether a key accepts null.
fn may_be_null(path: &str) -> bool {
    let Ok(mut config) = serde_json::to_value(Config::default()) else { return false };
    let Some(value) = config.pointer_mut(&format!("/{}", path.replace('.', "/"))) else { return false };
    *value = serde_json::Value::Null;
    serde_json::from_value::<Config>(config).is_ok()
}

/// Truncates a long text.
fn short(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text.to_string(),
    }
}

/// A value as the user wrote it, or nearly so.
fn as_found(found: &str) -> String {
    match found {
        "unit value" => return "nothing".into(),
        "sequence" => return "a list".into(),
        "map" => return "a section".into(),
        _ => {}
    }
    let number = ["integer `", "floating point `", "boolean `"].iter().find_map(|kind| found.strip_prefix(kind));
    if let Some((number, _)) = number.and_then(|number| number.split_once('`')) {
        // All digits of 1e300 are too many to read.
        let long = number.parse::<f64>().ok().filter(|_| number.len() > 40);
        return long.map_or(number.to_string(), |value| value.shown());
    }
    let text = found.strip_prefix("string ").unwrap_or(found);
    let number = text.trim_matches('"');
    let digits = number.strip_prefix(['-', '+']).unwrap_or(number);
    if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return format!("{text} (leave out the leading zero)");
    }
    // YAML does not parse it as a number if no float can hold it.
    let finite = number.parse::<f64>().map_or(true, f64::is_finite);
    if finite || !number.contains(|c: char| c.is_ascii_digit()) { text.into() } else { format!("{number} (too large)") }
}

/// A Rust type in plain words.
fn as_expected(expected: &str, found: &str) -> String {
    let large = found.bytes().all(|byte| byte.is_ascii_digit());
    let text = match expected {
        "u64" | "usize" if large => return format!("a whole number, at most {}", u64::MAX),
        "i64" if large => return format!("a whole number, at most {}", i64::MAX),
        "u64" | "usize" => "a whole number, at least 0",
        "i64" => "a whole number",
        "u8" => "a whole number, 0 to 255",
        "f64" => "a number",
        "a boolean" => "true or false",
        "path string" => "a path",
        "a string" => "text",
        "a sequence" => "a list in brackets",
        "field identifier" => "a key",
        "fewer elements in sequence" => "a shorter list",
        "a YAML tag starting with '!'" | "a Value::Tagged enum" => "a word",
        "struct Config" => "sections such as data and train",
        text => {
            let number = text.strip_prefix("an array of length ").or(text.strip_prefix("sequence of "));
            let number = number.and_then(|number| number.split(' ').next());
            return match number {
                Some(number) => format!("a list of {number}"),
                None if text.starts_with("struct ") => "a section with keys of its own".into(),
                None => text.into(),
            };
        }
    };
    text.into()
}

/// `, did you mean X?` for a near miss or a key of another section, then all that is accepted.
pub(super) fn suggestion(unknown: &str, known: &[String]) -> String {
    let elsewhere = || {
        let all = leaves(&serde_json::to_value(Config::default()).unwrap_or_default());
        let same = |path: &String| path.rsplit('.').next() == Some(unknown);
        let places: Vec<String> = all.into_iter().map(|(path, _)| path).filter(same).collect();
        (!places.is_empty()).then(|| places.join(" or "))
    };
    let hint = nearest(unknown, known).cloned().or_else(elsewhere);
    let hint = hint.map_or(String::new(), |hint| format!(", did you mean {hint}?"));
    format!("{hint} (accepted: {})", known.join(", "))
}

fn nearest<'a>(unknown: &str, known: &'a [String]) -> Option<&'a String> {
    let unknown = unknown.to_lowercase().replace('-', "_");
    if let Some(longer) = known.iter().filter(|known| unknown.len() > 3 && known.starts_with(&unknown)).min() {
        return Some(longer);
    }
    let near = known.iter().map(|known| (strsim::damerau_levenshtein(&unknown, known), known)).min();
    near.filter(|(distance, known)| *distance <= 1 + known.len() / 4).map(|(_, known)| known)
}

/// `a`, `a or b`, `a, b or c`.
fn list(words: &[String]) -> String {
    match words {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => words.concat(),
    }
}

/// A key's name today.
pub(super) fn current_name(key: &str) -> String {
    Config::default().renamed().find(|(old, _)| old == key).map_or(key.to_string(), |(_, new)| new)
}
