//! A config as YAML with a comment at every key.

use std::collections::BTreeMap;

use anyhow::Result;

use super::{Config, join, schema};

/// The column of the comments.
const COLUMN: usize = 29;

impl Config {
    /// The config as YAML, every key written out with a comment: that of `comments`, or else the first sentence of its
    /// documentation.
    pub fn to_commented_yaml(&self, comments: &Comments) -> Result<String> {
        let (yaml, schema) = (self.to_yaml()?, schema::schema());
        let mut text: String = comments.header.iter().map(|line| format!("# {line}\n")).collect();
        let mut keys = Keys::default();
        for line in yaml.lines() {
            let Some((key, name)) = keys.key(line) else {
                text += &format!("{line}\n"); // an item of a list
                continue;
            };
            let comment = comments.of_keys.get(&key).cloned().or_else(|| schema::first_sentence(&schema, &key));
            // Text over several lines begins with such a mark, and has room for no comment.
            let block = line.ends_with([':', '|', '>', '-']) && !line.ends_with(&format!("{name}:"));
            match comment.filter(|_| !block && line.starts_with(' ')) {
                Some(comment) => text += &format!("{line:<COLUMN$} # {}\n", crate::logging::one_line(&comment)),
                None => text += &format!("{line}\n"),
            }
        }
        Ok(text)
    }
}

/// Comments for a config's YAML.
#[derive(Debug, Default, PartialEq)]
pub struct Comments {
    /// Lines before the first key.
    pub header: Vec<String>,
    /// By dotted path, what stands behind the key.
    pub of_keys: BTreeMap<String, String>,
}

impl Comments {
    /// Those that a YAML text has.
    pub fn of(text: &str) -> Self {
        let (mut found, mut keys) = (Self::default(), Keys::default());
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix('#') {
                if found.of_keys.is_empty() {
                    found.header.push(comment.trim().to_string());
                }
            } else if let Some((key, _)) = keys.key(line) {
                // Within a quoted text it is none.
                let is_value = |at: &usize| serde_yaml::from_str::<serde_yaml::Value>(&line[..*at]).is_ok();
                let comment = line.match_indices(" # ").map(|(at, _)| at).find(is_value);
                found.of_keys.extend(comment.map(|at| (key, line[at + 3..].trim().to_string())));
            }
        }
        found
    }
}

/// Follows the keys of a block of YAML from line to line.
#[derive(Default)]
struct Keys {
    /// Indent and name, from the root to the current line.
    path: Vec<(usize, String)>,
}

impl Keys {
    /// The dotted path and the name of a line's key, if it has one.
    fn key<'a>(&mut self, line: &'a str) -> Option<(String, &'a str)> {
        let name = line.trim_start().split_once(':')?.0;
        if name.starts_with(['-', '"', '\'', '#']) || name.contains(' ') {
            return None;
        }
        let indent = line.len() - line.trim_start().len();
        self.path.retain(|(outer, _)| *outer < indent);
        self.path.push((indent, name.to_string()));
        Some((self.path.iter().fold(String::new(), |path, (_, name)| join(&path, name)), name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commented_config_reads_as_itself() {
        let mut config = Config::default();
        config.data.format = crate::data::Format::ImageFolder;
        config.data.path = Some(["a # b", "c: d"].iter().map(std::path::PathBuf::from).collect());
        config.output.dir = "it's \"here\"\n - x".into();
        let of_keys = BTreeMap::from([("train.seed".to_string(), "as\ntold".to_string())]);
        let comments = Comments { header: vec!["first".into()], of_keys };
        let text = config.to_commented_yaml(&comments).unwrap();
        let again: Config = serde_yaml::from_str(&text).unwrap();
        assert_eq!(again, config, "{text}");
        assert!(text.starts_with("# first\n") && text.contains("# as\\ntold\n"), "{text}");
        let batch = text.lines().find(|line| line.starts_with("  batch_size: 4096 ")).expect("the batch");
        assert!(batch.ends_with("# Images per optimizer step"), "{batch}");
    }
    #[test]
    fn a_changed_config_keeps_the_comments_of_its_text() {
        let text = "# mine\n# lines: two\ndata:\n  format: synthetic\noutput:\n  dir: 'a # b'\ntrain:\n  seed: 3  # a # b\n  \
                    batch_size: 64   # small\n";
        let mut changed: Config = serde_yaml::from_str(text).unwrap();
        changed.train.batch_size = 128;
        let yaml = changed.to_commented_yaml(&Comments::of(text)).unwrap();
        assert_eq!(serde_yaml::from_str::<Config>(&yaml).unwrap(), changed, "{yaml}");
        assert!(yaml.starts_with("# mine\n# lines: two\n"), "{yaml}");
        let line = |value: &str, comment: &str| format!("  {value:<27} # {comment}\n");
        assert!(yaml.contains(&line("seed: 3", "a # b")) && yaml.contains(&line("batch_size: 128", "small")), "{yaml}");
        assert_eq!(changed.to_commented_yaml(&Comments::of(&yaml)).unwrap(), yaml);
    }
}
