//! Training and held-out sets told apart by the names of folders and files, in upper or lower case.

use std::path::{Path, PathBuf};

/// Names of the training set, best first.
const TRAIN: [&str; 2] = ["train", "training"];

/// Names of held-out sets; the first found is used. `test` is last, as its labels are often withheld.
const HELD_OUT: [&str; 8] = ["val", "valid", "validation", "dev", "eval", "evaluation", "test", "testing"];

/// Which of the two sets is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Set {
    /// The images to train on.
    Train,
    /// The held-out images.
    HeldOut,
}

impl Set {
    fn names(self) -> &'static [&'static str] {
        match self {
            Set::Train => &TRAIN,
            Set::HeldOut => &HELD_OUT,
        }
    }
}

/// Folders that are the sets of one data set.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// Folder of the training set.
    pub train: String,
    /// Folder of the held-out set.
    pub held_out: Option<String>,
    /// The other folders, which are not used.
    pub left_out: Vec<String>,
}

/// The sets among these folders: a training set beside a held-out one, or alone. There are classes of these names, so
/// otherwise they are classes.
pub(super) fn of_folders(folders: &[String]) -> Option<Split> {
    let find = |set: Set| {
        let with = |name: &&str| {
            // Lower case before other spellings.
            let exact = folders.iter().find(|folder| *folder == name);
            exact.or_else(|| folders.iter().find(|folder| folder.eq_ignore_ascii_case(name))).cloned()
        };
        set.names().iter().find_map(with)
    };
    let (train, held_out) = (find(Set::Train)?, find(Set::HeldOut));
    if held_out.is_none() && folders.len() > 1 {
        return None;
    }
    let used = |folder: &&String| **folder == train || Some(*folder) == held_out.as_ref();
    let left_out = folders.iter().filter(|folder| !used(folder)).cloned().collect();
    Some(Split { train, held_out, left_out })
}

/// Whether a folder has the name of a set, such as `Train` or the `partial-train` of converted data sets.
pub(super) fn is_set_name(name: &str) -> bool {
    let name = name.to_lowercase();
    let name = name.strip_prefix("partial-").unwrap_or(&name);
    TRAIN.iter().chain(&HELD_OUT).any(|set| *set == name)
}

/// Class folders whose names look like those of sets that [`of_folders`] does not understand; mostly none.
pub(super) fn lookalikes(classes: &[String]) -> Vec<&String> {
    const HELD_OUT_STARTS: [&str; 6] = ["val", "dev", "eval", "test", "holdout", "heldout"];
    let any_word = |name: &String, starts: &[&str]| {
        let name = name.to_lowercase();
        name.split(|c: char| !c.is_alphanumeric()).any(|word| starts.iter().any(|start| word.starts_with(start)))
    };
    let train: Vec<&String> = classes.iter().filter(|name| any_word(name, &["train"])).collect();
    let held_out: Vec<&String> = classes.iter().filter(|name| any_word(name, &HELD_OUT_STARTS)).collect();
    let exact = held_out.iter().filter(|name| is_set_name(name)).count();
    let part = |name: &String| {
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let word = stem.trim_end_matches(['-', '_', ' ']).to_lowercase();
        stem.len() < name.len() && ["fold", "split", "part", "subset"].contains(&word.as_str())
    };
    if !train.is_empty() && (!held_out.is_empty() || classes.len() <= 2) {
        return train.into_iter().chain(held_out).collect();
    }
    if exact >= 2 {
        return held_out;
    }
    if classes.len() > 1 && classes.iter().all(part) { classes.iter().collect() } else { Vec::new() }
}

/// The files of a set by their names: those that begin with its best name that any begins with, or else have it as a
/// word, as in `imagenet-train-000000.tar`. A file in a folder with the name of a set belongs to that.
pub(super) fn of_files(files: &[PathBuf], below: &Path, set: Set) -> Vec<PathBuf> {
    let chosen = |fits: &dyn Fn(&str) -> bool| -> Vec<PathBuf> {
        files.iter().filter(|file| fits(&set_name(file, below))).cloned().collect()
    };
    let begins = set.names().iter().map(|&wanted| chosen(&|name| longest_start(name) == Some(wanted)));
    let has_word = |name: &str, wanted: &str| name.split(|c: char| !c.is_alphanumeric()).any(|part| part == wanted);
    let words = set.names().iter().map(|&wanted| chosen(&|name| has_word(name, wanted)));
    begins.chain(words).find(|files| !files.is_empty()).unwrap_or_default()
}

