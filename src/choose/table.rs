//! The table of choices.

/// One choice.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was chosen.
    pub what: &'static str,
    /// As shown.
    pub value: String,
    /// Why.
    pub reason: String,
}

/// Columns of the whole table.
const COLUMNS: usize = 100;

/// Most columns of a value.
const VALUE: usize = 34;

/// The table in lines of at most [`COLUMNS`]; long reasons go on below.
pub fn lines(rows: &[Row]) -> Vec<String> {
    let width = |text: &dyn Fn(&Row) -> usize| rows.iter().map(text).max().unwrap_or(0);
    let (what, value) = (width(&|row| row.what.len()), width(&|row| row.value.chars().count()).min(VALUE));
    let start = what + value + 4;
    let mut lines = Vec::new();
    for row in rows {
        let mut line = format!("{:<what$}  {:<value$}  ", row.what, row.value);
        let mut used = line.chars().count();
        for word in row.reason.split(' ') {
            if used + word.chars().count() > COLUMNS && used > start {
                lines.push(line.trim_end().to_string());
                (line, used) = (" ".repeat(start), start);
            }
            line += &format!("{word} ");
            used += word.chars().count() + 1;
        }
        lines.push(line.trim_end().to_string());
    }
    lines.iter().map(|line| crate::logging::one_line(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_reasons_are_wrapped() {
        let row = |what, reason: &str| Row { what, value: "8".into(), reason: reason.into() };
        let lines = lines(&[row("a", "short"), row("batch", &"word ".repeat(30))]);
        assert_eq!((lines[0].as_str(), lines.len()), ("a      8  short", 3));
        assert!(lines.iter().all(|line| line.len() <= COLUMNS) && lines[2].starts_with("          word"), "{lines:?}");
    }
}
