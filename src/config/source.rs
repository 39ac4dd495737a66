//! Reading YAML so that every error has a file and line: the only module that uses serde_yaml.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::de::IgnoredAny;
use serde_json::json;
use serde_yaml::Value;

use super::wording::{current_name, is_about_values, plain, split_path, suggestion};
use super::{Config, join, leaves, recipes};
use crate::augment::Preset;
use crate::distributed::{self, RankInfo};
use crate::files;

/// Config files are a page long; anything over this is something else.
const MAX_BYTES: usize = 1 << 20;

/// The YAML parser's time grows with the square of the depth of lists in lists.
const MAX_BRACKETS: usize = 1000;

/// A config file's text and name.
pub(super) struct Source {
    name: String,
    text: String,
}

impl Source {
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        if let Some(recipe) = recipes::named(path) {
            return Ok(Self { name: format!("{name} (built in)"), text: recipe.text.to_string() });
        }
        let hint = || match recipes::near(path) {
            Some(recipe) => format!("config {name} (there is a built-in recipe: --config {})", recipe.name),
            None => format!("config {name}"),
        };
        let bytes = files::read_text_or_pipe(path, MAX_BYTES).with_context(hint)?;
        let text = String::from_utf8(bytes).map_err(|e| {
            anyhow!("config {name}: byte {} is not UTF-8; is this a text file?", e.utf8_error().valid_up_to())
        })?;
        let text = without_marks(text);
        let brackets = text.bytes().filter(|byte| b"[{".contains(byte)).count();
        if brackets > MAX_BRACKETS {
            bail!("config {name}: found {brackets} brackets, expected at most {MAX_BRACKETS}; is this a config file?");
        }
        Ok(Self { name, text })
    }

    /// The file's config, with `preset` instead of its own.
    fn parse(&self, preset: Option<Preset>, outdated: &mut Vec<String>) -> Result<Config> {
        if self.text.lines().all(|line| line.trim().is_empty() || line.trim().starts_with('#')) {
            return Ok(Config { augment: preset.unwrap_or_default().into(), ..Config::default() });
        }
        let config: Result<Config, _> = serde_yaml::from_str(&self.text);
        // A tag is parsed as the name of a variant.
        if let Err(error) = config.as_ref().map_err(serde_yaml::Error::to_string)
            && !error.contains("unknown variant")
        {
            return config.map_err(|error| self.complaint(&error));
        }
        let whole: Value = serde_yaml::from_str(&self.text).unwrap_or_default();
        // Most tags would be ignored silently.
        if let Some((key, tag)) = tagged("", &whole) {
            bail!("{}: {key}: found the tag {tag}, expected a plain value; remove it", self.place(&key));
        }
        let mut config = config.map_err(|error| self.complaint(&error))?;
        if let Some(preset) = preset {
            let mut augment = whole
                .get("augment")
                .filter(|section| section.is_mapping())
                .cloned()
                .unwrap_or(Value::Mapping(Default::default()));
            augment["preset"] = serde_yaml::to_value(preset)?;
            config.augment = serde_yaml::from_value(augment).with_context(|| format!("config {}", self.name))?;
        }
        for (key, advice) in written_otherwise(&config, &serde_json::to_value(whole)?)? {
            outdated.push(format!("{}: {key}: {advice}", self.place(&key)));
        }
        Ok(config)
    }

    /// The error of serde or the YAML parser in plain words, its place first.
    fn complaint(&self, error: &serde_yaml::Error) -> anyhow::Error {
        let message = error.to_string();
        // serde_yaml's messages end with the position, sometimes in bytes.
        let message = message.split(" at line ").next().unwrap_or_default();
        let (message, position) = match message.rsplit_once(" at position ") {
            Some((message, position)) => (message, position.parse::<usize>().ok()),
            None => (message, None),
        };
        let counted = position.map(|at| 1 + self.text.bytes().take(at).filter(|byte| *byte == b'\n').count());
        let line = |line: Option<usize>| line.map_or(self.name.clone(), |line| format!("{}:{line}", self.name));
        let reported = counted.or(error.location().map(|at| at.line()));
        if message.contains("more than one document") {
            let starts = |(_, line): &(usize, &str)| line.starts_with("---");
            let ends = self.text.lines().enumerate().filter(starts).last().map(|(number, _)| number + 1);
            return anyhow!("{}: found a second YAML document, expected one; remove the line ---", line(ends));
        }
        let (path, rest) = split_path(message);
        let key = rest.split('`').nth(1).unwrap_or_default();
        let full = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
        // For a wrong key serde only knows where its section starts.
        let at = match rest.split_once(" field `").map_or("", |(kind, _)| kind) {
            "unknown" => self.lines(&full).first().copied().or(reported),
            "duplicate" => self.lines(&full).last().copied().or(reported),
            _ => reported,
        };
        if !is_about_values(rest) {
            let tab = at.and_then(|at| self.text.lines().nth(at - 1)).is_some_and(|line| line.contains('\t'));
            let hint = if tab { " (YAML is indented with spaces, the line has a tab)" } else { "" };
            return anyhow!("{}: not valid YAML: {rest}{hint}", line(at));
        }
        anyhow!("{}: {}", line(at), plain(message))
    }

    /// `base` with every section that the file has in place of its own; those keys of `augment` that it does not have are
    /// from `preset`, if that is given. A line for each key that is written otherwise now is added to `outdated`.
    pub fn parse_over(&self, base: Config, preset: Option<Preset>, outdated: &mut Vec<String>) -> Result<Config> {
        let (parsed, place) = (self.parse(preset, outdated)?, || format!("config {}", self.name));
        let written: Option<BTreeMap<String, IgnoredAny>> = serde_yaml::from_str(&self.text).with_context(place)?;
        let (mut whole, parsed) = (serde_yaml::to_value(base)?, serde_yaml::to_value(parsed)?);
        let preset = preset.map(|_| "augment".to_string());
        for key in written.unwrap_or_default().into_keys().chain(preset) {
            whole[&key] = parsed[&key].clone();
        }
        serde_yaml::from_value(whole).with_context(place)
    }

    /// `file:line` of a key such as `train.batch_size`: its own line, or its section's if the key is absent
    /// or written in braces, or the file alone.
    pub fn place(&self, key: &str) -> String {
        let old = Config::default().renamed().find(|(_, new)| new == key).map(|(old, _)| old);
        let prefixes = key.match_indices('.').map(|(dot, _)| &key[..dot]).chain([key]).chain(old.as_deref());
        let line = prefixes.filter_map(|part| self.lines(part).first().copied()).next_back();
        line.map_or(self.name.clone(), |line| format!("{}:{line}", self.name))
    }

    /// The lines that a key has for itself.
    fn lines(&self, key: &str) -> Vec<usize> {
        let mut path: Vec<(usize, &str)> = Vec::new(); // (indent, key) from the root to the current line
        let mut found = Vec::new();
        for (number, line) in self.text.lines().enumerate() {
            let trimmed = line.trim_start();
            let Some((name, _)) = trimmed.split_once(':').filter(|_| !trimmed.starts_with(['#', '-'])) else {
                continue;
            };
            let indent = line.len() - trimmed.len();
            path.retain(|(outer, _)| *outer < indent);
            path.push((indent, name.trim().trim_matches(['"', '\''])));
            if path.iter().map(|(_, name)| *name).eq(key.split('.')) {
                found.push(number + 1);
            }
        }
        found
    }
}

