//! Sets that lie in several files ("shards"): which ones to train on, and which are held out.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::data::DataConfig;

/// How the names of held-out shards begin, best first: the labels of a `test` split are often
/// withheld.
const EVAL_PREFIXES: [&str; 3] = ["validation", "val", "test"];

/// Most files that a brace pattern may stand for.
const MAX_FILES: usize = 1 << 20;

/// The shards of `data.path`: a file, a brace pattern, or those of a folder that are named `train*`, or all of
/// them. `endings` of file names, best first; the first that any file in a folder has counts.
pub(super) fn train(config: &DataConfig, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let kind = kind(endings);
    let path = config.path.as_ref();
    find(
        path.with_context(|| format!("data.path: found nothing, expected a {kind} file or folder"))?,
        &["train"],
        endings,
    )
}

/// The shards of `data.eval_path` (of a folder, the held-out ones or else all), or else the held-out shards next to
/// the training shards; none if there are none.
pub(super) fn held_out(config: &DataConfig, endings: &[&str]) -> Result<Vec<PathBuf>> {
    match (&config.eval_path, &config.path) {
        (Some(path), _) => find(path, &EVAL_PREFIXES, endings),
        (None, Some(path)) => held_out_siblings(path, endings),
        (None, None) => Ok(Vec::new()),
    }
}

/// Name and size of a file, for fingerprints.
pub(super) fn name_and_size(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().display().to_string();
    format!("{name} {}", path.metadata().map(|data| data.len()).unwrap_or(0))
}

fn find(path: &Path, prefixes: &[&str], endings: &[&str]) -> Result<Vec<PathBuf>> {
    if path.is_dir() {
        let all = files(path, endings)?;
        ensure!(!all.is_empty(), "no {} files in {}", kind(endings), path.display());
        let chosen = with_first_prefix(&all, prefixes);
        return Ok(if chosen.is_empty() { all } else { chosen });
    }
    let files = expanded(path)?;
    for file in &files {
        ensure!(file.exists(), "no such file or folder: {}", file.display());
    }
    Ok(files)
}

/// Held-out shards in the same folder as the training shards, which must be named `train*`.
fn held_out_siblings(path: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let first = &expanded(path)?[0];
    let parent = first.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = if path.is_dir() { path } else { parent.unwrap_or(Path::new(".")) };
    let all = files(folder, endings)?;
    let train = with_first_prefix(&all, &["train"]);
    let named = path.is_dir() || train.iter().any(|file| file.file_name() == first.file_name());
    let chosen = with_first_prefix(&all, &EVAL_PREFIXES);
    Ok(if named && !train.is_empty() { chosen } else { Vec::new() })
}

/// The files whose names begin with the first of the prefixes that any begins with, or else have it as a word, as in
/// `imagenet-train-000000.tar`.
fn with_first_prefix(files: &[PathBuf], prefixes: &[&str]) -> Vec<PathBuf> {
    let chosen = |fits: &dyn Fn(&str) -> bool| -> Vec<PathBuf> {
        let name = |file: &PathBuf| file.file_name().unwrap_or_default().display().to_string();
        files.iter().filter(|file| fits(&name(file))).cloned().collect()
    };
    let begins = prefixes.iter().map(|&prefix| chosen(&|name| name.starts_with(prefix)));
    let has_word = |name: &str, word: &str| name.split(|c: char| !c.is_alphanumeric()).any(|part| part == word);
    let words = prefixes.iter().map(|&prefix| chosen(&|name| has_word(name, prefix)));
    begins.chain(words).find(|files| !files.is_empty()).unwrap_or_default()
}

fn kind<'a>(endings: &[&'a str]) -> &'a str {
    endings[0].trim_start_matches('.')
}

