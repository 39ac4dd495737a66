//! The interface of config sections. Each is defined next to the code it configures and validates itself; `config`
//! combines them.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer};

/// A section of the config.
pub trait Section {
    /// Reports every value out of range, alone or against the section's others.
    fn check(&self, problems: &mut Problems);

    /// The keys that do not change the result of training: paths, speed, reporting. A run may be resumed with other
    /// values of these.
    fn no_effect(&self) -> Keys {
        Keys::Only(&[])
    }

    /// Keys that version 0.1.0 did not have, with the values, as JSON, that mean what it did: a config with these has the
    /// same fingerprint as without, and they do not differ from each other.
    fn as_before(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[]
    }

    /// Keys that were renamed, as (old name, new name). The field has the old name as a `serde(alias)`, so that old
    /// configs and checkpoints can be read.
    fn renamed(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// The keys that version 0.1.0 did not have, as dotted paths: at their default they do not count in the config's
    /// fingerprint, so that it equals that of older versions.
    fn added(&self) -> &'static [&'static str] {
        &[]
    }

    /// The paths among its values, in which `~` and variables are expanded.
    fn paths(&mut self) -> Vec<&mut PathBuf> {
        Vec::new()
    }

    /// Every value out of range, as (key within the section, "found X, expected Y").
    fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Problems::default();
        self.check(&mut problems);
        problems.into_inner()
    }
}

/// Keys of a section.
pub enum Keys {
    /// All keys, present and future.
    All,
    /// These.
    Only(&'static [&'static str]),
}

impl Keys {
    /// Whether a key is one of them.
    pub fn contains(&self, key: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(keys) => keys.contains(&key),
        }
    }
}

/// Collects the values that are out of range, and the ranges.
#[derive(Default)]
pub struct Problems {
    found: Vec<(String, String)>,
    ranges: Vec<Range>,
}

/// The numbers that a key accepts.
#[derive(Clone, Debug, PartialEq)]
pub struct Range {
    /// Key within the section.
    pub key: String,
    /// The smallest.
    pub low: f64,
    /// The largest, if there is one.
    pub high: Option<f64>,
}

impl Problems {
    /// Reports `key` unless its value is right.
    pub fn require(&mut self, right: bool, key: &str, found: impl Shown, expected: impl Display) {
        if !right {
            self.found.push((key.to_string(), format!("found {}, expected {expected}", found.shown())));
        }
    }

    /// Reports a number outside `range`, and NaN.
    pub fn range<T: PartialOrd + Shown>(&mut self, key: &str, value: T, range: RangeInclusive<T>) {
        self.ranges(key, &value, std::slice::from_ref(&value), range);
    }

    /// Reports a value unless all of its numbers are inside `range`.
    pub fn ranges<T: PartialOrd + Shown>(
        &mut self,
        key: &str,
        value: impl Shown,
        numbers: &[T],
        range: RangeInclusive<T>,
    ) {
        self.note(key, range.start(), Some(range.end()));
        let expected = format!("{} to {}", range.start().shown(), range.end().shown());
        self.require(numbers.iter().all(|number| range.contains(number)), key, value, expected);
    }

    /// Reports a number outside `range`, unless null.
    pub fn range_or_null<T: PartialOrd + Shown>(&mut self, key: &str, value: Option<T>, range: RangeInclusive<T>) {
        self.note(key, range.start(), Some(range.end()));
        if let Some(value) = value {
            let expected = format!("null or {} to {}", range.start().shown(), range.end().shown());
            self.require(range.contains(&value), key, value, expected);
        }
    }

    /// Reports 0 if at least 1 is required.
    pub fn at_least_one<T: PartialOrd + Shown + From<u8>>(&mut self, key: &str, value: T) {
        self.note(key, &T::from(1), None);
        self.require(value >= T::from(1), key, value, "at least 1");
    }

    /// As (key, "found X, expected Y").
    pub fn into_inner(self) -> Vec<(String, String)> {
        self.found
    }

    /// The ranges of the keys that were checked against one.
    pub fn into_ranges(self) -> Vec<Range> {
        self.ranges
    }

