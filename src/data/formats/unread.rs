//! Files beside the images that are not read, counted by ending, so that nobody misses half of a data set unknowingly.

use std::collections::BTreeMap;
use std::path::Path;

use log::Level;

use super::names::ending;
use crate::data::decode::unsupported::{Unsupported, of_ending};

/// From so many files of one ending on they are worth a line, whatever they are.
const MANY: usize = 10;

/// Most endings that a line names.
const MAX_NAMED: usize = 5;

/// Number of files by ending.
#[derive(Default)]
pub(super) struct Unread(BTreeMap<String, usize>);

impl Unread {
    /// Counts a file.
    pub fn add(&mut self, file: &Path) {
        const SYSTEM: [&str; 2] = ["thumbs.db", "desktop.ini"];
        let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if !SYSTEM.contains(&name.as_str()) {
            self.add_ending(&ending(file), 1);
        }
    }

    /// Counts files of an ending.
    pub fn add_ending(&mut self, ending: &str, count: usize) {
        *self.0.entry(ending.to_string()).or_default() += count;
    }

    /// Tells the user in one line what was not read beside `images` images, if it looks like images or is many.
    pub fn log(&self, place: &str, images: usize) {
        let Some((level, text)) = self.line(images) else { return };
        log::log!(level, "{place}: {text}");
    }

    fn line(&self, images: usize) -> Option<(Level, String)> {
        let worth = |(ending, count): &(&String, &usize)| {
            of_ending(ending).is_some() || **count >= MANY && **count * 10 >= images
        };
        let shown: Vec<(&String, &usize)> = self.0.iter().filter(worth).collect();
        let total: usize = shown.iter().map(|(_, count)| **count).sum();
        let like_images = shown.iter().any(|(ending, _)| of_ending(ending).is_some());
        let text = format!("{total} files are not read: {}", self.summary(&shown));
        (total > 0).then_some((if like_images { Level::Warn } else { Level::Info }, text))
    }

    /// What there is where no image is, as the end of an error; empty if there is nothing.
    pub fn instead(&self) -> String {
        let all: Vec<(&String, &usize)> = self.0.iter().collect();
        if all.is_empty() { String::new() } else { format!("; found {}", self.summary(&all)) }
    }

    /// `400 .heic (convert them with: ...), 20 .txt`.
    fn summary(&self, endings: &[(&String, &usize)]) -> String {
        let mut endings = endings.to_vec();
        endings.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let named = endings.iter().take(MAX_NAMED).map(|(ending, count)| {
            let advice = match (of_ending(ending), ending.as_str()) {
                (Some(Unsupported { name, command, .. }), _) => {
                    format!(" ({name}; convert them: find . -iname '*.{ending}' -exec {command} {{}} +)")
                }
                (None, "parquet") => " (data.format=parquet reads them)".into(),
                (None, "tar") => " (data.format=webdataset reads them)".into(),
                _ => String::new(),
            };
            let ending = if ending.is_empty() { "without an ending".into() } else { format!(".{ending}") };
            format!("{count} {ending}{advice}")
        });
        let named: Vec<String> = named.collect();
        let more = endings.len().saturating_sub(MAX_NAMED);
        format!("{}{}", named.join(", "), if more > 0 { format!(" and {more} other endings") } else { String::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(files: &[(&str, usize)], images: usize) -> Option<(Level, String)> {
        let mut unread = Unread::default();
        files.iter().for_each(|(name, count)| (0..*count).for_each(|_| unread.add(Path::new(name))));
        unread.line(images)
    }

    #[test]
    fn what_looks_like_images_or_is_much_is_counted() {
        let command = "find . -iname '*.heic' -exec mogrify -format jpg {} +";
        let expected = format!("400 files are not read: 400 .heic (HEIC; convert them: {command})");
        assert_eq!(line(&[("a.HEIC", 400), ("notes.txt", 3), ("Thumbs.db", 90)], 16), Some((Level::Warn, expected)));
        let expected = "120 files are not read: 120 .xml".to_string();
        assert_eq!(line(&[("a.xml", 120), ("b.json", 1)], 100), Some((Level::Info, expected)));
        assert_eq!(line(&[("a.xml", 9)], 20), None);
        assert_eq!(line(&[("a.xml", 50)], 1000), None);
        let (level, text) = line(&[("a.jxl", 1), ("b", 50)], 10).unwrap();
        assert!(level == Level::Warn && text.contains("50 without an ending, 1 .jxl (JPEG XL; "), "{text}");
    }
}
