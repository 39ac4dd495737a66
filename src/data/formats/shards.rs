//! Data sets in several files ("shards"): which ones to train on, and which are held out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::names::is_skipped;
use super::splits::{self, Set};
use crate::data::DataConfig;

/// Maximum files of a brace pattern.
const MAX_FILES: usize = 1 << 20;

/// Maximum depth of subfolders that are searched.
const MAX_DEPTH: usize = 6;

/// The shards of each of `data.path`: a file, a brace pattern, or those of a folder that are named `train*`, or all of
/// them. `endings` of file names, best first; of a folder, the files with the first one that occurs.
pub(super) fn train(config: &DataConfig, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let kind = kind(endings);
    let paths = config.path.as_ref();
    let paths = paths.with_context(|| format!("data.path: found nothing, expected a {kind} file or folder"))?;
    find(paths, Set::Train, endings)
}

/// The shards of `data.eval_path` (of a folder, the held-out ones or else all), or else the held-out shards next to
/// the training shards; none if there are none.
pub(super) fn held_out(config: &DataConfig, endings: &[&str]) -> Result<Vec<PathBuf>> {
    match (&config.eval_path, &config.path) {
        (Some(paths), _) => find(paths, Set::HeldOut, endings),
        (None, Some(paths)) => {
            let siblings: Result<Vec<_>> = paths.iter().map(|path| held_out_siblings(path, endings)).collect();
            Ok(siblings?.concat())
        }
        (None, None) => Ok(Vec::new()),
    }
}

/// Logs in one line which shards of the folders in `data.path` are used, held out and ignored.
pub(super) fn announce(config: &DataConfig, endings: &[&str]) -> Result<()> {
    for path in config.path.iter().flat_map(|paths| paths.iter()).filter(|path| path.is_dir()) {
        let all = set_files(path, endings)?;
        let (train, held_out) = (splits::of_files(&all, path, Set::Train), splits::of_files(&all, path, Set::HeldOut));
        if train.is_empty() || train.len() == all.len() {
            continue;
        }
        let (held_out, unused) =
            if config.eval_path.is_none() { (held_out, Vec::new()) } else { (Vec::new(), held_out) };
        let other = |file: &&PathBuf| !train.contains(file) && !held_out.contains(file) && !unused.contains(file);
        let left_out: Vec<PathBuf> = all.iter().filter(other).chain(&unused).cloned().collect();
        let files = |files: &[PathBuf]| {
            let first = files[0].strip_prefix(path).unwrap_or(&files[0]).display();
            if files.len() > 1 { format!("{first} and {} more", files.len() - 1) } else { first.to_string() }
        };
        let part = |name: &str, list: &[PathBuf]| {
            if list.is_empty() { String::new() } else { format!(", {name}: {}", files(list)) }
        };
        let used = files(&train);
        let rest = part("held out", &held_out) + &part("left out", &left_out);
        log::info!("training on {used} of {}{rest}", path.display());
    }
    Ok(())
}

/// The folder that holds all of these, itself one of them or not: the names of images begin below it.
pub(super) fn common_folder<'a>(folders: impl IntoIterator<Item = &'a Path>) -> PathBuf {
    let mut folders = folders.into_iter();
    let first = folders.next().unwrap_or(Path::new("")).to_path_buf();
    folders.fold(first, |mut common, folder| {
        while !folder.starts_with(&common) && common.pop() {}
        common
    })
}

/// Name and size of a file, for fingerprints.
pub(super) fn name_and_size(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().display().to_string();
    format!("{name} {}", path.metadata().map(|data| data.len()).unwrap_or(0))
}

fn find(paths: &[PathBuf], set: Set, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            let all = set_files(path, endings)?;
            let chosen = splits::of_files(&all, path, set);
            found.extend(if chosen.is_empty() { all } else { chosen });
            continue;
        }
        let files = expanded(path)?;
        for file in &files {
            ensure!(file.exists(), "no such file or folder: {}", file.display());
        }
        found.extend(files);
    }
    Ok(found)
}

/// Held-out shards in the same folder as the training shards, which must be named `train*` or be in a folder `train`.
fn held_out_siblings(path: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let first = &expanded(path)?[0];
    let folder =
        |of: &Path| of.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf();
    let around = folder(first);
    let in_set = around.file_name().is_some_and(|name| splits::is_set_name(&name.to_string_lossy()));
    let below = match (path.is_dir(), in_set) {
        (true, _) => path.to_path_buf(),
        (false, true) => folder(&around),
        (false, false) => around,
    };
    // Training files can have any name.
    let all = set_files(&below, endings).unwrap_or_default();
    let train = splits::of_files(&all, &below, Set::Train);
    let named = path.is_dir() || train.iter().any(|file| file.file_name() == first.file_name());
    Ok(if named && !train.is_empty() { splits::of_files(&all, &below, Set::HeldOut) } else { Vec::new() })
}

fn kind<'a>(endings: &[&'a str]) -> &'a str {
    endings[0].trim_start_matches('.')
}

/// The files of the only set in a folder: those directly in it, or else those below it, as in a data set repository.
/// # Errors
/// No files; several sets, of which the user has to choose one.
fn set_files(folder: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let direct = with_best_ending(&list(folder, 1)?, endings);
    if !direct.is_empty() {
        return Ok(direct);
    }
    let all = with_best_ending(&list(folder, MAX_DEPTH)?, endings);
    ensure!(!all.is_empty(), "no {} files in {}", kind(endings), folder.display());
    let mut sets: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    for file in all {
        let parents = file.parent().and_then(|parent| parent.strip_prefix(folder).ok()).unwrap_or(Path::new(""));
        let name = parents.components().map(|part| part.as_os_str());
        let name = name.filter(|part| !splits::is_set_name(&part.to_string_lossy())).collect();
        sets.entry(name).or_default().push(file);
    }
    if sets.len() == 1 {
        return Ok(sets.into_values().flatten().collect());
    }
    let names: Vec<String> = sets
        .iter()
        .map(|(name, files)| match name.as_os_str().is_empty() {
            true => format!("{} files in no folder of their own", files.len()),
            false => format!("{} ({} files)", name.display(), files.len()),
        })
        .collect();
    let last = sets.keys().next_back().map_or(folder.to_path_buf(), |name| folder.join(name));
    bail!(
        "found {} sets of {} files in {}: {}; expected one: name the folder of one, such as {}, or several in a list",
        sets.len(),
        kind(endings),
        folder.display(),
        names.join(", "),
        last.display()
    )
}

/// The files in a folder and, to a depth, in those below it, in the byte order of the paths.
fn list(folder: &Path, depth: usize) -> Result<Vec<PathBuf>> {
    let context = || format!("cannot list folder {}", folder.display());
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if path.file_name().is_some_and(|name| is_skipped(Path::new(name))) {
            continue;
        }
        match path.is_dir() {
            true if depth > 1 => all.extend(list(&path, depth - 1)?),
            true => {}
            false => all.push(path),
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// The files with the first of the endings that any file has.
fn with_best_ending(all: &[PathBuf], endings: &[&str]) -> Vec<PathBuf> {
    let with = |ending: &&str| -> Vec<PathBuf> {
        let fits = |name: &std::ffi::OsStr| name.to_string_lossy().to_lowercase().ends_with(ending);
        all.iter().filter(|file| file.file_name().is_some_and(fits)).cloned().collect()
    };
    endings.iter().map(with).find(|files| !files.is_empty()).unwrap_or_default()
}

/// The paths of a brace pattern, in its order; the path itself if it is not a pattern or exists.
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
}
