//! Reading YAML so that every complaint can say where: the only module that knows serde_yaml.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde_yaml::Value;

use super::Config;

/// Config files are a page long; anything over this is something else.
const MAX_BYTES: u64 = 1 << 20;

/// A config file's text and name.
pub(super) struct Source {
    name: String,
    text: String,
}

impl Source {
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        if path.is_dir() {
            bail!("config {name}: found a folder, expected a YAML file");
        }
        // Of a device such as /dev/zero the size would say nothing.
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).with_context(|| format!("config {name}"))?;
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).with_context(|| format!("config {name}"))?;
        if bytes.len() as u64 > MAX_BYTES {
            bail!("config {name}: found more, expected at most {MAX_BYTES} bytes; is this a config file?");
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            anyhow!("config {name}: byte {} is not UTF-8; is this a text file?", e.utf8_error().valid_up_to())
        })?;
        Ok(Self { name, text })
    }

    pub fn parse(&self) -> Result<Config> {
        if self.text.lines().all(|line| line.trim().is_empty() || line.trim().starts_with('#')) {
            return Ok(Config::default());
        }
        serde_yaml::from_str(&self.text).map_err(|error| {
            let message = error.to_string();
            // serde_yaml ends its messages with the place, which is said first here.
            let message = message.split(" at line ").next().unwrap_or_default();
            match error.location() {
                Some(at) => anyhow!("{}:{}: {}", self.name, at.line(), plain(message)),
                None => anyhow!("{}: {}", self.name, plain(message)),
            }
        })
    }

    /// `base` with every section that the file has in place of its own.
    pub fn parse_over(&self, base: Config) -> Result<Config> {
        let (parsed, place) = (self.parse()?, || format!("config {}", self.name));
        let written: Value = serde_yaml::from_str(&self.text).with_context(place)?;
        let (mut whole, parsed) = (serde_yaml::to_value(base)?, serde_yaml::to_value(parsed)?);
        for key in written.as_mapping().into_iter().flat_map(|sections| sections.keys()) {
            whole[key] = parsed[key].clone();
        }
        serde_yaml::from_value(whole).with_context(place)
    }

    /// `file:line` of a key such as `train.batch_size`: its own line, or its section's where the key is absent
    /// or written in braces, or the file alone.
    pub fn place(&self, key: &str) -> String {
        let wanted: Vec<&str> = key.split('.').collect();
        let mut path: Vec<(usize, &str)> = Vec::new(); // (indent, key) from the root to the current line
        let mut best = (0, 0); // (depth matched, line)
        for (number, line) in self.text.lines().enumerate() {
            let trimmed = line.trim_start();
            let Some((name, _)) = trimmed.split_once(':').filter(|_| !trimmed.starts_with(['#', '-'])) else {
                continue;
            };
            let indent = line.len() - trimmed.len();
            path.retain(|(outer, _)| *outer < indent);
            path.push((indent, name.trim().trim_matches(['"', '\''])));
            let depth = path.len();
            if depth > best.0
                && depth <= wanted.len()
                && path.iter().map(|(_, k)| *k).eq(wanted[..depth].iter().copied())
            {
                best = (depth, number + 1);
            }
        }
        if best.0 > 0 { format!("{}:{}", self.name, best.1) } else { self.name.clone() }
    }
}

/// Applies one `key.path=value`; the value is read as YAML, so `true`, `1e-3` and `[0.08, 1]` mean what they say.
pub(super) fn set(config: &Config, text: &str) -> Result<Config> {
    let Some((key, value)) = text.split_once('=') else {
        bail!("--set {text}: found no '=', expected key.path=value");
    };
    let mut root = serde_yaml::to_value(config).context("config to YAML")?;
    let mut place = &mut root;
    let mut walked = String::new();
    for part in key.split('.') {
        let Some(map) = place.as_mapping_mut() else {
            bail!("--set {text}: {walked} is a value, it has no keys below it");
        };
        if !map.contains_key(part) {
            let known: Vec<String> = map.keys().filter_map(|k| k.as_str().map(str::to_string)).collect();
            let within = if walked.is_empty() { "the config".to_string() } else { walked };
            bail!("--set {text}: unknown key {part} in {within}{}", suggestion(part, &known));
        }
        if !walked.is_empty() {
            walked.push('.');
        }
        walked.push_str(part);
        place = map.get_mut(part).expect("looked up above");
    }
    if place.is_mapping() {
        bail!("--set {text}: {key} is a section, set its keys");
    }
    // In YAML a # may start a comment; in a path it does not.
    let parsed = match value.contains('#') && !value.starts_with(['"', '\'']) {
        true => Value::String(value.to_string()),
        false => {
            serde_yaml::from_str(value).map_err(|e| anyhow!("--set {text}: {value:?} is not a YAML value: {e}"))?
        }
    };
    *place = parsed.clone();
    match serde_yaml::from_value(root.clone()) {
        Ok(config) => Ok(config),
        Err(error) => {
            // A path such as 2024 or true reads as a number or a truth value; take it as text where text is wanted.
            if !parsed.is_string() && !parsed.is_mapping() && !parsed.is_sequence() {
                put(&mut root, key, Value::String(value.to_string()));
                if let Ok(config) = serde_yaml::from_value(root) {
                    return Ok(config);
                }
            }
            let message = error.to_string();
            let message = message.strip_prefix(&format!("{key}: ")).unwrap_or(&message);
            Err(anyhow!("--set {text}: {key}: {}", plain(message)))
        }
    }
}

/// Replaces the value of an existing key.
fn put(root: &mut Value, key: &str, value: Value) {
    let place = key.split('.').try_fold(root, |at, part| at.get_mut(part));
    if let Some(place) = place {
        *place = value;
    }
}

/// The last override of `key` or of a section around it.
pub(super) fn overridden<'a>(overrides: &'a [String], key: &str) -> Option<&'a String> {
    overrides.iter().rev().find(|text| {
        text.split_once('=')
            .is_some_and(|(set, _)| key == set || key.strip_prefix(set).is_some_and(|r| r.starts_with('.')))
    })
}

/// serde's words as this project's: found and expected, and the nearest known key.
fn plain(message: &str) -> String {
    let between = |text: &str| text.split('`').nth(1).unwrap_or_default().to_string();
    let (path, rest) = match message.split_once(": ") {
        Some((path, rest)) if !path.contains(' ') => (format!("{path}: "), rest),
        _ => (String::new(), message),
    };
    if rest.starts_with("unknown field") {
        let unknown = between(rest);
        let known: Vec<String> = rest.split('`').skip(3).step_by(2).map(str::to_string).collect();
        return format!("{path}unknown key {unknown}{}", suggestion(&unknown, &known));
    }
    let rest = rest
        .replace("unknown variant", "found")
        .replace("invalid type: ", "found ")
        .replace("invalid value: ", "found ");
    format!(
        "{path}{}",
        rest.replace("struct ", "section ").replace("a YAML tag starting with '!'", "a word").replace('\n', " ")
    )
}

/// `, did you mean X?` for a near miss, then all that is accepted.
fn suggestion(unknown: &str, known: &[String]) -> String {
    let near = known.iter().map(|k| (strsim::damerau_levenshtein(unknown, k), k)).min();
    let hint =
        near.filter(|(d, k)| *d <= 1 + k.len() / 4).map(|(_, k)| format!(", did you mean {k}?")).unwrap_or_default();
    format!("{hint} (accepted: {})", known.join(", "))
}
