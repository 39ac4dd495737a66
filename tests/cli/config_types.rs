//! Values of every wrong type for every key, in a file and with `--set`: each loads or is refused with one line in
//! plain words that has the place, the key, what was found and what is expected.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use byol::config::Config;
use serde_yaml::Value;

const VALUES: [&str; 29] = [
    "null",
    "true",
    "-1",
    "017",
    "0.5",
    "1e300",
    "-1e300",
    ".nan",
    ".inf",
    "99999999999999999999999999",
    "18446744073709551615",
    "2026-01-31",
    "text",
    "\"text, quoted: it's\"",
    "\"\"",
    "[]",
    "[1]",
    "[1, 2]",
    "[a, b]",
    "[a, b, c]",
    "[1, 2, 3, 4]",
    "[0.5, null]",
    "[[1, 2], [3, 4]]",
    "[{a: 1}]",
    "{}",
    "{a: 1}",
    "{seed: 1, a: [1]}",
    "!tag 1",
    "!!float 1",
];

/// What serde and Rust call things, which no message should repeat.
const JARGON: [&str; 22] = [
    "invalid",
    "sequence",
    "struct",
    "u64",
    "usize",
    "u8",
    "f64",
    "i64",
    "unit",
    "map",
    "variant",
    "field",
    "enum",
    "Option",
    "array",
    "string",
    "floating",
    "integer",
    "boolean",
    "identifier",
    "Some(",
    "tuple",
];

/// Every key, and every section, by its path.
fn keys(value: &Value, prefix: &str, found: &mut BTreeSet<String>) {
    let Some(map) = value.as_mapping() else { return };
    for (key, value) in map {
        let path = format!("{prefix}{}", key.as_str().expect("a text key"));
        keys(value, &format!("{path}."), found);
        found.insert(path);
    }
}

/// `a.b: value` as a file has it, each key on a line of its own.
fn block(path: &str, value: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    let line = |(depth, part): (usize, &&str)| format!("{}{part}:", "  ".repeat(depth));
    let lines: Vec<String> = parts.iter().enumerate().map(line).collect();
    format!("{} {value}\n", lines.join("\n"))
}

fn refused(file: &Path, text: &str, overrides: &[String]) -> Option<String> {
    fs::write(file, text).expect("written");
    let error = Config::load(file, overrides).err()?;
    Some(format!("{error:#}").replace(&file.display().to_string(), "c.yaml"))
}

/// What is wrong with a message.
fn unreadable(message: &str, start: &str) -> Option<String> {
    // Names of keys and values are quoted as they are.
    let own = message.split("(accepted: ").next().unwrap_or_default();
    let jargon = JARGON.iter().find(|word| own.split(|c: char| !c.is_alphanumeric() && c != '(').any(|w| w == **word));
    match () {
        () if message.contains("schedule.warmup_epochs: ") => None, // which is to be at most epochs
        () if !message.starts_with(start) => Some(format!("does not begin with {start}")),
        () if message.contains(" is a section, expected one of its keys (") => None,
        () if !message.contains("found ") && !message.contains("unknown key ") => Some("has no found".into()),
        () if !message.contains("expected ") && !message.contains("accepted: ") => Some("has no expected".into()),
        () if message.contains(['\n', '`']) => Some("has a line end or a backtick".into()),
        () if message.len() > 500 => Some("is too long".into()),
        () => jargon.map(|word| format!("says {word}")),
    }
}

#[test]
fn a_value_of_any_wrong_type_is_refused_in_plain_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("c.yaml");
    let (mut all, mut wrong, mut seen) = (BTreeSet::new(), Vec::new(), BTreeMap::new());
    keys(&serde_yaml::to_value(Config::default()).expect("YAML"), "", &mut all);
    for key in &all {
        for value in VALUES {
            let line = 1 + key.matches('.').count();
            let start = format!("c.yaml:{line}: {key}");
            let messages = [
                (refused(&file, &block(key, value), &[]), start),
                (refused(&file, "", &[format!("{key}={value}")]), format!("--set {key}={value}: {key}")),
            ];
            for (message, start) in messages {
                let Some(message) = message else { continue };
                if let Some(problem) = unreadable(&message, &start) {
                    wrong.push(format!("{problem}: {message}"));
                }
                *seen.entry(message.split(": ").last().unwrap_or_default().to_string()).or_insert(0) += 1;
            }
        }
    }
    if std::env::var_os("BYOL_SHOW_MESSAGES").is_some() {
        seen.iter().for_each(|(message, count)| println!("{count:5} {message}"));
    }
    assert!(wrong.is_empty(), "{} messages:\n{}", wrong.len(), wrong.join("\n"));
    assert!(all.len() > 100 && seen.values().sum::<usize>() > 4000, "{} keys, {}", all.len(), seen.len());
}