    fn note<T: Shown>(&mut self, key: &str, low: &T, high: Option<&T>) {
        let number = |value: &T| value.shown().parse::<f64>().ok();
        if let Some(low) = number(low) {
            self.ranges.push(Range { key: key.to_string(), low, high: high.and_then(number) });
        }
    }

    /// Reports the problems of a section within this one.
    pub fn within(&mut self, name: &str, inner: &dyn Section) {
        let mut problems = Problems::default();
        inner.check(&mut problems);
        self.found.extend(problems.found.into_iter().map(|(key, message)| (format!("{name}.{key}"), message)));
        let ranges = problems.ranges.into_iter();
        self.ranges.extend(ranges.map(|range| Range { key: format!("{name}.{}", range.key), ..range }));
    }
}

/// A value as shown in a message: as in a config, but never hundreds of digits.
pub trait Shown {
    /// As text.
    fn shown(&self) -> String;
}

impl Shown for f64 {
    fn shown(&self) -> String {
        // `{}` has all digits of 1e300, `{:?}` has 2.0 for 2.
        if self.abs() < 1e15 && self.fract() == 0.0 { format!("{self}") } else { format!("{self:?}") }
    }
}

macro_rules! shown_as {
    ($format:literal: $($kind:ty),*) => {
        $(impl Shown for $kind {
            fn shown(&self) -> String {
                format!($format, self)
            }
        })*
    };
}
shown_as!("{}": u32, u64, usize, i64, bool);
shown_as!("{:?}": str, String);

impl<T: Shown> Shown for [T] {
    fn shown(&self) -> String {
        format!("[{}]", self.iter().map(T::shown).collect::<Vec<_>>().join(", "))
    }
}

impl<T: Shown, const N: usize> Shown for [T; N] {
    fn shown(&self) -> String {
        self[..].shown()
    }
}

impl<T: Shown + ?Sized> Shown for &T {
    fn shown(&self) -> String {
        (**self).shown()
    }
}

/// Text that is part of the message.
pub struct Words<'a>(pub &'a str);

impl Shown for Words<'_> {
    fn shown(&self) -> String {
        self.0.to_string()
    }
}

/// For `serde(deserialize_with)`: a count, or null. 0 is read as null, its former spelling.
pub fn count_or_null<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default + PartialEq,
{
    Ok(Option::deserialize(deserializer)?.filter(|count| *count != T::default()))
}

/// For `serde(deserialize_with)`: a list in which later repetitions of a value are dropped.
pub fn distinct<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + PartialEq,
{
    let mut values: Vec<T> = Vec::new();
    for value in Vec::deserialize(deserializer)? {
        if !values.contains(&value) {
            values.push(value);
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_about_as_a_config_has_them() {
        let numbers = [2.0, 0.1, 1e300, -1e-9, 1e14, f64::NAN, f64::INFINITY].map(|v| v.shown());
        assert_eq!(numbers, ["2", "0.1", "1e300", "-1e-9", "100000000000000", "NaN", "inf"]);
        assert_eq!(
            (["a"].shown(), [0.5, 3.0].shown(), Words("nothing").shown()),
            ("[\"a\"]".into(), "[0.5, 3]".into(), "nothing".into())
        );
    }

    #[test]
    fn a_count_may_be_null_and_0_is_null() {
        let read = |text: &str| count_or_null::<_, u64>(&mut serde_json::Deserializer::from_str(text));
        assert_eq!([read("null").unwrap(), read("0").unwrap(), read("3").unwrap()], [None, None, Some(3)]);
        assert!(read("-1").is_err() && read("true").is_err());
    }

    #[test]
    fn problems_say_what_was_found_and_what_is_accepted() {
        let mut problems = Problems::default();
        problems.range("a", f64::NAN, 0.0..=1.0);
        problems.range("b", 3, 3..=4usize);
        problems.range_or_null("c", Some(0), 1..=4u64);
        problems.range_or_null("d", None, 1..=4u64);
        problems.at_least_one("e", 0usize);
        let expected = [
            ("a", "found NaN, expected 0 to 1"),
            ("c", "found 0, expected null or 1 to 4"),
            ("e", "found 0, expected at least 1"),
        ];
        assert_eq!(problems.found, expected.map(|(key, message)| (key.to_string(), message.to_string())));
    }
}