/// The preset that `--set augment.preset=...` chooses, if it is one: it is the base of the other keys, so they have to be
/// read with it.
pub(super) fn preset(overrides: &[String]) -> Option<Preset> {
    let chosen = overrides.iter().rev().find_map(|text| text.strip_prefix("augment.preset="))?;
    serde_yaml::from_str(chosen).ok()
}

/// A text without byte order marks before its lines: concatenated files may have more than one.
fn without_marks(text: String) -> String {
    if !text.contains('\u{feff}') {
        return text;
    }
    let line = |line: &str| {
        let start = line.find(|c: char| c != '\u{feff}' && c != ' ').unwrap_or(line.len());
        line[..start].replace('\u{feff}', "") + &line[start..]
    };
    text.split_inclusive('\n').map(line).collect()
}

/// The keys of `written` with an outdated spelling, and the new one.
fn written_otherwise(config: &Config, written: &serde_json::Value) -> Result<Vec<(String, String)>> {
    let read: BTreeMap<String, String> = leaves(&serde_json::to_value(config)?).into_iter().collect();
    let written = leaves(written);
    let renamed = config.renamed().filter(|(old, _)| written.iter().any(|(key, _)| key == old));
    let renamed = renamed.map(|(old, new)| (old, format!("this key is called {new} now")));
    let zeros = written.iter().filter(|(key, value)| value == "0" && read.get(key).is_some_and(|now| now == "null"));
    let zeros = zeros.map(|(key, _)| (key.clone(), "0 is written null now".to_string()));
    Ok(renamed.chain(zeros).collect())
}

/// Logs lines once, not in every process of a run.
pub(super) fn note(lines: &[String]) {
    let first = RankInfo::from_env().is_ok_and(|info| info.is_none_or(|info| info.rank == 0));
    if first && !distributed::launched() {
        lines.iter().for_each(|line| log::info!("{line}"));
    }
}

/// The first value with a tag of the user's own, such as `!env`, and the tag.
fn tagged(path: &str, value: &Value) -> Option<(String, String)> {
    let below = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
    match value {
        Value::Tagged(tagged) => Some((path.to_string(), tagged.tag.to_string())),
        Value::Mapping(map) => map.iter().find_map(|(key, value)| tagged(&below(key.as_str()?), value)),
        Value::Sequence(list) => list.iter().find_map(|value| tagged(path, value)),
        _ => None,
    }
}

