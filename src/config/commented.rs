//! A config as YAML with a comment at every key.

use std::collections::BTreeMap;

use anyhow::Result;

use super::{Config, join, schema};

/// The column of the comments.
const COLUMN: usize = 29;

impl Config {
    /// The config as YAML, every key written out with a comment: that of `reasons`, by dotted path, or else the first
    /// sentence of its documentation. `header` is put before it, a comment in each line.
    pub fn to_commented_yaml(&self, header: &[String], reasons: &BTreeMap<String, String>) -> Result<String> {
        let (yaml, schema) = (self.to_yaml()?, schema::schema());
        let mut text: String = header.iter().map(|line| format!("# {line}\n")).collect();
        let mut path: Vec<(usize, String)> = Vec::new(); // (indent, key) from the root to the current line
        for line in yaml.lines() {
            let indent = line.len() - line.trim_start().len();
            let name = line.trim_start().split_once(':').map(|(name, _)| name);
            let Some(name) = name.filter(|name| !name.starts_with(['-', '"', '\'']) && !name.contains(' ')) else {
                text += &format!("{line}\n"); // an item of a list
                continue;
            };
            path.retain(|(outer, _)| *outer < indent);
            path.push((indent, name.to_string()));
            let key = path.iter().fold(String::new(), |path, (_, name)| join(&path, name));
            let comment = reasons.get(&key).cloned().or_else(|| schema::first_sentence(&schema, &key));
            // Text over several lines begins with such a mark, and has room for no comment.
            let block = line.ends_with([':', '|', '>', '-']) && !line.ends_with(&format!("{name}:"));
            match comment.filter(|_| !block && indent > 0) {
                Some(comment) => text += &format!("{line:<COLUMN$} # {}\n", crate::logging::one_line(&comment)),
                None => text += &format!("{line}\n"),
            }
        }
        Ok(text)
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
        let reasons = BTreeMap::from([("train.seed".to_string(), "as\ntold".to_string())]);
        let text = config.to_commented_yaml(&["first".into()], &reasons).unwrap();
        let again: Config = serde_yaml::from_str(&text).unwrap();
        assert_eq!(again, config, "{text}");
        assert!(text.starts_with("# first\n") && text.contains("# as\\ntold\n"), "{text}");
        let batch = text.lines().find(|line| line.starts_with("  batch_size: 4096 ")).expect("the batch");
        assert!(batch.ends_with("# Images per optimizer step"), "{batch}");
    }
}
