//! What a user should know about the shards of a webdataset: what is skipped, and why.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::unread::Unread;
use crate::data::KeyRule;

/// Members with a problem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Noted {
    /// How many.
    pub count: usize,
    /// An example.
    pub example: String,
}

impl Noted {
    /// Counts a member.
    pub fn add(&mut self, name: &str) {
        self.merge(&Self { count: 1, example: name.to_string() });
    }

    fn merge(&mut self, other: &Self) {
        if self.count == 0 {
            self.example.clone_from(&other.example);
        }
        self.count += other.count;
    }
}

/// The findings of one shard, or of several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// Images with the same key as another image.
    pub same_key: Noted,
    /// Labels without an image of the same key.
    pub orphans: Noted,
    /// Label members without a class in them.
    pub bad_labels: Noted,
    /// Images of unsupported formats, by extension.
    pub unread: BTreeMap<String, usize>,
    /// Whether the end-of-archive marker is missing.
    pub no_end: bool,
}

impl Report {
    /// Adds the findings of the shard `name`.
    pub fn merge(&mut self, other: &Self, name: &str) {
        let pairs = [
            (&mut self.same_key, &other.same_key),
            (&mut self.orphans, &other.orphans),
            (&mut self.bad_labels, &other.bad_labels),
        ];
        for (own, noted) in pairs.into_iter().filter(|(_, noted)| noted.count > 0) {
            own.merge(&Noted { count: noted.count, example: format!("{} in {name}", noted.example) });
        }
        for (ending, count) in &other.unread {
            *self.unread.entry(ending.clone()).or_default() += count;
        }
        self.no_end |= other.no_end;
    }

    /// One line for each finding, about a set of `images` images of which `unlabeled` have no label.
    pub fn lines(&self, rule: KeyRule, images: usize, unlabeled: usize) -> Vec<String> {
        let mut lines = Vec::new();
        let Self { same_key, orphans, bad_labels, .. } = self;
        let (up_to, other) = match rule {
            KeyRule::FirstDot => ("first", "last_dot"),
            KeyRule::LastDot => ("last", "first_dot"),
        };
        if same_key.count > 0 {
            let all = images + same_key.count;
            let advice =
                if rule == KeyRule::FirstDot { "; if names have dots in them, set data.key=last_dot" } else { "" };
            lines.push(format!(
                "{} of {all} images are skipped, such as {}, because another image has the same key, the name up to \
                 the {up_to} dot{advice}",
                same_key.count, same_key.example
            ));
        }
        if orphans.count > 0 {
            lines.push(format!(
                "{} labels belong to no image, such as {}: no image has their key, the name up to the {up_to} dot \
                 (data.key={other} is the other rule)",
                orphans.count, orphans.example
            ));
        }
        if bad_labels.count > 0 {
            lines.push(format!(
                "{} labels hold neither a class number nor a name, such as {}",
                bad_labels.count, bad_labels.example
            ));
        }
        if unlabeled > 0 && unlabeled < images {
            lines.push(format!("{unlabeled} of {images} images have no label"));
        }
        lines
    }

    /// The images of unsupported formats in the shards.
    pub fn unread(&self) -> Unread {
        let mut unread = Unread::default();
        self.unread.iter().for_each(|(ending, &count)| unread.add_ending(ending, count));
        unread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_summed_up_in_one_line_for_each_finding() {
        let (mut shard, mut all) = (Report::default(), Report::default());
        (0..3).for_each(|number| shard.same_key.add(&format!("a.{number}.png")));
        shard.orphans.add("b.cls");
        ["0.tar", "1.tar"].iter().for_each(|name| all.merge(&shard, name));
        assert_eq!(
            all.lines(KeyRule::FirstDot, 4, 0),
            [
                "6 of 10 images are skipped, such as a.0.png in 0.tar, because another image has the same key, the \
                 name up to the first dot; if names have dots in them, set data.key=last_dot",
                "2 labels belong to no image, such as b.cls in 0.tar: no image has their key, the name up to the first \
                 dot (data.key=last_dot is the other rule)",
            ]
        );
        assert_eq!(Report::default().lines(KeyRule::LastDot, 4, 1), ["1 of 4 images have no label"]);
        assert!(Report::default().lines(KeyRule::LastDot, 4, 4).is_empty());
    }
}
