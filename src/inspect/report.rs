//! The result of looking at a data set, as JSON and as text with a histogram.

use serde::Serialize;

use crate::augment::Size;
use crate::data::Dataset;
use crate::data::values::ValueRange;

/// Groups, classes and bad images that the text names, at most.
const MAX_NAMED: usize = 10;

/// Columns of the longest bar.
const BAR: usize = 40;

/// A name and how many images have it.
#[derive(Clone, Debug, Serialize)]
pub struct Count {
    /// Of a class, or an ending.
    pub name: String,
    /// Images.
    pub count: usize,
}

/// Images that are alike.
pub type Group = Vec<String>;

/// What is in a data set.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Number of images.
    pub images: usize,
    /// Of them, those that can be read.
    pub readable: usize,
    /// By the endings of their names.
    pub formats: Vec<Count>,
    /// By channels and type of the values.
    pub kinds: Vec<Count>,
    /// What becomes 0 and 255 (`data.value_range`).
    pub value_range: ValueRange,
    /// Images of each class.
    pub classes: Vec<Count>,
    /// Images without a label.
    pub unlabeled: usize,
    /// Images without color.
    pub gray: usize,
    /// Images with a side below [`Self::view_size`].
    pub upscaled: usize,
    /// Side of a view, pixels, or height and width.
    pub view_size: Size,
    /// Short side of every readable image, pixels.
    #[serde(skip)]
    pub sides: Vec<u32>,
    /// Per channel, in 0..1; every image counts the same.
    pub mean: Vec<f64>,
    /// Per channel.
    pub std: Vec<f64>,
    /// Images that cannot be read, and why.
    pub bad: Vec<(String, String)>,
    /// Groups of images with the same pixels.
    pub duplicates: Vec<Group>,
    /// Groups of images that look the same.
    pub near_duplicates: Vec<Group>,
    /// Positions of bad images, and of duplicates but the first of each group.
    #[serde(skip)]
    pub excluded: std::collections::HashSet<u32>,
    /// Decoded and hashed, on all cores.
    pub megapixels_per_second: f64,
    /// The same in images.
    pub images_per_second: f64,
}

/// The images of groups by name.
pub(super) fn groups(set: &dyn Dataset, groups: &[Vec<u32>]) -> Vec<Group> {
    let name = |at: &u32| set.describe(*at as usize);
    groups.iter().map(|group| group.iter().map(name).collect()).collect()
}

/// Short sides by powers of the square root of two: the lower end of each bin in pixels, and the number of images.
fn histogram(sides: &[u32]) -> Vec<(u32, usize)> {
    let bin = |side: u32| (2.0 * f64::from(side.max(1)).log2()).floor() as i32;
    let low = |bin: i32| 2f64.powf(f64::from(bin) / 2.0).ceil() as u32;
    let bins = sides.iter().map(|side| bin(*side));
    let Some((first, last)) = bins.clone().min().zip(bins.clone().max()) else { return Vec::new() };
    let count = |wanted: i32| bins.clone().filter(|bin| *bin == wanted).count();
    (first..=last).map(|bin| (low(bin), count(bin))).collect()
}

impl Report {
    /// As [`Serialize`] gives it, with the histogram.
    /// # Errors
    /// Numbers that JSON cannot hold.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        let mut json = serde_json::to_value(self)?;
        let bins: Vec<_> =
            histogram(&self.sides).into_iter().map(|(from, count)| serde_json::json!([from, count])).collect();
        json["short_side_histogram"] = bins.into();
        Ok(json)
    }

    /// Lines for a terminal.
    pub fn lines(&self) -> Vec<String> {
        let count = |count: &Count| format!("{} {}", count.count, count.name);
        let shorten = |all: &[Count]| {
            let named: Vec<String> = all.iter().take(MAX_NAMED).map(count).collect();
            let more = all.len().saturating_sub(MAX_NAMED);
            named.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
        };
        let list = |values: &[f64]| values.iter().map(|value| format!("{value:.4}")).collect::<Vec<_>>().join(", ");
        let kinds: Vec<String> =
            self.kinds.iter().take(MAX_NAMED).map(|kind| format!("{}: {}", kind.name, kind.count)).collect();
        let mut lines = vec![
            format!("images       {}, {} readable, {} gray", self.images, self.readable, self.gray),
            format!("formats      {}", shorten(&self.formats)),
            format!("channels     {}", kinds.join(", ")),
            format!("upscaled     {} have a side below {} px (augment.size)", self.upscaled, self.view_size),
            format!("mean         [{}]", list(&self.mean)),
            format!("std          [{}]", list(&self.std)),
            format!(
                "speed        {:.1} megapixels/s, {:.0} images/s",
                self.megapixels_per_second, self.images_per_second
            ),
        ];
        if self.value_range != ValueRange::Full {
            let range = serde_json::to_string(&self.value_range).unwrap_or_default();
            lines.push(format!("value range  {range} (data.value_range)"));
        }
        match self.classes.len() {
            0 => lines.push("labels       none".into()),
            classes => {
                let (all, unlabeled) = (shorten(&self.classes), self.unlabeled);
                lines.push(format!("labels       {classes} classes, {unlabeled} images without: {all}"));
            }
        }
        lines.push("short side".into());
        let bins = histogram(&self.sides);
        let most = bins.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
        lines.extend(bins.iter().map(|(from, count)| {
            let bar = "#".repeat((count * BAR).div_ceil(most));
            format!("  from {from:>5} px {count:>9} {bar}")
        }));
        self.push_groups("duplicates", "have the same pixels as another", &self.duplicates, &mut lines);
        self.push_groups("near", "look like another", &self.near_duplicates, &mut lines);
        lines.push(format!("bad          {} cannot be read", self.bad.len()));
        lines.extend(self.bad.iter().take(MAX_NAMED).map(|(name, why)| format!("  {name}: {why}")));
        lines.iter().map(|line| crate::logging::one_line(line)).collect()
    }

    fn push_groups(&self, what: &str, text: &str, groups: &[Group], lines: &mut Vec<String>) {
        let extra: usize = groups.iter().map(|group| group.len() - 1).sum();
        let s = if groups.len() == 1 { "" } else { "s" };
        lines.push(format!("{what:<12} {extra} {text}, in {} group{s}", groups.len()));
        lines.extend(groups.iter().take(MAX_NAMED).map(|group| {
            let more = group.len().saturating_sub(3);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("  {}{more}", group.iter().take(3).cloned().collect::<Vec<_>>().join(" = "))
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_has_every_bin_between_the_first_and_the_last() {
        assert_eq!(histogram(&[32, 33, 45, 46, 128]), [(32, 3), (46, 1), (64, 0), (91, 0), (128, 1)]);
        assert_eq!(histogram(&[]), []);
    }
}