/// The files in a folder that end in the first of the endings that any has, in the byte order of their names.
fn files(folder: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let context = || format!("cannot list folder {}", folder.display());
    let entries: std::io::Result<Vec<_>> = std::fs::read_dir(folder).with_context(context)?.collect();
    let mut all: Vec<PathBuf> = entries.with_context(context)?.into_iter().map(|entry| entry.path()).collect();
    all.sort_unstable();
    let with = |ending: &&str| -> Vec<PathBuf> {
        let fits = |name: &[u8]| name.ends_with(ending.as_bytes()) && !name.starts_with(b".");
        all.iter().filter(|file| file.file_name().is_some_and(|name| fits(name.as_encoded_bytes()))).cloned().collect()
    };
    Ok(endings.iter().map(with).find(|files| !files.is_empty()).unwrap_or_default())
}

/// The paths that a brace pattern stands for, in its order; the path itself if it is none or exists.
fn expanded(path: &Path) -> Result<Vec<PathBuf>> {
    match path.to_str().filter(|text| text.contains('{') && !path.exists()) {
        Some(text) => Ok(braces(text)?.into_iter().map(PathBuf::from).collect()),
        None => Ok(vec![path.to_path_buf()]),
    }
}

/// Expands `{000..123}` (with the width of its first number) and `{a,b}` as bash and webdataset do; not nested.
fn braces(text: &str) -> Result<Vec<String>> {
    let mut texts = vec![String::new()];
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let closed = after.split_once('}').filter(|(inner, _)| !inner.contains('{'));
        let (inner, after) =
            closed.with_context(|| format!("found braces that do not pair up or are nested in {text}"))?;
        let parts = match inner
            .split_once("..")
            .and_then(|(low, high)| Some((low, high, low.parse().ok()?, high.parse().ok()?)))
        {
            Some((low, high, from, to)) => {
                let range: std::ops::RangeInclusive<u64> = from..=to;
                ensure!(!range.is_empty(), "found {{{inner}}} in {text}, expected the smaller number first");
                let count = (to - from).saturating_add(1);
                ensure!(count <= MAX_FILES as u64, "found {count} files in {text}, expected at most {MAX_FILES}");
                let padded = [low, high].iter().any(|end| end.len() > 1 && end.starts_with('0'));
                let width = if padded { low.len().max(high.len()) } else { 0 };
                range.map(|number| format!("{number:0width$}")).collect()
            }
            None => inner.split(',').map(str::to_string).collect::<Vec<_>>(),
        };
        let count = texts.len() * parts.len();
        ensure!(count <= MAX_FILES, "found {count} files in {text}, expected at most {MAX_FILES}");
        let joined = |start: &String| parts.iter().map(|part| format!("{start}{before}{part}")).collect::<Vec<_>>();
        texts = texts.iter().flat_map(joined).collect();
        rest = after;
    }
    Ok(texts.into_iter().map(|start| start + rest).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_expand_as_in_bash() {
        assert_eq!(braces("a-{008..010}.tar").unwrap(), ["a-008.tar", "a-009.tar", "a-010.tar"]);
        assert_eq!(braces("{9..11}").unwrap(), ["9", "10", "11"]);
        assert_eq!(braces("{a,b}/{0..1}.tar").unwrap(), ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]);
        for (text, part) in [
            ("a{0..", "do not pair up"),
            ("a{0,{1,2}}", "nested"),
            ("{3..1}", "the smaller number first"),
            ("{0..99999999}", "at most"),
            ("{0..18446744073709551615}", "at most"),
            ("{0..2000}{0..2000}", "at most"),
        ] {
            let message = braces(text).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn splits_are_words_of_the_names() {
        let files: Vec<PathBuf> =
            ["attested-0.tar", "i-train-0.tar", "i-val-0.tar", "trained.tar"].map(PathBuf::from).into();
        assert_eq!(with_first_prefix(&files, &["train"]), [PathBuf::from("trained.tar")]);
        assert_eq!(with_first_prefix(&files[..3], &["train"]), [PathBuf::from("i-train-0.tar")]);
        assert_eq!(with_first_prefix(&files, &EVAL_PREFIXES), [PathBuf::from("i-val-0.tar")]);
        assert!(with_first_prefix(&files[..2], &EVAL_PREFIXES).is_empty());
    }
}