/// What tells the set of a file: its name, or that of a folder around it, in lower case.
fn set_name(file: &Path, below: &Path) -> String {
    let folders = file.parent().and_then(|folder| folder.strip_prefix(below).ok()).into_iter().flatten();
    let folder = folders.map(|name| name.to_string_lossy().into_owned()).find(|name| is_set_name(name));
    let name = folder.unwrap_or_else(|| file.file_name().unwrap_or_default().to_string_lossy().into_owned());
    name.to_lowercase().trim_start_matches("partial-").to_string()
}

/// The longest name of a set that a file name begins with: `validation-0.tar` is not of a set `val`.
fn longest_start(name: &str) -> Option<&'static str> {
    let starts = TRAIN.iter().chain(&HELD_OUT).filter(|start| name.starts_with(**start));
    starts.max_by_key(|start| start.len()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn sets_are_found_in_any_case_and_the_best_held_out_one_is_used() {
        for (folders, expected) in [
            (&["test", "train", "valid"][..], Some(("train", Some("valid"), &["test"][..]))),
            (&["Train", "Val"], Some(("Train", Some("Val"), &[]))),
            (&["TRAINING", "dev", "extra"], Some(("TRAINING", Some("dev"), &["extra"]))),
            (&["eval", "test", "train"], Some(("train", Some("eval"), &["test"]))),
            (&["Train", "train", "val"], Some(("train", Some("val"), &["Train"]))),
            (&["train"], Some(("train", None, &[]))),
            (&["bus", "car", "train"], None),
            (&["test", "val"], None),
            (&[], None),
        ] {
            let expected = expected.map(|(train, held_out, left_out)| Split {
                train: train.into(),
                held_out: held_out.map(String::from),
                left_out: strings(left_out),
            });
            assert_eq!(of_folders(&strings(folders)), expected, "{folders:?}");
        }
    }

    #[test]
    fn class_names_that_look_like_sets_are_noticed() {
        for (classes, expected) in [
            (&["train2017", "val2017"][..], &["train2017", "val2017"][..]),
            (&["images_train", "images_test", "other"], &["images_train", "images_test"]),
            (&["trainA", "testA"], &["trainA", "testA"]),
            (&["extra", "train"], &["train"]),
            (&["test", "val"], &["test", "val"]),
            (&["fold_1", "fold_2"], &["fold_1", "fold_2"]),
            (&["bus", "car", "train"], &[]),
            (&["test tube", "beaker"], &[]),
            (&["part1", "whole"], &[]),
        ] {
            assert_eq!(lookalikes(&strings(classes)), strings(expected).iter().collect::<Vec<_>>(), "{classes:?}");
        }
    }

    #[test]
    fn files_belong_to_the_set_that_their_name_or_folder_says() {
        let of = |names: &[&str], set| {
            let files: Vec<PathBuf> = names.iter().map(|name| Path::new("/r").join(name)).collect();
            let found = of_files(&files, Path::new("/r"), set).into_iter();
            found.map(|file| file.strip_prefix("/r").unwrap().display().to_string()).collect::<Vec<_>>()
        };
        let files = ["attested-0.tar", "i-train-0.tar", "i-val-0.tar", "trained.tar"];
        assert_eq!(of(&files, Set::Train), ["trained.tar"]);
        assert_eq!(of(&files[..3], Set::Train), ["i-train-0.tar"]);
        assert_eq!(of(&files, Set::HeldOut), ["i-val-0.tar"]);
        assert!(of(&files[..2], Set::HeldOut).is_empty());
        let files = ["TRAIN-0.tar", "validation-0.tar", "valid-0.tar", "Test-0.tar"];
        assert_eq!((of(&files, Set::Train), of(&files, Set::HeldOut)), (vec![files[0].into()], vec![files[2].into()]));
        assert_eq!(of(&files[3..], Set::HeldOut), ["Test-0.tar"]);
        let files = ["default/partial-train/0.parquet", "default/test/train-like.parquet"];
        assert_eq!((of(&files, Set::Train), of(&files, Set::HeldOut)), (vec![files[0].into()], vec![files[1].into()]));
    }
}