/// Applies one `key.path=value`; the value is read as YAML, so `true`, `1e-3` and `[0.08, 1]` mean what they say.
/// A line for a key with an outdated spelling is added to `outdated`.
pub(super) fn set(config: &Config, text: &str, outdated: &mut Vec<String>) -> Result<Config> {
    let Some((key, value)) = text.split_once('=') else {
        bail!("--set {text}: found no '=', expected key.path=value");
    };
    if key.split('.').any(str::is_empty) {
        bail!("--set {text}: found {key:?}, expected key.path=value, such as train.seed=1");
    }
    let (written, key) = (key, current_name(key));
    let mut root = serde_yaml::to_value(config).context("config to YAML")?;
    let place = find(&mut root, &key).map_err(|problem| anyhow!("--set {text}: {problem}"))?;
    let parsed = value_of(value).map_err(|error| anyhow!("--set {text}: {value:?} is not a YAML value: {error}"))?;
    if let Some((_, tag)) = tagged(&key, &parsed) {
        bail!("--set {text}: {key}: found the tag {tag}, expected a plain value");
    }
    let length = place.as_sequence().map(Vec::len);
    *place = parsed.clone();
    let mut message = match serde_yaml::from_value(root.clone()) {
        Ok(config) => {
            let tree = written.rsplit('.').fold(serde_json::to_value(parsed)?, |tree, part| json!({part: tree}));
            let advice = written_otherwise(&config, &tree)?.into_iter();
            outdated.extend(advice.map(|(_, advice)| format!("--set {text}: {advice}")));
            return Ok(config);
        }
        Err(error) => error.to_string(),
    };
    // A path such as 2024 or true is parsed as a number or boolean; use the text if text is expected.
    if !parsed.is_string() && !parsed.is_mapping() && !parsed.is_sequence() {
        *find(&mut root, &key)? = Value::String(value.to_string());
        match serde_yaml::from_value(root) {
            Ok(config) => return Ok(config),
            Err(error) if error.to_string().contains("unknown variant") => message = error.to_string(),
            Err(_) => {}
        }
    }
    if let Some(length) = length {
        message = message.replace("fewer elements in sequence", &format!("sequence of {length} elements"));
    }
    let number = message.split_once("floating point `").and_then(|(_, rest)| rest.split_once('`'));
    if let Some((float, _)) = number.filter(|_| value.parse::<i128>().is_ok()) {
        // As it was written, not as the nearest float.
        message = message.replacen(&format!("floating point `{float}`"), &format!("integer `{value}`"), 1);
    }
    let message = if message.starts_with(&key) { message } else { format!("{key}: {message}") };
    Err(anyhow!("--set {text}: {}", plain(&message)))
}

/// The value of a key, or what is wrong with the key.
fn find<'a>(root: &'a mut Value, key: &str) -> Result<&'a mut Value> {
    let keys = |map: &serde_yaml::Mapping| -> Vec<String> {
        map.keys().filter_map(|key| key.as_str().map(str::to_string)).collect()
    };
    let (mut place, mut walked) = (root, String::new());
    for part in key.split('.') {
        let Some(map) = place.as_mapping_mut() else { bail!("{walked} is a value, it has no keys below it") };
        if !map.contains_key(part) {
            let within = if walked.is_empty() { "the config" } else { &walked };
            bail!("unknown key {part} in {within}{}", suggestion(part, &keys(map)));
        }
        walked = join(&walked, part);
        place = map.get_mut(part).expect("looked up above");
    }
    if let Some(map) = place.as_mapping() {
        bail!("{key} is a section, expected one of its keys ({})", keys(map).join(", "));
    }
    Ok(place)
}

/// An override's value as YAML reads it.
fn value_of(text: &str) -> Result<Value, String> {
    // In YAML a # may start a comment and control characters are errors; in a path they are characters.
    let odd = text.contains(|c: char| c == '#' || c.is_control() && c != '\t');
    if odd && !text.starts_with(['"', '\'']) {
        return Ok(Value::String(text.to_string()));
    }
    if text.bytes().filter(|byte| b"[{".contains(byte)).count() > MAX_BRACKETS {
        return Err(format!("more than {MAX_BRACKETS} brackets"));
    }
    serde_yaml::from_str(text).or_else(|error| match text.parse::<i128>() {
        // A YAML value ends at 64 bits; where any number will do, the nearest does.
        Ok(number) => Ok(Value::from(number as f64)),
        Err(_) => Err(error.to_string().split(" at line ").next().unwrap_or_default().to_string()),
    })
}

/// The last override of `key` or of a section around it.
pub(super) fn overridden<'a>(overrides: &'a [String], key: &str) -> Option<&'a String> {
    overrides.iter().rev().find(|text| {
        let set = current_name(text.split_once('=').map_or("", |(set, _)| set));
        key.strip_prefix(&set).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}
